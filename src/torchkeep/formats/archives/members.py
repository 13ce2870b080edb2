"""What is done with each file of an archive, whatever packs it: sort it, open it, describe it.

A file that is stored as it is becomes a window of the archive; a packed one is unpacked into
memory, under the budget of the outermost file. Its first bytes decide: what is plainly no model
(text, pictures, unknown data) is counted, and mostly not unpacked any further.
"""

from __future__ import annotations

import base64
import binascii
import re
import shlex
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from torchkeep.contents import Contents, Finding
from torchkeep.errors import (
    DamagedFile,
    FileProblem,
    FileUnreadable,
    LimitReached,
    NotAModelFile,
    UnsupportedContent,
)
from torchkeep.files import Readable
from torchkeep.formats.archives.bodies import (
    Body,
    Nesting,
    PackedMember,
    might_run,
    nesting_of,
)
from torchkeep.formats.containers import CONTAINERS
from torchkeep.formats.format import Format
from torchkeep.formats.joining import join_members
from torchkeep.formats.machine_code import is_native, is_source
from torchkeep.formats.plain_json import parse_json
from torchkeep.formats.zips.structs import LOCAL_MAGIC
from torchkeep.pickles.limits import Limits

_UNPACK_HINT = "Unpack it yourself and look into what comes out."
_UNPACKING = {
    "zip archive": "python -m zipfile -e {} FOLDER",
    "tar archive": "mkdir FOLDER && tar -xf {} -C FOLDER",
    "7z archive": "7z x {} -oFOLDER",
    "": "unpack it into a folder",
}
"""How each kind of archive becomes a folder."""
_ZERO_NAME = re.compile(r"zero_pp_rank_\d+_mp_rank_\d+.*states\.pt$")
"""What DeepSpeed calls the parts of a checkpoint that each process writes."""
_MOST_FINDINGS = 100
"""Of one rule: a file can't make the report endless."""


