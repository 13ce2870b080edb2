"""The JSON of exported programs: what its numbers mean, and what it would have loaders run.

A program is a graph of operators (`ExportedProgram` in schema.py) and loads without a pickle, and
still four kinds of text in it reach Python: expressions of sizes are evaluated by SymPy, guards
become the body of a function, and the description of inputs and outputs names modules to import,
for enums and for the factories of `defaultdict`.

Source: torch/_export/serde/schema.py and serialize.py, torch/export/_unlift.py,
torch/utils/_pytree.py (`enum_object_hook`, `_defaultdict_deserialize`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from torchkeep.contents import Finding, Global, Value
from torchkeep.errors import DamagedFile
from torchkeep.formats.plain_json import parse_json

DTYPES: Mapping[int, str] = MappingProxyType(
    {
        1: "uint8",
        2: "int8",
        3: "int16",
        4: "int32",
        5: "int64",
        6: "float16",
        7: "float32",
        8: "float64",
        9: "complex32",
        10: "complex64",
        11: "complex128",
        12: "bool",
        13: "bfloat16",
        28: "uint16",
        29: "float8_e4m3fn",
        30: "float8_e5m2",
        31: "float8_e4m3fnuz",
        32: "float8_e5m2fnuz",
        33: "float8_e8m0fnu",
        34: "uint32",
        35: "uint64",
    }
)
"""PyTorch's name of each `ScalarType`."""

STRIDED = 7
"""The `Layout` of ordinary tensors."""


@dataclass(frozen=True, slots=True)
class TensorMeta:
    """What the JSON says about one tensor."""

    dtype: str
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    requires_grad: bool
    device: str


def tensor_meta(message: Any) -> TensorMeta:
    """Return what a `TensorMeta` says.

    Raises:
        ValueError: it makes no sense, or its sizes are not known.
    """
    meta = as_dict(message)
    dtype = DTYPES.get(meta.get("dtype", 0))
    if dtype is None:
        raise ValueError(f"its type {str(meta.get('dtype'))[:20]} is unknown")
    if meta.get("layout", STRIDED) != STRIDED:
        raise ValueError(f"its layout {str(meta.get('layout'))[:20]} is not that of plain bytes")
    device = as_dict(meta.get("device"))
    kind, index = device.get("type", "cpu"), device.get("index")
    return TensorMeta(
        dtype=dtype,
        sizes=tuple(map(_known_size, as_list(meta.get("sizes")))),
        strides=tuple(map(_known_size, as_list(meta.get("strides")))),
        offset=_known_size(meta.get("storage_offset", 0)),
        requires_grad=meta.get("requires_grad") is True,
        device=f"{kind}:{index}" if isinstance(index, int) else str(kind)[:40],
    )


def _known_size(value: Any) -> int:
    """Return a size, which stands alone or as `{"as_int": 3}`."""
    size = as_dict(value).get("as_int") if isinstance(value, dict) else value
    if not isinstance(size, int) or isinstance(size, bool):
        raise ValueError("one of its sizes is not known")
    return size


def as_dict(value: Any) -> dict[str, Any]:
    """Return a message, or an empty one if it is anything else."""
    return value if isinstance(value, dict) else {}


def as_list(value: Any) -> list[Any]:
    """Return a list, or an empty one if it is anything else."""
    return value if isinstance(value, list) else []


# --- What a program is --------------------------------------------------------------------------


def program_facts(program: dict[str, Any]) -> dict[str, Value]:
    """Return what an exported program says about itself, as plain values for a person."""
    module = as_dict(program.get("graph_module"))
    graph = as_dict(module.get("graph"))
    nodes = [as_dict(node) for node in as_list(graph.get("nodes"))]
    operators = Counter(str(node.get("target"))[:_LONGEST_NAME] for node in nodes)
    return {
        "torch_version": _text(program.get("torch_version")),
        "schema_version": _version(program.get("schema_version")),
        "opset_version": {
            name: number
            for name, number in as_dict(program.get("opset_version")).items()
            if isinstance(number, int)
        },
        "inputs": _described(user_inputs(program), graph),
        "outputs": _described(user_outputs(program), graph),
        "num_nodes": len(nodes),
        "operators": dict(operators.most_common(_MOST_OPERATORS)),
    }


