"""What loading a file with an ordinary unpickler could do, judged by the names in it.

* `data-only`: it names nothing but makers of plain values and tensors.
* `needs-trust`: it names classes or functions; loading it runs their code.
* `dangerous`: it names what no model needs (a shell, an import at run time), or plays tricks.
* `ambiguous`: different readers would see different contents.

The verdict is about the file. torchkeep itself runs nothing in any of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torchkeep.contents import ITEM_SIZE, Contents, Finding, Global
from torchkeep.formats.torch_objects import STORAGE_DTYPES

Verdict = Literal["data-only", "needs-trust", "dangerous", "ambiguous"]


@dataclass(frozen=True, slots=True)
class Safety:
    """The verdict on a file and its reasons."""

    verdict: Verdict
    """The worst that was found."""
    globals: tuple[str, ...]
    """Every name that the file mentions."""
    findings: tuple[Finding, ...]
    """What led to the verdict."""
    weights_only: bool | None
    """Whether `torch.load(weights_only=True)` takes the file; None if it can't read the format."""
    blocked: tuple[str, ...]
    """The names that `torch.load(weights_only=True)` refuses."""


_REBUILDERS = (
    "_rebuild_device_tensor_from_cpu_tensor",
    "_rebuild_device_tensor_from_numpy",
    "_rebuild_meta_tensor_no_storage",
    "_rebuild_parameter",
    "_rebuild_parameter_with_state",
    "_rebuild_qtensor",
    "_rebuild_sparse_tensor",
    "_rebuild_tensor",
    "_rebuild_tensor_v2",
    "_rebuild_tensor_v3",
    "_rebuild_wrapper_subclass",
)
_TENSOR_KINDS = (
    "BFloat16",
    "Bool",
    "Byte",
    "Char",
    "Double",
    "Float",
    "Half",
    "Int",
    "Long",
    "Short",
)
_SCHEMES = (
    "per_channel_affine",
    "per_channel_affine_float_qparams",
    "per_channel_symmetric",
    "per_tensor_affine",
    "per_tensor_symmetric",
)
_ODD_DTYPES = ("bcomplex32", "bits16", "bits1x8", "bits2x4", "bits4x2", "bits8")

WEIGHTS_ONLY: frozenset[str] = frozenset(
    [
        "_codecs.encode",
        "builtins.bytearray",
        "builtins.complex",
        "builtins.set",
        "collections.Counter",
        "collections.OrderedDict",
        "torch.Size",
        "torch.Tensor",
        "torch.device",
        "torch._tensor._rebuild_from_type_v2",
        "torch.nn.parameter.Parameter",
        "torch.serialization._get_layout",
        "torch.storage.TypedStorage",
        "torch.storage.UntypedStorage",
        *(f"torch._utils.{name}" for name in _REBUILDERS),
        *(f"torch.{name}" for name in (*ITEM_SIZE, *_ODD_DTYPES, *_SCHEMES)),
        *(f"torch.{sign}int{bits}" for sign in ("", "u") for bits in range(1, 8)),
        *(f"torch.{name}" for name in STORAGE_DTYPES if name != "UntypedStorage"),
        *(f"torch.{kind}Tensor" for kind in _TENSOR_KINDS),
        *(f"torch.cuda.{kind}Tensor" for kind in _TENSOR_KINDS),
        *(f"torch.cuda.{kind}Storage" for kind in _TENSOR_KINDS),
        "torch.cuda.ComplexDoubleStorage",
        "torch.cuda.ComplexFloatStorage",
        *(f"torch.sparse.{kind}Tensor" for kind in _TENSOR_KINDS if kind != "Bool"),
        *(f"torch.cuda.sparse.{kind}Tensor" for kind in _TENSOR_KINDS if kind != "Bool"),
    ]
)
"""What `torch.load(weights_only=True)` allows (torch/_weights_only_unpickler.py)."""

_PLAIN: frozenset[str] = frozenset(
    [
        "argparse.Namespace",
        "builtins.bool",
        "builtins.bytes",
        "builtins.dict",
        "builtins.float",
        "builtins.frozenset",
        "builtins.int",
        "builtins.list",
        "builtins.object",
        "builtins.slice",
        "builtins.str",
        "builtins.tuple",
        "collections.defaultdict",
        "collections.deque",
        "copyreg._reconstructor",
        "datetime.date",
        "datetime.datetime",
        "datetime.timedelta",
        "datetime.timezone",
        "decimal.Decimal",
        "fractions.Fraction",
        "numpy.dtype",
        "numpy.ndarray",
        "numpy.core.multiarray._reconstruct",
        "numpy.core.multiarray.scalar",
        "numpy._core.multiarray._reconstruct",
        "numpy._core.multiarray.scalar",
        "pathlib.Path",
        "pathlib.PosixPath",
        "pathlib.PurePosixPath",
        "pathlib.WindowsPath",
        "types.SimpleNamespace",
        "uuid.UUID",
    ]
)
"""Makers of plain values that PyTorch's list lacks; calling them does nothing else."""

