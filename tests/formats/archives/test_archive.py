"""Archives of files: what is found in each kind, what is said of the rest, and what it may cost."""

from __future__ import annotations

import base64
import bz2
import gzip
import io
import json
import lzma
import pickle
import random
import stat
import tarfile
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from effort import at_most
from formats.building import Call
from formats.samples_archives import (
    ARCHIVES,
    PACKERS,
    STORED,
    members,
    saved,
    tar_file,
    tar_state_dict,
    torch_tar,
    zip_archive,
)
from formats.seven_zip_writer import Coder, seven_zip
from torchkeep.contents import Contents, Global, TensorEntry
from torchkeep.errors import (
    DamagedFile,
    FileProblem,
    LimitReached,
    NotAModelFile,
    UnsupportedContent,
)
from torchkeep.files import MemoryFile
from torchkeep.formats import describe, examine, examine_open
from torchkeep.identify import inspect
from torchkeep.pickles.limits import DEFAULT_LIMITS, Limits

every_archive = pytest.mark.parametrize("name", ARCHIVES)
VALUES = {"epoch": 3}
NOISE = b"\xff" + random.Random(0).randbytes(35_999)  # no pickle starts so


def looked(data: bytes, *, limits: Limits = DEFAULT_LIMITS) -> Contents:
    return examine_open(MemoryFile(data, Path("a.bin")), limits)


def rules(contents: Contents) -> list[tuple[str, str, str]]:
    return [(finding.rule, finding.severity, finding.place) for finding in contents.findings]


def pickled(value: Any = None) -> bytes:
    return pickle.dumps(VALUES if value is None else value, 2)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "archive.bin"


# --- What lies in them ----------------------------------------------------------------------------


@every_archive
def test_each_model_in_an_archive_is_described_and_the_rest_is_counted(
    path: Path, name: str
) -> None:
    files, held = members()
    path.write_bytes(ARCHIVES[name](files))
    contents = describe(path)
    assert contents.container == "archive"
    assert contents.kind.endswith("archive of 5 files, 3 of them models")
    assert contents.findings == ()
    assert [str(member.path) for member in contents.members] == [f"{path}/{n}" for n in held]
    containers = [member.container for member in contents.members]
    assert containers == ["torch-zip", "torch-legacy", "pickle"]
    assert list(contents.root) == list(held)
    assert contents.root["run/values.pkl"] == held["run/values.pkl"]
    for key, tensor in held["run/model.pth"].items():
        entry = contents.root["run/model.pth"][key]
        assert (entry.shape, entry.stride) == (tuple(tensor.shape), tensor.stride())


@every_archive
def test_tensors_can_be_read_where_a_file_lies_as_it_is_and_nowhere_else(
    path: Path, name: str
) -> None:
    files, held = members()
    path.write_bytes(ARCHIVES[name](files))
    data = path.read_bytes()
    for key, tensor in held["run/model.pth"].items():
        stored = describe(path).root["run/model.pth"][key].storage
        if name not in STORED:
            assert stored.path is None
            continue
        assert stored.path == path
        raw = data[stored.offset : stored.offset + stored.nbytes]
        assert raw == tensor.numpy().tobytes()


@pytest.mark.parametrize("name", PACKERS)
def test_a_single_packed_file_goes_by_its_name_without_the_suffix(
    tmp_path: Path, name: str
) -> None:
    path = tmp_path / "model.pth.xz"
    path.write_bytes(PACKERS[name](saved({"w": torch.ones(2)})))
    contents = describe(path)
    assert contents.kind == f"{name} archive of 1 file, a model"
    assert contents.root["model.pth"]["w"].shape == (2,)


@pytest.mark.parametrize(
    ("name", "pack"),
    [
        ("zlib", zlib.compress),
        ("lzma", lambda data: lzma.compress(data, lzma.FORMAT_ALONE)),
    ],
)
def test_a_pickle_that_joblib_packed_is_found(name: str, pack: Callable[[bytes], bytes]) -> None:
    contents = looked(pack(pickled()))
    assert contents.kind == f"{name} archive of 1 file, a model"
    assert contents.root == {"content": VALUES}


def test_packed_files_that_follow_each_other_are_one() -> None:
    whole = pickled({"text": "x" * 1000})
    for pack in PACKERS.values():
        contents = looked(pack(whole[:600]) + pack(whole[600:]))
        assert contents.root == {"content": {"text": "x" * 1000}}
        assert contents.findings == ()