_LONGEST_NAME = 100
_MOST_OPERATORS = 20
_MOST_VALUES = 1_000


def user_inputs(program: dict[str, Any]) -> list[str]:
    """Return the names of the inputs that are neither weights nor constants."""
    return _user_values(program, "input")


def user_outputs(program: dict[str, Any]) -> list[str]:
    """Return the names of the outputs that are no changed buffers."""
    return _user_values(program, "output")


def _user_values(program: dict[str, Any], side: str) -> list[str]:
    signature = as_dict(as_dict(program.get("graph_module")).get("signature"))
    specs = [as_dict(spec) for spec in as_list(signature.get(f"{side}_specs"))]
    found = [as_dict(spec.get(f"user_{side}")) for spec in specs]
    names = [_argument(item.get("arg")) for item in found if item]
    # Until PyTorch 2.1 the signature listed names.
    names += [str(name) for name in as_list(signature.get(f"user_{side}s"))]
    return names[:_MOST_VALUES]


def _argument(argument: Any) -> str:
    """Return the name of an argument, or its value where it is a constant."""
    for kind, value in as_dict(argument).items():
        if isinstance(value, dict):
            name = value.get("name", value.get("as_name"))
            return _text(name) if isinstance(name, str) else _text(kind)
        if value is not None:
            return f"{value}"[:_LONGEST_NAME]
    return "None"


def _described(names: list[str], graph: dict[str, Any]) -> dict[str, str]:
    tensors = as_dict(graph.get("tensor_values"))
    numbers = {
        name: kind
        for kind in ("int", "float", "bool")
        for name in as_dict(graph.get(f"sym_{kind}_values"))
    }
    return {
        name: _tensor_text(tensors[name]) if name in tensors else numbers.get(name, "a value")
        for name in names
    }


def _tensor_text(message: Any) -> str:
    """Return a tensor of a graph as a person writes it: `float32 [s0, 3]`."""
    meta = as_dict(message)
    sizes = ", ".join(_size_text(size) for size in as_list(meta.get("sizes"))[:_MOST_SIZES])
    return f"{DTYPES.get(meta.get('dtype', 0), 'unknown')} [{sizes}]"


_MOST_SIZES = 32


_SYMBOL = re.compile(r"Symbol\('(\w+)'[^()]*\)|Integer\((-?\d+)\)")
"""How newer exporters spell a name and a number in an expression."""


def _size_text(value: Any) -> str:
    size = as_dict(value)
    expression = as_dict(size.get("as_expr")).get("expr_str")
    if isinstance(expression, str):
        return _SYMBOL.sub(lambda found: found[1] or found[2], expression[:1_000])[:40]
    return str(size.get("as_int", value))[:40]


def _text(value: Any) -> str:
    return value[:_LONGEST_NAME] if isinstance(value, str) else ""


def _version(value: Any) -> str:
    if isinstance(value, dict):
        return f"{value.get('major')}.{value.get('minor')}"[:40]
    return str(value)[:40] if isinstance(value, int) else ""


# --- What loading it would run ------------------------------------------------------------------


@dataclass(slots=True)
class Hazards:
    """What in a program's JSON reaches Python when it is loaded or called.

    Attributes:
        names: what would be imported.
        findings: what no exporter writes.
    """

    names: dict[Global, None] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)


