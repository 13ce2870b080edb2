"""load_model: what was saved whole comes back, by our files and by the pickles of torch.save."""

from __future__ import annotations

import sys
import types
import warnings
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm.layers
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations, prune

import torchkeep
from loading.whole.networks import Block, MovedNet, Net, names, tokens
from torchkeep.errors import (
    ClassesMissing,
    DamagedFile,
    LimitReached,
    LoadMismatch,
    ProofFailed,
    UnsupportedContent,
    WrongArgument,
)
from torchkeep.loading import load_model
from torchkeep.saving import save
from torchkeep.tensors import same_bits

Writer = Callable[[Any, Path], object]
WRITERS: dict[str, Writer] = {
    "ours.safetensors": partial(save, whole=True),
    "ours.pth": partial(save, whole=True),
    "zip.pt": torch.save,
    "legacy.pt": partial(torch.save, _use_new_zipfile_serialization=False),
}


@pytest.fixture(params=WRITERS)
def write(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[nn.Module], Path]:
    """Return what saves a model in one of the four ways, and gives the file."""

    def write(model: nn.Module) -> Path:
        path = tmp_path / request.param
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old PyTorch asks for the source of local classes
            WRITERS[request.param](model, path)
        return path

    return write


def assert_same(model: nn.Module, other: nn.Module) -> None:
    """Assert that two models are the same, tensor by tensor and module by module."""
    assert str(model) == str(other)
    ours, theirs = dict(model.named_modules()), dict(other.named_modules())
    assert ours.keys() == theirs.keys()
    assert [m.training for m in ours.values()] == [m.training for m in theirs.values()]
    for name, module in ours.items():
        for table in ("_parameters", "_buffers"):
            mine, its = vars(module)[table], vars(theirs[name])[table]
            assert list(mine) == list(its)
            for key, tensor in mine.items():
                assert (tensor is None) == (its[key] is None)
                if tensor is not None:
                    assert same_bits(tensor, its[key])
                    assert tensor.requires_grad is its[key].requires_grad
                    assert type(tensor) is type(its[key])
        assert module._non_persistent_buffers_set == theirs[name]._non_persistent_buffers_set


def test_a_model_comes_back_with_all_that_it_was(write: Callable[[nn.Module], Path]):
    model = Net()
    again = load_model(write(model), classes=names(Net, Block))
    assert_same(again, model)
    assert again.head.weight is again.embed.weight
    assert again.block.first is again.block.second
    assert again.block.act is functional.gelu
    assert again.labels == {"cat": 0, "dog": 1}
    assert again.training
    assert not again.norm.training
    assert torch.equal(again(tokens()), model(tokens()))
    again(tokens()).sum().backward()
    assert again.embed.weight.grad is not None
    assert again.norm.weight.grad is None


def test_a_class_that_was_renamed_takes_the_old_ones_place(write: Callable[[nn.Module], Path]):
    model = Net()
    path = write(model)
    again = load_model(path, classes=names(Block) | {"loading.whole.networks.Net": MovedNet})
    assert type(again) is MovedNet
    assert torch.equal(again(tokens()), model(tokens()))


def test_trusted_packages_are_imported_by_the_names_in_the_file(
    write: Callable[[nn.Module], Path],
):
    path = write(Net())
    assert type(load_model(path, trust=("loading",))) is Net
    with pytest.raises(ClassesMissing):
        load_model(path, trust=("load", "loading.whole.other"))


def test_classes_that_are_missing_are_all_named_with_the_tree_and_what_would_help(
    write: Callable[[nn.Module], Path],
):
    path = write(Net())
    with pytest.raises(ClassesMissing) as caught:
        load_model(path)
    problem, *lines = str(caught.value).split("\n")
    assert caught.value.names == ("loading.whole.networks.Net", "loading.whole.networks.Block")
    assert problem == (
        f"{path}: the model is made of classes that are not known here: "
        "loading.whole.networks.Net, loading.whole.networks.Block. Give the classes:"
    )
    assert lines[:3] == [
        f"  torchkeep.load_model({str(path)!r}, classes={{'loading.whole.networks.Net': Net, "
        "'loading.whole.networks.Block': Block})",
        "or, if they can be imported by these names:",
        f"  torchkeep.load_model({str(path)!r}, trust=('loading',))",
    ]
    has_source = path.name != "zip.pt"
    text = "Their source text is in the file; run_source=True runs it: read it before."
    assert (text in lines) is has_source
    rescue = f"Without them: torchkeep rescue {path} FOLDER takes out weights and structure."
    assert lines[3 + has_source :][:3] == [rescue, "The model:", "Net(labels={cat: 0, dog: 1})"]
    assert "    (first...second): 2 x Linear(in_features=6, out_features=6), 42 parameters" in lines