def test_a_torch_tar_that_is_packed_is_one_file() -> None:
    records, live = tar_state_dict()
    contents = looked(gzip.compress(torch_tar(records)))
    assert [member.container for member in contents.members] == ["torch-tar"]
    assert list(contents.root["content"]) == list(live)


def test_archives_in_archives_are_followed() -> None:
    inner = tar_file([("b.pkl", pickled())])
    contents = looked(zip_archive([("a.tar", inner), ("x.7z", seven_zip([("c.pkl", pickled())]))]))
    assert contents.kind == "zip archive of 2 files, 2 of them models"
    assert contents.root == {"a.tar": {"b.pkl": VALUES}, "x.7z": {"c.pkl": VALUES}}


def test_what_a_member_names_and_what_is_odd_about_it_is_the_archive_s() -> None:
    bad = pickle.dumps(Call(eval, ("1",)), 2) + b"more"
    contents = looked(tar_file([("a.txt", b"x"), ("sub/bad.pkl", bad)]))
    assert Global("builtins", "eval") in contents.globals
    assert ("trailing-bytes", "ambiguous", "sub/bad.pkl") in rules(contents)
    assert contents.pickle_protocol == 2


def test_an_empty_folder_and_a_name_with_a_dot_are_nothing_special() -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        folder = tarfile.TarInfo("./sub")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        info = tarfile.TarInfo("./sub/a.pkl")
        info.size = len(pickled())
        archive.addfile(info, io.BytesIO(pickled()))
    contents = looked(buffer.getvalue())
    assert contents.root == {"sub/a.pkl": VALUES}
    assert contents.findings == ()
    assert contents.kind == "tar archive of 1 file, a model"


def test_a_folder_in_a_zip_is_no_file() -> None:
    contents = looked(zip_archive([("sub/", b""), ("sub/a.pkl", pickled())]))
    assert contents.kind == "zip archive of 1 file, a model"
    assert contents.findings == ()


def test_a_zip_packed_with_xz_is_unpacked() -> None:
    """Python's zipfile does not write it; 7-Zip and WinZip do."""
    value = pickled({"text": "x" * 500})
    data = bytearray(zip_archive([("a.pkl", lzma.compress(value))]))
    local, central = data.index(b"PK\3\4"), data.index(b"PK\1\2")
    for start in (local + 8, central + 10):
        data[start : start + 2] = (95).to_bytes(2, "little")
        data[start + 6 : start + 10] = zlib.crc32(value).to_bytes(4, "little")
        data[start + 14 : start + 18] = len(value).to_bytes(4, "little")
    contents = looked(bytes(data))
    assert contents.root == {"a.pkl": {"text": "x" * 500}}
    assert contents.findings == ()


# --- Stable-baselines3, Keras, TorchServe ---------------------------------------------------------


def json_with_pickles(**values: Any) -> bytes:
    holders = {
        key: {":type:": "<class 'x'>", ":serialized:": base64.b64encode(data).decode()}
        for key, data in values.items()
    }
    return json.dumps({"n_steps": 8, **holders}, indent=4).encode()


def test_pickles_in_a_json_text_are_described_as_members() -> None:
    data = json_with_pickles(policy=pickled(), bad=pickle.dumps(Call(eval, ("1",)), 4))
    contents = looked(zip_archive([("data", data), ("policy.pth", saved({"w": torch.ones(2)}))]))
    assert contents.kind == "zip archive of 2 files, 1 of them a model"
    assert contents.root["data"]["n_steps"] == 8
    assert contents.root["data"]["policy"] == VALUES
    assert Global("builtins", "eval") in contents.globals
    text = contents.members[0]
    assert (text.container, text.kind) == ("text", "JSON with 2 pickles in it")
    assert [str(member.path) for member in text.members] == ["a.bin/data/policy", "a.bin/data/bad"]


def test_a_key_written_with_escapes_is_the_same_key() -> None:
    data = json_with_pickles(bad=pickle.dumps(Call(eval, ("1",)), 4))
    data = data.replace(b":serialized:", b"\\u003aseri\\u0061lized:")
    assert Global("builtins", "eval") in looked(zip_archive([("data", data)])).globals


