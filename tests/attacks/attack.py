"""What an attack is, and every class of attacks that the corpus must hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

CONTAINER = (
    "wrong suffix",
    "wrong checksum",
    "encryption flags",
    "local and central names that differ",
    "duplicate members",
    "case variants",
    "hidden pickles",
    "no version",
    "archive in an archive",
    "cut off after the payload",
    "polyglot",
    "computed magic",
    "object arrays",
)
MACHINE = (
    "names from the memo",
    "names made at run time",
    "INST",
    "OBJ",
    "POP",
    "dotted names",
    "stacked pickles",
    "BUILD on a global",
    "extension codes",
    "persistent ids",
    "memo type confusion",
    "expansion",
    "cycles",
    "huge integers",
    "deep nesting",
    "long strings",
    "frames",
    "indirect resolvers",
    "redirected loaders",
    "code objects",
    "nested pickles",
    "calls by Python itself",
    "NumPy dtypes",
    "known gadgets",
)
TENSORS = (
    "SETITEM on a non-dict",
    "numel against the record",
    "stride and offset overruns",
    "sparse indices out of bounds",
    "safetensors offsets",
    "header length bombs",
    "duplicate JSON keys",
    "deep JSON",
)
CODE = (
    "TorchScript under weights_only",
    "torch.package code",
    "native code",
    "debug_pkl",
    "_target_",
)
CLASSES = (*CONTAINER, *MACHINE, *TENSORS, *CODE)
"""The classes of attacks."""

Make = Callable[[str], bytes]
"""Makes the bytes of a file that would create a file of the given name, if it ever ran."""


@dataclass(frozen=True)
class Attack:
    """A file that should not be loaded."""

    name: str
    kind: str
    """One of `CLASSES`."""
    verdict: str
    """What it is to be called."""
    make: Make
    suffix: str
    proof: str
    """Which loader shows, in a child process, that the payload is real: `pickle`, `stacked`
    (pickle until the end of the file), `numpy`, `torch`; empty for none."""

    @property
    def file_name(self) -> str:
        return self.name.replace(" ", "-").replace("/", "-") + self.suffix


@dataclass
class Collection:
    """The attacks of one module."""

    attacks: list[Attack]

    def add(
        self,
        kind: str,
        verdict: str,
        name: str,
        make: Make,
        *,
        suffix: str = ".pkl",
        proof: str = "",
    ) -> None:
        assert kind in CLASSES, kind
        self.attacks.append(Attack(name, kind, verdict, make, suffix, proof))

    def __call__(
        self, kind: str, verdict: str, *, suffix: str = ".pkl", proof: str = ""
    ) -> Callable[[Make], Make]:
        """Return a decorator that adds a function under its own name."""

        def decorate(make: Make) -> Make:
            name = make.__name__.replace("_", " ").strip()
            self.add(kind, verdict, name, make, suffix=suffix, proof=proof)
            return make

        return decorate
