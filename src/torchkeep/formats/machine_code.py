"""What a file of code is called, and what it starts with: one rule for all that holds files.

A name says what a file is meant for and proves nothing, so the first bytes are looked at as well;
bytes alone say too little, since source text has none of its own.

Source: the ELF, PE/COFF and Mach-O specifications; the WebAssembly specification, section 5.5.16;
the Java virtual machine specification, section 4.1.
"""

from __future__ import annotations

_NATIVE_SUFFIXES = (
    *(".so", ".dll", ".dylib", ".pyd", ".node", ".exe", ".o", ".a"),
    *(".cubin", ".ptx", ".spv", ".cpp", ".wasm", ".pyc", ".pyo", ".class", ".jar"),
)
"""How the names of files end that hold, or become, machine code or bytecode."""
_NATIVE_MAGIC = (
    b"\x7fELF",
    b"MZ",
    b"\xfe\xed\xfa\xce",  # Mach-O, by word size and byte order
    b"\xfe\xed\xfa\xcf",
    b"\xce\xfa\xed\xfe",
    b"\xcf\xfa\xed\xfe",
    b"\xca\xfe\xba\xbe",  # Mach-O for several machines, and Java's classes
    b"\0asm",
)
_SOURCE_SUFFIXES = (".py", ".pyw", ".sh", ".bat", ".cmd", ".ps1", ".ipynb", ".js")
_PICKLE_SUFFIXES = (".pkl", ".pickle", ".debug_pkl")


def is_native(name: str, head: bytes = b"") -> bool:
    """Whether a file is machine code or bytecode, or becomes some.

    Args:
        name: what it is called.
        head: its first bytes, at least four; without them the name alone decides.
    """
    folded = name.casefold()
    stem, _, version = folded.rpartition(".so.")
    is_library = bool(stem) and version.replace(".", "").isdigit()
    return folded.endswith(_NATIVE_SUFFIXES) or is_library or head.startswith(_NATIVE_MAGIC)


def is_source(name: str) -> bool:
    """Whether a file is called as source code that an interpreter runs."""
    return name.casefold().endswith(_SOURCE_SUFFIXES)


def is_pickle(name: str, head: bytes = b"") -> bool:
    """Whether a file is called as a pickle, or starts as one of protocol 2 or newer."""
    starts_so = head[:1] == b"\x80" and b"\x02" <= head[1:2] <= b"\x05"
    return starts_so or name.casefold().endswith(_PICKLE_SUFFIXES)
