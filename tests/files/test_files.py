"""files.py: what is written is whole or absent; what is read is exact or refused."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import threading
import time
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from torchkeep.errors import DamagedFile, FileMissing, FileUnreadable, SaveRefused
from torchkeep.files import (
    CHUNK_NBYTES,
    TEMPORARY_MARK,
    InputFile,
    OutputFile,
    atomic_file,
    atomic_folder,
    crc32_of,
    digest,
    digests,
    grouped_by_size,
    in_parallel,
    link_file,
    new_digest,
    output,
    remove_files,
    remove_folder,
    remove_temporaries,
    write_file,
)


def leftovers(folder: Path) -> list[str]:
    return [item.name for item in folder.iterdir() if TEMPORARY_MARK in item.name]


def fail_after_writing(file: OutputFile) -> None:
    file.write_at(0, b"new and long")
    raise ZeroDivisionError


# --- Reading -----------------------------------------------------------------------------------


def test_bytes_are_read_from_where_they_are_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    target = bytearray(4)
    with InputFile(path) as file:
        assert file.nbytes == 10
        assert file.read_at(3, 2) == b"34"
        file.read_into(5, memoryview(target))
    assert target == b"5678"


def test_reading_past_the_end_is_called_truncated(tmp_path: Path) -> None:
    path = tmp_path / "short.pth"
    path.write_bytes(b"0123")
    with InputFile(path) as file:
        with pytest.raises(DamagedFile, match=r"short.pth: the file is truncated: bytes 2 to 7"):
            file.read_at(2, 5)
        with pytest.raises(DamagedFile, match=r"short.pth: the file is truncated.*ends at 4"):
            file.read_into(2, memoryview(bytearray(5)))


def test_a_missing_file_a_folder_and_a_pipe_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileMissing, match=r"nothing\.pth: there is no such file"):
        InputFile(tmp_path / "nothing.pth")
    with pytest.raises(FileUnreadable, match="this is a folder, not a file"):
        InputFile(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileUnreadable, match="this is a device or a pipe"):
        InputFile(tmp_path / "pipe")


def test_a_name_that_was_saved_in_shards_leads_to_the_index(tmp_path: Path):
    (tmp_path / "m.safetensors.index.json").write_text("{}")
    with pytest.raises(FileMissing) as caught:
        InputFile(tmp_path / "m.safetensors")
    assert str(caught.value) == (
        f"{tmp_path / 'm.safetensors'}: there is no such file. "
        "The model is in shards: give m.safetensors.index.json, or their folder."
    )


# --- Writing -----------------------------------------------------------------------------------


@pytest.mark.parametrize("durable", [True, False])
def test_a_file_appears_whole_when_the_block_ends(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "file"
    with atomic_file(path, durable=durable) as file:
        file.reserve(6)
        file.write_at(3, b"def")
        assert not path.exists()
        file.write_at(0, b"abc")
    assert path.read_bytes() == b"abcdef"
    assert leftovers(tmp_path) == []


def test_a_large_write_is_observed_in_order_and_whole(tmp_path: Path) -> None:
    data = os.urandom(CHUNK_NBYTES * 2 + 5)
    state, sizes = new_digest(), []

    def observe(chunk: memoryview) -> None:
        state.update(chunk)
        sizes.append(len(chunk))

    with atomic_file(tmp_path / "file") as file:
        file.write_at(7, data, observe=observe)
    assert state.hexdigest() == digest(data)
    assert sizes == [CHUNK_NBYTES, CHUNK_NBYTES, 5]
    assert (tmp_path / "file").read_bytes() == bytes(7) + data


def test_threads_write_their_ranges_without_harm(tmp_path: Path) -> None:
    parts = [os.urandom(100_000) for _ in range(20)]
    with atomic_file(tmp_path / "file") as file:
        in_parallel(lambda n: file.write_at(n * 100_000, parts[n]), range(20))
    assert (tmp_path / "file").read_bytes() == b"".join(parts)


def test_writing_works_where_the_system_lacks_the_fast_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("pwrite", "pread", "preadv", "posix_fadvise"):
        monkeypatch.delattr(os, name)
    monkeypatch.setattr(output, "_fallocate", lambda: None)
    seek = os.lseek

    def slow_seek(fd: int, offset: int, how: int) -> int:
        position = seek(fd, offset, how)
        time.sleep(0.005)  # another thread would now move the position
        return position

    monkeypatch.setattr(os, "lseek", slow_seek)
    data = os.urandom(2 * CHUNK_NBYTES)
    with atomic_file(tmp_path / "file") as file:
        file.reserve(len(data))
        half = CHUNK_NBYTES
        in_parallel(lambda at: file.write_at(at, data[at : at + half]), (0, half))
    target = bytearray(len(data))
    with InputFile(tmp_path / "file") as written:
        written.read_into(0, memoryview(target))
        assert written.read_at(5, 7) == data[5:12]
    assert target == data


def test_what_the_system_writes_in_parts_is_written_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: whole(fd, data[:40_000], at))
    data = os.urandom(100_001)
    write_file(tmp_path / "file", data)
    assert (tmp_path / "file").read_bytes() == data


def test_reserving_writes_nothing_where_the_file_system_cannot_allocate(old_disk: Path) -> None:
    with atomic_file(old_disk / "file") as file:
        file.reserve(1 << 20)
        assert os.fstat(file.fd).st_blocks == 0
        file.write_at(5, b"x")
    assert (old_disk / "file").read_bytes() == bytes(5) + b"x"


def test_a_failed_block_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), atomic_file(path, overwrite=True) as file:
        fail_after_writing(file)
    assert path.read_bytes() == b"old"
    assert leftovers(tmp_path) == []


def test_an_existing_file_is_refused_unless_it_may_be_replaced(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_file(path, b"old")
    with pytest.raises(SaveRefused, match=r"file: there is something already\. .*overwrite=True"):
        write_file(path, b"new")
    assert path.read_bytes() == b"old"
    write_file(path, b"new", overwrite=True)
    assert path.read_bytes() == b"new"


def test_a_name_that_is_taken_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with pytest.raises(SaveRefused, match="there is something already"), atomic_file(path):
        path.write_bytes(b"the other's")
    assert path.read_bytes() == b"the other's"
    assert leftovers(tmp_path) == []


def test_the_mode_of_a_replaced_file_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.chmod(0o640)
    write_file(path, b"new", overwrite=True)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_symbolic_link_stays_and_its_target_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to("real")
    write_file(tmp_path / "link", b"new", overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(SaveRefused, match=r"its folder does not exist. Create the folder first"):
        write_file(tmp_path / "nowhere" / "file", b"")


@pytest.mark.parametrize("step", ["file.reserve(1 << 20)", "file.write_at(0, bytes(1 << 20))"])
def test_a_file_larger_than_the_system_allows_is_refused(tmp_path: Path, step: str) -> None:
    code = f"""
