"""The command line as a person meets it: help, versions, exit codes, and no tracebacks."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import torchkeep
import torchkeep.identify
from torchkeep import errors
from torchkeep.cli import VERBS, failures, main
from torchkeep.errors import LoadMismatch, TorchkeepError

TORCHKEEP = (sys.executable, "-m", "torchkeep")

# As in a user's shell: output is buffered, so that much of it is written at the very end.
BUFFERED = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch):
    """Make the reading of a file raise what the test gives."""

    def fail(error: BaseException) -> None:
        def examine(_path: str, **_options: object) -> None:
            raise error

        monkeypatch.setattr(torchkeep.formats, "examine", examine)

    return fail


def every_error(root: type[TorchkeepError] = TorchkeepError) -> set[type[TorchkeepError]]:
    return {root}.union(*map(every_error, root.__subclasses__()))


@pytest.mark.parametrize("arguments", [["--help"], ["inspect", "--help"], ["demo", "--help"]])
def test_help_teaches_by_example_and_fits_the_screen(arguments, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    text = capsys.readouterr().out
    assert exit_.value.code == 0
    assert "  torchkeep inspect" in text
    assert "xit code" in text
    assert max(map(len, text.splitlines())) <= 80


def test_help_lists_every_exit_code(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert all(f"  {code:<4} {meaning}" in text for code, meaning in failures.EXIT_CODES.items())


def test_every_error_has_a_documented_exit_code():
    assert {error.exit_code for error in every_error()} < set(failures.EXIT_CODES)
    assert all(error.__module__ == errors.__name__ for error in every_error())


def test_every_verb_is_offered(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    names = [verb.__name__.rpartition(".")[2] for verb in VERBS]
    assert all(f"    {name} " in text for name in names)


def test_the_version_is_that_of_the_package(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["--version"])
    assert exit_.value.code == 0
    assert capsys.readouterr().out == f"torchkeep {torchkeep.__version__}\n"


@pytest.mark.parametrize("arguments", [[], ["inspect"], ["look", "a"], ["inspect", "--no", "a"]])
def test_a_wrong_command_line_exits_with_2_and_the_usage(arguments, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    assert capsys.readouterr().err.startswith("usage: torchkeep")


@pytest.mark.parametrize("kind", sorted(every_error(), key=lambda kind: kind.__name__))
def test_an_error_is_one_line_and_its_own_exit_code(kind, failing, capsys):
    extra = {"reasons": ()} if kind is errors.InexactResume else {}
    failing(kind("it is wrong", advice="Mend it.", **extra))
    assert main(["inspect", "a.pth"]) == kind.exit_code
    captured = capsys.readouterr()
    place = "a.pth: " if issubclass(kind, errors.FileProblem) else ""
    assert captured.err == f"torchkeep: {place}it is wrong. Mend it.\n"
    assert not captured.out


def test_the_name_of_a_file_cannot_forge_a_message(tmp_path: Path, capsys):
    path = tmp_path / "a\n\x1b[2Ktorchkeep: all is well"
    assert main(["inspect", str(path)]) == 3
    assert capsys.readouterr().err == (
        f"torchkeep: {tmp_path}/a\\n\\x1b[2Ktorchkeep: all is well: "
        "there is no such file. Check the path.\n"
    )


def test_a_table_in_an_error_keeps_its_lines(failing, capsys):
    failing(LoadMismatch("they differ:\n  fc.\x1bweight"))
    assert main(["inspect", "a.pth"]) == 9
    assert capsys.readouterr().err == "torchkeep: they differ:\n  fc.\\x1bweight.\n"


def test_a_bug_is_called_a_bug_and_shows_no_traceback(failing, capsys, monkeypatch):
    monkeypatch.delenv("TORCHKEEP_TRACEBACK", raising=False)
    failing(KeyError("x\n"))
    assert main(["inspect", "a.pth"]) == 70
    assert capsys.readouterr().err == (
        "torchkeep: this is a bug in torchkeep (KeyError: 'x\\n'). "
        "Set TORCHKEEP_TRACEBACK=1 to see where it is, and please report that.\n"
    )


def test_the_traceback_of_a_bug_can_be_asked_for(failing, capsys, monkeypatch):
    monkeypatch.setenv("TORCHKEEP_TRACEBACK", "1")
    failing(KeyError("x"))
    assert main(["inspect", "a.pth"]) == 70
    assert capsys.readouterr().err.startswith("Traceback (most recent call last):")


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (FileNotFoundError(2, "No such file", "a\n\x1bb"), 3, "a\\n\\x1bb: No such file"),
        (PermissionError(13, "Permission denied", b"a"), 3, "a: Permission denied"),
        (OSError(errno.ENOSPC, "No space left", "a"), 8, "a: No space left"),
        (OSError(errno.EMFILE, "Too many open files"), 70, "this is a bug in torchkeep (OSError: "),
    ],
)
def test_what_the_system_refuses_is_told_with_the_file(error, code, text, failing, capsys):
    failing(error)
    assert main(["inspect", "a.pth"]) == code
    assert capsys.readouterr().err.startswith(f"torchkeep: {text}")


def test_an_interrupt_is_quiet(failing, capsys):
    failing(KeyboardInterrupt())
    assert main(["inspect", "a.pth"]) == 130
    assert capsys.readouterr().err == "torchkeep: interrupted\n"


@pytest.mark.skipif(os.name == "nt", reason="needs SIGINT")
def test_ctrl_c_ends_a_real_process_with_130(tmp_path: Path):
    program = (
        "import sys, time, torchkeep.cli as cli, torchkeep.formats as formats\n"
        "def wait(path, **options): print('ready', flush=True); time.sleep(60)\n"
        "formats.examine = wait\n"
        "sys.exit(cli.main(['inspect', 'a.pth']))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    _, complaint = process.communicate(timeout=30)
    assert process.returncode == 130
    assert complaint == "torchkeep: interrupted\n"


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_reader_that_stops_early_hears_no_complaint(options: list[str], checkpoint: Path):
    process = subprocess.Popen(
        [*TORCHKEEP, "inspect", *options, *[str(checkpoint)] * 40],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=BUFFERED,
    )
    assert process.stdout is not None
    assert process.stdout.readline()
    process.stdout.close()
    assert process.stderr is not None
    complaint = process.stderr.read()
    process.stderr.close()
    assert complaint == b""
    assert process.wait(timeout=30) == 141


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("options", [[], ["--json"]])
def test_output_that_can_not_be_written_is_an_error(options: list[str], checkpoint: Path):
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*TORCHKEEP, "inspect", *options, str(checkpoint)],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=BUFFERED,
            check=False,
        )
    assert done.returncode == 74
    assert done.stderr == "torchkeep: the output can't be written (No space left on device)\n"


def test_an_encoding_that_lacks_a_letter_gets_an_escape(checkpoint: Path, tmp_path: Path):
    path = tmp_path / "größe.pth"
    path.write_bytes(checkpoint.read_bytes())
    done = subprocess.run(
        [*TORCHKEEP, "inspect", str(path)],
        capture_output=True,
        env=BUFFERED | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert rb"gr\xf6\xdfe.pth" in done.stdout
    assert not done.stderr