def test_pickles_anywhere_in_a_json_text_take_their_places() -> None:
    holder = json.loads(json_with_pickles(x=pickled()))["x"]
    both = {**holder, "inner": holder}
    contents = looked(zip_archive([("data", json.dumps([1, {"a": [both]}]).encode())]))
    assert contents.root["data"] == [1, {"a": [VALUES]}]
    names = [member.path.name for member in contents.members[0].members]
    assert names == ["1.a.0", "1.a.0.inner"]
    assert looked(zip_archive([("data", json.dumps(holder).encode())])).root == {"data": VALUES}


def test_two_places_that_look_like_one_hide_no_pickle() -> None:
    good, bad = (
        json.loads(json_with_pickles(x=data))["x"]
        for data in (pickled(), pickle.dumps(Call(eval, ("1",)), 4))
    )
    contents = looked(zip_archive([("data", json.dumps({"a": {"b": bad}, "a.b": good}).encode())]))
    assert Global("builtins", "eval") in contents.globals
    assert contents.root["data"]["a.b"] == VALUES
    assert len(contents.members[0].members) == 2


def test_a_pickle_in_json_that_is_no_base64_is_damage() -> None:
    data = b'{"a": {":serialized:": "x"}, "b": {":serialized:": 3}}'
    contents = looked(zip_archive([("data", data)]))
    problems = [str(member.problem) for member in contents.members[0].members]
    assert problems[0].startswith("a.bin/data/a: it is no base64 text (")


def test_json_that_only_a_lenient_reader_takes_is_damage() -> None:
    data = b'{"a": {":serialized:": "gAJ9Lg=="}, "a": 1}'
    contents = looked(zip_archive([("data", data)]))
    assert rules(contents) == [("not-looked-into", "damaged", "data")]
    assert contents.findings[0].text == (
        "it can't be looked into: it is no valid JSON (a key stands twice)"
    )


def test_json_without_pickles_is_no_model() -> None:
    data = b'{"a": [1, 2], "a": "\\ud800 \\u0041"}'
    contents = looked(zip_archive([("config.json", data)]))
    assert contents.findings == ()
    assert isinstance(contents.problem, NotAModelFile)


def test_settings_among_the_files_are_kept_for_what_they_name() -> None:
    """Hydra calls what stands under `_target_`; NeMo's archives bring such a file."""
    settings = b"model:\n  _target_: os.system\n"
    contents = looked(tar_file([("model.ckpt", pickled()), ("model_config.yaml", settings)]))
    assert [member.container for member in contents.members] == ["pickle", "text"]
    assert contents.members[1].metadata == {"text": settings.decode()}
    assert contents.kind == "tar archive of 2 files, 1 of them a model"


def test_code_in_the_configuration_of_a_keras_model_is_told() -> None:
    layer = {"class_name": "Lambda", "config": {"function": ["4wEAAAAA", None, None]}}
    config = {"class_name": "Sequential", "config": {"layers": [layer]}}
    contents = looked(zip_archive([("config.json", json.dumps(config).encode())]))
    assert [finding.place.partition(":")[0] for finding in contents.findings] == ["config.json"]
    assert contents.findings[0].severity in ("needs-trust", "dangerous")


HIDDEN = b"Vx\n" * 20 + b"cos\ngetcwd\n(tR."


@pytest.mark.parametrize("padding", [0, 30_000])
@pytest.mark.parametrize("tail", [b"", b"?and then it breaks"], ids=["whole", "broken"])
@pytest.mark.parametrize("make", [zip_archive, ARCHIVES["tar.gzip"]], ids=["zip", "packed tar"])
def test_text_that_python_runs_as_a_pickle_is_not_passed_over(
    make: Any, tail: bytes, padding: int
) -> None:
    hidden = b"V" + b"x" * padding + b"\n0" + (HIDDEN[:-1] + tail if tail else HIDDEN)
    contents = looked(make([("notes.txt", hidden), ("a.txt", b"no pickle\n")]))
    assert {str(name) for name in contents.globals} & {"posix.getcwd", "nt.getcwd", "os.getcwd"}
    assert [member.path.name for member in contents.members] == ["notes.txt"]


