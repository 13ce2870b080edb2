"""One thread that works beside the program, on one job at a time."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class Background:
    """Runs one job at a time; what a job raises is raised by the next call."""

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._running: Future[None] | None = None

    def start(self, job: Callable[[], None]) -> None:
        """Wait for the job that is running, and start another.

        Raises:
            Exception: the one before failed; the new one is not started.
        """
        self.wait()
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="torchkeep-save")
        try:
            self._running = self._pool.submit(job)
        except BaseException:  # Ctrl-C, when the job may have begun
            self.close()
            raise

    @property
    def is_busy(self) -> bool:
        """Whether a job is under way."""
        return self._running is not None and not self._running.done()

    def check(self) -> None:
        """Return at once; raise what a job that has ended raised."""
        if self._running is not None and self._running.done():
            self.wait()

    def wait(self) -> None:
        """Return when nothing is running; raise what it raised, once."""
        if self._running is None:
            return
        error = self._running.exception()  # waits
        self._running = None
        if error is not None:
            raise error

    def close(self) -> None:
        """Wait, and end the thread; nothing is raised."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None
