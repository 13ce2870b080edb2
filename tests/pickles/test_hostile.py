"""Pickles made to harm their reader: nothing runs, nothing takes long, and nothing looks clean."""

from __future__ import annotations

import os
import pickle
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from effort import at_most
from torchkeep.contents import Finding, Global, Object, Storage, TensorEntry
from torchkeep.errors import DamagedFile, LimitReached, TorchkeepError
from torchkeep.formats.torch.unpickling import TORCH_CONSTRUCTORS
from torchkeep.pickles.limits import Limits
from torchkeep.pickles.machine import run_pickle
from torchkeep.pickles.pickled import COMPUTED, Pickled
from torchkeep.pickles.source import ByteSource
from watching import EVERYTHING_IS_LOADED

TENSOR = TensorEntry("float32", (2,), (1,), Storage("0", 8, 0))


def run(stream: bytes, **options: Any) -> Pickled:
    return run_pickle(
        ByteSource.of_bytes(stream),
        persistent=lambda pid: TENSOR,
        constructors=TORCH_CONSTRUCTORS,
        **options,
    )


def finding(stream: bytes) -> Finding:
    (found,) = run(stream).findings
    return found


def u4(number: int) -> bytes:
    return struct.pack("<I", number)


def text(value: str) -> bytes:
    return b"X" + u4(len(value)) + value.encode()


# --- Nothing is imported or run ----------------------------------------------------------------


class Touch:
    """Creates a file when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (self.command,)


def payloads(command: str) -> list[bytes]:
    """Return streams that run a shell command in CPython's unpickler, each in another way."""
    line = command.encode()
    command_text = text(command)
    attack = b"cposix\nsystem\n" + command_text + b"\x85R."
    return [
        *(pickle.dumps(Touch(command), protocol) for protocol in range(6)),
        b"(S'" + line + b"'\niposix\nsystem\n.",
        b"(cposix\nsystem\n" + command_text + b"o.",
        b"\x8c\x05posix\x94\x8c\x06system\x94\x93" + command_text + b"\x85R.",
        b"cposix\nsystem\n" + command_text + b"\x85R0N.",
        b"cbuiltins\ngetattr\ncposix\n__dict__\n" + text("get") + b"\x86R.",
        b"cbuiltins\neval\n" + text(f"__import__('os').system({command!r})") + b"\x85R.",
        b"cbuiltins\nexec\n" + text(f"import os; os.system({command!r})") + b"\x85R.",
        b"cimportlib\nimport_module\n" + text("antigravity") + b"\x85R.",
        b"cpkgutil\nresolve_name\n" + text("os:system") + b"\x85R.",
        b"cpickle\nloads\n" + b"B" + u4(len(attack)) + attack + b"\x85R.",
        b"ctorch\nload\n" + text("/nonexistent") + b"\x85R.",
        b"cno_such_module_at_all\nthing\n)R.",
        b"cwebbrowser\nopen\n" + text("http://127.0.0.1:9/") + b"\x85R.",
        b"ccm\nC\n)\x81}" + text("__class__") + b"cos\nsystem\nsb.",
    ]


def test_payloads_do_run_in_a_real_unpickler(tmp_path: Path) -> None:
    target = tmp_path / "touched"
    for index in (0, 5, 6, 7, 8, 9, 12):
        pickle.loads(payloads(f"touch {target}")[index])
        assert target.exists()
        target.unlink()


WATCHED = f"""
import sys
{EVERYTHING_IS_LOADED}
from pathlib import Path
from torchkeep.errors import TorchkeepError
from torchkeep.formats import describe

paths = [Path(name) for name in sys.argv[1:]]
describe(paths[0])  # a harmless one, so that what reading needs is there
events = []

def hook(event, args):
    if event == "open" and str(args[0]) in sys.argv and not args[2] & 3:
        return  # the file itself, for reading
    events.append(f"{{event}} {{args!r}}"[:200])

sys.addaudithook(hook)
for path in paths[1:]:
    try:
        describe(path)
    except TorchkeepError:
        pass
    seen, events[:] = list(events), []
    if seen:
        print(path.name, seen)
"""


