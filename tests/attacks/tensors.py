"""Attacks on whoever reads tensors: sizes, places and headers that are not true."""

from __future__ import annotations

import json

from attacks.attack import Collection
from attacks.streams import (
    STOP,
    blob,
    call,
    legacy_stream,
    name,
    number,
    numbers,
    state_dict,
    storage,
    tensor,
    text,
    torch_records,
    torch_zip,
    u8,
    zip_of,
)

ATTACKS = Collection([])
attack = ATTACKS


def _one(opcodes: bytes) -> bytes:
    """Return an archive whose object is what these opcodes make."""
    return torch_zip(b"\x80\x02" + opcodes + STOP)


# --- Items where none belong ---------------------------------------------------------------------

for title, target, verdict in (
    ("a tensor", tensor(), "dangerous"),
    ("a storage", storage(), "dangerous"),
    ("a size", call(name("torch", "Size"), numbers(1, 2)), "ambiguous"),
    ("a list", b"](K\x01K\x02e", "ambiguous"),
    ("a text", text("x"), "ambiguous"),
    ("a number", b"K\x05", "ambiguous"),
):
    ATTACKS.add(
        "SETITEM on a non-dict",
        verdict,
        f"an item is set in {title}",
        lambda marker, target=target: _one(target + b"K\x00K\x01s"),
        suffix=".pth",
    )
    ATTACKS.add(
        "SETITEM on a non-dict",
        verdict,
        f"items are set in {title}",
        lambda marker, target=target: _one(target + b"(K\x00K\x01K\x01K\x01u"),
        suffix=".pth",
    )


@attack("SETITEM on a non-dict", "dangerous", suffix=".pth")
def a_state_is_set_on_a_tensor(marker: str) -> bytes:
    return _one(tensor() + b"}" + text("data") + text(marker) + b"sb")


@attack("SETITEM on a non-dict", "dangerous", suffix=".pth")
def something_is_appended_to_a_tensor(marker: str) -> bytes:
    return _one(tensor() + b"K\x01a")


# --- Sizes ---------------------------------------------------------------------------------------


@attack("numel against the record", "ambiguous", suffix=".pth")
def more_elements_than_the_record_has(marker: str) -> bytes:
    return _one(tensor(storage(numel=1 << 20), size=(1 << 20,)))


@attack("numel against the record", "ambiguous", suffix=".pth")
def fewer_elements_than_the_record_has(marker: str) -> bytes:
    return _one(tensor(storage(numel=2), size=(2,)))


@attack("numel against the record", "ambiguous", suffix=".pth")
def one_record_with_two_sizes(marker: str) -> bytes:
    both = b"(" + tensor() + tensor(storage(numel=8), size=(8,)) + b"t"
    return _one(both)


@attack("numel against the record", "ambiguous", suffix=".pth")
def a_negative_number_of_elements(marker: str) -> bytes:
    return _one(tensor(storage(numel=-4)))


@attack("numel against the record", "ambiguous", suffix=".pth")
def more_elements_than_numbers_can_count(marker: str) -> bytes:
    return _one(tensor(storage(numel=1 << 62)))


@attack("numel against the record", "ambiguous", suffix=".pth")
def a_record_that_is_not_there(marker: str) -> bytes:
    return _one(tensor(storage("9")))


@attack("numel against the record", "ambiguous", suffix=".pth")
def a_record_outside_of_its_folder(marker: str) -> bytes:
    return _one(tensor(storage("../data.pkl")))


@attack("numel against the record", "ambiguous", suffix=".pth")
def an_empty_record(marker: str) -> bytes:
    return zip_of(torch_records(state_dict(), nbytes=0))


def _stream_with_storage(declared: int, count: int, nbytes: int) -> bytes:
    pid = text("storage") + name("torch", "FloatStorage") + text("0") + text("cpu")
    where = b"(" + pid + number(declared) + b"NtQ"
    root = b"\x80\x02" + tensor(where, size=(declared,)) + STOP
    keys = b"\x80\x02]" + text("0") + b"a."
    return legacy_stream(root=root, keys=keys) + u8(count) + bytes(nbytes)


@attack("numel against the record", "ambiguous", suffix=".pth")
def a_stream_with_fewer_elements(marker: str) -> bytes:
    return _stream_with_storage(declared=1000, count=4, nbytes=16)


@attack("numel against the record", "ambiguous", suffix=".pth")
def a_stream_that_counts_negatively(marker: str) -> bytes:
    return _stream_with_storage(declared=4, count=(1 << 64) - 4, nbytes=16)


@attack("numel against the record", "ambiguous", suffix=".pth")
def a_stream_that_counts_too_far(marker: str) -> bytes:
    return _stream_with_storage(declared=4, count=1 << 60, nbytes=16)


