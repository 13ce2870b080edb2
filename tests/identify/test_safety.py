"""The lists behind the verdict agree with the installed PyTorch."""

from __future__ import annotations

import pytest
import torch
from torch import _weights_only_unpickler

from torchkeep.contents import Global
from torchkeep.identify.safety import WEIGHTS_ONLY, is_dangerous


def test_the_list_of_allowed_names_is_torchs_own() -> None:
    """Private API: nothing public tells what weights_only allows, and the verdict rests on it."""
    allowed = set(_weights_only_unpickler._get_allowed_globals())
    assert allowed - WEIGHTS_ONLY == set(), "torch allows names that inspect calls blocked"
    surplus = WEIGHTS_ONLY - allowed
    # Names of other releases; what this release lacks it can't be asked to load.
    assert all(not hasattr(torch, name.removeprefix("torch.")) for name in surplus), surplus


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "posix.system",
        "nt.system",
        "subprocess.Popen",
        "builtins.eval",
        "builtins.exec",
        "builtins.__import__",
        "runpy.run_path",
        "importlib.import_module",
        "pkgutil.resolve_name",
        "pickle.loads",
        "marshal.loads",
        "torch.load",
        "torch.hub.load",
        "torch.serialization.load",
        "numpy.load",
        "operator.attrgetter",
        "_operator.methodcaller",
        "functools.reduce",
        "types.CodeType",
        "webbrowser.open",
        "ctypes.CDLL",
        "socket.socket",
        "shutil.rmtree",
    ],
)
def test_a_name_that_no_model_needs_is_dangerous(name: str) -> None:
    assert is_dangerous(Global(*name.rsplit(".", 1)))


def test_a_name_that_reaches_through_a_module_is_dangerous() -> None:
    assert is_dangerous(Global("torch.serialization", "os.system"))
    assert not is_dangerous(Global("project.models", "Outer.Inner"))


@pytest.mark.parametrize(
    "name", ["torch.nn.modules.linear.Linear", "project.Net", "collections.OrderedDict"]
)
def test_an_ordinary_name_is_not_dangerous(name: str) -> None:
    assert not is_dangerous(Global(*name.rsplit(".", 1)))


@pytest.mark.parametrize("name", ["code.nets.Net", "test.models.Net", "profile.Net", "io.Net"])
def test_a_package_that_people_call_like_a_standard_module_is_not_dangerous(name: str) -> None:
    assert not is_dangerous(Global(*name.rsplit(".", 1)))


@pytest.mark.parametrize("name", ["code.interact", "profile.run", "io.open", "io.FileIO"])
def test_what_runs_code_in_those_modules_is_dangerous(name: str) -> None:
    assert is_dangerous(Global(*name.rsplit(".", 1)))