import resource
from torchkeep.errors import SaveRefused
from torchkeep.files import atomic_file
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    with atomic_file("file") as file:
        {step}
except SaveRefused as error:
    print(error)
"""
    child = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert child.stdout.startswith("file: larger than a file may be here; nothing was changed.")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    with pytest.raises(SaveRefused, match=r"its folder may not be written to. Check its mode"):
        write_file(tmp_path / "file", b"")


def test_a_read_only_disk_is_refused(small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(SaveRefused, match=r"its folder may not be written to\. Check its mode"):
        write_file(small_disk / "file", b"")


def test_a_full_disk_is_refused_and_the_old_file_is_intact(small_disk: Path) -> None:
    path = small_disk / "file"
    write_file(path, b"old")
    for step in (
        lambda file: file.reserve(4 << 20),
        lambda file: file.write_at(0, bytes(4 << 20)),
    ):
        with (
            pytest.raises(SaveRefused, match=r"the disk is full; nothing was changed. Free some"),
            atomic_file(path, overwrite=True) as file,
        ):
            step(file)
        assert path.read_bytes() == b"old"
        assert leftovers(small_disk) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte; making one takes root."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small file system is not allowed here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def old_disk(tmp_path: Path) -> Iterator[Path]:
    """An ext2 of four megabytes, which can't allocate ahead; making one takes root."""
    image, folder = tmp_path / "image", tmp_path / "disk"
    image.write_bytes(bytes(4 << 20))
    folder.mkdir()
    mount = f"mkfs.ext2 -q {image} && mount -o loop {image} {folder}"
    if os.geteuid() or subprocess.run(mount, shell=True, capture_output=True).returncode:
        pytest.skip("mounting a small file system is not allowed here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


# --- Folders -----------------------------------------------------------------------------------


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "folder") as folder:
        write_file(folder / "file", b"x")
        assert not (tmp_path / "folder").exists()
    assert (tmp_path / "folder" / "file").read_bytes() == b"x"
    with pytest.raises(SaveRefused, match="something already"), atomic_folder(tmp_path / "folder"):
        pass
    with pytest.raises(ZeroDivisionError), atomic_folder(tmp_path / "other"):
        raise ZeroDivisionError
    assert [item.name for item in tmp_path.iterdir()] == ["folder"]


