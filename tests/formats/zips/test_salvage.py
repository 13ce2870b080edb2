"""An archive that broke off still tells what its first pickles say, and stays damaged."""

from __future__ import annotations

import io
import os
import pickle
import zipfile

import pytest
import torch
from torch import nn

import torchkeep
from effort import at_most
from torchkeep.errors import DamagedFile
from torchkeep.formats import examine
from torchkeep.identify import identify


class Payload:
    def __reduce__(self):
        return os.system, ("true",)


def cut_archive(method: int, *pickles: tuple[str, object]) -> bytes:
    """Return an archive of pickles without its directory."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, value in pickles:
            archive.writestr(name, value if isinstance(value, bytes) else pickle.dumps(value, 2))
    data = file.getvalue()
    return data[: data.index(b"PK\x01\x02")]


def test_a_checkpoint_that_broke_off_says_what_it_was(tmp_path):
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    state = model.state_dict()
    torch.save({"epoch": 7, "model": state, "same": state["0.weight"]}, tmp_path / "whole.pth")
    data = (tmp_path / "whole.pth").read_bytes()
    start_of_tensors = data.index(b"whole/data/0")
    for nbytes in (start_of_tensors, len(data) // 2, len(data) - 1):
        path = tmp_path / "cut.pth"
        path.write_bytes(data[:nbytes])
        inspection = identify(examine(path))
        assert isinstance(inspection.contents.problem, DamagedFile)
        assert inspection.container == "torch-zip"
        assert inspection.summary.startswith("Damaged: checkpoint without optimizer: ")
        assert inspection.values == {"epoch": 7}
        whole = torchkeep.inspect(tmp_path / "whole.pth")
        told = [(item.path, item.entry.shape, item.alias_of) for item in inspection.tensors()]
        assert told == [(item.path, item.entry.shape, item.alias_of) for item in whole.tensors()]
        assert inspection.safety.verdict == "ambiguous"
        assert inspection.safety.weights_only is False
        with pytest.raises(DamagedFile, match="truncated: its directory"):
            torchkeep.load(path)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("name", ["a/data.pkl", "DATA.PKL", "a/b/c.pickle"])
def test_a_payload_is_seen_though_the_archive_is_cut(tmp_path, method, name):
    path = tmp_path / "a.pth"
    path.write_bytes(cut_archive(method, ("a/first.txt", b"x" * 3000), (name, Payload())))
    safety = identify(examine(path)).safety
    assert safety.verdict == "dangerous"
    assert f"{os.system.__module__}.system" in safety.globals


def test_a_pickle_that_breaks_as_well_keeps_its_names(tmp_path):
    path = tmp_path / "a.pth"
    path.write_bytes(cut_archive(zipfile.ZIP_STORED, ("a/data.pkl", Payload()))[:-3])
    inspection = identify(examine(path))
    assert inspection.safety.verdict == "dangerous"
    assert inspection.contents.root is None


def test_the_second_pickle_is_seen_too(tmp_path):
    path = tmp_path / "a.pth"
    pickles = [("a/data.pkl", {"epoch": 1}), ("a/hidden.pkl", Payload())]
    path.write_bytes(cut_archive(zipfile.ZIP_STORED, *pickles))
    inspection = identify(examine(path))
    assert inspection.values == {"epoch": 1}
    assert inspection.safety.verdict == "dangerous"


def test_without_a_pickle_it_is_a_damaged_archive(tmp_path):
    path = tmp_path / "a.pth"
    path.write_bytes(cut_archive(zipfile.ZIP_STORED, ("a/weights.bin", b"x" * 3000)))
    contents = examine(path)
    assert contents.container == "archive"
    assert contents.root is None
    with pytest.raises(DamagedFile, match="truncated: its directory"):
        torchkeep.inspect(path)


HEADERS = {
    "headers alone": b"PK\x03\x04" * (1 << 18),
    "names that are claimed to be long": (b"PK\x03\x04" + bytes(22) + b"\xff\xff\0\0.pkl") * 30_000,
    "pickles in one another": b"".join(
        b"PK\x03\x04" + bytes(22) + b"\x05\0\0\0a.pkl" + b"N0" * 20 for _ in range(10_000)
    ),
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_megabyte_of_headers_costs_little(tmp_path, name):
    (tmp_path / "a.pth").write_bytes(HEADERS[name])
    with at_most(100):
        assert isinstance(examine(tmp_path / "a.pth").problem, DamagedFile)