CODE = [
    ("lib.so", b"\x7fELF" + bytes(60), "native-code", "needs-trust"),
    ("lib.so.1.2", b"", "native-code", "needs-trust"),
    ("no_suffix", b"MZ\x90\0" + bytes(600), "native-code", "needs-trust"),
    ("mod.pyc", b"\xcb\r\r\n", "native-code", "needs-trust"),
    ("train.py", b"import os\n", "source-code", "note"),
    ("run.sh", b"#!/bin/sh\n", "source-code", "note"),
]


@pytest.mark.parametrize(("name", "data", "rule", "severity"), CODE, ids=[c[0] for c in CODE])
@pytest.mark.parametrize("make", [zip_archive, tar_file], ids=["zip", "tar"])
def test_code_beside_a_model_is_told(
    make: Any, name: str, data: bytes, rule: str, severity: str
) -> None:
    contents = looked(make([("a.pkl", pickled()), (name, data)]))
    assert rules(contents) == [(rule, severity, name)]
    assert contents.kind.endswith("archive of 2 files, 1 of them a model")


def test_source_code_that_torchserve_runs_needs_trust() -> None:
    files = [("handler.py", b"x = 1\n"), ("MAR-INF/MANIFEST.json", b"{}"), ("m.pkl", pickled())]
    assert rules(looked(zip_archive(files))) == [("source-code", "needs-trust", "handler.py")]


# --- Names and links ------------------------------------------------------------------------------

ESCAPES = ["../a.pkl", "/etc/a.pkl", "x/../../a.pkl", "..\\a.pkl", "C:\\a.pkl", "\\\\host\\a.pkl"]


@pytest.mark.parametrize("name", ESCAPES)
@pytest.mark.parametrize(
    "make", [tar_file, zip_archive, lambda files: seven_zip(list(files))], ids=["tar", "zip", "7z"]
)
def test_a_name_that_leaves_the_folder_is_ambiguous(make: Any, name: str) -> None:
    contents = looked(make([(name, pickled())]))
    assert rules(contents) == [("path-escape", "ambiguous", name)]
    assert contents.members[0].path.parts[0] == "a.bin"


@pytest.mark.parametrize("name", ["a..b.pkl", "...", "x/.hidden", "a:b/c.pkl"])
def test_a_name_with_dots_in_it_is_none_that_leaves_the_folder(name: str) -> None:
    expected = [("path-escape", "ambiguous", name)] if name[1:2] == ":" else []
    assert rules(looked(tar_file([(name, pickled())]))) == expected


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        (tarfile.SYMTYPE, "a link"),
        (tarfile.LNKTYPE, "a link"),
        (tarfile.CHRTYPE, "a device"),
        (tarfile.FIFOTYPE, "a device"),
    ],
)
def test_a_link_or_a_device_in_a_tar_is_ambiguous(kind: bytes, what: str) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        info = tarfile.TarInfo("a.pkl")
        info.type, info.linkname = kind, "/etc/passwd"
        archive.addfile(info)
    contents = looked(buffer.getvalue())
    assert rules(contents) == [("link", "ambiguous", "a.pkl")]
    assert contents.findings[0].text == f"it is {what}, and not a file"


def test_a_link_in_a_zip_is_ambiguous() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        info = zipfile.ZipInfo("a.pkl")
        info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
        archive.writestr("b.pkl", pickled())
    contents = looked(buffer.getvalue())
    assert rules(contents) == [("link", "ambiguous", "a.pkl")]
    assert contents.root == {"b.pkl": VALUES}


def test_two_files_of_one_name_are_both_described() -> None:
    files = [("a.pkl", pickled(1)), ("a.pkl", pickled(2))]
    for data in (tar_file(files), seven_zip(list(files))):
        contents = looked(data)
        assert contents.root == {"a.pkl": 1, "a.pkl (2)": 2}
        assert rules(contents) == [("duplicate-record", "ambiguous", "a.pkl")]


def test_a_file_that_is_called_like_a_second_one_hides_nothing() -> None:
    names = ["a", "a (2)", "a", "a", "a (2)"]
    contents = looked(tar_file([(name, pickled(index)) for index, name in enumerate(names)]))
    assert sorted(contents.root.values()) == [0, 1, 2, 3, 4]


def test_what_is_odd_about_a_zip_s_directory_is_said() -> None:
    data = bytearray(zip_archive([("a.pkl", pickled())]))
    data[data.index(b"a.pkl")] = ord("b")  # in the local header only
    assert rules(looked(bytes(data))) == [("header-mismatch", "ambiguous", "a.pkl")]