def test_a_removed_folder_is_gone_with_its_files(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_bytes(b"x")
    remove_folder(tmp_path / "folder")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("durable", [True, False])
def test_a_file_with_two_names_is_one_file(tmp_path: Path, durable: bool) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    write_file(one, b"data", durable=False)
    assert link_file(one, other, durable=durable)
    assert one.samefile(other)
    one.unlink()
    assert other.read_bytes() == b"data"


def test_what_is_no_file_gets_no_second_name(tmp_path: Path, monkeypatch) -> None:
    target = tmp_path / "target"
    (tmp_path / "file").write_bytes(b"data")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "folder").mkdir()
    for name in ("missing", "link", "folder", "file/below"):
        assert not link_file(tmp_path / name, target)
    assert not target.exists()

    def refuse(*_: object) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)  # as on a file system without such links
    assert not link_file(tmp_path / "file", target)


def test_a_second_name_of_what_can_not_be_synced_is_an_error(tmp_path: Path, monkeypatch) -> None:
    def fail(_: int) -> None:
        raise OSError(5, "Input/output error")

    (tmp_path / "file").write_bytes(b"data")
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output error"):
        link_file(tmp_path / "file", tmp_path / "target")


def test_what_interrupted_writes_left_is_removed_and_returned(tmp_path: Path) -> None:
    (tmp_path / f".a{TEMPORARY_MARK}1").write_bytes(b"x")
    (tmp_path / f".b{TEMPORARY_MARK}2").mkdir()
    (tmp_path / "kept").write_bytes(b"x")
    assert len(remove_temporaries(tmp_path)) == 2
    assert [item.name for item in tmp_path.iterdir()] == ["kept"]


def test_a_folder_that_can_not_be_synced_in_its_place_is_there_and_said_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(folder: Path) -> None:
        if folder == tmp_path:
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("torchkeep.files.atomic.sync_folder", refuse)
    with (
        pytest.raises(SaveRefused, match=r"in its place, .* not be synced \(Input/output error\)"),
        atomic_folder(tmp_path / "folder"),
    ):
        pass
    assert [item.name for item in tmp_path.iterdir()] == ["folder"]


def test_a_temporary_that_could_not_be_removed_stays_in_no_new_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, *_: object, **__: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with atomic_folder(tmp_path / "folder") as folder:
        with monkeypatch.context() as patches:
            patches.setattr(Path, "unlink", refuse)
            write_file(folder / "file", b"x")
        assert len(leftovers(folder)) == 1
    assert [item.name for item in (tmp_path / "folder").iterdir()] == ["file"]


