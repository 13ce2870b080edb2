"""elements.py: what it yields without torch is what torch makes of the same entry."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from formats import samples, samples_archives, samples_folders, samples_programs
from formats.samples import Sample
from torchkeep.contents import ROW_BITS, Chunk, Storage, TensorEntry, contiguous_stride
from torchkeep.elements import ElementReader
from torchkeep.errors import DamagedFile, UnsupportedContent
from torchkeep.files import Scratch
from torchkeep.formats import describe
from torchkeep.identify import identify
from torchkeep.tensors import TensorReader, bytes_of, plain_on_cpu

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*TypedStorage is deprecated"),
    pytest.mark.filterwarnings("ignore:.*quantize"),
    pytest.mark.filterwarnings("ignore:Sparse"),
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested"),
]
SAMPLES = [
    *samples.SAMPLES,
    *samples_archives.SAMPLES,
    *samples_programs.SAMPLES,
    *samples_folders.FOLDER_SAMPLES,
]


def parts(entry: TensorEntry) -> list[TensorEntry]:
    """Return the plain tensors that one is made of."""
    found = [entry] if not entry.is_composite or entry.chunks else []
    return [*found, *(inner for _, part in entry.parts for inner in parts(part))]


def elements(reader: ElementReader, entry: TensorEntry, nbytes: int = 48) -> bytes:
    blocks = [bytes(block) for block in reader.blocks(entry, nbytes=nbytes)]
    assert all(len(block) == nbytes for block in blocks[:-1])
    return b"".join(blocks)


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
def test_every_tensor_of_every_sample_has_the_bytes_that_torch_makes_of_it(
    sample: Sample, tmp_path: Path
) -> None:
    path = tmp_path / "sample"
    sample.write(path)
    with Scratch() as scratch:
        contents = describe(path, scratch=scratch)
        entries = [item.entry for item in identify(contents).tensors(arrays=True)]
        plain = [part for entry in entries for part in parts(entry)]
        with ElementReader(path) as reader, TensorReader(path) as torch_reader:
            for entry in plain:
                if entry.storage.device == "meta" or entry.dtype in ROW_BITS or entry.quantizer:
                    continue
                expected = bytes_of(plain_on_cpu(torch_reader.read(entry)))
                assert elements(reader, entry) == expected


@st.composite
def boxes(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """Draw a shape, strides of any kind (steps, permuted axes, repeats), and an offset."""
    shape = tuple(draw(st.lists(st.integers(0, 5), max_size=4)))
    steps = [draw(st.integers(1, 2)) for _ in shape]
    stride, step = [0] * len(shape), 1
    for axis in draw(st.permutations(range(len(shape)))):
        stride[axis] = step * steps[axis] if draw(st.integers(0, 4)) else 0
        step = max(step, stride[axis] * max(shape[axis], 1))
    return shape, tuple(stride), draw(st.integers(0, 3))


@given(boxes(), st.sampled_from(["int8", "float16", "float32", "int64", "complex128"]))
def test_any_strided_view_is_gathered(
    box: tuple[tuple[int, ...], tuple[int, ...], int], dtype: str
) -> None:
    shape, stride, offset = box
    last = offset + sum(max(a - 1, 0) * b for a, b in zip(shape, stride, strict=True))
    memory = torch.arange(last + 1).to(getattr(torch, dtype))
    view = memory.as_strided(shape, stride, offset)
    storage = Storage("0", memory.nbytes, None, data=bytes(bytes_of(memory)))
    entry = TensorEntry(dtype, shape, stride, storage, offset)
    with ElementReader(Path("nothing")) as reader:
        assert elements(reader, entry) == bytes(bytes_of(view.contiguous()))


def test_flags_of_conjugated_and_negated_views_are_carried_out() -> None:
    numbers = torch.tensor([1 + 2j, -3 + 0j, 0 - 1j], dtype=torch.complex64)
    data = bytes(bytes_of(numbers))
    storage = Storage("0", len(data), None, data=data)
    with ElementReader(Path("nothing")) as reader:
        for conj, neg in ((True, False), (False, True), (True, True)):
            entry = TensorEntry("complex64", (3,), (1,), storage, is_conj=conj, is_neg=neg)
            made = numbers.conj() if conj else numbers
            expected = (-made if neg else made).resolve_conj()
            assert elements(reader, entry) == bytes(bytes_of(expected))
        entry = TensorEntry("int32", (6,), (1,), storage, is_neg=True)
        with pytest.raises(
            UnsupportedContent, match="a tensor in storage '0' of int32 is negated by a flag"
        ):
            elements(reader, entry)


def test_big_endian_elements_come_out_little_endian() -> None:
    storage = Storage("0", 16, None, byteorder="big", data=bytes(range(16)))
    with ElementReader(Path("nothing")) as reader:
        for dtype, shape, expected in (
            ("int32", (2, 2), [3, 2, 1, 0, 7, 6, 5, 4, 11, 10, 9, 8, 15, 14, 13, 12]),
            ("complex64", (2,), [3, 2, 1, 0, 7, 6, 5, 4, 11, 10, 9, 8, 15, 14, 13, 12]),
            ("float64", (1,), [7, 6, 5, 4, 3, 2, 1, 0]),
            ("uint8", (3,), [0, 1, 2]),
        ):
            entry = TensorEntry(dtype, shape, contiguous_stride(shape), storage)
            assert list(elements(reader, entry, 16)) == expected


@pytest.mark.parametrize(
    ("entry", "kind", "text"),
    [
        (
            TensorEntry("float32", (5,), (1,), Storage("0", 16, None, data=bytes(16))),
            DamagedFile,
            r"x: tensor 'w' \(shape \(5,\), stride \(1,\), offset 0\) reaches past its storage of "
            "16 bytes. Copy or download the file again.",
        ),
        (
            TensorEntry("float32", (4,), (1,), Storage("0", 16, None, device="meta")),
            UnsupportedContent,
            "tensor 'w' has no values: it was saved from the meta device. Save it from another",
        ),
        (
            TensorEntry("float32", (4,), (1,), Storage("0", 16, None)),
            DamagedFile,
            "tensor 'w' has no bytes in the file",
        ),
        (
            TensorEntry("float32", (4,), (1,), Storage("0", 16, 0)),
            UnsupportedContent,
            "tensor 'w' lies packed in an archive. Unpack the archive, and give what comes out.",
        ),
        (
            TensorEntry("quint4x2", (4,), (1,), Storage("0", 16, None, data=bytes(16)), 2),
            UnsupportedContent,
            r"tensor 'w' is a view whose elements \(quint4x2\) share bytes. Save it as a tensor",
        ),
        (
            TensorEntry(
                "float32",
                (2,),
                (1,),
                Storage("0", 0, None),
                parts=(("values", TensorEntry("int8", (), (), Storage("1", 1, 0))),),
            ),
            UnsupportedContent,
            "tensor 'w' is made of parts, and has no bytes of its own",
        ),
    ],
)
def test_what_has_no_bytes_is_refused_by_name(
    entry: TensorEntry, kind: type[Exception], text: str
) -> None:
    with ElementReader(Path("x")) as reader, pytest.raises(kind, match=text):
        list(reader.blocks(entry, "w"))


def test_a_storage_past_the_end_of_its_file_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "short"
    path.write_bytes(bytes(10))
    entry = TensorEntry("float32", (4,), (1,), Storage("0", 16, 4, path=path))
    text = "tensor 'w' lies in bytes 4 to 20, and the file ends at 10"
    with ElementReader(path) as reader, pytest.raises(DamagedFile, match=text):
        list(reader.blocks(entry, "w"))


def test_a_piece_of_another_tensor_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "piece"
    torch.save(torch.zeros(3), path)
    chunk = Chunk((0,), (2,), path, 0, path.stat().st_size)
    entry = TensorEntry("float32", (2,), (1,), Storage("", 0, None), chunks=(chunk,))
    text = "a piece of tensor 'w' can't be used: it is the piece of another tensor"
    with ElementReader(path) as reader, pytest.raises(DamagedFile, match=text):
        list(reader.blocks(entry, "w"))


@pytest.mark.parametrize(
    "boxes",
    [
        [((0, 0), (2, 6)), ((2, 0), (3, 6))],
        [((0, 0), (5, 1)), ((0, 1), (5, 5))],
        [((0, 0), (2, 3)), ((2, 0), (3, 3)), ((0, 3), (5, 3))],
        [((0, 0), (5, 6))],
    ],
)
def test_pieces_are_put_together(
    boxes: list[tuple[tuple[int, int], tuple[int, int]]], tmp_path: Path
) -> None:
    whole = torch.arange(30.0).view(5, 6)
    path, chunks, data = tmp_path / "shard", [], b""
    for (row, column), (height, width) in boxes:
        piece = whole[row : row + height, column : column + width].contiguous()
        chunks.append(Chunk((row, column), (height, width), path, len(data), piece.nbytes))
        data += bytes(bytes_of(piece))
    path.write_bytes(data)
    entry = TensorEntry("float32", (5, 6), (6, 1), Storage("", 0, None), chunks=tuple(chunks))
    with ElementReader(path) as reader:
        assert elements(reader, entry) == bytes(bytes_of(whole))


def test_a_spread_tensor_is_read_from_any_byte_to_any_byte(tmp_path: Path) -> None:
    whole = torch.arange(24, dtype=torch.int32).view(4, 6)
    path, chunks = tmp_path / "shard", []
    with path.open("wb") as file:
        for column, width in ((0, 2), (2, 4)):
            start = file.tell()
            # The elements of a piece need not lie in C order.
            torch.save(whole[:, column : column + width].t().contiguous().t(), file)
            nbytes = file.tell() - start
            chunks.append(Chunk((0, column), (4, width), path, start, nbytes))
    entry = TensorEntry("int32", (4, 6), (6, 1), Storage("", 0, None), chunks=tuple(chunks))
    expected = bytes(bytes_of(whole))
    with ElementReader(path) as reader:
        payload = reader.payload(entry)
        for begin in range(97):
            for end in range(begin, 97, 7):
                assert payload.joined(begin, end) == expected[begin:end]


@pytest.mark.parametrize("rows", [[2, 3], [5]])
def test_the_checksum_of_each_piece_is_compared_however_it_is_read(
    rows: list[int], tmp_path: Path
) -> None:
    whole = torch.arange(5 * 300_000, dtype=torch.float32).view(5, 300_000)
    path, chunks, row = tmp_path / "shard", [], 0
    with path.open("wb") as file:
        for height in rows:
            start = file.tell()
            torch.save(whole[row : row + height].clone(), file)
            nbytes = file.tell() - start
            chunks.append(Chunk((row, 0), (height, 300_000), path, start, nbytes))
            row += height
    data = bytearray(path.read_bytes())
    place = data.index(bytes(bytes_of(whole[4, 250_000:250_002])))
    data[place] ^= 1
    path.write_bytes(data)
    shape = (5, 300_000)
    entry = TensorEntry("float32", shape, (300_000, 1), Storage("", 0, None), chunks=tuple(chunks))
    text = r"a piece of tensor 'w' can't be used: the bytes of storage '.*' do not match the arch"
    with ElementReader(path, checksums=True) as reader, pytest.raises(DamagedFile, match=text):
        list(reader.blocks(entry, "w"))


def test_pieces_whose_elements_share_bytes_are_refused_by_name(tmp_path: Path) -> None:
    chunk = Chunk((0,), (4,), tmp_path, 0, 2)
    entry = TensorEntry("quint4x2", (4,), (1,), Storage("", 0, None), chunks=(chunk,))
    text = r"tensor 'w' is in pieces whose elements \(quint4x2\) share bytes"
    with ElementReader(tmp_path) as reader, pytest.raises(UnsupportedContent, match=text):
        reader.payload(entry, "w")


def test_a_payload_is_read_from_any_byte_to_any_byte(tmp_path: Path) -> None:
    data = bytes(range(48))
    plain = Storage("0", 48, None, data=data)
    swapped = Storage("0", 48, None, data=data, byteorder="big")
    for storage, shape, stride in (
        *((plain, (3, 4), (4, 1)), (plain, (4, 3), (1, 4))),
        *((swapped, (3, 4), (4, 1)), (swapped, (4, 3), (1, 4))),
    ):
        entry = TensorEntry("int32", shape, stride, storage)
        with ElementReader(tmp_path) as reader:
            payload, whole = reader.payload(entry), elements(reader, entry)
            for begin in range(49):
                for end in range(begin, 49, 5):
                    assert payload.joined(begin, end) == whole[begin:end]
            big = storage is swapped
            stored = b"".join(data[n : n + 4][:: -1 if big else 1] for n in range(0, 48, 4))
            assert reader.stored(storage, 4).joined(8, 40) == stored[8:40]
