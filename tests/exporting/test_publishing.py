"""How a file comes to its place, and what becomes of what is there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from exporting.samples import inputs, net, run_folder
from torchkeep.errors import (
    ProofFailed,
    SaveRefused,
)
from torchkeep.exporting import (
    Exported,
    Onnx,
    Tolerance,
    export,
    prove,
    publishing,
)
from torchkeep.exporting.publishing import publish, staging_folder


def test_what_is_there_is_replaced_only_if_that_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_text("mine")
    with pytest.raises(SaveRefused, match="there is something already"):
        export(net(), path, example=inputs())
    assert path.read_text() == "mine"
    export(net(), path, example=inputs(), overwrite=True, target=Onnx(external_data=True))
    export(net(1), path, example=inputs(), overwrite=True, target=Onnx(external_data=True))
    prove(net(1), path, example=inputs())
    assert {each.name for each in tmp_path.iterdir()} == {
        "net.onnx", "net.onnx.data", "net.onnx.json",
    }  # fmt: skip


def test_what_lies_beside_is_replaced_only_if_that_is_asked_for(tmp_path: Path) -> None:
    for name in ("net.onnx.json", "net.onnx.data"):
        (tmp_path / name).write_text("mine")
        with pytest.raises(SaveRefused, match=rf"{name}: there is something already"):
            export(net(), tmp_path / "net.onnx", example=inputs())
        assert [each.read_text() for each in tmp_path.iterdir()] == ["mine"]
        (tmp_path / name).unlink()


def test_weights_beside_an_older_file_go_with_it(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    export(net(), path, example=inputs(), target=Onnx(external_data=True))
    export(net(1), path, example=inputs(), overwrite=True)
    assert {each.name for each in tmp_path.iterdir()} == {"net.onnx", "net.onnx.json"}


@pytest.mark.parametrize("name", ["net.pt", "net.bin", "net.xml.json"])
def test_what_is_exported_is_never_replaced(name: str, tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 2))
    torch.save(model, tmp_path / name)
    before = (tmp_path / name).read_bytes()
    to, target = ("net.pt", "torchscript") if name == "net.pt" else ("net.xml", "openvino")
    with pytest.raises(SaveRefused, match=rf"{name}: this is what is to be exported"):
        export(
            tmp_path / name, tmp_path / to, target=target, example=torch.ones(9, 4), overwrite=True
        )
    assert [each.read_bytes() for each in tmp_path.iterdir()] == [before]


def test_a_run_s_own_model_is_not_replaced_by_its_export(tmp_path: Path) -> None:
    run = run_folder(tmp_path)
    before = (run / "best.safetensors").read_bytes()
    with pytest.raises(SaveRefused, match=r"best\.safetensors: this is what is to be exported"):
        export(run, run / "best.safetensors", target="onnx", overwrite=True)
    assert (run / "best.safetensors").read_bytes() == before


def test_a_folder_is_refused_and_a_link_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    with pytest.raises(SaveRefused, match="this is no file"):
        export(net(), tmp_path / "real", target="onnx", example=inputs(), overwrite=True)
    link = tmp_path / "link.onnx"
    link.symlink_to(tmp_path / "real" / "net.onnx")
    target = Onnx(external_data=True)
    for seed in range(2):
        model = net(seed)
        report = export(model, link, example=inputs(), target=target, overwrite=seed == 1)
        prove(model, tmp_path / "real" / "net.onnx", example=inputs())
    assert link.is_symlink()
    assert report.path == link
    names = {each.name for each in (tmp_path / "real").iterdir()}
    assert names == {"net.onnx", "net.onnx.data", "net.onnx.json"}


@pytest.fixture(scope="module")
def _two_versions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Exported]:
    root, target = tmp_path_factory.mktemp("versions"), Onnx(external_data=True)
    for seed, name in enumerate(("place", "newer")):
        (root / name).mkdir()
        path = root / name / "net.onnx"
        report = export(net(seed), path, example=inputs(), target=target)
    (root / "newer" / "net.onnx.json").unlink()
    return root, report


@pytest.fixture
def two_versions(
    _two_versions: tuple[Path, Exported], tmp_path: Path
) -> tuple[Path, Path, Exported]:
    """An export in a folder, and another of the same names, with its report, in another."""
    root, report = _two_versions
    shutil.copytree(root, tmp_path, dirs_exist_ok=True)
    return tmp_path / "place", tmp_path / "newer", report


def _contents(folder: Path) -> dict[str, bytes]:
    return {each.name: each.read_bytes() for each in folder.iterdir()}


def test_what_stops_on_the_way_to_its_place_changes_nothing(
    two_versions: tuple[Path, Path, Exported], monkeypatch: pytest.MonkeyPatch
) -> None:
    place, newer, report = two_versions
    path, before = place / "net.onnx", _contents(place)
    replace_file = Path.replace
    for step in range(20):
        left = step

        def counting(self: Path, to: Path) -> Path:
            nonlocal left
            if self.name.startswith("older"):  # what puts back goes on
                return replace_file(self, to)
            left -= 1
            if left < 0:
                raise KeyboardInterrupt
            return replace_file(self, to)

        with staging_folder(path) as folder:
            shutil.copytree(newer, folder, dirs_exist_ok=True)
            with monkeypatch.context() as patch:
                patch.setattr(Path, "replace", counting)
                try:
                    publish(folder, path, report, overwrite=True, parts=[place / "net.onnx.data"])
                    break
                except KeyboardInterrupt:
                    pass
        assert _contents(place) == before
    assert step > 5
    prove(net(1), path, example=inputs())


@pytest.mark.parametrize("is_single", [False, True])
@pytest.mark.parametrize("overwrite", [False, True])
def test_what_stops_on_the_way_to_its_place_leaves_nothing_new(
    overwrite: bool,
    is_single: bool,
    two_versions: tuple[Path, Path, Exported],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, newer, report = two_versions
    place = newer.with_name("empty")
    place.mkdir()
    if is_single:
        (place / "net.onnx.json").write_bytes(b"{}")
        if overwrite:
            (place / "net.onnx").write_bytes(b"a file without weights beside it")
    before, path = _contents(place), place / "net.onnx"

    def failing(self: Path, to: Path) -> Path:
        if self.name.endswith(".json") and to.parent == place:
            raise KeyboardInterrupt
        return replace_file(self, to)

    replace_file = Path.replace
    with staging_folder(path) as folder, monkeypatch.context() as patch:
        shutil.copytree(newer, folder, dirs_exist_ok=True)
        patch.setattr(Path, "replace", failing)
        with pytest.raises((KeyboardInterrupt, SaveRefused)):
            publish(folder, path, report, overwrite=overwrite, parts=[place / "net.onnx.data"])
    assert _contents(place) == before


def test_a_folder_that_somebody_holds_is_not_waited_for_for_ever(
    two_versions: tuple[Path, Path, Exported], monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl = pytest.importorskip("fcntl")
    place, newer, report = two_versions
    monkeypatch.setattr(publishing, "LONGEST_WAIT_S", 0.05)
    path, fd = place / "net.onnx", os.open(place, os.O_RDONLY)
    with staging_folder(path) as folder, ThreadPoolExecutor(1) as pool:
        shutil.copytree(newer, folder, dirs_exist_ok=True)
        fcntl.flock(fd, fcntl.LOCK_EX)
        try:
            put = pool.submit(publish, folder, path, report, overwrite=True)
            put.result(timeout=30)
        finally:
            os.close(fd)  # what waits goes on then
    prove(net(1), path, example=inputs())


def test_two_exports_to_one_place_do_not_mix(two_versions: tuple[Path, Path, Exported]) -> None:
    place, newer, report = two_versions
    path = place / "net.onnx"
    names = ("net.onnx", "net.onnx.data")
    versions = [{name: _contents(each)[name] for name in names} for each in (place, newer)]
    (place / "net.onnx.json").unlink()
    older = newer.with_name("older")
    shutil.copytree(place, older)

    def put(source: Path) -> None:
        with staging_folder(path) as folder:
            shutil.copytree(source, folder, dirs_exist_ok=True)
            publish(folder, path, report, overwrite=True, parts=[place / "net.onnx.data"])

    with ThreadPoolExecutor(4) as pool:
        for _ in range(10):
            list(pool.map(put, [newer, older] * 2))
            found = _contents(place)
            assert {name: found[name] for name in names} in versions


def test_a_failed_proof_leaves_the_older_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    export(net(), path, example=inputs())
    before = path.read_bytes(), (tmp_path / "net.onnx.json").read_bytes()
    with pytest.raises(ProofFailed):
        export(net(), path, example=inputs(), overwrite=True, tolerance=Tolerance(0, 1, 1, 0))
    assert (path.read_bytes(), (tmp_path / "net.onnx.json").read_bytes()) == before
    assert len([*tmp_path.iterdir()]) == 2


@pytest.mark.parametrize("suffix", ["onnx", "pt2", "ts"])
def test_a_disk_without_room_is_said_and_nothing_is_left(suffix: str, tmp_path: Path) -> None:
    script = f"""
        import resource, signal, sys
        import torch, torchkeep
        from torchkeep.errors import SaveRefused

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            path = {str(tmp_path / f"net.{suffix}")!r}
            torchkeep.export(torch.nn.Linear(500, 500), path, example=torch.ones(9, 500))
        except SaveRefused as error:
            sys.exit(f"refused: {{error}}")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False
    )
    assert "refused: " in done.stderr
    assert "the disk is full" in done.stderr or "could not be written" in done.stderr
    assert not [*tmp_path.iterdir()]
