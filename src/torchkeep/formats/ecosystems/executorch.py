"""ExecuTorch programs (`.pte`), and the data files that go with them (`.ptd`).

Layout: a flatbuffer, `Program` in ExecuTorch's schema, and segments of data behind it:

    u32        where the root table is
    4 bytes    ET12, or FT01 for a file of data
    header     eh00, its own length (u32), the program's size (u64), where the segments start (u64)
               and, in newer files, how many bytes they have (u64); may be missing

A table starts with an i32, the way back to its list of fields: two u16 (the sizes of the list and
of the table) and a u16 per field, where that is in the table, 0 if it is not. A text, a list and a
table in a table are u32, the way forward to them.

Limits: methods, operators and backends are named; values and instructions are not read.

Source: pytorch/executorch, schema/program.fbs and schema/extended_header.cpp;
https://flatbuffers.dev/internals.
"""

from __future__ import annotations

from torchkeep.contents import Contents
from torchkeep.errors import DamagedFile
from torchkeep.files import Readable
from torchkeep.formats.cursor import Cursor
from torchkeep.formats.described_only import not_loaded
from torchkeep.formats.format import Format
from torchkeep.pickles.limits import Limits
from torchkeep.wording import counted, shortened

_MAGICS = (b"ET12", b"FT01")
_HEADER_MAGICS = (b"eh00", b"FH01")
_LONGEST_NAME = 200
_MOST_NAMES = 200
_MOST_METHODS = 32

_VERSION, _PLANS, _SEGMENTS = 0, 1, 4
"""Fields of a program."""
_PLAN_NAME, _OPERATORS, _DELEGATES = 0, 6, 7
"""Fields of a method's plan."""


def sniff(head: bytes, nbytes: int) -> bool:
    """Whether a flatbuffer of ExecuTorch's starts the file."""
    del nbytes
    return head[4:8] in _MAGICS


def describe(file: Readable, limits: Limits) -> Contents:
    """Return what the program says about itself."""
    start = Cursor.over(file, limits)
    facts = _read_header(start.at(8))
    if start.at(4).take(4) == b"FT01":
        kind = "ExecuTorch data of a program"
    else:
        kind = _read_program(start, facts)
    return Contents(
        path=file.path,
        nbytes=file.nbytes,
        container=FORMAT.name,
        root=None,
        metadata=facts,
        kind=kind,
        problem=not_loaded("an ExecuTorch file"),
    )


def _read_header(cursor: Cursor) -> dict[str, str]:
    """Return the sizes that the header states, and check them; none if there is no header."""
    if cursor.remaining < 24 or cursor.take(4) not in _HEADER_MAGICS:
        return {}
    nbytes = cursor.number(4)
    program_nbytes, segments_start = cursor.number(8), cursor.number(8)
    segments_nbytes = cursor.number(8) if nbytes >= 32 else 0
    expected = max(program_nbytes, segments_start + segments_nbytes)
    if expected > cursor.end:
        raise DamagedFile(
            f"the file is truncated: it should have {expected:,} bytes, and has {cursor.end:,}",
            advice="Copy or download it again.",
        )
    return {"program_nbytes": str(program_nbytes), "segments_start": str(segments_start)}


def _read_program(start: Cursor, facts: dict[str, str]) -> str:
    """Return what the program is in a few words, and add to the facts."""
    program = _Table.at(start)
    version = program.number(_VERSION, 4)
    methods: list[str] = []
    operators: dict[str, None] = {}
    backends: dict[str, None] = {}
    for plan in program.tables(_PLANS, _MOST_METHODS):
        methods.append(plan.text(_PLAN_NAME))
        for operator in plan.tables(_OPERATORS, _MOST_NAMES):
            name = ".".join(filter(None, (operator.text(0), operator.text(1))))
            operators.setdefault(name)
        backends.update(dict.fromkeys(d.text(0) for d in plan.tables(_DELEGATES, _MOST_NAMES)))
    facts["version"] = str(version)
    facts |= {
        key: ", ".join(names)
        for key, names in (("methods", methods), ("operators", operators), ("backends", backends))
        if names
    }
    parts = [
        ", ".join(shortened(name) for name in methods[:4]),
        counted(len(operators), "operator"),
    ]
    parts += [f"backend {shortened(name)}" for name in list(backends)[:4]]
    return f"ExecuTorch program of version {version}: {', '.join(filter(None, parts))}"


class _Table:
    """A table of a flatbuffer."""

    def __init__(self, whole: Cursor, place: int) -> None:
        self.whole = whole
        self.place = place
        self.fields = place - whole.at(place).number(4, signed=True)
        if self.fields < 0:
            raise DamagedFile(f"the flatbuffer's table at byte {place:,} has no list of fields")
        self.fields_nbytes = whole.at(self.fields).number(2)

    @classmethod
    def at(cls, cursor: Cursor) -> _Table:
        """Return the table that the next four bytes lead to."""
        return cls(cursor, cursor.position + cursor.at(cursor.position).number(4))

    def field(self, index: int) -> Cursor | None:
        """Return a cursor at a field; None if the table has none."""
        if 6 + 2 * index > self.fields_nbytes:
            return None
        start = self.whole.at(self.fields + 4 + 2 * index).number(2)
        return self.whole.at(self.place + start) if start else None

    def number(self, index: int, nbytes: int) -> int:
        """Return a field that is a number; 0 if it is missing."""
        field = self.field(index)
        return field.number(nbytes) if field else 0

    def text(self, index: int) -> str:
        """Return a field that is a text; an empty one if it is missing."""
        field = self.field(index)
        if field is None:
            return ""
        text = self.whole.at(field.position + field.at(field.position).number(4))
        return text.text(text.count(4, 1), _LONGEST_NAME)

    def tables(self, index: int, most: int) -> list[_Table]:
        """Return the tables in a field that is a list of them, `most` of them at most."""
        field = self.field(index)
        if field is None:
            return []
        items = self.whole.at(field.position + field.at(field.position).number(4))
        count = items.count(4, 4)
        tables = []
        for _ in range(min(count, most)):
            place = items.position
            tables.append(_Table(self.whole, place + items.number(4)))
        return tables


FORMAT = Format("executorch", sniff, describe)
