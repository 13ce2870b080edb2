"""Text under a model's name: web pages, error messages of a download, JSON, tables, source code.

Layout: text in UTF-8 or UTF-16, told by its characters; the kind of text by how it starts.

Limits: only the start of a text is looked at, unless it is JSON of a few megabytes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from torchkeep.contents import Contents, Finding
from torchkeep.errors import FileProblem
from torchkeep.files import Readable
from torchkeep.formats.described_only import no_model, not_loaded
from torchkeep.formats.ecosystems.keras import find_code, is_config, read_json, shown_model
from torchkeep.formats.format import Format
from torchkeep.formats.other_views.hidden_pickle import find_hidden_pickle
from torchkeep.pickles.limits import Limits
from torchkeep.wording import shortened

_START_NBYTES = 1 << 16
_LARGEST_JSON = 4 << 20
_LONGEST_LINE = 40
_LONGEST_MESSAGE = 1_000
"""Characters of a server's error message; longer ones are texts about something."""

_DOWNLOAD = "The download went wrong (a log-in or an error page?): open it in a browser."


def sniff(head: bytes, nbytes: int) -> bool:
    """Whether the file starts with text."""
    return nbytes > 0 and not head.startswith(b"%PDF-") and _decode(head) is not None


def _decode(data: bytes) -> str | None:
    """Return the text that the bytes are, a character that is cut off left out; None if none."""
    for encoding in ("utf-16",) if data.startswith(_UTF16) else ("utf-8-sig", "latin1"):
        # Neither encoding can be cut in the middle of a character by more than three bytes.
        for end in range(len(data), max(len(data) - 4, 0), -1):
            try:
                text = data[:end].decode(encoding)
            except UnicodeDecodeError:
                continue
            is_foreign = encoding == "latin1" and 4 * len(text.encode()) > 5 * len(text)
            return None if is_foreign or _CONTROL.search(text) else text or None
    return None


_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_CONTROL = re.compile("[\0-\x08\x0b\x0e-\x1a\x1c-\x1f\x7f-\x9f]")


@dataclass(frozen=True, slots=True)
class _Text:
    """What kind of text it is."""

    kind: str
    problem: FileProblem
    findings: tuple[Finding, ...] = ()


def describe(file: Readable, limits: Limits) -> Contents:
    """Return what kind of text the file is."""
    start = file.read_at(0, min(file.nbytes, _START_NBYTES))
    # What follows the first bytes need not be text.
    text = _decode(start) or _decode(start[:512]) or ""
    told = _tell(file, text)
    names, hidden = find_hidden_pickle(file, limits)
    return Contents(
        path=file.path,
        nbytes=file.nbytes,
        container=FORMAT.name,
        root=None,
        globals=names,
        findings=(*told.findings, *hidden),
        kind=told.kind,
        problem=told.problem,
    )


def _tell(file: Readable, text: str) -> _Text:
    """Return the kind of a text that starts like this."""
    text = text.lstrip()
    for look in (_web_page, _pointer, _json, _message, _model, _yaml, _source, _table):
        told = look(file, text)
        if told is not None:
            return told
    return _plain("text", text)


def _plain(kind: str, text: str, *findings: Finding, article: str = "") -> _Text:
    """Return text that is of no use here, with the line that it starts with."""
    line = text.splitlines()[0][:_LONGEST_LINE] if text else ""
    return _Text(kind, no_model(f"{article}{kind} ({line!r}...)"), findings)


def _web_page(file: Readable, text: str) -> _Text | None:
    del file
    start = text[:1000].lower()
    if not start.startswith(("<!doctype html", "<html", "<head", "<?xml", "<error>")):
        return None
    if start.startswith(("<?xml", "<error>")) and "<html" not in start:
        if "<error>" not in start and "<error " not in start and "<error/" not in start:
            return _plain("XML text", text)
        return _Text("error message of a server in XML", no_model("a server's error", _DOWNLOAD))
    found = re.search(r"<title[^<>]*>([^<>]*)", text, re.IGNORECASE)
    title = " ".join(found[1].split()) if found else ""
    kind = f"web page titled {shortened(title)!r}" if title else "web page"
    return _Text(f"{kind} (an error or log-in page?)", no_model("a web page", _DOWNLOAD))


