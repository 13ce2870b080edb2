"""What goes past the system's cache is the same bytes as what does not."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torchkeep.errors import DamagedFile, FileUnreadable, SaveRefused
from torchkeep.files import (
    InputFile,
    atomic_file,
    digest,
    digests_of_runs,
    direct,
    pages,
    read_directly,
)

ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing is direct")
WINDOW = 16 << 10


def noise(nbytes: int, seed: int = 0) -> bytes:
    return digest(f"{seed}".encode()).encode() * (nbytes // 32 + 1)


@pytest.fixture(autouse=True)
def small_window(monkeypatch):
    monkeypatch.setattr(direct, "_WINDOW_NBYTES", WINDOW)
    monkeypatch.setattr(direct, "_CACHED_NBYTES", 3000)


@st.composite
def writes(draw) -> tuple[list[tuple[int, int]], int]:
    """Runs that follow each other, some with a gap between; the first comes last, as a header."""
    sizes = draw(st.lists(st.integers(0, 3 * WINDOW), min_size=1, max_size=12))
    position, runs = 0, []
    for nbytes in sizes:
        position += draw(st.sampled_from([0, 0, 0, 1, 30, 4096, 5 * WINDOW]))
        runs.append((position, nbytes))
        position += nbytes
    late = draw(st.sets(st.integers(0, len(runs) - 1), max_size=3))
    ordered = [run for n, run in enumerate(runs) if n not in late]
    return ordered + [runs[n] for n in sorted(late, reverse=True)], position


@settings(max_examples=200, deadline=None)
@given(writes())
def test_a_file_is_what_was_written_in_whatever_order(tmp_path_factory, case):
    runs, end = case
    path = tmp_path_factory.mktemp("direct") / "file"
    expected, seen = bytearray(end), []
    with atomic_file(path, background=True) as file:
        file.reserve(end)
        for seed, (offset, nbytes) in enumerate(runs):
            data = noise(nbytes, seed)[:nbytes]
            expected[offset : offset + nbytes] = data
            observed = bytearray()
            file.write_at(offset, data, observe=observed.extend)
            seen.append(bytes(observed) == data)
    assert path.read_bytes() == expected
    assert all(seen)


@settings(max_examples=200, deadline=None)
@given(
    st.integers(0, 9000),
    st.lists(st.tuples(st.booleans(), st.integers(1, 3 * WINDOW)), min_size=1, max_size=8),
    st.integers(0, 4095),
)
def test_memory_that_lies_as_in_the_file_is_written_from_there(tmp_path_factory, gap, parts, place):
    """Parts that follow each other, some at their places in an image of the file, some elsewhere.

    `place` is how far the image is off: at 0, and only there, the disk takes it as it lies.
    """
    path = tmp_path_factory.mktemp("direct") / "file"
    end = gap + sum(nbytes for _, nbytes in parts)
    memory = memoryview(pages(end + 4096))
    image = memory[place : place + end]
    image[:] = noise(end, seed=place)[:end]
    observed = bytearray()
    with pytest.MonkeyPatch.context() as patch, atomic_file(path, background=True) as file:
        patch.setattr(direct, "_LARGE_NBYTES", 4096)
        start = gap
        for is_in_image, nbytes in parts:
            data = image[start : start + nbytes]
            file.write_at(start, data if is_in_image else bytes(data), observe=observed.extend)
            start += nbytes
        file.write_at(0, image[:gap])
    assert path.read_bytes() == image
    assert observed == image[gap:]


@ON_LINUX
def test_nothing_is_copied_of_what_lies_as_in_the_file(tmp_path, monkeypatch):
    gathered = []
    gather = direct.DirectFile._gather

    def noted(self, offset, view, observe):
        gathered.append(len(view))
        gather(self, offset, view, observe)

    monkeypatch.setattr(direct.DirectFile, "_gather", noted)
    image = memoryview(pages(5 << 20))
    with atomic_file(tmp_path / "file", background=True) as file:
        file.write_at(5000, image[5000:])
    assert sum(gathered) < 4096
    with atomic_file(tmp_path / "other", background=True) as file:
        file.write_at(5001, image[5000:])
    assert sum(gathered) > 4 << 20


@pytest.mark.parametrize("nbytes", [0, 1, 4095, 4096, WINDOW, WINDOW + 1, 5 * WINDOW + 4097])
def test_a_file_is_read_in_pieces_that_are_all_of_it(tmp_path, nbytes):
    path = tmp_path / "file"
    path.write_bytes(noise(nbytes)[:nbytes])
    with InputFile(path) as file:
        assert b"".join(map(bytes, read_directly(file))) == path.read_bytes()
        lengths = [nbytes // 3, 0, nbytes - nbytes // 3]
        data, cut = path.read_bytes(), nbytes // 3
        found = list(digests_of_runs(read_directly(file), lengths))
        assert found == [digest(data[:cut]), digest(b""), digest(data[cut:])]


@ON_LINUX
def test_what_the_disk_takes_does_not_go_through_the_cache(tmp_path, monkeypatch):
    flags, real = set(), os.pwrite

    def pwrite(fd, data, offset):
        import fcntl

        flags.add(bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT))
        return real(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    with atomic_file(tmp_path / "file", background=True) as file:
        if not file._is_direct:
            pytest.skip("the file system of the temporary folder has no O_DIRECT")
        file.write_at(0, noise(4 * WINDOW)[: 4 * WINDOW])
    assert flags == {True}


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EOPNOTSUPP])
def test_a_file_system_that_refuses_gets_it_the_usual_way(tmp_path, monkeypatch, code):
    real_write, real_read, refused = os.pwrite, os.preadv, []

    def is_direct(fd):
        import fcntl

        return bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT)

    def refuse(fd):
        if sys.platform == "linux" and is_direct(fd):
            refused.append(fd)
            raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "pwrite", lambda fd, *rest: refuse(fd) or real_write(fd, *rest))
    monkeypatch.setattr(os, "preadv", lambda fd, *rest: refuse(fd) or real_read(fd, *rest))
    data = noise(3 * WINDOW + 5)
    with atomic_file(tmp_path / "file", background=True) as file:
        file.write_at(0, data)
    assert (tmp_path / "file").read_bytes() == data
    with InputFile(tmp_path / "file") as file:
        assert b"".join(map(bytes, read_directly(file))) == data
    assert len(refused) <= 2


@ON_LINUX
def test_a_write_that_ends_in_the_middle_of_a_block_is_gone_on_with(tmp_path, monkeypatch):
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: real(fd, data[: max(512, 700)], at))
    data = noise(2 * WINDOW + 77)
    with atomic_file(tmp_path / "file", background=True) as file:
        file._is_direct = direct._set_direct(file.fd, wanted=False)  # pages take any length
        file.write_at(0, data)
    assert (tmp_path / "file").read_bytes() == data


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_an_error_of_the_disk_is_told_and_nothing_is_left(tmp_path, monkeypatch, code):
    def fail(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "pwrite", fail)
    with (
        pytest.raises(SaveRefused, match="file"),
        atomic_file(tmp_path / "file", background=True) as file,
    ):
        file.write_at(0, noise(2 * WINDOW))
    assert list(tmp_path.iterdir()) == []


def test_an_error_in_reading_names_the_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(noise(WINDOW))

    def fail(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "preadv", fail)
    with InputFile(path) as file, pytest.raises(FileUnreadable) as raised:
        list(read_directly(file))
    assert Path(raised.value.path or "") == path


def test_a_file_that_becomes_shorter_is_told(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(noise(5 * WINDOW))

    def read_and_cut(file):
        for _ in read_directly(file):
            os.truncate(path, 100)

    with InputFile(path) as file, pytest.raises(DamagedFile, match="changed"):
        read_and_cut(file)


def test_memory_that_belongs_before_what_is_in_the_window_leaves_it_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(direct, "_LARGE_NBYTES", 4096)
    image = memoryview(pages(5 * 4096))
    image[:] = noise(len(image))[: len(image)]
    with atomic_file(tmp_path / "file", background=True) as file:
        for begin, end in [(8192, 12288), (0, 8192), (12288, 20480)]:
            is_bytes = begin == 8192
            file.write_at(begin, bytes(image[begin:end]) if is_bytes else image[begin:end])
    assert (tmp_path / "file").read_bytes() == image
