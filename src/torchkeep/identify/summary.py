"""What a file is, as a role and as one sentence for a person."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import islice

from torchkeep.contents import Array, Contents, DictObject, Global, Object, TensorEntry, Value
from torchkeep.errors import DamagedFile
from torchkeep.formats.containers import CONTAINERS
from torchkeep.formats.own.metadata import SLIMMED
from torchkeep.formats.plain_json import parse_json
from torchkeep.identify.architectures import ArchitectureMatch, in_words
from torchkeep.identify.frameworks import is_training_state
from torchkeep.identify.inspection import FileRole
from torchkeep.identify.json_form import describe_value, jsonable
from torchkeep.identify.modules import ModuleNode
from torchkeep.identify.state_dicts import StateDict
from torchkeep.identify.survey import PLAIN, Survey
from torchkeep.identify.tree import children
from torchkeep.matching.keys import AVERAGE_COUNTER, WRAPPERS, wrappers_in
from torchkeep.wording import counted, shortened

_PROGRESS = tuple(
    "epoch epochs current_epoch global_step global_steps step steps iteration iter cur_iter "
    "num_updates".split()
)
"""Root values that say how far a training run got, in the order of preference."""


_PLACES = ("", "trainer_state.json.", "meta.", "extra_state.", "trainer.")
"""Where these stand: at the root, or where HF's Trainer, mmengine, fairseq and Ignite keep them."""


def role_of(contents: Contents, found: Survey) -> FileRole:
    """Return what a file is used for."""
    root = contents.root
    if CONTAINERS[contents.container].use == "program":
        return "program"
    if isinstance(root, TensorEntry | Array):
        return "tensor"
    if is_training_state(contents):
        return "optimizer"
    if any(path == "" for path, _ in found.modules):
        return "module"
    if any(item.name == "" for item in found.state_dicts):
        return "state_dict"
    if any(item.name == "" for item in found.optimizers):
        return "optimizer"
    if found.state_dicts:
        return "checkpoint"
    if found.optimizers:
        return "optimizer"
    return "unknown" if root is None or contents.members else "object"


def summarise(
    role: FileRole,
    contents: Contents,
    found: Survey,
    architecture: tuple[ArchitectureMatch, ...] = (),
    *,
    framework: str | None = None,
    several: bool = False,
    networks: Sequence[tuple[StateDict, str]] = (),
) -> str:
    """Return the sentence.

    Args:
        role: what the file is used for.
        contents: its description.
        found: what was met in it.
        architecture: the networks that its main state dict fits.
        framework: what wrote it, if that is known.
        several: whether it is an archive or a folder of models that have nothing to do with one
            another.
        networks: its `separate_networks`, each with its architecture in words.
    """
    root = contents.root
    if role == "tensor":
        if contents.kind:
            return f"{_capitalised(contents.kind)}."
        return f"{_one_tensor(root)}: {root.dtype}, shape {list(root.shape)}."
    if is_training_state(contents):
        return f"Training state without the model: {len(root)} tensors of a torchkeep checkpoint."
    main = main_state_dict(found)
    if main is None:
        return f"{_without_model(role, contents, found)}."
    if several:
        return f"{_capitalised(contents.kind)}: {_all_state_dicts(found)}."
    details = [_networks(networks)] if networks else _model(role, main, found, architecture)
    details = [*_slimmed(contents), *details]
    if role not in ("state_dict", "module", "program"):
        details += _checkpoint_details(found, main, contents.kind, is_one=not networks)
    start = contents.kind or _start(role, found, framework)
    if isinstance(contents.problem, DamagedFile):
        start = f"damaged: {start}"
    return (
        f"{_capitalised(start)}: {', '.join(details)}{_saved_from(main, found)}{_lost(contents)}."
    )


_LAYOUTS = {
    "strided": "tensor",
    "sparse_coo": "sparse tensor (COO)",
    "sparse_csr": "sparse tensor (CSR)",
    "sparse_csc": "sparse tensor (CSC)",
    "sparse_bsr": "sparse tensor (BSR)",
    "sparse_bsc": "sparse tensor (BSC)",
    "nested": "nested tensor",
    "jagged": "nested tensor (jagged)",
}


def _one_tensor(root: TensorEntry | Array) -> str:
    if isinstance(root, Array):
        return "One array"
    return f"One {_LAYOUTS.get(root.layout, 'tensor')}"