class Look:
    """Goes through the files of one archive and keeps what they are.

    Attributes:
        findings: what is odd about the archive itself.
        nesting: where its files lie.
    """

    def __init__(self, file: Readable, kind: str, limits: Limits) -> None:
        outer = nesting_of(file, limits)
        limits.check("archive_depth", outer.level + 1)
        self.nesting = Nesting(outer.level + 1, outer.budget, outer.scratch)
        self.findings: list[Finding] = []
        self._file = file
        self._kind = kind
        self._limits = limits
        self._members: dict[str, Contents] = {}
        self._num_files = 0
        self._num_closed = 0
        self._num_findings: Counter[str] = Counter()
        self._num_named: Counter[str] = Counter()
        self._closed_by: FileProblem | None = None
        self._source_names: list[str] = []
        self._is_served = False

    def note(
        self,
        rule: str,
        severity: Literal["note", "needs-trust", "ambiguous", "damaged"],
        place: str,
        text: str,
    ) -> None:
        """Keep a finding, if there are not too many like it."""
        self._num_findings[rule] += 1
        if self._num_findings[rule] <= _MOST_FINDINGS:
            self.findings.append(Finding(rule, severity, place, text))

    def add(self, name: str, body: Body) -> None:
        """Look at one file. What goes wrong with it is kept, too."""
        name = self._new_name(name)
        self._num_files += 1
        try:
            self.nesting.budget.visit()
            contents = self._examine(name, body)
        except FileProblem as problem:
            self._keep_closed(name, problem)
            return
        if contents is not None:
            self._members[name] = contents
            self._note_problem(name, contents)

    def add_closed(self, name: str, problem: FileProblem) -> None:
        """Count a file that can't be looked into."""
        self._num_files += 1
        self._keep_closed(self._new_name(name), problem)

    def add_link(self, name: str, what: str) -> None:
        """Count a link or a device, which is no file of the archive's own."""
        self.note("link", "ambiguous", self._new_name(name), f"it is {what}, and not a file")

    def result(self, problem: FileProblem | None = None) -> Contents:
        """Return the archive's description. `problem` is what broke the way through it."""
        self._note_source()
        problem = self._problem(problem)
        return join_members(
            self._file.path,
            self._file.nbytes,
            "archive",
            self._members,
            kind=self._summary(),
            findings=tuple(self.findings),
            problem=problem,
        )

    def _problem(self, broken: FileProblem | None) -> FileProblem | None:
        """Return why no model can be had from the archive; None if one can."""
        if isinstance(broken, LimitReached) and self._num_models():
            self.note("not-looked-into", "ambiguous", "", f"the rest of it: {broken.problem}")
            return None
        if broken is not None or self._num_models():
            return broken
        if any(member.problem is None for member in self._members.values()):
            return None
        inner = self._closed_by or next(
            (m.problem for m in self._members.values() if not isinstance(m.problem, NotAModelFile)),
            None,
        )
        files = "the file" if self._num_files == 1 else f"none of the {self._num_files:,} files"
        if self._num_files == 0:
            return NotAModelFile(f"this {self._kind} is empty", advice="Check the path.")
        if inner is None:
            what = "is no model" if self._num_files == 1 else "is a model"
            return NotAModelFile(f"{files} in this {self._kind} {what}", advice="Check the path.")
        if any(m.problem is inner for m in self._members.values() if m.container == "archive"):
            return inner  # an archive in this one, which says so itself
        what = "can't be read" if self._num_files == 1 else "can be read as a model"
        is_said = isinstance(inner, DamagedFile | FileUnreadable | LimitReached)
        advice = inner.advice if is_said else _UNPACK_HINT
        text = f"{files} in this {self._kind} {what}: {inner.problem}"
        return type(inner)(text, advice=advice)

    def _summary(self) -> str:
        """Return what the archive is, in a few words."""
        total, models, closed = self._num_files, self._num_models(), self._num_closed
        text = f"{self._kind} of {total:,} file{'' if total == 1 else 's'}"
        if total == closed > 0:
            return f"{text} that can't be looked into"
        parts = [text]
        if total == 1:
            parts.append("a model" if models else "no model")
        elif models:
            parts.append(f"{models:,} of them {'a model' if models == 1 else 'models'}")
        elif total and not closed:
            parts.append("none of them a model")
        if closed:
            parts.append(f"{closed:,} that can't be looked into")
        if in_pieces := self._in_pieces():
            command = next(text for kind, text in _UNPACKING.items() if kind in self._kind)
            command = command.format(shlex.quote(self._file.path.name))
            parts.append(f"{in_pieces} to be unpacked before it is one model ({command})")
        return ", ".join(parts)

    def _in_pieces(self) -> str:
        """Return what files together are of which each holds pieces of tensors; empty if none."""
        names = {name.rpartition("/")[2] for name in self._members}
        if ".metadata" in names and any(it.container == "dcp" for it in self._members.values()):
            return "a distributed checkpoint"
        return "a partitioned checkpoint" if any(map(_ZERO_NAME.search, names)) else ""

    def _num_models(self) -> int:
        """Return how many files are models, also of other ecosystems and in archives."""
        return sum(
            member.problem is None
            or (bool(member.kind) and isinstance(member.problem, UnsupportedContent))
            for member in self._members.values()
            if member.container != "text"
        )

    def _new_name(self, name: str) -> str:
        """Return a name that no other file has, after a look at where it would be unpacked to."""
        name = name.removeprefix("./")
        if _leaves_folder(name):
            text = "unpacked, it would lie outside of the folder that is unpacked into"
            self.note("path-escape", "ambiguous", name, text)
        self._num_named[name] += 1
        unique = name if self._num_named[name] == 1 else f"{name} ({self._num_named[name]})"
        while unique in self._members:
            self._num_named[name] += 1
            unique = f"{name} ({self._num_named[name]})"
        return unique

    def _keep_closed(self, name: str, problem: FileProblem) -> None:
        self._num_closed += 1
        self._closed_by = self._closed_by or problem
        severity: Literal["damaged", "ambiguous"] = "ambiguous"
        if isinstance(problem, DamagedFile):
            severity = "damaged"
        self.note("not-looked-into", severity, name, f"it can't be looked into: {problem.problem}")

    def _note_problem(self, name: str, contents: Contents) -> None:
        """Say which file broke, or is of a kind that is not read and not even described."""
        problem = contents.problem
        if isinstance(problem, DamagedFile | LimitReached) or (
            isinstance(problem, UnsupportedContent) and not contents.kind
        ):
            text = f"it can't be read: {problem.problem}"
            self.note("unread-member", "ambiguous", name, text)

    # --- One file -------------------------------------------------------------------------------

    def _examine(self, name: str, body: Body) -> Contents | None:
        """Return what a file is; None if it is plainly no model."""
        head = body.head()
        reader = _reader_of(head, len(head) if body.nbytes is None else body.nbytes)
        is_model = CONTAINERS[reader.name].is_model
        self._note_code(name, b"" if is_model else head)
        if reader.name == "unknown" and not might_run(body):
            return None
        if reader.name == "text" and not self._is_worth_reading(name, body, head):
            return None
        file = body.open(Path(f"{self._file.path}/{name}"), self.nesting)
        if isinstance(file, PackedMember) and is_model:
            file.keep()
        contents = self._examine_model(file, head)
        if reader.name == "text" and _is_json(head):
            contents = self._with_pickles(contents, file)
        return contents if _is_worth_telling(contents) else None

    def _is_worth_reading(self, name: str, body: Body, head: bytes) -> bool:
        """Whether a text may hold more than words: settings, pickles, what runs as a pickle."""
        if (body.nbytes or 0) > _LONGEST_TEXT:
            # Vocabularies are that long, and are called what they are.
            if _is_json(head) and not name.casefold().endswith(".json"):
                raise LimitReached(f"it is a JSON text of {body.nbytes} bytes")
            return might_run(body)
        return _is_json(head) or might_run(body) or _TARGET in body.head(_LONGEST_SETTINGS)

    def _examine_model(self, file: Readable, head: bytes) -> Contents:
        from torchkeep.formats import examine_open  # it is above this module

        limits = self._limits
        if head.startswith(LOCAL_MAGIC):
            most = file.nbytes + self.nesting.budget.spare()
            limits = replace(limits, pickle_nbytes=min(limits.pickle_nbytes, most))
        return examine_open(file, limits)

    def _with_pickles(self, contents: Contents, file: Readable) -> Contents:
        """Return the description of a JSON text with the pickles that stand in it."""
        data = file.read_at(0, file.nbytes)
        plain = _ESCAPE.sub(lambda found: bytes([int(found[1], 16)]), data)
        if _SERIALIZED.encode() not in plain:
            return contents
        tree = parse_json(data, allow_nan=True)
        pickles = [item for item in _objects(tree) if _SERIALIZED in item[1]]
        return self._join_json(contents, file, tree, pickles) if pickles else contents

    def _join_json(
        self,
        contents: Contents,
        file: Readable,
        tree: Any,
        pickles: list[tuple[_Place, dict[str, Any]]],
    ) -> Contents:
        """Return the text's values, each pickle in its place, and each pickle as a member."""
        members: dict[str, Contents] = {}
        for place, holder in pickles:
            name = _dotted(place)
            while name in members:  # a key with a dot in it can make two places look like one
                name += " (again)"
            text = str(holder[_SERIALIZED])
            members[name] = self._examine_text(text, Path(f"{file.path}/{name}"))
        # What stands in another one comes behind it, and so is put into its place before it.
        for (place, _), member in reversed(list(zip(pickles, members.values(), strict=True))):
            tree = _with_value(tree, place, member.root)
        count = f"{len(pickles)} pickle{'' if len(pickles) == 1 else 's'}"
        kind = f"JSON with {count} in it"
        findings = contents.findings
        joined = join_members(file.path, file.nbytes, "text", members, kind=kind, findings=findings)
        return replace(joined, root=tree, metadata=contents.metadata)

    def _examine_text(self, text: str, path: Path) -> Contents:
        from torchkeep.formats import examine_open

        self.nesting.budget.visit()
        try:
            data = base64.b64decode(text)
        except (binascii.Error, ValueError) as error:
            problem = DamagedFile(f"it is no base64 text ({error})", path=path)
            return Contents(path, len(text), "unknown", None, problem=problem)
        return examine_open(PackedMember(data, path, self.nesting), self._limits)

    def _note_code(self, name: str, head: bytes) -> None:
        """Say what of an archive would be run, or could be."""
        self._is_served |= name == "MAR-INF/MANIFEST.json"
        if is_native(name, head):
            text = "it is machine code or bytecode, which no look into it can judge"
            self.note("native-code", "needs-trust", name, text)
        elif is_source(name):
            self._source_names.append(name)

    def _note_source(self) -> None:
        """Say where source code lies; TorchServe runs what lies in its archives."""
        for name in self._source_names:
            if self._is_served:
                self.note("source-code", "needs-trust", name, "TorchServe runs it")
            else:
                text = "source code lies beside the model; loading the model need not run it"
                self.note("source-code", "note", name, text)