def test_the_calls_that_would_help_choose_the_same_model(tmp_path: Path):
    path = tmp_path / "both.pt"
    torch.save({"model": Net(), "ema": Net()}, path)
    with pytest.raises(ClassesMissing) as caught:
        load_model(path, select="ema")
    call = f"  torchkeep.load_model({str(path)!r}, select='ema', "
    assert f"\n{call}classes={{'loading.whole.networks.Net': Net, " in str(caught.value)
    assert f"\n{call}trust=('loading',))\n" in str(caught.value)


def test_a_package_may_be_trusted_by_its_name_alone(tmp_path: Path):
    save(Net(), tmp_path / "model.pth", whole=True)
    assert type(load_model(tmp_path / "model.pth", trust="loading")) is Net


def test_classes_under_names_that_the_model_does_not_have_are_told(tmp_path: Path):
    save(Net(), tmp_path / "model.pth", whole=True)
    with pytest.raises(ClassesMissing, match=r"nothing that is called 'networks\.Net', as classes"):
        load_model(tmp_path / "model.pth", classes={"networks.Net": Net})


def test_classes_that_are_no_dict_are_refused(tmp_path: Path):
    save(Net(), tmp_path / "model.pth", whole=True)
    with pytest.raises(WrongArgument) as caught:
        load_model(tmp_path / "model.pth", classes=[Net, Block])  # type: ignore[arg-type]
    assert str(caught.value) == (
        "classes is a list, and should be a dict. "
        "Give the classes by the names in the file: {'old.path.Net': Net}."
    )


def test_a_library_that_is_not_installed_is_named(tmp_path: Path, monkeypatch):
    path = tmp_path / "model.pt"
    torch.save(nn.Sequential(nn.Linear(1, 1), timm.layers.SelectAdaptivePool2d()), path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "timm"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ClassesMissing) as caught:
        load_model(path)
    assert "\nOr install timm, whose classes are known.\n" in str(caught.value)
    assert "trust=" not in str(caught.value)


