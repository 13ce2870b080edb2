"""Temporary files for what lies packed in an archive."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torchkeep.errors import FileUnreadable


class Scratch:
    """Temporary files for what lies packed in an archive; they are gone when it is closed.

    They lie in the system's folder for temporary files (`TMPDIR`), and nothing is made there before
    it is needed.
    """

    def __init__(self) -> None:
        self._folder: Path | None = None
        self._num_files = 0
        self._remove: Callable[[], object] = lambda: None

    def write(self, data: bytes) -> Path:
        """Return a new file with these bytes.

        Raises:
            FileUnreadable: there is no room for it.
        """
        try:
            if self._folder is None:
                self._open()
            self._num_files += 1
            path = Path(f"{self._folder}/{self._num_files}")
            path.write_bytes(data)
        except OSError as error:
            reason = error.strerror or str(error)
            raise FileUnreadable(
                f"there is no room to unpack {len(data):,} bytes ({reason})",
                advice="Set TMPDIR to a folder with room, or unpack the archive yourself.",
            ) from None
        return path

    def _open(self) -> None:
        import shutil  # it brings three compressors, which most files don't need
        import tempfile
        import weakref

        self._folder = Path(tempfile.mkdtemp(prefix="torchkeep-"))
        self._remove = weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)

    def close(self) -> None:
        """Remove the files. So does the end of the program, or of what holds this."""
        self._remove()

    def __enter__(self) -> Scratch:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