_LONGEST_TEXT = 16 << 20
_LONGEST_SETTINGS = 1 << 20
_TARGET = b"_target_"
"""The key under which settings name what is to be called."""
_Place = tuple[Any, Any] | None
"""Where a value stands in a JSON text: the place of what it stands in, and its key there."""
_SERIALIZED = ":serialized:"
"""The key under which stable-baselines3 keeps a pickle, as base64, in its JSON; beside it stand
texts for people."""
_ESCAPE = re.compile(rb"\\u00([2-7][0-9a-fA-F])")
"""How JSON may write a letter of ASCII."""


def _reader_of(head: bytes, nbytes: int) -> Format:
    from torchkeep.formats import READERS

    return next(reader for reader in READERS if reader.sniff(head, nbytes))


def _is_json(head: bytes) -> bool:
    return head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith((b"{", b"["))


def _is_worth_telling(contents: Contents) -> bool:
    """Whether a description says more than that there is no model."""
    return (
        not isinstance(contents.problem, NotAModelFile)
        or contents.container == "git-lfs-pointer"
        or bool(contents.metadata)
        or any(finding.severity != "note" for finding in contents.findings)
    )


def _leaves_folder(name: str) -> bool:
    """Whether a name, taken for a path on any system, leads out of the folder it is in."""
    parts = re.split(r"[/\\]", name)
    return ".." in parts or parts[0] == "" or parts[0][1:2] == ":"


def _objects(tree: Any) -> Iterator[tuple[_Place, dict[str, Any]]]:
    """Yield the objects in a JSON value, each with its place."""
    pending: list[tuple[_Place, Any]] = [(None, tree)]
    while pending:
        place, value = pending.pop()
        items: list[tuple[Any, Any]] = []
        if isinstance(value, dict):
            yield place, value
            items = list(value.items())
        elif isinstance(value, list):
            items = list(enumerate(value))
        # A place is no text yet: ten thousand values in a deep one would each repeat it.
        pending += [((place, key), item) for key, item in items[::-1]]


def _keys(place: _Place) -> list[Any]:
    keys: list[Any] = []
    while place is not None:
        place, key = place
        keys.append(key)
    return keys[::-1]


def _dotted(place: _Place) -> str:
    return ".".join(map(str, _keys(place)))


def _with_value(tree: Any, place: _Place, value: Any) -> Any:
    """Return a JSON value with another value at a place."""
    if place is None:
        return value
    parent = tree
    for key in _keys(place[0]):
        parent = parent[key]
    parent[place[1]] = value
    return tree