def test_the_number_of_findings_is_bounded() -> None:
    contents = looked(tar_file([(f"../{index}", b"x") for index in range(300)]))
    assert len(contents.findings) == 100


# --- What can't be looked into --------------------------------------------------------------------


def encrypted_zip(files: Any) -> bytes:
    data = bytearray(zip_archive(files))
    local, central = data.index(b"PK\3\4"), data.index(b"PK\1\2")
    data[local + 6] |= 1
    data[central + 8] |= 1
    return bytes(data)


def test_an_encrypted_file_in_a_zip_is_not_looked_into() -> None:
    contents = looked(encrypted_zip([("a.pkl", b"\xd7\x11" * 30), ("b.pkl", pickled())]))
    assert ("encrypted-flag", "ambiguous", "a.pkl") in rules(contents)
    assert ("not-looked-into", "ambiguous", "a.pkl") in rules(contents)
    assert contents.findings[-1].text == "it can't be looked into: it is encrypted"
    assert contents.kind == (
        "zip archive of 2 files, 1 of them a model, 1 that can't be looked into"
    )


def test_a_file_of_an_unknown_method_is_not_looked_into() -> None:
    data = bytearray(zip_archive([("a.pkl", pickled())]))
    data[data.index(b"PK\3\4") + 8] = data[data.index(b"PK\1\2") + 10] = 98
    contents = looked(bytes(data))
    assert contents.kind == "zip archive of 1 file that can't be looked into"
    assert rules(contents) == [("not-looked-into", "ambiguous", "a.pkl")]
    assert isinstance(contents.problem, UnsupportedContent)
    assert str(contents.problem) == (
        "a.bin: the file in this zip archive can't be read: it is packed with method 98. "
        "Unpack it yourself and look into what comes out."
    )


def test_a_packed_file_that_does_not_match_its_checksum_is_damage() -> None:
    data = bytearray(zip_archive([("a.pkl", pickled())], zipfile.ZIP_DEFLATED))
    for start in (data.index(b"PK\3\4") + 14, data.index(b"PK\1\2") + 16):
        data[start] ^= 1
    contents = looked(bytes(data))
    assert rules(contents) == [("not-looked-into", "damaged", "a.pkl")]
    assert isinstance(contents.problem, DamagedFile)
    assert "it does not match its checksum" in str(contents.problem)


def test_a_packed_file_of_another_size_than_told_is_damage() -> None:
    data = bytearray(zip_archive([("a.pkl", pickled())], zipfile.ZIP_DEFLATED))
    for start in (data.index(b"PK\3\4") + 22, data.index(b"PK\1\2") + 24):
        data[start] += 1
    problem = looked(bytes(data)).problem
    assert f"it has {len(pickled())} bytes, not {len(pickled()) + 1}" in str(problem)


def test_the_files_of_an_encrypted_7z_are_not_looked_into() -> None:
    contents = looked(
        seven_zip([("a.pkl", b"x" * 40)], coders=[Coder(b"\x06\xf1\x07\x01", b"", bytes)])
    )
    assert contents.kind == "7z archive of 1 file that can't be looked into"
    assert rules(contents) == [("not-looked-into", "ambiguous", "a.pkl")]
    assert contents.findings[0].text == "it can't be looked into: it is encrypted"
    assert isinstance(contents.problem, UnsupportedContent)


def test_a_link_in_a_7z_is_ambiguous_and_the_files_behind_it_are_described() -> None:
    files = [("a.pkl", b"/etc/passwd"), ("b.pkl", pickled())]
    unix_link = 0x8000 | (stat.S_IFLNK | 0o777) << 16
    contents = looked(seven_zip(files, solid=True, attributes={"a.pkl": unix_link}))
    assert rules(contents) == [("link", "ambiguous", "a.pkl")]
    assert contents.root == {"b.pkl": VALUES}
    assert contents.kind == "7z archive of 1 file, a model"


def test_behind_a_broken_file_a_solid_7z_can_t_be_looked_into() -> None:
    for first in (("a.bin", b"\xff" + NOISE.hex().encode()), ("a.pkl", pickled(NOISE.hex()))):
        data = bytearray(seven_zip([first, ("b.pkl", pickled())], coders="deflate", solid=True))
        data[20_000:20_200] = b"\xff" * 200
        contents = looked(bytes(data))
        assert ("not-looked-into", "damaged", "b.pkl") in rules(contents)
        assert isinstance(contents.problem, DamagedFile)


