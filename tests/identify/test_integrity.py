"""Verification reads every byte, and finds a flipped bit where there is something to compare."""

from __future__ import annotations

import random
import struct
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import torchkeep
from formats.samples_folders import write_two_ranks
from made_runs import make_run
from torchkeep.errors import DamagedFile, FileMissing, NotAModelFile
from torchkeep.files import CHUNK_NBYTES
from torchkeep.formats.folders.dcp_shards import piece_of


def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return dict(nn.Sequential(nn.Linear(30, 20), nn.BatchNorm1d(20)).state_dict())


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 0x10
    path.write_bytes(data)


def payload(path: Path) -> list[int]:
    """Return the offsets of the tensors' bytes."""
    entries = [item.entry for item in torchkeep.inspect(path).tensors()]
    return [
        (entry.storage.offset or 0) + place
        for entry in entries
        for place in range(entry.storage.nbytes)
    ]


def write_torch(path: Path) -> None:
    torch.save({"epoch": 1, "model": state()}, path)


def write_ours_as_torch(path: Path) -> None:
    torchkeep.save(state(), path.with_suffix(".pth"))
    path.with_suffix(".pth").rename(path)


def write_ours(path: Path) -> None:
    torchkeep.save(state(), path.with_suffix(".safetensors"))
    path.with_suffix(".safetensors").rename(path)


@pytest.mark.parametrize("write", [write_torch, write_ours_as_torch, write_ours])
def test_any_flipped_bit_of_a_tensor_is_found(write: Any, tmp_path: Path) -> None:
    path = tmp_path / "model"
    write(path)
    whole = torchkeep.verify(path)
    assert whole.ok
    assert whole.verified
    assert (whole.num_checked, whole.num_unchecked) == (7, 0)
    for place in random.Random(0).sample(payload(path), 20):
        flip(path, place)
        assert torchkeep.inspect(path).integrity.ok, "inspect does not read tensors"
        found = torchkeep.verify(path)
        assert not found.ok
        assert [finding.severity for finding in found.findings] == ["damaged"]
        assert found.findings[0].rule in ("crc-mismatch", "digest-mismatch")
        flip(path, place)
    assert torchkeep.verify(path) == whole


def test_the_tensor_that_is_damaged_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    write_torch(path)
    weight = next(i for i in torchkeep.inspect(path).tensors() if i.path == "model.1.weight")
    flip(path, (weight.entry.storage.offset or 0) + 5)
    found = torchkeep.verify(path)
    assert found.findings[0].place == "model.1.weight"
    assert found.findings[0].text == (
        "the bytes of tensor 'model.1.weight' do not match the archive's checksum"
    )
    assert not torchkeep.inspect(path, verify=True).integrity.ok


def test_a_file_without_checksums_is_read_and_said_to_be_unchecked(tmp_path: Path) -> None:
    save_file(state(), tmp_path / "theirs.safetensors")
    found = torchkeep.verify(tmp_path / "theirs.safetensors")
    assert found.ok
    assert (found.num_checked, found.num_unchecked) == (0, 7)


