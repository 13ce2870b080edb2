"""What torchkeep raises.

    TorchkeepError                 everything below; catch this one
    ├── FileProblem                a file that was asked for can't be used
    │   ├── FileMissing            nothing is there                        exit code 3
    │   ├── FileUnreadable         it is there, and may not be read        exit code 3
    │   ├── NotAModelFile          an HTML page, a Git LFS pointer, ...    exit code 4
    │   ├── DamagedFile            truncated, or its parts contradict      exit code 5
    │   ├── LimitReached           sound so far, larger than allowed       exit code 6
    │   └── UnsupportedContent     recognised, and not readable (yet)      exit code 7
    │       ├── ClassesMissing     a whole model of classes that are not given
    │       └── UnsafeContent      a whole model, or metadata, that asks for what none needs
    ├── SaveRefused                this value, or this place, can't be written   exit code 8
    ├── LoadMismatch               the file and the model differ           exit code 9
    ├── CheckpointProblem          a run can't be saved or resumed         exit code 10
    │   ├── NoCheckpoint           nothing whole to resume from
    │   └── InexactResume          resuming would not be bit for bit
    ├── TrainingDiverged           a step gave NaN or infinity             exit code 1
    ├── OutOfMemory                there is less than a training needs     exit code 1
    ├── MissingExtra               an optional dependency is not installed exit code 11
    ├── WrongArgument              a name, pattern or number fits nothing  exit code 12
    ├── ExportRefused              a target can't hold this network        exit code 15
    └── ProofFailed                a claim was checked and is not true     exit code 1

Exit code 2 is a wrong command line, 13 a scanned file that is not data-only, and 75 that of a run
that was asked to make room (`Preempted`, which is no error). A message is one
line: where, what was found, what was expected, what to do. The inner layers raise the fact; whoever
knows the file adds it with `FileProblem.in_file`. What a message says stays readable as attributes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, ClassVar

from torchkeep.wording import printable


class TorchkeepError(Exception):
    """The root of everything that torchkeep raises on purpose.

    Attributes:
        problem: what is wrong, without the place.
        advice: what to do about it; may be empty.
        exit_code: what the command line exits with.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, problem: str, *, advice: str = "") -> None:
        super().__init__(problem, advice)
        self.problem = problem
        self.advice = advice

    def __str__(self) -> str:
        text = self.problem if self.problem.endswith((".", "!", "?")) else f"{self.problem}."
        return f"{text} {self.advice}".rstrip()

    def __reduce__(self) -> tuple[Any, ...]:
        # One process of a run tells another; Python would call the class with `args` alone.
        return _as_it_was, (type(self), self.args, vars(self))


def _as_it_was(
    kind: type[TorchkeepError], args: tuple[Any, ...], fields: dict[str, Any]
) -> TorchkeepError:
    """Return an error from another process."""
    error = kind.__new__(kind, *args)
    vars(error).update(fields)
    return error


class FileProblem(TorchkeepError):
    """A file that was asked for can't be used.

    Attributes:
        path: the file, or None as long as only an inner layer has seen the fact.
        seen: what a pickle had named before it broke (a `pickles.pickled.Pickled`), or None.
    """

    def __init__(
        self, problem: str, *, advice: str = "", path: str | os.PathLike[str] | None = None
    ) -> None:
        super().__init__(problem, advice=advice)
        self.path = None if path is None else os.fspath(path)
        self.seen: Any = None

    def in_file(self, path: str | os.PathLike[str]) -> FileProblem:
        """Return this error with the file's name, unless it names one already."""
        if self.path is None:
            self.path = os.fspath(path)
        return self

    def __str__(self) -> str:
        text = super().__str__()
        return text if self.path is None else f"{printable(self.path)}: {text}"


class FileMissing(FileProblem):
    """There is nothing at the path."""

    exit_code = 3


class FileUnreadable(FileProblem):
    """Something is at the path that may not, or can't, be read."""

    exit_code = 3


class NotAModelFile(FileProblem):
    """The bytes are something else: a web page, a Git LFS pointer, a picture, nothing."""

    exit_code = 4


