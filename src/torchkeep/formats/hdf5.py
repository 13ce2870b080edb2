"""HDF5 files, Keras models first of all.

Layout: a superblock with the widths O of offsets and L of lengths, the end of the file and the
place of the root group's object header. An object header is a list of messages; those used here:

    0x06  a link: the name of something in the group
    0x0C  an attribute: name, type, shape, value; a text of free length stands in a global heap
    0x10  a continuation: where the list goes on
    0x11  a symbol table: a B-tree whose leaves name what is in the group, the names in a heap
    0x02, 0x15  the links, the attributes are in structures for many of them

A Keras model has its layers as JSON in the root's attribute `model_config`.

Limits: only the root group is looked at. The structures for many links or attributes are not read;
a text search stands in for them. Files whose superblock does not come first are not recognised.

Source: "HDF5 File Format Specification Version 3.0", https://support.hdfgroup.org; keras's
src/legacy/saving/legacy_h5_format.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torchkeep.contents import Contents, Finding
from torchkeep.errors import DamagedFile, UnsupportedContent
from torchkeep.files import Readable
from torchkeep.formats.cursor import Cursor
from torchkeep.formats.foreign import counted, not_loaded, shortened
from torchkeep.formats.format import Format
from torchkeep.formats.keras import find_code, is_config, parse_json, shown_model
from torchkeep.pickles.limits import Limits

_MAGIC = b"\x89HDF\r\n\x1a\n"
_LINK_INFO, _LINK, _ATTRIBUTE, _CONTINUATION, _SYMBOLS, _ATTRIBUTE_INFO = 2, 6, 12, 16, 17, 21
_TEXT, _FREE_LENGTH = 3, 9
"""Classes of types."""
_WIDTHS = (2, 4, 8)
_MOST_BLOCKS = 10_000
_MOST_NAMES = 100
_LONGEST_NAME = 1 << 10
_LONGEST_TEXT = 1 << 24
_LONGEST_FACT = 200
_SEARCHED_NBYTES = 1 << 24


def sniff(head: bytes, nbytes: int) -> bool:
    """Whether the file starts with HDF5's signature."""
    del nbytes
    return head.startswith(_MAGIC)


def describe(file: Readable, limits: Limits) -> Contents:
    """Return what is in the root group. Data sets are not looked at."""
    group = _Group(file, limits)
    group.read()
    texts = group.texts
    config = parse_json(texts.get("model_config", ""))
    findings = find_code(config)
    if group.is_dense and not findings and _mentions_lambda(file):
        text = "the file mentions a Lambda layer, whose bytecode Keras would run"
        findings = [Finding("keras-lambda", "needs-trust", "", text)]
    facts = {key: text for key, text in texts.items() if len(text) <= _LONGEST_FACT}
    if group.names:
        facts["names"] = ", ".join(group.names)
    return Contents(
        path=file.path,
        nbytes=file.nbytes,
        container=FORMAT.name,
        root=None,
        metadata=facts,
        findings=tuple(findings),
        kind=_kind(group, config),
        problem=not_loaded("an HDF5 file"),
    )


def _kind(group: _Group, config: object) -> str:
    texts = group.texts
    if "keras_version" in texts or is_config(config):
        version = shortened(texts.get("keras_version", ""))
        backend = shortened(texts.get("backend", ""))
        details = [version and f"Keras {version}", backend and f"backend {backend}"]
        known = ", ".join(detail for detail in details if detail)
        what = "Keras model in HDF5" if is_config(config) else "Keras weights in HDF5"
        model = f": {shown_model(config)}" if is_config(config) else ""
        return f"{what}{f' ({known})' if known else ''}{model}"
    names = ", ".join(shortened(name) for name in group.names[:4])
    if not names:
        return "HDF5 file"
    return f"HDF5 file: {names}{', ...' if len(group.names) > 4 else ''}"
