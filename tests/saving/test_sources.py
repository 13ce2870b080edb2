"""Source texts: each with the imports that it uses, so that it is a file by itself."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest
from torch import nn

from torchkeep.saving.sources import source_texts

MINE = '''\
"""Not a part of it."""
from __future__ import annotations
import math, os
import numpy as np
from torch import nn as layers
from mine.other import Block


class Base(layers.Module):
    size = np.pi


class Net(Base):
    class Inner(layers.Module):
        pass

    def forward(self, x):
        return math.sqrt(x)
'''


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "__init__.py").write_text("")
    (tmp_path / "mine" / "other.py").write_text("class Block: pass\n")
    (tmp_path / "mine" / "net.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("mine.net")
    yield module
    for name in ("mine", "mine.net", "mine.other"):
        del sys.modules[name]


def test_a_class_comes_with_its_bases_and_the_imports_that_each_uses(mine: ModuleType):
    assert source_texts([mine.Net, nn.Linear, len]) == {
        "mine.net.Base": (
            "import numpy as np\nfrom torch import nn as layers\n\n\n"
            "class Base(layers.Module):\n    size = np.pi\n"
        ),
        "mine.net.Net": (
            "import math, os\nfrom torch import nn as layers\n\n\n"
            "class Net(Base):\n    class Inner(layers.Module):\n        pass\n\n"
            "    def forward(self, x):\n        return math.sqrt(x)\n"
        ),
    }


def test_a_class_in_a_class_is_moved_to_the_margin(mine: ModuleType):
    texts = source_texts([mine.Net.Inner])
    assert texts["mine.net.Net.Inner"].endswith("class Inner(layers.Module):\n    pass\n")


def test_what_was_typed_into_a_console_has_no_text():
    scope: dict[str, object] = {"__name__": "typed"}
    exec("class Typed: pass", scope)
    assert source_texts([scope["Typed"]]) == {}
