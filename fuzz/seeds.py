"""Write the seed corpus: the samples and the attacks of the tests, a folder for each target.

python fuzz/seeds.py [DIR]
"""

from __future__ import annotations

import io
import shutil
import sys
import tempfile
import warnings
import zipfile
from pathlib import Path

from folders import inputs

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))

MAX_NBYTES = 1 << 16


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "corpus"
    warnings.simplefilter("ignore")
    count = 0
    with tempfile.TemporaryDirectory() as scratch:
        for name, path in written(Path(scratch)):
            data = path.read_bytes()
            for target in targets(data):
                count += keep(folder / target, name, data)
            for number, pickled in enumerate(pickles_in(data)):
                count += keep(folder / "machine", f"{name}-{number}", pickled)
        write_templates(folder / "templates")
        for name, data in inputs(folder / "templates", MAX_NBYTES):
            count += keep(folder / "folder", name, data)
    print(f"{count} seeds in {folder}")


def written(scratch: Path):
    """Yield the files of the tests' samples and attacks, each with its name."""
    from attacks.corpus import CORPUS
    from formats import samples, samples_archives, samples_foreign, samples_programs

    modules = (samples, samples_archives, samples_foreign, samples_programs)
    for sample in (sample for module in modules for sample in module.SAMPLES):
        path = scratch / sample.name.replace(" ", "-").replace("/", "-")
        sample.write(path)
        if path.is_file():
            yield path.name, path
    bodies = {name: data for name, (_, data) in samples_foreign.FILES.items()}
    bodies |= {attack.file_name: attack.make("marker") for attack in CORPUS}
    for name, data in bodies.items():
        path = scratch / name.replace(" ", "-").replace("/", "-")
        path.write_bytes(data)
        yield path.name, path


def write_templates(place: Path) -> None:
    """Write a folder of every kind, for the target of folders."""
    from formats import samples_folders

    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    for sample in samples_folders.FOLDER_SAMPLES:
        folder = place / sample.name.replace(" ", "-")
        sample.write(folder)


def targets(data: bytes) -> list[str]:
    """Return the targets that a file is a seed for."""
    from torchkeep.formats import READERS
    from torchkeep.formats.format import HEAD_NBYTES

    zips = ["zip"] if data.startswith(b"PK") else []
    return [
        "inspect",
        *zips,
        *(reader.name for reader in READERS if reader.sniff(data[:HEAD_NBYTES], len(data))),
    ]


def pickles_in(data: bytes) -> list[bytes]:
    """Return the pickles in a file: itself, or records of a zip."""
    if not data.startswith(b"PK"):
        return [data]
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return [archive.read(name) for name in archive.namelist() if name.endswith(".pkl")]
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError, KeyError):
        return []


def keep(folder: Path, name: str, data: bytes) -> bool:
    if not data or len(data) > MAX_NBYTES:
        return False
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name[:100]).write_bytes(data)
    return True


if __name__ == "__main__":
    main()
