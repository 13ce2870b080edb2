"""Sources that are refused although nothing of what they ask for would go into the new file."""

from __future__ import annotations

from pathlib import Path

from torchkeep.errors import UnsafeContent
from torchkeep.files import InputFile
from torchkeep.formats.folders.dcp import METADATA, is_metadata
from torchkeep.formats.folders.dcp_metadata import read_metadata
from torchkeep.identify import Inspection
from torchkeep.identify.safety.names import is_dangerous
from torchkeep.showing import clip


def check_metadata(inspection: Inspection) -> None:
    """Raise if the metadata of a distributed checkpoint would run something when it is unpickled.

    No training program writes such a file: what else it says is as little to be believed.

    Raises:
        UnsafeContent: it would.
    """
    for path in _metadata_files(inspection):
        with InputFile(path) as file:
            names = read_metadata(file, inspection.limits).globals
        dangerous = [str(name) for name in names if is_dangerous(name)]
        if dangerous:
            raise UnsafeContent(
                f"the metadata of this checkpoint would run {clip(', '.join(dangerous), 200)} when "
                "it is unpickled, as PyTorch does it",
                advice="Don't load it, and ask whoever gave it to you.",
                path=path,
            )


def _metadata_files(inspection: Inspection) -> list[Path]:
    """Return the pickles that say what a distributed checkpoint holds."""
    path = inspection.path
    if inspection.container != "dcp":
        return []
    if path.is_dir():
        files = [path / METADATA, *sorted(path.glob(f"__*{METADATA}"))]
        return [file for file in files if file.is_file()]
    with InputFile(path) as file:
        head = file.read_at(0, min(file.nbytes, 512))
    return [path] if is_metadata(head) else []