_SUSPICIOUS = re.compile(
    r"__|[;\\\n\"]|\b(import|lambda|eval|exec|open|compile|getattr|setattr|globals|locals|vars"
    r"|breakpoint|os|sys|subprocess|builtins|importlib|yield|await|del|class|def|while)\b"
    r"|\b(preview|lambdify|sympify|parse_expr|S)\s*\(|\btorch\b(?!\s*\.\s*sym_)"
)
"""What stands in no expression of sizes, nor in a guard outside of its texts."""
_QUOTED = re.compile(r"'[^'\\]*'")
_QUOTED_NAME = re.compile(r"'[\w.+-]*'")
_EXPRESSION = re.compile(r"[\w\s+*/%()<>=!&|~,.^-]*")
_ATTRIBUTE = re.compile(r"[A-Za-z_)]\s*\.\s*[A-Za-z_]")
_OPERATORS = (
    *("torch.ops.", "torch._ops.", "torch.sym_", "torch._sym_", "torch._higher_order_ops."),
    "#",
)
_FOREIGN = re.compile(
    r"^(_operator|math|torch)\b.*\.(os|sys|hub|load|serialization|utils|package|jit|_C|__\w+__"
    r"|importlib|subprocess|builtins|multiprocessing|classes\.load_library)\b"
)
_MOST_FINDINGS = 100


def hazards(program: Any, place: str) -> Hazards:
    """Return what in a program's JSON reaches Python, and whether it looks like an exporter's.

    Args:
        program: the JSON value.
        place: what to call it in findings.
    """
    found = Hazards()
    for message in _messages(program):
        for key in _CODE_KEYS & message.keys():
            what = _CODE[key](message[key], found)
            if what and len(found.findings) < _MOST_FINDINGS:
                text = f"{what}, which no exporter writes and loading it would evaluate"
                found.findings.append(Finding("code-in-json", "dangerous", place, text))
    return found


def _messages(value: Any) -> Iterator[dict[str, Any]]:
    """Yield every object in a JSON value, however deep."""
    waiting: list[Any] = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            yield item
            waiting += [child for child in item.values() if isinstance(child, dict | list)]
        elif isinstance(item, list):
            waiting += [child for child in item if isinstance(child, dict | list)]


def _check_expression(text: Any, found: Hazards) -> str:
    """Return what is wrong with an expression of sizes; empty if nothing is."""
    del found
    if not isinstance(text, str):
        return ""
    # Texts other than names are code again: S('...') is what evaluates an expression.
    bare = _QUOTED_NAME.sub("", text)
    plain = _EXPRESSION.fullmatch(bare) and not _ATTRIBUTE.search(bare)
    return "" if plain and not _SUSPICIOUS.search(text) else f"a size is the code {text[:80]!r}"


def _check_guards(guards: Any, found: Hazards) -> str:
    del found
    for guard in as_list(guards):
        if not isinstance(guard, str) or _SUSPICIOUS.search(_QUOTED.sub("", guard)):
            return f"a guard is the code {str(guard)[:80]!r}"
    return ""


def _check_operator(target: Any, found: Hazards) -> str:
    del found
    is_foreign = isinstance(target, str) and not target.startswith(_OPERATORS)
    return f"an operator is {target[:80]!r}" if is_foreign and _FOREIGN.match(target) else ""


def _check_spec(text: Any, found: Hazards) -> str:
    """Note what the description of a tree of values (a JSON text in the JSON) would import."""
    _find_imports(text, found, 0)
    return ""


_CODE: Mapping[str, Callable[[Any, Hazards], str]] = MappingProxyType(
    {
        "expr_str": _check_expression,
        "guards_code": _check_guards,
        "target": _check_operator,
        "in_spec": _check_spec,
        "out_spec": _check_spec,
    }
)
_CODE_KEYS = frozenset(_CODE)
_DEEPEST_SPEC = 4


def _find_imports(text: Any, found: Hazards, depth: int) -> None:
    if not isinstance(text, str) or depth > _DEEPEST_SPEC or text[:1] not in ("[", "{", '"'):
        return
    try:
        value = parse_json(text, allow_nan=True)
    except DamagedFile as problem:
        if depth == 0:
            what = f"a description of inputs or outputs can't be read: {problem.problem}"
            found.findings.append(Finding("broken-spec", "ambiguous", "", what[:200]))
        return
    for message in _messages([value]):
        module, name = message.get("default_factory_module"), message.get("default_factory_name")
        if "__enum__" in message:
            module, _, name = str(message.get("fqn")).partition(":")
        if isinstance(module, str) and isinstance(name, str):
            found.names.setdefault(Global(module, name))
        for item in message.values():
            _find_imports(item, found, depth + 1)