def test_a_shared_storage_is_read_once_and_progress_is_told(tmp_path: Path) -> None:
    base = torch.arange(3_000_000, dtype=torch.float32)
    torch.save({"base": base, "part": base[5:10], "again": base}, tmp_path / "model.pth")
    told: list[tuple[int, int]] = []
    found = torchkeep.verify(
        tmp_path / "model.pth", progress=lambda done, total: told.append((done, total))
    )
    assert (found.num_checked, found.num_unchecked) == (1, 0)
    assert len(told) == -(-base.nbytes // CHUNK_NBYTES)
    assert told[-1] == (base.nbytes, base.nbytes)


def test_sparse_tensors_are_read_part_by_part(tmp_path: Path) -> None:
    torch.save({"s": torch.eye(50).to_sparse()}, tmp_path / "model.pth")
    assert torchkeep.verify(tmp_path / "model.pth").num_checked == 2
    values = torchkeep.inspect(tmp_path / "model.pth").tensors()[0].entry.parts[1][1]
    flip(tmp_path / "model.pth", values.storage.offset or 0)
    assert torchkeep.verify(tmp_path / "model.pth").findings[0].place == "s.values"


def test_what_is_no_model_or_not_there_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "page.pth").write_text("<html>")
    with pytest.raises(NotAModelFile, match="this is a web page"):
        torchkeep.verify(tmp_path / "page.pth")
    with pytest.raises(FileMissing):
        torchkeep.verify(tmp_path / "no.pth")
    write_torch(tmp_path / "cut.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "cut.pth").read_bytes()[:-100])
    with pytest.raises(DamagedFile, match="truncated"):
        torchkeep.verify(tmp_path / "cut.pth")


def write_run(folder: Path) -> list[Path]:
    """Write two checkpoints of a run."""
    model = nn.Linear(20, 20)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    with torchkeep.Checkpointer(folder, model=model, optimizer=optimizer) as checkpointer:
        model(torch.ones(1, 20)).sum().backward()
        optimizer.step()
        first = checkpointer.save()
        checkpointer.step()
        return [first, checkpointer.save()]


@pytest.mark.filterwarnings("ignore:.*is no exact checkpoint")
@pytest.mark.parametrize("name", ["model.safetensors", "state.safetensors"])
@pytest.mark.parametrize("which", [0, 1])
def test_a_flipped_bit_in_any_checkpoint_of_a_run_is_found(
    name: str, which: int, tmp_path: Path
) -> None:
    checkpoints = write_run(tmp_path / "run")
    for path in (*checkpoints, tmp_path / "run"):
        whole = torchkeep.verify(path)
        assert whole.ok
        assert whole.num_checked > 0
        assert (whole.num_unchecked, whole.num_unread) == (0, 0)
    file = checkpoints[which] / name
    flip(file, file.stat().st_size - 3)
    for path in (checkpoints[which], tmp_path / "run"):
        found = torchkeep.verify(path)
        assert not found.ok
        assert [finding.rule for finding in found.findings] == ["digest-mismatch"]
    assert torchkeep.verify(checkpoints[1 - which]).ok


def test_our_files_in_a_folder_and_in_an_archive_are_compared_with_their_digests(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    torchkeep.save(state(), folder / "ours.safetensors")
    with zipfile.ZipFile(tmp_path / "stored.zip", "w") as archive:
        archive.write(folder / "ours.safetensors", "ours.safetensors")
    for path in (folder, tmp_path / "stored.zip"):
        found = torchkeep.verify(path)
        assert (found.ok, found.num_checked, found.num_unchecked) == (True, 7, 0)
    flip(folder / "ours.safetensors", (folder / "ours.safetensors").stat().st_size - 3)
    assert not torchkeep.verify(folder).ok


def write_packed_zip(path: Path, model: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(model, "model.pth")


def write_packed_tar(path: Path, model: Path) -> None:
    with tarfile.open(path, "w:gz") as archive:
        archive.add(model, "model.pth")


@pytest.mark.parametrize("write", [write_packed_zip, write_packed_tar])
@pytest.mark.parametrize("in_folder", [False, True])
def test_what_lies_packed_is_unpacked_and_compared(
    write: Any, in_folder: bool, tmp_path: Path
) -> None:
    write_torch(tmp_path / "model.pth")
    flipped = payload(tmp_path / "model.pth")[0]
    folder = tmp_path / "folder"
    folder.mkdir()
    packed = folder / "packed"
    write(packed, tmp_path / "model.pth")
    path = folder if in_folder else packed
    found = torchkeep.verify(path)
    assert (found.state, found.num_checked, found.num_unread) == ("ok", 7, 0)
    flip(tmp_path / "model.pth", flipped)
    write(packed, tmp_path / "model.pth")
    found = torchkeep.verify(path)
    assert found.state == "damaged"
    assert [finding.rule for finding in found.findings] == ["crc-mismatch"]
    assert torchkeep.inspect(path, verify=True).integrity.state == "damaged"


def test_tensors_in_pieces_are_read_piece_by_piece(tmp_path: Path) -> None:
    write_two_ranks(tmp_path / "dcp")
    entries = [item.entry for item in torchkeep.inspect(tmp_path / "dcp").tensors()]
    chunks = [chunk for entry in entries for chunk in entry.chunks]
    assert chunks
    found = torchkeep.verify(tmp_path / "dcp")
    assert (found.state, found.num_unread) == ("ok", 0)
    assert found.num_checked >= len(chunks)
    piece = piece_of(chunks[0], next(entry for entry in entries if entry.chunks).dtype)
    flip(chunks[0].path, piece.storage.offset or 0)
    found = torchkeep.verify(tmp_path / "dcp")
    assert [finding.rule for finding in found.findings] == ["crc-mismatch"]


def test_what_was_left_out_is_incomplete_and_never_ok(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    write_torch(folder / "model.pth")
    assert torchkeep.verify(folder).state == "ok"
    (folder / "model.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 0))
    found = torchkeep.verify(folder)
    assert (found.ok, found.state, found.num_checked) == (False, "incomplete", 7)
    assert [finding.place for finding in found.left_out] == ["model.gguf"]
    assert torchkeep.inspect(folder).integrity.state == "incomplete"


@pytest.mark.parametrize("content", ["<html>", "version https://git-lfs.github.com/spec/v1\n"])
def test_what_is_no_model_is_not_called_whole(content: str, tmp_path: Path) -> None:
    (tmp_path / "page.pth").write_text(content)
    integrity = torchkeep.inspect(tmp_path / "page.pth").integrity
    assert (integrity.ok, integrity.state) == (False, "incomplete")


def test_a_damaged_file_in_an_archive_is_damage(tmp_path: Path) -> None:
    write_torch(tmp_path / "model.pth")
    data = (tmp_path / "model.pth").read_bytes()
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.writestr("whole.pth", data)
        archive.writestr("cut.pth", data[:-100])
    found = torchkeep.verify(tmp_path / "all.zip")
    assert found.state == "damaged"
    assert [finding.place for finding in found.findings] == ["cut.pth"]
    with pytest.raises(DamagedFile, match=r"cut\.pth: the archive is truncated"):
        torchkeep.load(tmp_path / "all.zip")


def test_tensors_that_lie_deflated_are_unpacked_and_compared(tmp_path: Path) -> None:
    path = tmp_path / "again.pth"
    write_torch(tmp_path / "model.pth")
    with zipfile.ZipFile(tmp_path / "model.pth") as whole:
        records = {name: whole.read(name) for name in whole.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, data in records.items():
            packed.writestr(name, data)
    found = torchkeep.verify(path)
    assert (found.state, found.num_checked, found.num_unread) == ("ok", 7, 0)
    storage = torchkeep.inspect(path).tensors()[0].entry.storage
    assert storage.deflated is not None
    flip(path, storage.deflated.offset + storage.deflated.nbytes // 2)
    found = torchkeep.verify(path)
    assert found.state == "damaged"
    assert found.findings[0].text.startswith("tensor 'model.0.weight': storage '0' ")


# --- Runs of ours --------------------------------------------------------------------------------


def test_one_flipped_bit_anywhere_in_a_checkpoint_is_found(tmp_path: Path) -> None:
    checkpoint = make_run(tmp_path, [0.1]) / "step-00000001"
    assert torchkeep.verify(checkpoint).ok
    for file in checkpoint.iterdir():
        data = file.read_bytes()
        for place in range(0, len(data), max(1, len(data) // 80)):
            file.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
            assert not torchkeep.verify(checkpoint).ok, (file.name, place)
        file.write_bytes(data)
    assert torchkeep.verify(checkpoint).ok


@pytest.mark.parametrize("place", ["", "runs"])
def test_every_checkpoint_of_a_run_is_verified_and_the_damaged_one_named(
    tmp_path: Path, place: str
) -> None:
    run = make_run(tmp_path / place, [0.1, 0.2, 0.3])
    verified = torchkeep.verify(tmp_path)
    assert verified.ok
    for number in (1, 3):
        flip(run / f"step-0000000{number}" / "state.safetensors", -1)
    header = run / "step-00000002" / "model.safetensors"
    data = header.read_bytes()
    header.write_bytes(data.replace(b'"format":"pt"', b'"format":"np"'))
    found = torchkeep.verify(tmp_path)
    assert found.num_checked == verified.num_checked
    start = f"{place}/" if place else ""
    assert {(item.rule, item.place) for item in found.findings} == {
        ("digest-mismatch", f"{start}step-0000000{number}") for number in (1, 2, 3)
    }
    (text,) = (item.text for item in found.findings if item.place.endswith("2"))
    assert text == "model.safetensors differs from what was written, outside of its tensors"


def test_a_broken_table_of_digests_is_named_and_the_other_checkpoints_are_verified(
    tmp_path: Path,
) -> None:
    run = make_run(tmp_path, [0.1, 0.2, 0.3])
    file = run / "step-00000002" / "model.safetensors"
    file.write_bytes(file.read_bytes().replace(b'torchkeep.digests":"{', b'torchkeep.digests":"['))
    flip(run / "step-00000001" / "state.safetensors", -1)
    found = torchkeep.verify(run)
    assert [item.place for item in found.findings if item.rule == "metadata"] == [
        "step-00000002/model.safetensors"
    ]
    assert "step-00000001" in [item.place for item in found.findings]