def test_reading_a_payload_imports_runs_opens_and_connects_to_nothing(tmp_path: Path) -> None:
    target = tmp_path / "touched"
    harmless = pickle.dumps(["\ud83d\ude00", b"\xff", 1.5, {1: 2}], 0)
    files = [harmless, *payloads(f"touch {target}")]
    paths = []
    for index, stream in enumerate(files):
        paths.append(tmp_path / f"{index}.pkl")
        paths[-1].write_bytes(stream)
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, *paths], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert not target.exists()


def test_the_watch_sees_what_it_watches_for(tmp_path: Path) -> None:
    (tmp_path / "0.pkl").write_bytes(b"].")
    broken = WATCHED.replace("describe(path)\n", "import this; open('/dev/null', 'w')\n")
    done = subprocess.run(
        [sys.executable, "-c", broken, *[tmp_path / "0.pkl"] * 2], capture_output=True, text=True
    )
    assert "import ('this'" in done.stdout
    assert "/dev/null" in done.stdout


def test_what_a_payload_would_call_is_named(tmp_path: Path) -> None:
    for stream in payloads(f"touch {tmp_path / 'touched'}")[:10]:
        assert run(stream).globals == (Global("posix", "system"),)
    assert not list(tmp_path.iterdir())


# --- Tricks that hide what a file does ---------------------------------------------------------


def test_a_name_made_at_run_time_is_dangerous() -> None:
    joined = b"cbuiltins\ngetattr\n" + text("o") + text("s") + b"\x86R"
    found = run(b"\x80\x04" + joined + text("system") + b"\x93.")
    assert found.root == COMPUTED
    assert ("computed-global", "dangerous") in {(f.rule, f.severity) for f in found.findings}


def test_a_call_of_something_that_the_file_made_is_dangerous() -> None:
    made = b"cbuiltins\ngetattr\ncm\nf\n)R" + text("method") + b"\x86R"
    found = finding(made + b")R.")
    assert (found.rule, found.severity) == ("computed-call", "dangerous")
    assert found.text == "something made by the file itself is called"


def test_getattr_of_a_name_is_a_name() -> None:
    found = run(b"cbuiltins\ngetattr\ncm\nC\n" + text("method") + b"\x86R)R.")
    assert not found.findings
    assert found.globals[-1] == Global("m", "C.method")
    made = run(b"cbuiltins\ngetattr\ncm\nf\n)R" + text("__globals__") + b"\x86R.")
    assert [item.rule for item in made.findings] == ["computed-global"]


def test_a_call_of_an_instance_or_of_a_class_in_the_file_is_a_matter_of_trust() -> None:
    assert not run(b"cm\nGetter\n)R)R.").findings
    assert finding(b"cm\ngetter\n)R)R.").rule == "computed-call"
    byte_code = b"ccloudpickle.cloudpickle\n_make_skeleton_class\n)R)\x81."
    assert not run(byte_code).findings


def test_opcodes_that_weights_only_lacks_are_kept_once() -> None:
    assert run(b"\x80\x02(K\x01K\x02t.").unusual == ()
    assert run(pickle.dumps([b"a", b"b", {1}], 4)).unusual[:2] == ("FRAME", "MEMOIZE")


def test_a_call_through_functools_partial_is_a_call_of_what_it_wraps() -> None:
    partial = b"cfunctools\npartial\ncm\nf\n\x85R"
    assert not run(partial + b")R.").findings
    state = b"(cm\ng\n)}Ntb"
    assert not run(partial + state + b")R.").findings
    hidden = b"(cbuiltins\ngetattr\ncm\nf\n)R" + text("x") + b"\x86R)}Ntb"
    assert finding(partial + hidden + b")R.").rule == "computed-call"


def test_an_extension_code_is_dangerous() -> None:
    found = finding(b"\x82\x07)R.")
    assert (found.rule, found.severity) == ("extension", "dangerous")
    assert found.text == "copyreg extension 7 names something unknown"