def _start(role: FileRole, found: Survey, framework: str | None) -> str:
    if role == "state_dict":
        return "Parameters only"
    if role == "module":
        return "Whole model"
    start = "training checkpoint" if found.optimizers else "checkpoint without optimizer"
    return f"{framework} {start}" if framework else start


def _without_model(role: FileRole, contents: Contents, found: Survey) -> str:
    if role == "optimizer":
        return f"Optimizer state without a model: {_optimizers(found)}"
    if contents.kind:
        return _capitalised(contents.kind)
    if contents.problem is not None:
        return f"No model: {contents.problem.problem}"
    for name in ("schedulers", "scalers", "rng"):
        if getattr(found, name) == [""]:
            return f"No model: {_ALONE[name]}"
    if _is_only_rng(contents.root, found):
        return f"No model: {_ALONE['rng']}"
    if isinstance(contents.root, Object):  # it may well be a model of another library
        return f"Pickled object of {_class_of(contents.root)}"
    return f"No model: {_object(contents.root)}"


_ALONE = {
    "schedulers": "the state of a learning-rate scheduler",
    "scalers": "the state of a gradient scaler",
    "rng": "the state of random generators",
}


def _is_only_rng(root: Value, found: Survey) -> bool:
    """Whether a file holds states of random generators, and plain values such as the step."""
    items = [item for item in children(root) if not isinstance(item[1], PLAIN)]
    return bool(items) and all(_is_rng(name, item, set(found.rng)) for name, item in items)


def _is_rng(path: str, value: Value, rng: set[str]) -> bool:
    """Whether a value is a random generator's state, or a table of nothing else."""
    if path in rng:
        return True
    below = {f"{path}.{name}": item for name, item in children(value)}
    return bool(below) and all(name in rng for name in below)


def _capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]


def _model(
    role: FileRole, main: StateDict, found: Survey, architecture: tuple[ArchitectureMatch, ...]
) -> list[str]:
    """Return what the model is: its class, its architecture, its size if these don't tell it."""
    details = []
    if role == "module":
        details.append(_unwrapped(found.modules[0][1]).class_path)
    size = f"{counted(main.num_parameters, 'parameter')} in {counted(main.num_tensors, 'tensor')}"
    if not architecture:
        return [*details, size]
    if architecture[0].is_part:  # the sentence is about the whole
        return [*details, size, in_words(architecture)]
    return [*details, in_words(architecture), *([size] if role == "module" else [])]


def _slimmed(contents: Contents) -> list[str]:
    """Return what network the file says that it was before it was slimmed, if it says so."""
    try:
        table = parse_json(contents.metadata.get(SLIMMED, "null"))
    except DamagedFile:
        return []
    name = table.get("network") if isinstance(table, dict) else None
    return [f"slimmed {shortened(name)}"] if isinstance(name, str) and name else []


def _all_state_dicts(found: Survey) -> str:
    return f"{counted(len(found.state_dicts), 'state dict')}, {_in_all(found.state_dicts)}"


def _in_all(state_dicts: Iterable[StateDict]) -> str:
    num_parameters = sum(item.num_parameters for item in state_dicts)
    return f"{counted(num_parameters, 'parameter')} in all"


MOST_NAMED = 4
"""Networks of one file that the sentence names."""


def separate_networks(found: Survey) -> list[StateDict]:
    """Return the state dicts of a file that has several networks, none of which is *the* model."""
    roles = [item.role for item in found.state_dicts]
    if "model" in roles or roles.count("other") < 2:
        return []
    return [item for item in found.state_dicts if item.role == "other"]


def _networks(networks: Sequence[tuple[StateDict, str]]) -> str:
    names = [f"{item.name}: {words}" if words else item.name for item, words in networks]
    named = f" ({', '.join(names)})" if len(names) <= MOST_NAMED else _some(names)
    return f"{len(names)} networks{named}, {_in_all(item for item, _ in networks)}"


def _unwrapped(node: ModuleNode) -> ModuleNode:
    """Return the module in the wrappers around it, which the end of the sentence names."""
    while len(node.children) == 1 and node.children[0].name in WRAPPERS:
        if node.children[0].name == "module" and _class(node) not in _NAMING_MODULE:
            break
        node = node.children[0]
    return node


def _class(node: ModuleNode) -> str:
    return node.class_path.rpartition(".")[2]


