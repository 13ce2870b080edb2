"""Files on disk: bounded reads, and writes that are whole or absent.

Every model, state and manifest is read and written here; a run's lock and memory maps are the
exceptions (`checkpointing/runs/lock.py`, `tensors.py`).
"""

from torchkeep.files.atomic import (
    TEMPORARY_MARK,
    atomic_file,
    atomic_folder,
    link_file,
    remove_files,
    remove_folder,
    remove_temporaries,
    staged_file,
    sync_folder,
    write_file,
)
from torchkeep.files.buffers import CHUNK_NBYTES, Buffer, Observer, Progress
from torchkeep.files.digests import (
    crc32_of,
    digest,
    digest_of_pieces,
    digests_of_runs,
    new_digest,
)
from torchkeep.files.direct import read_directly
from torchkeep.files.memory import BLOCK_NBYTES, memory_at, pages
from torchkeep.files.output import OutputFile
from torchkeep.files.parallel import GROUP_NBYTES, NUM_THREADS, grouped_by_size, in_parallel
from torchkeep.files.reading import (
    FilePart,
    InputFile,
    MemoryFile,
    Readable,
    Stamp,
    Stream,
    changed,
)
from torchkeep.files.scratch import Scratch
from torchkeep.files.shared import make_room, part_of_file

__all__ = [
    "BLOCK_NBYTES",
    "CHUNK_NBYTES",
    "GROUP_NBYTES",
    "NUM_THREADS",
    "TEMPORARY_MARK",
    "Buffer",
    "FilePart",
    "InputFile",
    "MemoryFile",
    "Observer",
    "OutputFile",
    "Progress",
    "Readable",
    "Scratch",
    "Stamp",
    "Stream",
    "atomic_file",
    "atomic_folder",
    "changed",
    "crc32_of",
    "digest",
    "digest_of_pieces",
    "digests_of_runs",
    "grouped_by_size",
    "in_parallel",
    "link_file",
    "make_room",
    "memory_at",
    "new_digest",
    "pages",
    "part_of_file",
    "read_directly",
    "remove_files",
    "remove_folder",
    "remove_temporaries",
    "staged_file",
    "sync_folder",
    "write_file",
]
