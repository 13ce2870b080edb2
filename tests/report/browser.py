"""A real browser, without a window, that tells what it met in a page."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

BROWSER = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)

needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium here to open a page with")

_FLAGS = """--headless --no-sandbox --disable-gpu --no-first-run --hide-scrollbars --disable-sync
    --disable-background-networking --disable-component-update --disable-extensions
    --disable-default-apps --enable-logging=stderr""".split()
_FLAGS.append("--host-resolver-rules=MAP * ~NOTFOUND")  # nothing leaves this machine


@dataclass(frozen=True, slots=True)
class Visit:
    """What a browser met."""

    dom: str
    """The page after its script ran, as HTML."""
    console: list[str]
    """What stands in the console: errors, and what the policy refused."""
    fetched: list[str]
    """What was asked for from anywhere but the page itself."""


def visit(page: Path, width: int = 1400) -> Visit:
    """Open a file and return what happened."""
    log = page.with_suffix(".netlog")
    done = _run(page, width, "--dump-dom", f"--log-net-log={log}")
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    events = json.loads(log.read_text("utf-8"))["events"]
    asked = [event["params"] for event in events if "url" in event.get("params", {})]
    # What the browser asks for by itself, such as its updates, has no page as its initiator.
    urls = {each["url"] for each in asked if each.get("initiator") not in (None, "not an origin")}
    return Visit(done.stdout, console, sorted(url for url in urls if not url.startswith("data:")))


def screenshot(page: Path, width: int, height: int) -> bytes:
    """Return what the page looks like, as a PNG file."""
    target = page.with_suffix(".png")
    _run(page, width, f"--screenshot={target}", height=height)
    return target.read_bytes()


def _run(
    page: Path, width: int, *flags: str, height: int = 2000
) -> subprocess.CompletedProcess[str]:
    assert BROWSER is not None
    profile = page.with_suffix(".profile")
    size = f"--window-size={width},{height}"
    command = [BROWSER, *_FLAGS, f"--user-data-dir={profile}", size, *flags, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