class DamagedFile(FileProblem):
    """The file is of a known kind, and truncated or inconsistent."""

    exit_code = 5


class LimitReached(FileProblem):
    """Reading would take more than a limit allows. The file need not be malicious."""

    exit_code = 6


class UnsupportedContent(FileProblem):
    """The file, or a part of it, is recognised and can't be read."""

    exit_code = 7


class ClassesMissing(UnsupportedContent):
    """A whole model is made of classes that are not known here, and were not given.

    Attributes:
        names: their dotted names in the file.
    """

    def __init__(
        self,
        problem: str,
        *,
        advice: str = "",
        path: str | os.PathLike[str] | None = None,
        names: tuple[str, ...] = (),
    ) -> None:
        super().__init__(problem, advice=advice, path=path)
        self.names = names


class UnsafeContent(UnsupportedContent):
    """A whole model, or the metadata of a distributed checkpoint, asks for what none needs.

    Nothing of it was built.
    """


class SaveRefused(TorchkeepError):
    """The value can't be kept as data, or the target may not be written."""

    exit_code = 8


class LoadMismatch(TorchkeepError):
    """The file and the model differ by more than what was allowed; the model is untouched.

    Attributes:
        missing: the model's keys that the file has nothing for.
        unexpected: the file's keys that the model has no place for.
        mismatched: the model's keys whose tensor in the file has another shape or dtype.
    """

    exit_code = 9

    def __init__(
        self,
        problem: str,
        *,
        advice: str = "",
        missing: tuple[str, ...] = (),
        unexpected: tuple[str, ...] = (),
        mismatched: tuple[str, ...] = (),
    ) -> None:
        super().__init__(problem, advice=advice)
        self.missing = missing
        self.unexpected = unexpected
        self.mismatched = mismatched


class CheckpointProblem(TorchkeepError):
    """A run can't be saved or resumed."""

    exit_code = 10


class NoCheckpoint(CheckpointProblem):
    """There is no whole checkpoint to resume from."""


class InexactResume(CheckpointProblem):
    """The run can be resumed, and would not go on bit for bit.

    Attributes:
        reasons: why, one sentence each.
    """

    def __init__(self, problem: str, *, reasons: tuple[str, ...], advice: str = "") -> None:
        super().__init__(problem, advice=advice)
        self.reasons = reasons


class TrainingDiverged(TorchkeepError):
    """A value that a step reported is not finite, and the run was to stop then."""


class Preempted(SystemExit):
    """The run was asked to make room by a signal, has saved, and ends the program.

    Its exit code is 75, which means "try again later" (`EX_TEMPFAIL` in sysexits.h).

    Attributes:
        signal: the signal's name.
    """

    def __init__(self, signal: str) -> None:
        super().__init__(EXIT_PREEMPTED)
        self.signal = signal


EXIT_PREEMPTED = 75


class OutOfMemory(TorchkeepError):
    """There is less memory than a training needs."""


class MissingExtra(TorchkeepError):
    """An optional dependency is not installed."""

    exit_code = 11

    @classmethod
    def for_modules(cls, who: str, modules: Iterable[str], extra: str) -> MissingExtra:
        """Return the error of `who` that can't import `modules`, which the extra would bring."""
        return cls(
            f"{who} needs {', '.join(modules)}, not installed here",
            advice=f"Install it with: pip install 'torchkeep[{extra}]'",
        )


class WrongArgument(TorchkeepError):
    """A call's argument is of no use: an unknown name, a pattern of nothing, an empty data set."""

    exit_code = 12


class ExportRefused(TorchkeepError):
    """A network can't be written for a target: an operator, a branch, a precision is not there."""

    exit_code = 15


class ProofFailed(TorchkeepError):
    """A claim that torchkeep checks (a digest, an accuracy, a loaded tensor) is not true.

    Attributes:
        replay: how the model's outputs differ from stored ones (a `loading.Replay`), or None.
    """

    exit_code = 1

    def __init__(self, problem: str, *, advice: str = "", replay: Any = None) -> None:
        super().__init__(problem, advice=advice)
        self.replay = replay