def test_classes_and_functions_of_a_function_are_given_by_name(tmp_path: Path):
    class Local(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(2, 2)
            self.scale = lambda x: 2 * x

        def forward(self, x):
            return self.scale(self.fc(x))

    model, path = Local(), tmp_path / "model.safetensors"
    needed = save(model, path, whole=True).needs
    with pytest.raises(ClassesMissing, match=r"<locals>\.Local': Local") as caught:
        load_model(path)
    assert caught.value.names == needed
    again = load_model(path, classes=dict(zip(needed, (Local, model.scale), strict=True)))
    assert torch.equal(again(torch.ones(1, 2)), model(torch.ones(1, 2)))


@pytest.mark.parametrize("device", ["gpu", "cuda:99"])
def test_a_device_that_is_not_there_is_refused(device: str, tmp_path: Path):
    path = tmp_path / "model.pth"
    save(nn.Linear(1, 1), path, whole=True)
    for load in (load_model, torchkeep.load, torchkeep.open):
        with pytest.raises(WrongArgument) as caught:
            load(path, device=device)
        text = str(caught.value)
        assert text.startswith(f"device {device!r} can't be used here (")
        assert text.endswith("). Use 'cpu', or a device that this PyTorch and this machine have.")


def test_a_long_tree_is_cut_in_the_message(tmp_path: Path):
    model = nn.Sequential(*(nn.Sequential(nn.Linear(1, n), nn.ReLU()) for n in range(1, 90)))
    model.append(Block(2))
    save(model, tmp_path / "model.pth", whole=True)
    with pytest.raises(ClassesMissing) as caught:
        load_model(tmp_path / "model.pth")
    assert str(caught.value).endswith("\n... (270 lines)")


# --- Source texts ------------------------------------------------------------------------------


@pytest.fixture
def home_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """Return a module of the user's, as a file that is gone when its model is loaded."""
    path = tmp_path / "home_made.py"
    path.write_text(
        "import math\nimport torch\nfrom torch import nn\n\n\n"
        "class Base(nn.Module):\n"
        "    def forward(self, x):\n        return self.fc(x) * math.pi\n\n\n"
        "class Net(Base):\n"
        "    def __init__(self):\n        super().__init__()\n        self.fc = nn.Linear(2, 2)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "home_made", raising=False)
    import home_made

    monkeypatch.setitem(sys.modules, "home_made", home_made)
    return home_made


def test_source_text_in_our_files_runs_if_it_is_asked_for(
    home_made: types.ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    model = home_made.Net()
    path = tmp_path / "model.safetensors"
    save(model, path, whole=True)
    monkeypatch.delitem(sys.modules, "home_made")
    (tmp_path / "home_made.py").unlink()
    with pytest.raises(ClassesMissing, match="run_source=True"):
        load_model(path)
    with pytest.raises(ClassesMissing):
        load_model(path, trust=("home_made",))
    again = load_model(path, run_source=True)
    assert type(again) is not home_made.Net
    assert torch.equal(again(torch.ones(1, 2)), model(torch.ones(1, 2)))
    assert "home_made" not in sys.modules


def test_source_text_in_a_legacy_file_runs_if_it_is_asked_for(tmp_path: Path):
    path = tmp_path / "legacy.pt"
    model = Block(3)
    torch.save(model, path, _use_new_zipfile_serialization=False)
    again = load_model(path, run_source=True)
    assert type(again) is not Block
    assert torch.equal(again(torch.ones(1, 3)), model(torch.ones(1, 3)))


def test_source_text_that_can_not_be_run_is_told_of(
    home_made: types.ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "model.safetensors"
    save(home_made.Net(), path, whole=True)
    text, broken = b"return self.fc(x) * math.pi", b"return ((("
    path.write_bytes(path.read_bytes().replace(text, broken.ljust(len(text))))
    with pytest.raises(ClassesMissing) as caught:
        load_model(path, run_source=True)
    problem = "the source text in the file can't be run (home_made.Net: NameError: "
    assert problem in str(caught.value)
    assert "Take it out with torchkeep rescue, mend it, and give the classes." in str(caught.value)


# --- Which model -------------------------------------------------------------------------------


def test_a_model_in_a_checkpoint_is_selected_by_its_name(tmp_path: Path):
    model, ema = nn.Linear(2, 2), nn.Linear(2, 2)
    path = tmp_path / "checkpoint.pt"
    torch.save({"epoch": 3, "model": model, "ema": ema, "criterion": nn.MSELoss()}, path)
    assert_same(load_model(path), model)
    assert_same(load_model(path, select="ema"), ema)
    with pytest.raises(LoadMismatch, match="no state dict is called select='other'"):
        load_model(path, select="other")


def test_a_file_without_a_whole_model_is_refused_with_what_to_do(tmp_path: Path):
    path = tmp_path / "state.pt"
    torch.save(nn.Linear(2, 2).state_dict(), path)
    with pytest.raises(LoadMismatch) as caught:
        load_model(path)
    assert f"{path}: there is no whole model in this file (" in str(caught.value)
    assert str(caught.value).endswith(
        "Build the model, and load its parameters with torchkeep.load_into."
    )


def test_wrappers_are_left_out(write: Callable[[nn.Module], Path]):
    model = nn.Sequential(nn.Linear(2, 2), nn.DataParallel(nn.Linear(2, 1)))
    again = load_model(write(nn.DataParallel(model)))
    assert isinstance(again, nn.Sequential)
    assert isinstance(again[1], nn.Linear)
    assert torch.equal(again(torch.ones(1, 2)), model(torch.ones(1, 2)))


def test_a_compiled_model_is_saved_as_what_it_was_made_from(tmp_path: Path):
    model = nn.Sequential(nn.Linear(2, 2))
    save(torch.compile(model), tmp_path / "model.safetensors", whole=True)
    assert_same(load_model(tmp_path / "model.safetensors"), model)


def test_tensors_are_made_on_the_device_that_is_asked_for(write: Callable[[nn.Module], Path]):
    path = write(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))
    if torch.cuda.is_available():
        assert {p.device.type for p in load_model(path, device="cuda").parameters()} == {"cuda"}
    assert {p.device.type for p in load_model(path, device="cpu").parameters()} == {"cpu"}


# --- What modules are made of ------------------------------------------------------------------


def test_recurrent_and_attention_layers_run_as_before(write: Callable[[nn.Module], Path]):
    class Layers(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.encoder(self.attention(*[self.gru(self.lstm(x)[0])[0]] * 3)[0])

    Layers.__qualname__ = "Layers"
    globals()["Layers"] = Layers
    model = Layers()
    model.lstm = nn.LSTM(4, 2, num_layers=2, bidirectional=True)
    model.gru = nn.GRU(4, 4, bias=False)
    model.attention = nn.MultiheadAttention(4, 2)
    model.encoder = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0)
    model.eval()
    again = load_model(write(model), classes=names(Layers))
    assert_same(again, model)
    x = torch.randn(3, 1, 4)
    assert torch.equal(again(x), model(x))


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_weights_that_are_computed_before_each_call_are_computed_again(
    write: Callable[[nn.Module], Path],
):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the old ways to do it
        model = nn.Sequential(
            nn.utils.weight_norm(nn.Linear(3, 3)),
            nn.utils.spectral_norm(nn.Linear(3, 3)),
            prune.random_unstructured(nn.Linear(3, 3), "weight", 0.5),
            prune.l1_unstructured(
                prune.l1_unstructured(nn.Linear(3, 3), "bias", 1), "weight", amount=2
            ),
        ).eval()
    with torch.no_grad():
        expected = model(torch.ones(1, 3))
    # What was computed is no leaf of the graph, and only that can be pickled.
    again = load_model(write(model))
    assert again[0].weight.shape == (3, 3)
    assert torch.equal(again[2].weight, model[2].weight)
    with torch.no_grad():
        assert torch.equal(again(torch.ones(1, 3)), expected)
    with torch.no_grad():
        again[0].weight_g.mul_(2)
        assert not torch.equal(again(torch.ones(1, 3)), expected)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_parametrized_modules_come_back_parametrized(tmp_path: Path, suffix: str):
    model = nn.Sequential(
        parametrizations.weight_norm(nn.Conv1d(2, 2, 1)),
        parametrizations.spectral_norm(nn.Linear(3, 3)),
        parametrizations.orthogonal(nn.Linear(3, 3)),
    ).eval()
    path = tmp_path / f"model{suffix}"
    save(model, path, whole=True)
    again = load_model(path)
    assert_same(again, model)
    assert again.state_dict().keys() == model.state_dict().keys()
    x = torch.randn(2, 3)
    assert torch.equal(again(x), model(x))
    with torch.no_grad():
        again[0].parametrizations.weight.original0.mul_(2)
    assert not torch.equal(again(x), model(x))
    nn.utils.parametrize.remove_parametrizations(again[0], "weight")
    assert type(again[0]) is nn.Conv1d


def test_attributes_of_every_plain_kind_come_back(write: Callable[[nn.Module], Path]):
    values = {
        "floats": [float("inf"), -0.0, 1e-300, 1 + 2j],
        "texts": ("ä\n", b"\x00\xff", None, True, 1 << 80),
        "sets": [{1, "a"}, frozenset({2})],
        "tables": OrderedDict(a={1: 2, (3, 4): 5}),
        "queue": deque([1, 2], maxlen=3),
        "slices": [slice(1, None, 2), range(3), ...],
        "dtype": torch.float16,
        "partial": partial(nn.LayerNorm, eps=1e-6),
        "layer": nn.ReLU,
        "type": "conv",
        "function": torch.tanh,
        "builtin": functional.gelu,
        "config": types.SimpleNamespace(lr=0.1, nested=types.SimpleNamespace(a=1)),
        "array": np.arange(6, dtype=np.int16).reshape(2, 3),
        "number": np.float32(0.1),
        "tensor": torch.arange(3.0),
        "parameters": None,
    }
    model = nn.Sequential(nn.Linear(1, 1))
    for name, value in values.items():
        setattr(model, name, value)
    model.parameters_in_a_list = [model[0].weight]
    again = load_model(write(model))
    for name in set(values) - {"partial", "array", "tensor", "number"}:
        found = getattr(again, name)
        assert type(found) is type(values[name]), name
        assert found == values[name], name
    assert again.queue.maxlen == 3
    assert (again.partial.func, again.partial.keywords) == (nn.LayerNorm, {"eps": 1e-6})
    assert np.array_equal(again.array, model.array)
    assert again.number == float(np.float32(0.1))
    assert torch.equal(again.tensor, model.tensor)
    assert again.parameters_in_a_list[0] is again[0].weight


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_what_our_files_keep_that_readers_of_pickles_do_not(tmp_path: Path, suffix: str):
    model = nn.Sequential(nn.Linear(1, 1))
    model.table = defaultdict(list, a=[1])
    model.device = torch.device("cuda", 1)
    model.size = torch.Size([1, 2])
    model.format = torch.channels_last
    path = tmp_path / f"model{suffix}"
    save(model, path, whole=True)
    again = load_model(path)
    assert again.table == {"a": [1]}
    assert again.table["new"] == []
    assert again.device == torch.device("cuda", 1)
    assert type(again.size) is torch.Size
    assert again.format is torch.channels_last


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta:UserWarning")
@pytest.mark.parametrize("name", ["zip.pt", "legacy.pt"])
def test_buffers_of_every_layout_come_back(tmp_path: Path, name: str):
    model = nn.Linear(2, 2)
    model.register_buffer("sparse", torch.eye(2).to_sparse())
    model.register_buffer("rows", torch.eye(2).to_sparse_csr())
    model.register_buffer("strided", torch.arange(6.0).reshape(2, 3).t())
    model.register_buffer("complex", torch.ones(2, dtype=torch.complex64).conj())
    model.register_buffer("nothing", torch.empty(0, 3))
    WRITERS[name](model, tmp_path / name)
    again = load_model(tmp_path / name)
    assert torch.equal(again.sparse.to_dense(), torch.eye(2))
    assert again.rows.layout == torch.sparse_csr
    assert again.strided.stride() == (1, 3)
    assert same_bits(again.complex, model.complex)
    assert again.nothing.shape == (0, 3)


class Turned(nn.Linear):
    """Has another way to run, and takes it."""

    def __init__(self) -> None:
        super().__init__(2, 2)
        self.forward = self.forward_twice

    def forward_twice(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(super().forward(x))


def test_a_module_may_choose_its_forward_among_its_own_methods(write: Callable[[nn.Module], Path]):
    model = Turned()
    again = load_model(write(model), classes=names(Turned))
    assert again.forward.__self__ is again
    assert torch.equal(again(torch.ones(1, 2)), model(torch.ones(1, 2)))


def add_more(module: nn.Module, args: object, kwargs: dict[str, float], made: torch.Tensor):
    return made + kwargs["more"]


class Adding(nn.Linear):
    """Takes what only its hook uses."""

    def forward(self, x: torch.Tensor, more: float = 0.0) -> torch.Tensor:
        return super().forward(x)


def test_a_hook_in_a_pickle_is_a_name_like_others(tmp_path: Path):
    model = Adding(2, 2)
    model.register_forward_hook(add_more, with_kwargs=True)
    path = tmp_path / "model.pt"
    torch.save(model, path)
    with pytest.raises(ClassesMissing) as caught:
        load_model(path, classes=names(Adding))
    assert caught.value.names == (f"{__name__}.add_more",)
    again = load_model(path, classes=names(Adding, add_more))
    x = torch.ones(1, 2)
    assert torch.equal(again(x, more=3.0), model(x, more=3.0))
    assert not torch.equal(again(x, more=3.0), again(x, more=4.0))


class Config:
    """What a model was made with, as an object with a state of its own."""

    def __init__(self, width: int) -> None:
        self.width = width

    def __getstate__(self) -> dict[str, int]:
        return {"w": self.width}

    def __setstate__(self, state: dict[str, int]) -> None:
        self.width = state["w"]


def test_an_object_of_the_users_gets_its_state_as_it_wants_it(write: Callable[[nn.Module], Path]):
    model = nn.Sequential(nn.Linear(1, 1))
    model.config = Config(3)
    path = write(model)
    with pytest.raises(ClassesMissing):
        load_model(path)
    assert load_model(path, classes=names(Config)).config.width == 3


# --- Files of other times, and failures --------------------------------------------------------


def test_what_later_releases_added_to_modules_gets_its_default(tmp_path: Path):
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.GELU(), nn.Softmax(1))
    expected = model.eval()(torch.ones(1, 1, 5, 5))
    for module in model.modules():
        for name in ("_non_persistent_buffers_set", "_backward_pre_hooks", "_state_dict_pre_hooks"):
            del vars(module)[name]
        vars(module)["_backend"] = None
    del model[0].padding_mode, model[1].track_running_stats, model[2].approximate
    del model[1]._buffers["num_batches_tracked"]
    path = tmp_path / "old.pt"
    torch.save(model, path)
    again = load_model(path)
    assert torch.equal(again(torch.ones(1, 1, 5, 5)), expected)
    assert "_backend" not in vars(again[0])
    again.train()(torch.ones(2, 1, 5, 5))
    assert again[1].num_batches_tracked == 1


class Changing(nn.Linear):
    """Changes what it is given."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        with torch.no_grad():
            self.weight.add_(1)


def test_a_class_that_changes_its_parameters_fails_the_proof(write: Callable[[nn.Module], Path]):
    path = write(Changing(2, 2))
    with pytest.raises(ProofFailed) as caught:
        load_model(path, classes=names(Changing))
    assert "'weight' differs from the file after it was rebuilt: its values" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (
            lambda self: self.train(),
            "'the model' differs from the file after it was rebuilt: its t",
        ),
        (lambda self: self.weight.requires_grad_(False), "'weight' differs .* its requires_grad"),
        (lambda self: self.register_parameter("bias", None), "'bias' differs .* its values"),
        (
            lambda self: self.register_parameter("other", nn.Parameter(self.weight.clone())),
            "'other' differs .* one tensor with another, and is on its own",
        ),
    ],
)
def test_every_flag_is_part_of_the_proof(
    write: Callable[[nn.Module], Path],
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[nn.Module], object],
    what: str,
):
    model = Changing(2, 2).eval()
    model.other = model.weight
    path = write(model)

    def restore(self: nn.Module, state: dict[str, Any]) -> None:
        nn.Module.__setstate__(self, state)
        change(self)

    monkeypatch.setattr(Changing, "__setstate__", restore)
    with pytest.raises(ProofFailed, match=what):
        load_model(path, classes=names(Changing))


class Failing(nn.Module):
    """Can't take its state."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.weight = state["old_name"]


def test_a_class_that_can_not_take_its_state_is_named(write: Callable[[nn.Module], Path]):
    path = write(nn.Sequential(Failing()))
    with pytest.raises(UnsupportedContent) as caught:
        load_model(path, classes=names(Failing))
    assert str(caught.value) == (
        f"{path}: 0: {Failing.__module__}.Failing can't be made of what the file has for it "
        "(KeyError: 'old_name'). Its class has changed since; give the one that it was saved with."
    )


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_damaged_tensor_is_named(tmp_path: Path, suffix: str):
    path = tmp_path / f"model{suffix}"
    save(nn.Sequential(nn.Linear(64, 64)), path, whole=True)
    storage = torchkeep.inspect(path).tensors()[0].entry.storage
    data = bytearray(path.read_bytes())
    data[storage.offset or 0] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamagedFile, match=r"tensor '0\.(bias|weight)'"):
        load_model(path)


def test_the_public_name_is_the_same_function():
    assert torchkeep.load_model is load_model


def test_a_file_whose_values_unfold_too_far_is_named(tmp_path: Path):
    torch.save(Net(), tmp_path / "m.pth")
    with pytest.raises(LimitReached, match=r"m\.pth: the file's values stand in more places"):
        load_model(tmp_path / "m.pth", limits=torchkeep.Limits(places=5))


# --- What no file can hold -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.safetensors", "a.pth"])
def test_hooks_that_are_lost_are_told_of_when_the_model_comes_back(
    tmp_path: Path, name: str
) -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    model.register_forward_hook(lambda module, args, output: output * 2)
    save(model, tmp_path / name, whole=True)
    with pytest.warns(UserWarning, match="had what a file can't hold: the model: a hook .*lambda"):
        again = load_model(tmp_path / name)
    assert not again._forward_hooks
    save(nn.Sequential(nn.Linear(2, 2)), tmp_path / f"plain.{name}", whole=True)
    load_model(tmp_path / f"plain.{name}")  # warnings are errors here