@pytest.mark.parametrize("name", ["gzip", "xz"])  # bzip2 packs 900 KB as one
def test_a_packed_tar_that_is_cut_off_tells_what_came_before(name: str) -> None:
    files = [("a.pkl", pickled()), ("b.bin", NOISE)]
    contents = looked(ARCHIVES[f"tar.{name}"](files)[:20_000])
    assert contents.root == {"a.pkl": VALUES}
    assert isinstance(contents.problem, DamagedFile)
    assert str(contents.problem) == (
        "a.bin: the archive is truncated. Copy or download the file again."
    )


def test_a_single_packed_file_that_is_cut_off_is_damaged() -> None:
    problem = looked(gzip.compress(pickled())[:-4]).problem
    assert str(problem) == (
        "a.bin: the archive is truncated: its packed bytes end too early. "
        "Copy or download the file again."
    )


def test_a_json_text_too_long_to_be_read_is_passed_over_only_if_it_is_called_so() -> None:
    data = b'{"a": "' + b"x" * (17 << 20) + b'"}'
    closed = looked(zip_archive([("data", data), ("b.pkl", pickled())]))
    assert rules(closed) == [("not-looked-into", "ambiguous", "data")]
    assert looked(zip_archive([("vocabulary.json", data), ("b.pkl", pickled())])).findings == ()


def test_a_sparse_file_in_a_tar_is_not_looked_into() -> None:
    data = bytearray(tar_file([("a.pkl", pickled())]))
    data[156:157] = b"S"
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    contents = looked(bytes(data))
    assert rules(contents) == [("not-looked-into", "ambiguous", "a.pkl")]
    assert "stored with holes" in contents.findings[0].text


def test_a_member_that_is_broken_is_told_and_the_others_are_described() -> None:
    contents = looked(zip_archive([("a.pth", saved([1])[:300]), ("b.pkl", pickled())]))
    assert contents.root == {"b.pkl": VALUES}
    assert ("unread-member", "ambiguous", "a.pth") in rules(contents)
    assert contents.problem is None


def test_an_archive_of_one_broken_model_is_broken() -> None:
    contents = looked(zip_archive([("a.pth", saved([1])[:300])]))
    assert isinstance(contents.problem, DamagedFile)
    assert "the file in this zip archive can't be read: the archive is truncated" in str(
        contents.problem
    )


EMPTY = [
    (zip_archive([("a.txt", b"x")]), "the file in this zip archive is no model"),
    (
        tar_file([("a.txt", b"x"), ("b.png", b"\x89PNG\r\n\x1a\n")]),
        "none of the 2 files in this tar archive is a model",
    ),
    (tar_file([]) + bytes(0), "the file holds zeros"),
    (zip_archive([]), "this is an empty zip archive"),
    (seven_zip([]), "this 7z archive is empty"),
    (gzip.compress(b"hello"), "the file in this gzip archive is no model"),
]


@pytest.mark.parametrize(("data", "problem"), EMPTY, ids=range(len(EMPTY)))
def test_an_archive_without_a_model_is_none(path: Path, data: bytes, problem: str) -> None:
    path.write_bytes(data)
    with pytest.raises(NotAModelFile) as caught:
        describe(path)
    assert str(caught.value).startswith(f"{path}: {problem}")


@pytest.mark.parametrize(
    ("magic", "name"),
    [
        (b"Rar!\x1a\x07\x01\0", "RAR"),
        (b"\x28\xb5\x2f\xfd", "Zstandard"),
        (b"\x04\x22\x4d\x18", "LZ4"),
    ],
)
def test_an_archive_of_another_kind_is_named(magic: bytes, name: str) -> None:
    problem = looked(magic + bytes(100)).problem
    assert isinstance(problem, UnsupportedContent)
    assert str(problem) == (
        f"a.bin: this is an archive of {name}, which torchkeep does not unpack. "
        "Unpack it yourself and look into what comes out."
    )


# --- Damage ---------------------------------------------------------------------------------------


def small(name: str) -> bytes:
    return ARCHIVES[name]([("a.pkl", pickled()), ("b.txt", b"hello")])