@pytest.mark.parametrize(
    ("stream", "severity", "what"),
    [
        (b"cm\nf\n}X\x01\x00\x00\x00aK\x01sb.", "dangerous", "attributes are set on a Global"),
        (b"cm\nf\nK\x00K\x01s.", "dangerous", "items are set in a Global"),
        (b"NQK\x00K\x01s.", "dangerous", "items are set in a tensor"),
        (b"NQK\x01a.", "dangerous", "items are appended to a tensor"),
        (b"NQ}b.", "dangerous", "attributes are set on a tensor"),
        (b"](K\x01K\x02e" + b"K\x00K\x09s.", "ambiguous", "items are set in a list"),
        (b"\x96\x01" + b"\0" * 7 + b"zK\x01a.", "ambiguous", "items are appended to a bytearray"),
        (b"}K\x01a.", "ambiguous", "items are appended to a dict"),
        (b"K\x05K\x01a.", "damaged", "items are appended to a int"),
        (b"](K\x01\x90.", "ambiguous", "members are added to a list"),
        (b"]}b.", "ambiguous", "attributes are set on a list"),
    ],
)
def test_a_change_of_what_can_not_be_changed_is_found(
    stream: bytes, severity: str, what: str
) -> None:
    found = finding(stream)
    assert (found.rule, found.severity) == ("mutation", severity)
    assert found.text == f"{what}, which no honest writer does"


@pytest.mark.parametrize(
    ("stream", "problem"),
    [
        (b"\x80\x04\x95\x02" + b"\0" * 7 + b"J\x01\x00\x00\x00.", "reaches over the end"),
        (b"\x80\x04\x95\x14" + b"\0" * 7 + b"\x95\x02" + b"\0" * 7 + b"N." + b"N" * 12, "inside"),
    ],
)
def test_frames_that_readers_treat_differently_are_ambiguous(stream: bytes, problem: str) -> None:
    found = finding(stream)
    assert (found.rule, found.severity) == ("frame-overrun", "ambiguous")
    assert problem in found.text


def test_honest_frames_are_not_noted() -> None:
    value = [b"x" * 200_000, "y" * 200_000, list(range(50_000))]
    for protocol in (4, 5):
        assert not run(pickle.dumps(value, protocol)).findings


@pytest.mark.parametrize("stream", [b"cbuiltins\nset\nK\x05R.", b"cbuiltins\nset\nK\x05\x85R."])
def test_a_call_that_makes_no_sense_is_found(stream: bytes) -> None:
    found = finding(stream)
    assert (found.rule, found.severity) == ("malformed-call", "damaged")
    assert isinstance(run(stream).root, Object)


def test_findings_of_one_kind_are_kept_up_to_a_hundred() -> None:
    stream = b"".join(b"\x84" + u4(code) + b"0" for code in range(5000))
    found = run(stream + b"cm\nf\n}b.").findings
    assert len([f for f in found if f.rule == "extension"]) == 100
    assert [f.rule for f in found if f.rule != "extension"] == ["mutation"]


# --- Streams that want time, memory or stack ---------------------------------------------------


def exponential_tuple(levels: int) -> bytes:
    return b")" + b"2\x86" * levels