for title, view in (
    ("a shape that is too large", tensor(size=(5,))),
    ("a stride that is too large", tensor(size=(2,), stride=(100,))),
    ("an offset that is too large", tensor(offset=4, size=(1,))),
    ("a negative offset", tensor(offset=-1, size=(1,))),
    ("a negative stride", tensor(size=(2,), stride=(-1,))),
    ("a negative size", tensor(size=(-2,))),
    ("more sizes than strides", tensor(size=(2, 2), stride=(1,))),
    ("sizes whose product overflows", tensor(size=(1 << 33, 1 << 33), stride=(0, 0))),
    ("a stride that overflows", tensor(size=(2,), stride=((1 << 62) + 1,))),
    ("a thousand and one dimensions", tensor(size=(1,) * 1001, stride=(1,) * 1001)),
    (
        "a size that is no number",
        call(
            name("torch._utils", "_rebuild_tensor_v2"),
            storage(),
            number(0),
            b"(" + text("4") + b"t",
            numbers(1),
            b"\x89",
            b"N",
        ),
    ),
):
    ATTACKS.add(
        "stride and offset overruns",
        "ambiguous",
        title,
        lambda marker, view=view: _one(view),
        suffix=".pth",
    )


@attack("stride and offset overruns", "ambiguous", suffix=".pth")
def a_part_of_a_storage_that_is_too_long(marker: str) -> bytes:
    pid = text("storage") + name("torch", "FloatStorage") + text("0") + text("cpu") + number(4)
    where = b"(" + pid + b"(" + text("1") + number(2) + number(3) + b"ttQ"
    root = b"\x80\x02" + tensor(where, size=(1,)) + STOP
    keys = b"\x80\x02]" + text("0") + b"a."
    return legacy_stream(root=root, keys=keys) + u8(4) + bytes(16)


@attack("stride and offset overruns", "ambiguous", suffix=".pth")
def a_state_of_a_tensor_that_overruns(marker: str) -> bytes:
    state = b"(" + storage() + number(0) + numbers(4) + numbers(1 << 40) + b"t"
    return torch_zip(b"\x80\x02" + call(name("torch", "Tensor")) + state + b"b.")


# --- Sparse tensors ------------------------------------------------------------------------------


def _sparse(
    indices: list[int],
    values: int = 2,
    size: tuple[int, ...] = (3, 3),
    cls: str = "",
    into: str = "",
) -> bytes:
    """Return an archive of a sparse tensor of two dimensions.

    It is made by PyTorch's function, or by one of its classes; it is the file's object, or an
    `attribute` of it, or a `member` of it.
    """
    columns = len(indices) // 2
    where = storage("0", len(indices), "LongStorage")
    parts = tensor(where, size=(2, columns), stride=(columns, 1))
    parts += tensor(storage("1", values), size=(values,))
    layout = call(name("torch.serialization", "_get_layout"), text("torch.sparse_coo"))
    shape = call(name("torch", "Size"), numbers(*size))
    data = b"(" + parts + shape + b"\x89t"
    made = call(name("torch._utils", "_rebuild_sparse_tensor"), layout, data)
    if cls:
        made = call(name("torch.sparse", cls), parts, shape)
    if into == "attribute":
        made = call(name("collections", "OrderedDict")) + b"}" + text("x") + made + b"sb"
    if into == "member":
        made = call(name("builtins", "set"), b"]" + made + b"a")
    records = {
        "archive/data.pkl": b"\x80\x02" + made + STOP,
        "archive/byteorder": b"little",
        "archive/data/0": b"".join(i.to_bytes(8, "little", signed=True) for i in indices),
        "archive/data/1": bytes(4 * values),
        "archive/version": b"3\n",
    }
    return zip_of(list(records.items()))


@attack("sparse indices out of bounds", "ambiguous", suffix=".pth")
def an_index_that_is_too_large(marker: str) -> bytes:
    return _sparse([0, 1, 2, 1 << 40])


@attack("sparse indices out of bounds", "ambiguous", suffix=".pth")
def an_index_in_a_tensor_that_its_class_makes(marker: str) -> bytes:
    return _sparse([0, 1, 2, 1 << 40], cls="FloatTensor")


@attack("sparse indices out of bounds", "ambiguous", suffix=".pth")
def a_sparse_tensor_of_one_argument(marker: str) -> bytes:
    return torch_zip(b"\x80\x02" + call(name("torch.sparse", "FloatTensor"), number(3)) + STOP)


@attack("sparse indices out of bounds", "ambiguous", suffix=".pth")
def an_index_in_the_attribute_of_a_dictionary(marker: str) -> bytes:
    return _sparse([0, 1, 2, 1 << 40], into="attribute")


@attack("sparse indices out of bounds", "ambiguous", suffix=".pth")
def an_index_in_the_member_of_a_set(marker: str) -> bytes:
    return _sparse([0, 1, 2, 1 << 40], into="member")


@attack("sparse indices out of bounds", "ambiguous", suffix=".pth")
def a_negative_index(marker: str) -> bytes:
    return _sparse([0, -5, 2, 1])


@attack("sparse indices out of bounds", "ambiguous", suffix=".pth")
def more_values_than_indices(marker: str) -> bytes:
    return _sparse([0, 1, 2, 1], values=9)


