"""The framework that wrote a file is told by its own keys, classes and names, by nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from torchkeep.contents import Contents, DictObject, Global, Object, Storage, TensorEntry, Value
from torchkeep.formats.own.metadata import TRAINING_STATE
from torchkeep.identify.frameworks import framework

TENSOR = TensorEntry("float32", (2, 2), (2, 1), Storage("0", 16, 0))
WEIGHTS = {"fc.weight": TENSOR}
OPTIMIZER: dict[str, Value] = {"state": {}, "param_groups": []}


def named(
    root: Value,
    container: str = "torch-zip",
    metadata: dict[str, str] | None = None,
    members: tuple[Contents, ...] = (),
) -> str | None:
    path = Path("file.pt")
    contents = Contents(path, 1, container, root, metadata=metadata or {}, members=members)
    return framework(contents)


def made(path: str, **attributes: Any) -> Object:
    """Return an object of a class, as a reader describes it."""
    module, _, name = path.rpartition(".")
    return Object(Global(module, name), (), state=attributes or None)


def member(name: str, root: Value = None) -> Contents:
    return Contents(Path("folder") / name, 1, "torch-zip", root)


@pytest.mark.parametrize(
    ("name", "root"),
    [
        ("Lightning", {"state_dict": WEIGHTS, "pytorch-lightning_version": "2.0"}),
        (
            "Lightning",
            {"state_dict": WEIGHTS, "global_step": 1, "optimizer_states": [], "lr_schedulers": []},
        ),
        (
            "timm",
            {"arch": "resnet18", "state_dict": WEIGHTS, "version": 2, "epoch": 1, "metric": 1},
        ),
        ("timm", {"arch": "resnet18", "state_dict": WEIGHTS, "version": 2, "args": None}),
        (
            "Ultralytics",
            {"epoch": 1, "model": None, "ema": None, "updates": 0, "optimizer": OPTIMIZER},
        ),
        ("Ultralytics", {"model": made("ultralytics.nn.tasks.DetectionModel"), "train_args": {}}),
        ("Ultralytics", {"model": made("models.yolo.Model"), "date": "2023"}),
        ("mmengine", {"meta": {}, "state_dict": WEIGHTS, "message_hub": {}}),
        ("mmengine", {"meta": {"mmengine_version": "0.10"}, "state_dict": WEIGHTS}),
        ("mmcv", {"meta": {"mmcv_version": "1.3"}, "state_dict": WEIGHTS}),
        ("detectron2", {"model": WEIGHTS, "optimizer": {}, "scheduler": {}, "iteration": 9}),
        ("detectron2", {"model": WEIGHTS, "__author__": "Detectron2 Model Zoo"}),
        ("fairseq", {"args": None, "model": WEIGHTS, "optimizer_history": []}),
        (
            "fairseq",
            {
                "model": WEIGHTS,
                "args": made("argparse.Namespace", task="a", criterion="b", arch="c"),
            },
        ),
        ("DeepSpeed", {"module": WEIGHTS, "ds_config": {}, "ds_version": "0.14"}),
        ("DeepSpeed", {"optimizer_state_dict": {"zero_stage": 2}}),
        ("FastAI", {"model": WEIGHTS, "opt": {"state": [], "hypers": []}}),
        (
            "stable-baselines3",
            {"state_dict": WEIGHTS, "data": {"observation_space": 1, "action_space": 2}},
        ),
        ("HF Trainer", {"python": 1, "numpy": 2, "cpu": 3}),
        ("HF Trainer", made("transformers.training_args.TrainingArguments")),
        ("Accelerate", {"random_state": 1, "numpy_random_seed": 2, "torch_manual_seed": 3}),
        ("Ignite", {"model": WEIGHTS, "trainer": {"epoch_length": 2, "max_epochs": 2}}),
        ("Composer", {"state": {"model": WEIGHTS, "timestamp": {}}, "rng": []}),
        ("Megatron-LM", {"checkpoint_version": 3.0, "model": {}}),
        ("timm", made("timm.models.resnet.ResNet")),
        ("scikit-learn", made("sklearn.pipeline.Pipeline")),
        ("PyTorch Geometric", [made("torch_geometric.data.data.Data")]),
        ("Lightning", made("project.Net", prepare_data_per_node=1, _automatic_optimization=1)),
        ("PEFT", {"base_model.model.layers.0.q.lora_A.weight": TENSOR}),
        ("torchkeep", {"torchkeep": {}}),
    ],
)
def test_a_framework_is_known_by_what_it_alone_writes(name: str, root: Value) -> None:
    assert named(root) == name


@pytest.mark.parametrize(
    "root",
    [
        WEIGHTS,
        {"state_dict": WEIGHTS, "optimizer": OPTIMIZER, "epoch": 1},
        # The ImageNet example of PyTorch: timm's keys but for its version.
        {"arch": "resnet18", "state_dict": WEIGHTS, "epoch": 1, "optimizer": OPTIMIZER},
        # Tacotron 2 and many after it: detectron2's keys but for the scheduler.
        {"iteration": 5, "model": WEIGHTS, "optimizer": OPTIMIZER, "learning_rate": 0.1},
        {"model": WEIGHTS, "args": made("argparse.Namespace", lr=0.1)},
        {"python": 1, "numpy": 2, "torch": 3},
        {"python": 1, "numpy": 2, "cpu": 3, "model": WEIGHTS},
        {"model": made("project.Net", _parameters={}, _modules={})},
        made("torch.nn.modules.linear.Linear"),
        made("timmy.Net"),
        made("models.yolonet.Net"),
        {"meta": 1},
        {"trainer": 3},
        [],
        None,
        3,
        DictObject("collections.OrderedDict"),
    ],
)
def test_common_keys_and_foreign_classes_name_no_framework(root: Value) -> None:
    assert named(root) is None


def test_mmengine_goes_before_mmcv_whose_keys_it_has_too() -> None:
    meta = {"mmengine_version": "0.10", "mmcv_version": "2.0"}
    assert named({"meta": meta, "state_dict": WEIGHTS, "optimizer": OPTIMIZER}) == "mmengine"


@pytest.mark.parametrize(
    ("name", "members", "states"),
    [
        ("stable-baselines3", ["data", "policy.pth", "pytorch_variables.pth"], []),
        ("HF Trainer", ["model.safetensors"], ["trainer_state.json"]),
        ("HF Trainer", ["model.safetensors", "training_args.bin"], []),
        ("PEFT", ["adapter_model.safetensors"], ["adapter_config.json"]),
        ("Accelerate", ["model.safetensors", "random_states_0.pkl"], []),
        ("NeMo", ["model_weights.ckpt"], []),
        (None, ["model.safetensors"], ["config.json"]),
    ],
)
def test_folders_and_archives_are_known_by_their_files(
    name: str | None, members: list[str], states: list[str]
) -> None:
    root = dict.fromkeys([*states, *members], WEIGHTS)
    assert named(root, "folder", members=tuple(map(member, members))) == name


def test_a_folder_is_its_members_framework_if_they_agree() -> None:
    ours = member("a.ckpt", {"pytorch-lightning_version": "2.0"})
    plain = member("b.pt", WEIGHTS)
    theirs = member("c.pt", {"model": WEIGHTS, "train_args": {}})
    assert named({}, "folder", members=(ours, plain)) == "Lightning"
    assert named({}, "folder", members=(ours, plain, theirs)) is None


def test_what_a_container_says_of_itself_counts() -> None:
    weights = {"lora_unet_a.lora_down.weight": TENSOR}
    metadata = {"ss_network_module": "networks.lora"}
    assert named({"x": TENSOR}, "safetensors", metadata) == "kohya-ss"
    assert named(weights, "safetensors") == "kohya-ss"
    assert named(None, "hdf5", {"keras_version": "3.0"}) == "Keras"
    assert named({}, "paddle") == "PaddlePaddle"
    assert named({"x": TENSOR}, "safetensors", dict(TRAINING_STATE)) == "torchkeep"


def test_a_class_that_is_made_by_a_call_counts_by_what_makes_it() -> None:
    getter = made("torch_geometric.data.batch.DynamicInheritanceGetter")
    assert named(Object(getter, ())) == "PyTorch Geometric"