_DANGEROUS_MODULES: frozenset[str] = frozenset(
    "os posix nt subprocess _posixsubprocess sys runpy importlib imp pkgutil zipimport marshal "
    "pickle _pickle cPickle dill cloudpickle shelve shutil socket _socket ssl ctypes _ctypes cffi "
    "codeop pty webbrowser http urllib requests ftplib smtplib telnetlib xmlrpc asyncio "
    "multiprocessing threading _thread pdb bdb cProfile timeit doctest "
    "pydoc idlelib lib2to3 pip setuptools distutils venv ensurepip sitecustomize tempfile "
    "_io fileinput glob gc _winapi winreg msvcrt popen2 linecache "
    "sqlite3 antigravity _testcapi builtins".split()
)
"""Top-level modules of which no name belongs into a model, but for `_PLAIN` and `_UNREMARKABLE`."""

_SHARED_MODULES: frozenset[str] = frozenset(
    "code commands inspect io platform profile signal site test trace".split()
)
"""Like these, but people call their own packages so, and then the names in them are classes."""

_SHARED_CLASSES: frozenset[str] = frozenset(
    [
        "code.InteractiveConsole",
        "code.InteractiveInterpreter",
        "io.FileIO",
        "io.OpenWrapper",
        "profile.Profile",
        "trace.Trace",
    ]
)
"""The classes of the standard library's modules of those names that run or write something."""

_UNREMARKABLE: frozenset[str] = frozenset(
    ["builtins.getattr", "builtins.print", "builtins.range", "builtins.type", "io.BytesIO"]
)
"""Names of those modules that honest pickles of objects contain; they need trust."""

_DANGEROUS_NAMES: tuple[str, ...] = (
    "torch.load",
    "torch.serialization.load",
    "torch.hub.",
    "torch.jit.load",
    "torch.package.",
    "torch.utils.cpp_extension.",
    "torch.utils.model_zoo.",
    "numpy.load",
    "numpy.fromfile",
    "numpy.testing.",
    "joblib.load",
    "pandas.read_",
    "pandas.eval",
    "pandas.io.",
    "operator.attrgetter",
    "operator.methodcaller",
    "_operator.attrgetter",
    "_operator.methodcaller",
    "functools.reduce",
    "types.CodeType",
    "types.FunctionType",
    "types.LambdaType",
    "types.ModuleType",
)
"""Names, or starts of names, that run or fetch code."""


def judge(contents: Contents) -> Safety:
    """Return the verdict on a file from the names and the oddities in it."""
    named = [_judge_global(name) for name in contents.globals]
    reasons = [finding for finding in named if finding is not None]
    reasons += [finding for finding in contents.findings if finding.severity != "note"]
    blocked = tuple(name for name in map(str, contents.globals) if name not in WEIGHTS_ONLY)
    return Safety(
        verdict=_verdict(reasons),
        globals=tuple(map(str, contents.globals)),
        findings=tuple(reasons),
        weights_only=_weights_only(contents, blocked),
        blocked=blocked,
    )


def _verdict(findings: list[Finding]) -> Verdict:
    severities = {finding.severity for finding in findings}
    for verdict in ("dangerous", "ambiguous", "needs-trust"):
        if verdict in severities:
            return verdict
    return "data-only"


def _weights_only(contents: Contents, blocked: tuple[str, ...]) -> bool | None:
    if contents.pickle_protocol is None:
        return None
    damaged = any(finding.severity != "note" for finding in contents.findings)
    # PyTorch's restricted unpickler knows the opcodes of protocol 2 and few others.
    return not blocked and not damaged and contents.pickle_protocol == 2


def _judge_global(name: Global) -> Finding | None:
    path = str(name)
    if path in WEIGHTS_ONLY or path in _PLAIN:
        return None
    if is_dangerous(name):
        return Finding("dangerous-name", "dangerous", path, f"loading the file would use {path}")
    return Finding("needs-class", "needs-trust", path, f"loading the file would run {path}")


def is_dangerous(name: Global) -> bool:
    """Whether a name is of a kind that no model needs.

    >>> is_dangerous(Global("posix", "system")), is_dangerous(Global("torch.nn", "Linear"))
    (True, False)
    """
    path = str(name)
    if path in _UNREMARKABLE or path in _PLAIN:
        return False
    if name.module in _SHARED_MODULES and (name.name[:1].islower() or path in _SHARED_CLASSES):
        return True
    if name.module.partition(".")[0] in _DANGEROUS_MODULES or path.startswith(_DANGEROUS_NAMES):
        return True
    # A dotted name in a module reaches through it to others: ("torch.serialization", "os.system").
    return "." in name.name and name.name[:1].islower()