@every_archive
def test_an_archive_cut_at_any_length_is_a_problem(name: str) -> None:
    whole = small(name)
    assert looked(whole).problem is None
    for length in range(len(whole)):
        problem = looked(whole[:length]).problem
        assert isinstance(problem, FileProblem), length
        assert str(problem).startswith("a.bin: "), length
        assert "\n" not in str(problem), length


@every_archive
def test_every_flipped_byte_ends_in_a_description(name: str) -> None:
    whole = small(name)
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= (0x01, 0x80, 0xFF)[place % 3]
        contents = looked(bytes(damaged))
        assert contents.nbytes == len(whole)
        assert contents.problem is None or isinstance(contents.problem, FileProblem)


@every_archive
def test_bytes_behind_an_archive_are_noticed(name: str) -> None:
    contents = looked(small(name) + b"hidden!" * 100)
    assert isinstance(contents.problem, DamagedFile) or [
        finding.severity for finding in contents.findings
    ] == ["ambiguous"]


# --- What it may cost -----------------------------------------------------------------------------


def bomb(num_opcodes: int) -> bytes:
    """Return a pickle of empty lists, which costs the most for its size."""
    return b"\x80\x02" + b"]" * num_opcodes + b"N."


def torch_bomb(num_opcodes: int) -> bytes:
    records = [("archive/data.pkl", bomb(num_opcodes)), ("archive/version", b"3\n")]
    return zip_archive(records, zipfile.ZIP_DEFLATED)


def nested(data: bytes, levels: int, fan: int) -> bytes:
    for _ in range(levels):
        data = zip_archive([(f"{i}.zip", data) for i in range(fan)], zipfile.ZIP_DEFLATED)
    return data


def json_bomb() -> bytes:
    return b'{":serialized:": [' + b"[]," * 900_000 + b"[]]}"