@attack("sparse indices out of bounds", "ambiguous", suffix=".pth")
def fewer_sizes_than_rows_of_indices(marker: str) -> bytes:
    return _sparse([0, 1, 2, 1], size=(3,))


# --- Safetensors ---------------------------------------------------------------------------------


def _safetensors(header: object, data: bytes = bytes(16), nbytes: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return u8(len(text) if nbytes is None else nbytes) + text + data


def _row(begin: int, end: int, shape: list[int] | None = None, dtype: str = "F32") -> object:
    return {"dtype": dtype, "shape": shape or [2], "data_offsets": [begin, end]}


for title, header in (
    ("overlapping tensors", {"a": _row(0, 8), "b": _row(4, 12), "c": _row(12, 16, [1])}),
    ("two tensors in one place", {"a": _row(0, 8), "b": _row(0, 8), "c": _row(8, 16)}),
    ("a hole between tensors", {"a": _row(0, 8), "b": _row(12, 16, [1])}),
    ("a negative offset of safetensors", {"a": _row(-8, 0), "b": _row(0, 16, [4])}),
    ("an end before its start", {"a": _row(16, 8), "b": _row(0, 8)}),
    ("an end behind the file", {"a": _row(0, 1 << 40, [1 << 38])}),
    ("a size that is not that of the shape", {"a": _row(0, 16, [3])}),
    ("a shape that overflows", {"a": _row(0, 16, [1 << 32, 1 << 32, 1 << 32])}),
    ("an offset that is a fraction", {"a": {**_row(0, 16, [4]), "data_offsets": [0, 16.5]}}),  # type: ignore[dict-item]
    ("an offset that is true", {"a": {**_row(0, 16, [4]), "data_offsets": [False, 16]}}),  # type: ignore[dict-item]
    ("a type that does not exist", {"a": _row(0, 16, [4], "F33")}),
    ("metadata that are no texts", {"__metadata__": {"a": {"b": 1}}, "a": _row(0, 16, [4])}),
    ("bytes behind the last tensor", {"a": _row(0, 8)}),
):
    ATTACKS.add(
        "safetensors offsets",
        "ambiguous",
        title,
        lambda marker, header=header: _safetensors(header),
        suffix=".safetensors",
    )

for title, nbytes in (
    ("a header of 100 GB", 100_000_000_000),
    ("a header longer than the file", 1 << 20),
    ("a header of the largest length", (1 << 64) - 1),
    ("a header of no bytes", 0),
    ("a header that is cut off", 20),
):
    ATTACKS.add(
        "header length bombs",
        "ambiguous",
        title,
        lambda marker, nbytes=nbytes: _safetensors({"a": _row(0, 16, [4])}, nbytes=nbytes),
        suffix=".safetensors",
    )

for title, data in (
    ("a NumPy header of 4 GB", b"\x93NUMPY\x02\x00\xff\xff\xff\xff{'descr'"),
    ("a GGUF file of 2^60 tensors", b"GGUF\x03\0\0\0" + u8(1 << 60) + u8(1 << 60) + bytes(64)),
    ("a 7z header of 2^60 bytes", b"7z\xbc\xaf\x27\x1c\x00\x04" + bytes(4) + u8(8) + u8(1 << 60)),
):
    ATTACKS.add(
        "header length bombs", "ambiguous", title, lambda marker, data=data: data, suffix=".bin"
    )

ROW = b'{"dtype":"F32","shape":[4],"data_offsets":[0,16]}'
for title, header in (
    ("a tensor that stands twice", b'{"a":' + ROW + b',"a":' + ROW + b"}"),
    (
        "a shape that stands twice",
        b'{"a":{"dtype":"F32","shape":[9],"shape":[4],"data_offsets":[0,16]}}',
    ),
    (
        "metadata that stand twice",
        b'{"__metadata__":{"a":"b"},"__metadata__":{"a":"c"},"a":' + ROW + b"}",
    ),
    ("one key in two spellings", b'{"a":' + ROW + b',"\\u0061":' + ROW + b"}"),
):
    ATTACKS.add(
        "duplicate JSON keys",
        "ambiguous",
        title,
        lambda marker, header=header: _safetensors(header),
        suffix=".safetensors",
    )

for title, header in (
    ("lists in lists", b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    ("objects in objects", b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    ("metadata in metadata", b'{"__metadata__":' * 50_000 + b"{}" + b"}" * 50_000),
    ("lists that never end", b'{"a":' + b"[" * 100_000),
):
    ATTACKS.add(
        "deep JSON",
        "ambiguous",
        title,
        lambda marker, header=header: _safetensors(header),
        suffix=".safetensors",
    )


@attack("numel against the record", "ambiguous", suffix=".pth")
def storage_bytes_that_are_called_packed(marker: str) -> bytes:
    records = torch_records(state_dict())
    return zip_of(records, packed=True)


@attack("stride and offset overruns", "ambiguous", suffix=".pth")
def a_tensor_of_the_bytes_of_something_else(marker: str) -> bytes:
    return _one(call(name("torch._utils", "_rebuild_tensor"), blob(b"x"), number(0)))
