"""Every attack that torchkeep is tried with. The payloads are harmless: they make an empty file.

To add one, write a function that returns a file's bytes in the module of its kind, under its class
and the verdict that it deserves.
"""

from __future__ import annotations

from attacks import container, gadgets, machine, programs, tensors
from attacks.attack import Attack

CORPUS: tuple[Attack, ...] = (
    *container.ATTACKS.attacks,
    *machine.ATTACKS.attacks,
    *gadgets.ATTACKS.attacks,
    *tensors.ATTACKS.attacks,
    *programs.ATTACKS.attacks,
)