BOMBS: dict[str, Callable[[], bytes]] = {
    "a deflated pickle": lambda: zip_archive([("a.pkl", bomb(4_000_000))], zipfile.ZIP_DEFLATED),
    "stored torch archives": lambda: zip_archive(
        [(f"{i}.pth", torch_bomb(900_000)) for i in range(8)]
    ),
    "deflated torch archives": lambda: zip_archive(
        [(f"{i}.pth", torch_bomb(60_000)) for i in range(40)], zipfile.ZIP_DEFLATED
    ),
    "a packed tar of headers": lambda: gzip.compress(tar_file([("a", b"")] * 8_000)),
    "a packed tar of pickles": lambda: gzip.compress(tar_file([("a", bomb(400))] * 2_000)),
    "a gzip of a gzip of a gzip": lambda: gzip.compress(
        gzip.compress(gzip.compress(bomb(100_000_000)))
    ),
    "xz": lambda: lzma.compress(bomb(40_000_000)),
    "bzip2": lambda: bz2.compress(bomb(40_000_000)),
    "lzma": lambda: lzma.compress(bomb(40_000_000), lzma.FORMAT_ALONE),
    "zlib": lambda: zlib.compress(bomb(4_000_000), 9),
    "7z": lambda: seven_zip([("a.pkl", bomb(40_000_000))]),
    "7z of many names": lambda: seven_zip([("a", b"")] * 300_000, encoded_header=True),
    "7z of many pickles": lambda: seven_zip(
        [("a", bomb(400))] * 3_000, solid=True, encoded_header=True
    ),
    "zips in zips": lambda: nested(zip_archive([("a.pkl", bomb(5_000_000))], 8), 6, 6),
    "JSON": lambda: zip_archive([("data", json_bomb())], zipfile.ZIP_DEFLATED),
    "deep JSON": lambda: zip_archive(
        [("data", b'{":serialized:":' + b"[" * 900_000)], zipfile.ZIP_DEFLATED
    ),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_small_archive_costs_little_whatever_it_unpacks_to(name: str) -> None:
    data = BOMBS[name]()
    assert len(data) < 20_000
    looked(small("zip"))  # what is imported is not counted
    tracemalloc.start()
    contents = looked(data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100 << 20
    with at_most(100):
        looked(data)
    severities = {finding.severity for finding in contents.findings}
    assert isinstance(contents.problem, LimitReached) or "ambiguous" in severities


def test_a_packed_tar_of_more_files_than_its_size_explains_is_not_gone_through() -> None:
    data = gzip.compress(tar_file([("a" * (index % 7 + 1), b"") for index in range(8_000)]))
    contents = looked(data)
    assert isinstance(contents.problem, LimitReached)
    assert "there is far more to read in it, once unpacked" in str(contents.problem)


def test_reaching_the_limit_of_what_is_unpacked_is_said_with_how_to_raise_it() -> None:
    data = gzip.compress(pickled({"x": NOISE.hex()}))
    problem = looked(data, limits=Limits(pickle_nbytes=2000)).problem
    assert isinstance(problem, LimitReached)
    assert "reading needs more than the limit pickle_nbytes=2,000 allows" in str(problem)


def test_what_was_found_before_the_limit_is_kept_and_the_rest_is_told() -> None:
    files = [("a.pkl", pickled()), ("b.bin", NOISE)]
    contents = looked(ARCHIVES["tar.gzip"](files), limits=Limits(pickle_nbytes=5000))
    assert contents.root == {"a.pkl": VALUES}
    assert contents.problem is None
    assert rules(contents) == [("not-looked-into", "ambiguous", "")]
    assert contents.findings[0].text == (
        "the rest of it: reading needs more than the limit pickle_nbytes=5,000 allows"
    )


def test_archives_are_followed_only_so_deep() -> None:
    data = pickled()
    for _ in range(DEFAULT_LIMITS.archive_depth):
        data = zip_archive([("a", data)])
    assert looked(data).root == {"a": {"a": {"a": VALUES}}}
    contents = looked(zip_archive([("a", data)]))
    assert str(contents.problem) == (
        "a.bin/a/a/a: reading needs more than the limit archive_depth=3 allows. "
        "If you trust the file, allow more: limits=Limits(archive_depth=...) in Python, "
        "--limit archive_depth=... on the command line."
    )
    deeper = looked(zip_archive([("a", data)]), limits=Limits(archive_depth=4))
    assert deeper.root == {"a": {"a": {"a": {"a": VALUES}}}}


def test_pictures_in_a_packed_zip_are_not_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    picture = b"\xff\xd8\xff\xe0" + NOISE * 6
    files = [(f"{i}.jpg", picture) for i in range(5)] + [("a.pkl", pickled())]
    data = zip_archive(files, zipfile.ZIP_DEFLATED)
    sizes = []
    read_at = MemoryFile.read_at

    def counting(self: MemoryFile, offset: int, nbytes: int) -> bytes:
        sizes.append(nbytes)
        return read_at(self, offset, nbytes)

    monkeypatch.setattr(MemoryFile, "read_at", counting)
    assert looked(data).root == {"a.pkl": VALUES}
    assert sum(sizes) < len(data) // 2


def test_an_archive_of_many_small_honest_files_is_read_to_its_end(path: Path) -> None:
    files = [(f"{index}.pkl", pickled({"index": index})) for index in range(400)]
    for name in ("tar.gzip", "solid 7z", "deflated zip"):
        path.write_bytes(ARCHIVES[name](files))
        contents = examine(path)
        assert contents.findings == ()
        assert len(contents.members) == 400


def test_entries_of_a_stored_archive_can_be_told_apart_by_their_file(path: Path) -> None:
    files = [("a.pth", saved({"w": torch.zeros(2)})), ("b.pth", saved({"w": torch.ones(2)}))]
    path.write_bytes(zip_archive(files))
    root = describe(path).root
    first, second = root["a.pth"]["w"], root["b.pth"]["w"]
    assert isinstance(first, TensorEntry)
    assert first.storage.offset != second.storage.offset


@pytest.mark.parametrize(
    ("names", "what"),
    [
        ((".metadata", "__0_0.distcp"), "a distributed checkpoint"),
        (("zero_pp_rank_0_mp_rank_00_optim_states.pt",), "a partitioned checkpoint"),
    ],
)
def test_a_model_in_pieces_is_told_with_how_to_unpack_it(
    tmp_path: Path, names: tuple[str, ...], what: str
) -> None:
    piece = io.BytesIO()
    torch.save({"a.weight": torch.ones(2)}, piece)
    path = tmp_path / "a b.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            content = pickle.dumps({}) if name == ".metadata" else piece.getvalue()
            archive.writestr(f"run/{name}", content * (2 if "distcp" in name else 1))
    told = inspect(path).summary
    command = "python -m zipfile -e 'a b.zip' FOLDER"
    assert f"{what} to be unpacked before it is one model ({command})" in told
