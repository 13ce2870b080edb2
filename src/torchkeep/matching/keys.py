"""What the names in a state dict say about the wrappers that the model was saved in.

DataParallel and DistributedDataParallel keep the model as a child called `module`, torch.compile
as `_orig_mod`, FSDP as `_fsdp_wrapped_module`, activation checkpointing as
`_checkpoint_wrapped_module`. Each becomes a component of every key below it. The last three are
private names that no model uses, so they go wherever they stand. `module` is a name that a model
may use itself: it is a wrapper only at the front, and only if every key has it there.
(`n_averaged`, which `torch.optim.swa_utils.AveragedModel` adds, does not count.)
"""

from __future__ import annotations

from collections.abc import Iterable

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
    parts = [[part for part in key.split(".") if part not in _PRIVATE] for key in keys]
    wrapped = [key for key in parts if key != [AVERAGE_COUNTER]]
    while wrapped and all(len(key) > 1 and key[0] == "module" for key in wrapped):
        for key in wrapped:
            del key[0]
    bare = [".".join(key) for key in parts]
    if len(set(bare)) < len(bare) or "" in bare:
        bare = keys
    return dict(zip(keys, bare, strict=True))


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
