"""The code in a TorchScript archive, read for what it says about classes. It is text, never run.

PyTorch prints the code of all classes anew when it saves them, one statement a line, always in the
same shape, so that a look at the lines is enough:

    class Linear(Module):
      __parameters__ = ["weight", "bias", ]
      __buffers__ = []
      weight : Tensor
      __annotations__["0"] = __torch__.torch.nn.modules.linear.Linear
      in_features : Final[int] = 3
      def forward(self: __torch__.torch.nn.modules.linear.Linear,
        input: Tensor) -> Tensor:

`__buffers__` is missing before PyTorch 1.6. The class `__torch__.torch.nn.modules.linear.Linear`
stands in the record `code/__torch__/torch/nn/modules/linear.py`.

Source: torch/csrc/jit/serialization/python_print.cpp, import_source.cpp.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from torchkeep.contents import Value


@dataclass(frozen=True, slots=True)
class ScriptClass:
    """What the code says about one class."""

    base: str
    """Its base: `Module`, `NamedTuple`, `Enum`, `Interface`, or nothing."""
    parameters: frozenset[str]
    """Attributes that are parameters."""
    buffers: frozenset[str]
    """Attributes that are buffers."""
    constants: dict[str, Value]
    """Attributes that stand in the code with their value."""
    methods: tuple[str, ...]
    """The names of its methods."""


@dataclass(frozen=True, slots=True)
class Code:
    """All code of an archive."""

    classes: dict[str, ScriptClass]
    """The classes by dotted name."""
    sources: dict[str, str]
    """The text of each class and function by dotted name."""


def parse_code(texts: dict[str, str]) -> Code:
    """Return what code files say; `texts` are the files by the dotted name of their module."""
    classes: dict[str, ScriptClass] = {}
    sources: dict[str, str] = {}
    for module, text in texts.items():
        for kind, name, block in _blocks(text):
            path = f"{module}.{name}"
            sources.setdefault(path, block)
            if kind == "class":
                classes.setdefault(path, _parse_class(block))
    return Code(classes, sources)


_START = re.compile(r"^(class|def) (\w+)", re.MULTILINE)


def _blocks(text: str) -> Iterator[tuple[str, str, str]]:
    """Yield the kind, the name and the text of each class and function."""
    found = _START.search(text)
    while found is not None:
        following = _START.search(text, found.end())
        end = len(text) if following is None else following.start()
        yield found[1], found[2], text[found.start() : end]
        found = following


_BASE = re.compile(r"class \w+\(([\w.]*)\):")
_TABLE = re.compile(r"^  __(parameters|buffers)__ = \[(.*)\]", re.MULTILINE)
_ATTRIBUTE = re.compile(
    r'^  (?:(\w+) : |__annotations__\["((?:[^"\\\n]|\\.)*)"\] = )(.+)', re.MULTILINE
)
_METHOD = re.compile(r"^  def (\w+)", re.MULTILINE)
_QUOTED = re.compile(r'"((?:[^"\\\n]|\\.)*)"')
_FINAL = re.compile(r"Final\[.*?\] = (.+)")


def _parse_class(text: str) -> ScriptClass:
    base = _BASE.match(text)
    tables: dict[str, frozenset[str]] = {}
    for found in _TABLE.finditer(text):
        tables.setdefault(found[1], frozenset(map(unquoted, _QUOTED.findall(found[2]))))
    parameters = tables.get("parameters", frozenset())
    tensors, constants = set(), {}
    for found in _ATTRIBUTE.finditer(text):
        name = found[1] if found[2] is None else unquoted(found[2])
        final = _FINAL.fullmatch(found[3])
        if found[3] == "Tensor":
            tensors.add(name)
        elif final is not None:
            constants[name] = parse_literal(final[1])
    return ScriptClass(
        base=base[1] if base else "",
        parameters=parameters,
        # Before there was a table, every other tensor was a buffer.
        buffers=tables.get("buffers", frozenset(tensors) - parameters),
        constants=constants,
        methods=tuple(_METHOD.findall(text)),
    )


_ESCAPE = re.compile(r"\\([0-7]{1,3}|.)", re.DOTALL)
_CONTROL = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}


def unquoted(text: str) -> str:
    r"""Return a text that C++ wrote between quotes: bytes outside of ASCII are octal numbers there.

    >>> unquoted(r"caf\303\251\n")
    'café\n'
    """
    if "\\" not in text:
        return text

    def plain(found: re.Match[str]) -> str:
        code = found[1]
        if code[0] in "01234567":
            return chr(int(code, 8) & 0xFF)
        return _CONTROL.get(code, code)

    characters = _ESCAPE.sub(plain, text)
    try:
        return characters.encode("latin-1").decode("utf-8", "replace")
    except UnicodeEncodeError:  # it is not C++'s
        return characters


_TOKEN = re.compile(r'\s*(?:(-?[\d.][\w.+-]*|-?inf|nan)|"((?:[^"\\]|\\.)*)"|(\w+)|([][(),]))')
_WORDS = {"True": True, "False": False, "None": None}
_MOST_TOKENS = 1_000


def parse_literal(text: str) -> Value:
    """Return the value of a constant in the code; what is no plain value stays text.

    >>> parse_literal("(1, 2.5)"), parse_literal('["a", ]'), parse_literal("torch.device()")
    ((1, 2.5), ['a'], 'torch.device()')
    """
    value = _Literal(text).read()
    return text if value is _Literal else value


class _Literal:
    """A reader of one literal; it answers with its own class where there is none."""

    def __init__(self, text: str) -> None:
        self.text = text.rstrip()
        self.position = 0
        self.left = _MOST_TOKENS

    def read(self) -> Value:
        """Return the value, if it is all that there is."""
        stack: list[tuple[str, list[Value]]] = [("", [])]
        while self.position < len(self.text):
            found = _TOKEN.match(self.text, self.position)
            self.left -= 1
            if found is None or self.left < 0:
                return _Literal
            self.position = found.end()
            mark = found[4]
            if mark in ("(", "["):
                stack.append((mark, []))
            elif mark in (")", "]"):
                opened, items = stack.pop()
                if not stack or opened + mark not in ("()", "[]"):
                    return _Literal
                stack[-1][1].append(tuple(items) if mark == ")" else items)
            elif mark is None:
                value = _atom(found)
                if value is _Literal:
                    return _Literal
                stack[-1][1].append(value)
        return stack[0][1][0] if len(stack) == len(stack[0][1]) == 1 else _Literal


def _atom(found: re.Match[str]) -> Value:
    """Return the number, text or word that a token is."""
    number, text, word = found[1], found[2], found[3]
    if text is not None:
        return unquoted(text)
    if word is not None:
        return _WORDS.get(word, _Literal)
    try:
        return int(number) if number.lstrip("-").isdecimal() else float(number)
    except ValueError:
        return _Literal
