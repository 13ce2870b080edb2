"""Records that do not belong into an archive of their kind are told by what they may do."""

from __future__ import annotations

from pathlib import Path

import pytest

from formats.building import rules
from formats.samples import Sample
from formats.samples_programs import SAMPLES, records_of, write_zip
from torchkeep.formats import examine

CODE = ("hidden-code", "dangerous")
PICKLE = ("hidden-code", "ambiguous")
VARIANT = ("case-variant", "ambiguous")
SECOND = ("two-kinds", "ambiguous")
STRANGE = ("extra-record", "note")

OUT_OF_PLACE = {
    "torchscript scripted state dict": {
        "{root}/lib.so": CODE,
        "{root}/extra/lib.so": CODE,
        "{root}/more.pkl": PICKLE,
        "{root}/data/evil.py": PICKLE,
        "{root}/DATA.PKL": VARIANT,
        "{root}/notes": STRANGE,
        "other/data/0": STRANGE,
        "{root}/x.so.1": CODE,
        "{root}/x.pyd": CODE,
        "{root}/x.wasm": CODE,
        "{root}/extra/x.pyd": CODE,
        "{root}/x.bat": PICKLE,
    },
    "torch-cpp state dict": {
        "{root}/code/lib.so": CODE,
        "{root}/data.pkl": SECOND,
        "{root}/more.pkl": PICKLE,
        "{root}/MODEL.JSON": VARIANT,
        "{root}/notes": STRANGE,
    },
    "torch-export state dict": {
        "{root}/data/weights/lib.so": CODE,
        "{root}/extra/lib.so": CODE,
        "lib.dll": CODE,
        "{root}/more.pkl": PICKLE,
        "{root}/ARCHIVE_FORMAT": VARIANT,
        "{root}/tensors/0": SECOND,
        "{root}/notes": STRANGE,
    },
    "torch-package state dict": {
        "{root}/pkg/lib.so": CODE,
        "{root}/.data/evil.pkl": PICKLE,
        "{root}/.data/EXTERN_MODULES": VARIANT,
        "{root}/tensors/0": SECOND,
        "{root}/data.pkl": SECOND,
        "{root}/.data/notes": STRANGE,
    },
}
"""By the sample's name and the record's, what is said."""


@pytest.mark.parametrize(
    ("sample", "name", "expected"),
    [
        pytest.param(sample, name, expected, id=f"{sample.container} {name}")
        for sample in SAMPLES
        for name, expected in OUT_OF_PLACE.get(sample.name, {}).items()
    ],
)
def test_records_out_of_place_are_found(
    sample: Sample, name: str, expected: tuple[str, str], tmp_path: Path
) -> None:
    path = tmp_path / "model.pt"
    sample.write(path)
    records = records_of(path.read_bytes())
    assert expected not in rules(examine(path))
    root = records[0][0].partition("/")[0]
    write_zip(path, [*records, (name.format(root=root), b"x")])
    assert expected in rules(examine(path))


@pytest.mark.parametrize(
    ("data", "expected"),
    [(b"\x7fELF" + bytes(60), CODE), (b"\x80\x04N.", PICKLE)],
    ids=["a library", "a pickle"],
)
@pytest.mark.parametrize(
    "sample", [pytest.param(it, id=it.name) for it in SAMPLES if it.name in OUT_OF_PLACE]
)
def test_what_a_strange_record_starts_with_counts_under_any_name(
    sample: Sample, data: bytes, expected: tuple[str, str], tmp_path: Path
) -> None:
    path = tmp_path / "model.pt"
    sample.write(path)
    records = records_of(path.read_bytes())
    assert expected not in rules(examine(path))
    write_zip(path, [*records, (records[0][0].partition("/")[0] + "/.data/notes", data)])
    assert expected in rules(examine(path))


def test_the_samples_have_these_names() -> None:
    assert set(OUT_OF_PLACE) <= {sample.name for sample in SAMPLES}
