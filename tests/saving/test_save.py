"""saving.save: modules, state dicts and trees to both formats."""

from __future__ import annotations

import json
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import safetensors.torch as reference
import torch
from safetensors import safe_open

from torchkeep.errors import SaveRefused
from torchkeep.saving import SaveReport, save

SUFFIXES = [".safetensors", ".pth", ".pt", ".ckpt", ".bin"]


class Buffered(torch.nn.Module):
    """A module with each kind of state: parameter, persistent and other buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(2))
        self.register_buffer("mean", torch.ones(2))
        self.register_buffer("cache", torch.zeros(2), persistent=False)


def read(path: Path) -> dict[str, torch.Tensor]:
    if path.suffix == ".safetensors":
        return reference.load_file(path)
    return torch.load(path, weights_only=True)


def net() -> torch.nn.Module:
    return torch.nn.Sequential(
        torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2)
    )


# --- What is saved -----------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".PTH"])
def test_a_modules_parameters_and_buffers_are_saved(tmp_path: Path, suffix: str) -> None:
    model = net()
    report = save(model, tmp_path / f"model{suffix}")
    found = read(tmp_path / f"model{suffix}")
    assert found.keys() == model.state_dict().keys() == report.digests.keys()
    assert all(torch.equal(found[key], value) for key, value in model.state_dict().items())
    assert report.path == tmp_path / f"model{suffix}"
    assert report.nbytes == report.path.stat().st_size
    other = net()
    other.load_state_dict(found)


def test_a_non_persistent_buffer_is_reported_and_a_persistent_one_is_saved(tmp_path: Path) -> None:
    model = torch.nn.DataParallel(torch.nn.ModuleDict({"part": Buffered()}))
    report = save(model, tmp_path / "model.pth")
    assert report.not_saved == ("part.cache",)
    assert read(tmp_path / "model.pth").keys() == {"part.weight", "part.mean"}
    assert "not saved (non-persistent buffers): part.cache" in str(report)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_the_prefixes_of_real_wrappers_are_dropped(tmp_path: Path, suffix: str) -> None:
    model = net()
    inner = torch.nn.Sequential(torch.compile(model[0], backend="eager"), *model[1:])
    wrapped = {
        "parallel": (torch.nn.DataParallel(model), ("module",)),
        "compiled": (torch.compile(model, backend="eager"), ("_orig_mod",)),
        "both": (
            torch.compile(torch.nn.DataParallel(model), backend="eager"),
            ("_orig_mod", "module"),
        ),
        "twice": (torch.nn.DataParallel(torch.nn.DataParallel(model)), ("module",)),
        "part": (inner, ("_orig_mod",)),
    }
    for name, (wrapper, stripped) in wrapped.items():
        report = save(wrapper, tmp_path / f"{name}{suffix}")
        assert report.stripped == stripped, name
        assert read(report.path).keys() == model.state_dict().keys(), name


def test_an_attribute_that_is_called_module_stays(tmp_path: Path) -> None:
    model = torch.nn.ModuleDict({"module": net()})
    report = save(model, tmp_path / "model.pth")
    assert report.stripped == ()
    assert read(report.path).keys() == model.state_dict().keys()


def test_the_versions_in_a_state_dict_lose_the_prefix_as_well(tmp_path: Path) -> None:
    save(torch.nn.DataParallel(net()), tmp_path / "model.pth")
    found = torch.load(tmp_path / "model.pth", weights_only=True)
    assert type(found) is OrderedDict
    assert found._metadata == net().state_dict()._metadata


def test_a_state_dict_keeps_the_names_that_it_has(tmp_path: Path) -> None:
    state = torch.nn.DataParallel(net()).state_dict()
    report = save(state, tmp_path / "state.safetensors")
    assert read(report.path).keys() == state.keys()
    assert report.stripped == ()


def test_a_checkpoint_is_saved_as_a_tree(tmp_path: Path) -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), momentum=0.9)
    tree = {"epoch": 3, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
    save(tree, tmp_path / "run.ckpt")
    found = torch.load(tmp_path / "run.ckpt", weights_only=True)
    assert found["epoch"] == 3
    assert found["optimizer"] == optimizer.state_dict()


def test_extra_state_is_saved_where_the_format_can(tmp_path: Path) -> None:
    class Extra(torch.nn.Linear):
        def get_extra_state(self) -> dict[str, int]:
            return {"seen": 3}

    save(Extra(1, 1), tmp_path / "model.pth")
    assert read(tmp_path / "model.pth")["_extra_state"] == {"seen": 3}
    with pytest.raises(SaveRefused, match=r"'_extra_state' is of type builtins.dict.* as \.pth"):
        save(Extra(1, 1), tmp_path / "model.safetensors")


# --- Metadata ----------------------------------------------------------------------------------


def metadata_of(path: Path) -> dict[str, str]:
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            return file.metadata()
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read("archive/torchkeep.json"))


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_date_versions_and_free_keys_are_kept(tmp_path: Path, suffix: str) -> None:
    given = {"run": "first", "lr": 0.1, "classes": ["Katze", "犬"], "best": None}
    report = save(net(), tmp_path / f"model{suffix}", metadata=given)
    found = metadata_of(report.path)
    assert found["run"] == "first"
    assert json.loads(found["lr"]) == 0.1
    assert json.loads(found["classes"]) == ["Katze", "犬"]
    assert found["best"] == "null"
    assert found["torch_version"] == str(torch.__version__)
    assert {"date", "torchkeep_version", "python_version"} < found.keys()


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_given_date_makes_the_bytes_reproducible(tmp_path: Path, suffix: str) -> None:
    model = net()
    for name in ("one", "two"):
        save(model, tmp_path / f"{name}{suffix}", metadata={"date": "2026-11-23"})
    one, two = (tmp_path / f"{name}{suffix}" for name in ("one", "two"))
    assert metadata_of(one)["date"] == "2026-11-23"
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"x": {1, 2}}, r"metadata 'x' can't be written as JSON"),
        ({"x": float("nan")}, r"metadata 'x' can't be written as JSON"),
        ({3: "x"}, r"metadata key 3 is no text"),
        ({"torchkeep.digests": "x"}, r"metadata key 'torchkeep.digests' is set by torchkeep"),
    ],
)
def test_metadata_that_is_not_json_is_refused_by_its_key(
    tmp_path: Path, metadata: dict, message: str
) -> None:
    with pytest.raises(SaveRefused, match=message):
        save(net(), tmp_path / "model.pth", metadata=metadata)


# --- Progress ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kwargs", [{}, {"shard_nbytes": 9 << 20}])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_progress_counts_every_byte_of_the_tensors_once(
    tmp_path: Path, suffix: str, kwargs: dict
) -> None:
    if suffix == ".pth":
        kwargs = {}
    large = torch.zeros(9 << 20, dtype=torch.uint8)
    state = {"large": large, **{f"t{n}": torch.ones(100) for n in range(50)}, "turned": large[::2]}
    seen: list[tuple[int, int]] = []

    def progress(done: int, total: int) -> None:
        seen.append((done, total))

    save(state, tmp_path / f"a{suffix}", progress=progress, **kwargs)
    shared = suffix == ".pth"
    total = 50 * 400 + (9 << 20) + (0 if shared else (9 << 20) // 2)
    assert {every for _, every in seen} == {total}
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1] == (total, total)
    assert len(seen) > 3


def test_an_error_of_who_watches_ends_the_save_and_leaves_nothing(tmp_path: Path) -> None:
    def progress(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save({"x": torch.ones(3)}, tmp_path / "a.pth", progress=progress)
    assert list(tmp_path.iterdir()) == []


# --- Refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model", "model.onnx", "model.tar"])
def test_a_suffix_that_names_no_format_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(
        SaveRefused, match=rf"{name}: the suffix .* Use one of \.safetensors, \.pth"
    ):
        save(net(), tmp_path / name)


def test_a_tree_is_refused_as_safetensors_by_the_first_key_that_is_no_tensor(
    tmp_path: Path,
) -> None:
    with pytest.raises(SaveRefused, match=r"'model' is of type .*OrderedDict, .* or save as \.pth"):
        save({"model": net().state_dict()}, tmp_path / "a.safetensors")
    with pytest.raises(SaveRefused, match=r"a list can't be stored as safetensors"):
        save([torch.ones(1)], tmp_path / "a.safetensors")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_an_existing_file_is_kept_unless_it_may_be_replaced(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_bytes(b"precious")
    with pytest.raises(SaveRefused, match="there is something already"):
        save(net(), path)
    assert path.read_bytes() == b"precious"
    save(net(), path, overwrite=True)
    assert read(path)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_model_without_values_is_refused_by_name(tmp_path: Path, suffix: str) -> None:
    with torch.device("meta"):
        model = net()
    with pytest.raises(SaveRefused, match=r"tensor '0.weight' is on the meta device"):
        save(model, tmp_path / f"model{suffix}")


def test_a_report_reads_as_one_line() -> None:
    report = SaveReport(Path("a.pth"), 1234567, 3, stripped=("module",))
    assert str(report) == "a.pth: 3 tensors, 1,234,567 bytes; dropped from the names: module"
