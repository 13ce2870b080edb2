"""The configuration of a Keras model, which stands in HDF5 files and in JSON of its own.

Layout: JSON; each layer is {"class_name": "Dense", "config": {...}}, and a model's config has a
list of layers. A layer of class Lambda holds Python bytecode in base64, which Keras runs when it
loads the model.

Source: keras/src/saving/serialization_lib.py, keras/src/legacy/saving/serialization.py.
"""

from __future__ import annotations

import json
from typing import Any

from torchkeep.contents import Finding
from torchkeep.wording import counted, shortened


def read_json(text: str) -> Any:
    """Return the value of a JSON text; None if it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def is_config(value: Any) -> bool:
    """Whether a JSON value is the configuration of a model or a layer."""
    return (
        isinstance(value, dict) and isinstance(value.get("class_name"), str) and "config" in value
    )


def shown_model(config: dict[str, Any]) -> str:
    """Return a model's class and size in words: `Sequential, 5 layers`."""
    inner = config["config"]
    layers = inner.get("layers") if isinstance(inner, dict) else inner
    name = shortened(config["class_name"])
    return f"{name}, {counted(len(layers), 'layer')}" if isinstance(layers, list) else name


def find_code(config: Any) -> list[Finding]:
    """Return a finding if the configuration holds Python code, which Keras would run."""
    waiting = [config]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            if node.get("class_name") in ("Lambda", "__lambda__"):
                text = "a Lambda layer holds Python bytecode, which Keras runs"
                return [Finding("keras-lambda", "needs-trust", "model_config", text)]
            waiting += node.values()
        elif isinstance(node, list):
            waiting += node
    return []