def main_state_dict(found: Survey) -> StateDict | None:
    """Return the state dict that the file is about: the model's, else the largest; None if none."""
    for wanted in ("model", "other", "ema"):
        candidates = [item for item in found.state_dicts if item.role == wanted]
        if candidates:
            return max(candidates, key=lambda item: item.num_parameters)
    return None


def _checkpoint_details(found: Survey, main: StateDict, told: str, *, is_one: bool) -> list[str]:
    details = []
    if is_one and len(found.state_dicts) > 1:
        names = [item.name for item in found.state_dicts]
        details.append(f"{len(names)} state dicts{_some(names)}")
    whole = [node.class_path for path, node in found.modules if path == main.name]
    details += [f"the whole {class_path}" for class_path in whole]
    if found.optimizers:
        details.append(_optimizers(found))
    if found.schedulers:
        details.append("scheduler")
    progress = _progress(found, told)
    if progress:
        details.append(progress)
    if any(item.role == "ema" for item in found.state_dicts):
        details.append("EMA")
    return details


def _progress(found: Survey, told: str) -> str:
    """Return how far the training got, if that was not told; HF's Trainer has a file for it."""
    for start in _PLACES:
        for name in _PROGRESS:
            value = found.values.get(start + name)
            # -1 is how Ultralytics says that the training is over.
            if isinstance(value, int | float) and value >= 0:
                word = "epoch" if name == "epochs" else name
                is_told = f" {word.removeprefix('global_')} " in told
                return "" if is_told else f"{word} {jsonable(value)}"
    return ""


def _optimizers(found: Survey) -> str:
    counts = Counter(item.family or "an unknown optimizer" for item in found.optimizers)
    return " and ".join(name if n == 1 else f"{n} x {name}" for name, n in counts.items())


def _lost(contents: Contents) -> str:
    is_lost = any(finding.rule == "missing-storage" for finding in contents.findings)
    is_all = contents.container == "pickle"  # taken out of the archive that it was in
    return "; the bytes of its tensors are missing" if is_lost and is_all else ""


_NAMING_MODULE = frozenset({"DataParallel", "DistributedDataParallel", "AveragedModel"})
"""The classes that call what they wrap `module`; others have children of that name, too."""


def _saved_from(main: StateDict, found: Survey) -> str:
    names = wrappers_in(main.entries)
    classes = [_class(node) for path, node in found.modules if path == main.name]
    if classes and classes[0] not in _NAMING_MODULE:
        names = tuple(name for name in names if name != "module")
    wrappers = [WRAPPERS[name] for name in names]
    if AVERAGE_COUNTER in main.entries and wrappers:
        wrappers[0] = "AveragedModel"  # which names its model as DataParallel does
    return f"; saved from {' in '.join(reversed(wrappers))}" if wrappers else ""


def _class_of(value: Object) -> str:
    """Return the class of an object; a function that makes one, as NumPy's, is given it first."""
    made = value.args[0] if value.args else None
    is_maker = value.class_path.rpartition(".")[2].startswith("_")
    return str(made) if is_maker and isinstance(made, Global) else value.class_path


def _object(root: Value) -> str:
    if isinstance(root, dict):
        name = root.class_path if isinstance(root, DictObject) else "dict"
        return f"a {name} of {_items(list(root.values()))}{_some_keys(root)}"
    if isinstance(root, list | tuple | set | frozenset):
        return f"a {type(root).__name__} of {_items(list(root))}"
    if isinstance(root, str | int | float | bool | None):
        return f"the value {jsonable(root)!r}"[:80]
    return describe_value(root).strip("<>")


def _items(items: list[Value]) -> str:
    """Return how many items there are, and what they are if all are of one kind."""
    for kind, noun in ((TensorEntry, "tensor"), (Array, "array")):
        if items and all(isinstance(item, kind) for item in items):
            return counted(len(items), noun)
    return f"{len(items):,}"


_MOST_NAMES = 4
_LONGEST_NAME = 24


def _some_keys(table: dict[Value, Value]) -> str:
    """Return the first keys of a dictionary in brackets: nothing says better what it is."""
    return _some([key if isinstance(key, str) else "" for key in islice(table, _MOST_NAMES + 1)])


def _some(names: list[str]) -> str:
    """Return the first of several names in brackets; nothing if one of them is long or missing."""
    shown = names[:_MOST_NAMES]
    if not all(0 < len(name) <= _LONGEST_NAME for name in shown) or not shown:
        return ""
    return f" ({', '.join(shown)}{', ...' if len(names) > _MOST_NAMES else ''})"
