"""ONNX and GGUF, by their own packages."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from frameworks.expected import expecting


def write(folder: Path) -> None:
    weight = numpy_helper.from_array(np.ones((3, 4), np.float32), "weight")
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])]
    node = helper.make_node("MatMul", ["x", "weight"], ["y"])
    graph = helper.make_graph([node], "small", inputs, outputs, [weight])
    path = expecting(folder / "model.onnx", container="onnx", role="program")
    onnx.save(helper.make_model(graph), path)
    path = expecting(folder / "model.gguf", container="gguf", role="state_dict")
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_tensor("token_embd.weight", np.ones((8, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