def test_a_folder_s_name_is_gone_for_good_before_its_files_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "file").write_bytes(b"x")
    synced = []

    def look(parent: Path) -> None:
        synced.append((folder.exists(), [item.name for item in parent.glob("*/file")]))

    monkeypatch.setattr("torchkeep.files.atomic.sync_folder", look)
    remove_folder(folder)
    assert synced == [(False, ["file"])]


def test_what_can_not_be_removed_now_is_left_for_the_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, *_: object, **__: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    (tmp_path / f".a{TEMPORARY_MARK}1").write_bytes(b"x")
    with monkeypatch.context() as patches:
        patches.setattr(Path, "unlink", refuse)
        remove_temporaries(tmp_path)
    assert len(leftovers(tmp_path)) == 1
    remove_temporaries(tmp_path)
    assert leftovers(tmp_path) == []
    with pytest.raises(FileUnreadable, match=r"the folder can't be read \(No such file"):
        remove_temporaries(tmp_path / "no")


def test_a_failing_close_hides_nothing_that_was_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def close(fd: int) -> None:
        real(fd)
        raise OSError(errno.EIO, "Input/output error")

    (tmp_path / "file").write_bytes(b"x")
    real = os.close
    with InputFile(tmp_path / "file") as file:
        monkeypatch.setattr(os, "close", close)
        assert file.read_at(0, 1) == b"x"


# --- Threads and digests -----------------------------------------------------------------------


def test_results_come_in_order_from_more_than_one_thread() -> None:
    both = threading.Barrier(2, timeout=10)

    def work(number: int) -> int:
        both.wait()  # passes only if two calls run at once
        return number * number

    assert in_parallel(work, range(4)) == [0, 1, 4, 9]


def test_a_single_item_starts_no_thread() -> None:
    assert in_parallel(lambda _: threading.current_thread(), iter([0])) == [
        threading.current_thread()
    ]


def test_the_first_error_of_a_thread_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        in_parallel(lambda number: 1 // number, [1, 0, 1])


def test_small_neighbours_are_grouped_and_a_large_item_is_alone() -> None:
    groups = grouped_by_size([3, 1, 100, 0, 2, 2, 4], lambda nbytes: nbytes, limit=4)
    assert groups == [[3, 1], [100], [0, 2, 2], [4]]


def test_the_digest_is_xxh3_of_128_bits() -> None:
    # The empty input's value in the specification's test vectors.
    assert digest(b"") == "99aa06d3014798d86001c324468d497f"
    state = new_digest()
    state.update(b"ab")
    state.update(b"c")
    assert state.hexdigest() == digest(b"abc")


def test_the_checksum_is_the_crc_of_zip_archives_and_goes_on_from_a_part() -> None:
    # The check value of CRC-32/ISO-HDLC in the catalogue of parametrised CRC algorithms.
    assert crc32_of(b"123456789") == 0xCBF43926
    assert crc32_of(memoryview(b"6789"), crc32_of(b"12345")) == 0xCBF43926


@pytest.mark.parametrize("is_there", [True, False])
def test_the_checksum_comes_from_zlib_ng_only_where_that_is_installed(
    is_there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast = types.ModuleType("zlib_ng.zlib_ng")
    vars(fast)["crc32"] = lambda data, value: 7
    monkeypatch.setitem(sys.modules, "zlib_ng", types.ModuleType("zlib_ng"))
    monkeypatch.setitem(sys.modules, "zlib_ng.zlib_ng", fast if is_there else None)
    digests._fastest_crc32.cache_clear()
    try:
        assert crc32_of(b"123456789") == (7 if is_there else 0xCBF43926)
    finally:
        digests._fastest_crc32.cache_clear()


def test_a_removal_whose_folder_can_not_be_synced_is_told_as_ours(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.touch()

    def fail(folder):
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(folder))

    monkeypatch.setattr("torchkeep.files.atomic.sync_folder", fail)
    with pytest.raises(SaveRefused, match="Input/output error"):
        remove_files([path])