DEPTH = 100_000
HARMLESS = {
    "an exponential tuple": exponential_tuple(200) + b".",
    "an exponential list": b"]q\x00" + b"0](h\x00h\x00eq\x00" * 200 + b".",
    "deep lists": b"(" * DEPTH + b"l" * DEPTH + b".",
    "deep tuples": b")" + b"\x85" * DEPTH + b".",
    "deep dicts": b"}" + b"q\x000}Nh\x00s" * DEPTH + b".",
    "deep objects": b"N" + b"q\x000(cm\nC\nh\x00o" * (DEPTH // 5) + b".",
    "deep states": b"cm\nC\n)\x81" + b"Nb" * DEPTH + b".",
    "deep lists that are thrown away": b"(" * DEPTH + b"l" * DEPTH + b"0N.",
    "deep objects that are thrown away": b"N" + b"q\x000(cm\nC\nh\x00o" * (DEPTH // 5) + b"0N.",
    "deep partials": b"cm\nf\n" + b"q\x000cfunctools\npartial\nh\x00\x85R" * (DEPTH // 5) + b")R.",
    "marks": b"(" * DEPTH + b"1" * DEPTH + b"N.",
    "the last memo index": b"Nr\xff\xff\xff\xffj\xff\xff\xff\xff.",
    "a memo index of text": b"Np99999999999999999999999\n.",
    "a cycle": b"]q\x00h\x00a.",
    "a cycle through an object": b"cm\nC\n)\x81q\x00}X\x01\x00\x00\x00ah\x00sb.",
    "a huge integer": b"\x8b" + u4(1 << 20) + b"\x7f" * (1 << 20) + b".",
    "many names": b"".join(b"cm\nn%d\n0" % n for n in range(20_000)) + b"N.",
}


@pytest.mark.parametrize("name", HARMLESS)
def test_a_heavy_shape_is_read_in_no_time(name: str) -> None:
    with at_most(150):
        pickled = run(HARMLESS[name])
        assert not [f for f in pickled.findings if f.rule != "computed-call"]
        del pickled


@pytest.mark.parametrize(
    "key",
    [
        exponential_tuple(40),
        b")" + b"\x85" * DEPTH,
        b"(" + b"N" * 5000 + b"t",
        b"(" + b"".join(b"J" + u4(n) for n in range(5000)) + b"\x91",
        b"\x8b" + u4(1 << 20) + b"\x7f" * (1 << 20),
    ],
    ids=["exponential", "deep", "wide", "wide set", "long integer"],
)
def test_a_key_that_takes_long_to_hash_reaches_a_limit(key: bytes) -> None:
    for stream in (b"}" + key + b"Ns.", b"(" + key + b"\x91.", b"\x8f(" + key + b"\x90."):
        with pytest.raises(LimitReached, match="limit key_nodes=1,000 allows"):
            run(stream)


@pytest.mark.parametrize(
    "call",
    [
        b"cbuiltins\nlist\n(" + b"N" * 50_000 + b"l\x85q\x010q\x000" + b"h\x00h\x01R" * 50_000,
        b"cbuiltins\ntuple\n(" + b"N" * 50_000 + b"l\x85q\x010q\x000" + b"h\x00h\x01R" * 50_000,
        b"c_codecs\nencode\n" + text("x" * 200_000) + b"\x85q\x010q\x000" + b"h\x00h\x01R" * 9000,
        b"ccollections\nOrderedDict\n)R("
        + b"".join(b"J" + u4(n) + b"N" for n in range(50_000))
        + b"dq\x00b"
        + b"h\x00b" * 50_000,
        b"cm\nC\n)R("
        + b"".join(b"J" + u4(n) + b"N" for n in range(50_000))
        + b"dq\x00b"
        + b"h\x00b" * 50_000,
    ],
    ids=["lists", "tuples", "bytes", "attributes", "states"],
)
def test_copies_of_copies_reach_a_limit(call: bytes) -> None:
    with pytest.raises(LimitReached, match="limit copied_nbytes=10,000,000 allows"):
        run(call + b".", limits=Limits(copied_nbytes=10_000_000))


def test_a_pickle_of_many_steps_reaches_a_limit() -> None:
    with pytest.raises(LimitReached, match=r"more than steps=1,000 opcodes\. If you trust"):
        run(b"N0" * 1000 + b"N.", limits=Limits(steps=1000))


def test_a_length_that_reads_far_into_a_huge_file_reaches_a_limit() -> None:
    reads: list[int] = []

    def read_at(offset: int, nbytes: int) -> bytes:
        reads.append(nbytes)
        assert nbytes < 1 << 24
        head = b"\x8e" + struct.pack("<Q", 1 << 38)
        return head[offset : offset + nbytes].ljust(nbytes, b"\0")

    with pytest.raises(LimitReached, match="pickle_nbytes=1,073,741,824"):
        run_pickle(ByteSource(read_at, 0, 1 << 40))
    assert sum(reads) < 1 << 24


@pytest.mark.parametrize("opcode", [b"B", b"X", b"\x8b", b"T"])
def test_a_length_behind_the_end_is_truncation_and_costs_nothing(opcode: bytes) -> None:
    with pytest.raises(DamagedFile, match="truncated"):
        run(opcode + b"\xff\xff\xff\x7f.")


def test_a_tensor_of_endless_dimensions_is_refused() -> None:
    dims = b"(" + b"K\x01" * 100_000 + b"t"
    stream = b"ctorch._utils\n_rebuild_tensor\n(NQK\x00" + dims + b"q\x00h\x00tR."
    assert finding(stream).rule == "malformed-call"


def test_unpickling_in_a_small_stack_is_an_error_of_ours() -> None:
    # Deep enough to be refused, or read: never a crash or another error.
    limit = sys.getrecursionlimit()
    for name in ("deep tuples", "deep objects", "deep states", "an exponential tuple"):
        stream = HARMLESS[name]
        try:
            sys.setrecursionlimit(200)
            run(stream)
        except TorchkeepError:
            pass
        finally:
            sys.setrecursionlimit(limit)
