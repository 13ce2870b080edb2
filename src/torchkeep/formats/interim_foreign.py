"""Files that are met under a model's name and are something else, recognised by their start."""

from __future__ import annotations

from torchkeep.contents import Contents
from torchkeep.errors import FileProblem, NotAModelFile, UnsupportedContent
from torchkeep.files import Readable
from torchkeep.formats.format import HEAD_NBYTES, Format
from torchkeep.pickles.limits import Limits

_SAY_WHERE = "Ask whoever gave it to you for a PyTorch or safetensors file."

_OTHER_MODELS: tuple[tuple[int, bytes, str], ...] = (
    (0, b"GGUF", "a GGUF file"),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file (Keras, perhaps)"),
    (0, b"\x93NUMPY", "a NumPy array"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (0, b"\x1f\x8b", "a gzip archive"),
    (0, b"BZh", "a bzip2 archive"),
    (0, b"\xfd7zXZ\x00", "an xz archive"),
    (257, b"ustar", "a tar archive"),
    (4, b"ET12", "an ExecuTorch program"),
    (0, b"\x08\x03\x12", "an ONNX model"),
    (0, b"\x08\x04\x12", "an ONNX model"),
    (0, b"\x08\x06\x12", "an ONNX model"),
    (0, b"\x08\x07\x12", "an ONNX model"),
    (0, b"\x08\x08\x12", "an ONNX model"),
    (0, b"\x08\x09\x12", "an ONNX model"),
    (0, b"\x08\x0a\x12", "an ONNX model"),
)
"""Offset, bytes and name of what may hold a model, and can't be read here."""

_NO_MODELS: tuple[tuple[bytes, str], ...] = (
    (b"\x89PNG", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"GIF8", "a GIF picture"),
    (b"%PDF", "a PDF document"),
    (b"\x7fELF", "a program"),
    (b"MZ", "a Windows program"),
)

_LFS = b"version https://git-lfs.github.com/spec/"


def is_tar_header(head: bytes) -> bool:
    """Whether a file's first block is a tar header, as Python's tarfile and PyTorch see it.

    The name `ustar` is not needed: the sum of the block's bytes, stored in it, is the only check.
    """
    if len(head) < 512:
        return False
    stored = head[148:156].rstrip(b"\0 ").lstrip()
    if not stored or stored.strip(b"01234567"):
        return False
    return int(stored, 8) == sum(head[:148]) + 8 * ord(" ") + sum(head[156:512])


def recognise(head: bytes, nbytes: int) -> FileProblem:
    """Return the error that says what a file is that no reader takes.

    Args:
        head: the file's first bytes.
        nbytes: its size.
    """
    if nbytes == 0:
        return NotAModelFile("the file is empty", advice="Save or download it again.")
    if not head.strip(b"\0"):
        advice = "Its content was lost in a copy or a crash: take it from its source again."
        return NotAModelFile("the file holds zeros", advice=advice)
    if head.startswith(_LFS):
        advice = "Fetch the model itself with `git lfs pull`."
        return NotAModelFile("this is a Git LFS pointer, not the file it stands for", advice=advice)
    for offset, magic, kind in _OTHER_MODELS:
        if head[offset : offset + len(magic)] == magic:
            return UnsupportedContent(
                f"this is {kind}, which torchkeep does not read", advice=_SAY_WHERE
            )
    for magic, kind in _NO_MODELS:
        if head.startswith(magic):
            return NotAModelFile(f"this is {kind}, not a model", advice="Check the path.")
    return _recognise_text(head)


def _recognise_text(head: bytes) -> FileProblem:
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<?xml")):
        return NotAModelFile(
            "this is a web page, not a model",
            advice="The download went wrong (a log-in or an error page?): open it in a browser.",
        )
    # A character may be cut in two where the head ends.
    text = head.decode("utf-8", "ignore")
    if len(text.encode()) >= len(head) - 3 and all(
        c.isprintable() or c in "\t\r\n\f" for c in text
    ):
        line = text.strip().splitlines()[0][:40] if text.strip() else ""
        return NotAModelFile(f"this is text ({line!r}...), not a model", advice="Check the path.")
    return NotAModelFile(
        f"the file is of no known kind (it starts with {head[:8].hex(' ')})",
        advice="If it should be a model, copy or download it again.",
    )


def _describe(file: Readable, limits: Limits) -> Contents:
    del limits
    head = file.read_at(0, min(file.nbytes, HEAD_NBYTES))
    problem = recognise(head, file.nbytes)
    return Contents(file.path, file.nbytes, "unknown", None, problem=problem)


def _anything(head: bytes, nbytes: int) -> bool:
    del head, nbytes
    return True


FORMATS = (Format("unknown", _anything, _describe),)
