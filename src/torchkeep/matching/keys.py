"""What the names in a state dict say about the wrappers that the model was saved in.

DataParallel and DistributedDataParallel keep the model as a child called `module`, torch.compile
as `_orig_mod`, FSDP as `_fsdp_wrapped_module`, activation checkpointing as
`_checkpoint_wrapped_module`. Each becomes a component of every key below it. The last three are
private names that no model uses, so they go wherever they stand. `module` is a name that a model
may use itself: it is a wrapper only at the front, and only if every key has it there.
(`n_averaged`, which `torch.optim.swa_utils.AveragedModel` adds, does not count.)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

WRAPPERS: dict[str, str] = {
    "module": "DataParallel or DDP",
    "_orig_mod": "torch.compile",
    "_fsdp_wrapped_module": "FSDP",
    "_checkpoint_wrapped_module": "activation checkpointing",
}
"""The key component that each wrapper leaves, and the wrapper's name for a person."""

AVERAGE_COUNTER = "n_averaged"
"""The key that `torch.optim.swa_utils.AveragedModel` adds to those of the model it averages."""

_PRIVATE = frozenset(WRAPPERS) - {"module"}


def strip_wrappers(keys: Iterable[str]) -> dict[str, str]:
    """Return each key without its wrapper components, by the original key.

    A key set in which stripping would make two keys equal, or one empty, is returned unchanged,
    since the components then are names of real modules and tensors.

    >>> strip_wrappers(["module.fc.weight", "module.fc.bias"])
    {'module.fc.weight': 'fc.weight', 'module.fc.bias': 'fc.bias'}
    >>> strip_wrappers(["module.weight", "fc.weight"])
    {'module.weight': 'module.weight', 'fc.weight': 'fc.weight'}
    """
    keys = list(keys)
    return levels(dict(zip(keys, keys, strict=True)))[-1]


def levels(names: Mapping[str, str]) -> list[dict[str, str]]:
    """Return names with ever more wrappers taken off them.

    First as they are, then without private components, without one `module` before all, without
    two. Names that would become equal, or empty, end the list.
    """
    found = [dict(names)]
    parts = [[part for part in name.split(".") if part not in _PRIVATE] for name in names.values()]
    while True:
        bare = [".".join(name) for name in parts]
        if len(set(bare)) < len(bare) or "" in bare:
            return found
        level = dict(zip(names, bare, strict=True))
        if level != found[-1]:
            found.append(level)
        wrapped = [name for name in parts if name != [AVERAGE_COUNTER]]
        if not wrapped or not all(len(name) > 1 and name[0] == "module" for name in wrapped):
            return found
        for name in wrapped:
            del name[0]


def wrappers_in(keys: Iterable[str]) -> tuple[str, ...]:
    """Return the wrapper components that `strip_wrappers` would remove, in the keys' order."""
    stripped = strip_wrappers(keys)
    found: dict[str, None] = {}
    for key, bare in stripped.items():
        surplus = key.count(".") - bare.count(".")
        if surplus:
            parts = key.split(".")
            leading = surplus - sum(part in _PRIVATE for part in parts)
            for part in parts:
                if part in _PRIVATE:
                    found[part] = None
                elif part == "module" and leading > 0:
                    found[part] = None
                    leading -= 1
    return tuple(found)