def _pointer(file: Readable, text: str) -> _Text | None:
    del file
    if not re.match(r"(\.\./)*(\.git)?/annex/objects/", text):
        return None
    advice = "Fetch the model itself with `git annex get`."
    return _Text("git-annex pointer", no_model("a git-annex pointer", advice))


def _json(file: Readable, text: str) -> _Text | None:
    if not text.startswith(("{", "[")):
        return None
    if file.nbytes > _LARGEST_JSON:
        return _plain("JSON text", text)
    value = read_json(file.read_at(0, file.nbytes).decode("utf-8-sig", "replace"))
    if is_config(value):
        kind = f"Keras configuration without weights: {shown_model(value)}"
        what = not_loaded("the configuration of a Keras model")
        return _Text(kind, what, tuple(find_code(value)))
    if not isinstance(value, dict):
        return None if value is None else _plain("JSON text", text)
    if set(value) & {"error", "errors", "message"} and len(text) <= _LONGEST_MESSAGE:
        return _server_error(text)
    for keys, kind in _JSON_KINDS:
        if keys <= set(value):
            return _Text(kind, not_loaded(f"a {kind}"))
    return _plain("JSON text", text)


_JSON_KINDS: tuple[tuple[frozenset[str], str], ...] = (
    (frozenset({"learner", "version"}), "XGBoost model in JSON"),
    (frozenset({"base_code", "program"}), "PaddlePaddle program in JSON"),
    (frozenset({"weight_map"}), "table of the shards of a model"),
)
"""Keys that tell what a JSON object is."""


def _message(file: Readable, text: str) -> _Text | None:
    is_short = file.nbytes <= _LONGEST_MESSAGE
    return _server_error(text) if is_short and _MESSAGE.match(text) else None


_MESSAGE = re.compile(
    r"(\d{3}:? )?(entry not found|repository not found|not found|invalid username or password|"
    r"access to \S+ .*(is restricted|denied)|access denied|unauthorized|forbidden|bad gateway|"
    r"too many requests|internal server error|service unavailable|no such (file|key))",
    re.IGNORECASE,
)
"""What servers of models say instead of a file."""


def _server_error(text: str) -> _Text:
    line = text.splitlines()[0][:_LONGEST_LINE]
    return _Text(
        f"error message of a download: {shortened(text.strip())}",
        no_model(f"a server's error message ({line!r})", _DOWNLOAD),
    )


def _model(file: Readable, text: str) -> _Text | None:
    del file
    if not text.startswith("tree\nversion="):
        return None
    return _Text("LightGBM model", not_loaded("a LightGBM model"))


def _yaml(file: Readable, text: str) -> _Text | None:
    del file
    lines = [line for line in text.splitlines()[:50] if line.strip() and line.lstrip()[0] != "#"]
    is_table = len(lines) > 1 and all(map(_YAML_LINE.match, lines[:5])) and lines[0][0] != " "
    if not is_table and not text.startswith(("---\n", "%YAML")):
        return None
    if "!!python/" not in text:
        return _plain("YAML text", text)
    said = "it names Python objects, which a YAML loader that trusts it makes"
    return _plain("YAML text", text, Finding("yaml-object", "needs-trust", "", said))


_YAML_LINE = re.compile(r" *(- )?[\w.-]+:( |$)| *- | +\S")


def _source(file: Readable, text: str) -> _Text | None:
    del file
    if text.startswith("#!"):
        is_python = "python" in text.partition("\n")[0]
        return _plain("Python script" if is_python else "script", text, article="a ")
    return _plain("Python source", text) if _PYTHON.search(text) else None


_PYTHON = re.compile(
    r"^(import [\w.]+( as \w+)?|from [\w.]+ import .*|def \w+\(.*|class \w+(\(.*\))?:)$",
    re.MULTILINE,
)


def _table(file: Readable, text: str) -> _Text | None:
    del file
    lines = [line for line in text.splitlines()[:4] if line][:3]
    for mark in ",;\t":
        counts = {line.count(mark) for line in lines}
        if len(lines) > 1 and len(counts) == 1 and (found := counts.pop()):
            return _plain(f"table of {found + 1} columns", text, article="a ")
    return None


FORMAT = Format("text", sniff, describe)
