"""Chromium: the machine's own, else the one that playwright installed, else (for root) Debian's package."""

import os
import shutil
import subprocess
from pathlib import Path

from playwright.sync_api import Browser, Playwright, sync_playwright

from . import MissingPieceError

_NAMES = ("chromium", "chromium-browser", "google-chrome")

# Headless as root in a container, and silent: no update, no sync, and no QUIC, which some networks let vanish.
_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def find_chromium() -> Path | None:
    on_path = next(filter(None, map(shutil.which, _NAMES)), None)
    if on_path is not None:
        return Path(on_path)
    with sync_playwright() as playwright:
        own = Path(playwright.chromium.executable_path)
    return own if own.exists() else None


def launch(playwright: Playwright) -> Browser:
    """Starts it without a window. ``playwright`` is of the sync API."""
    on_path = next(filter(None, map(shutil.which, _NAMES)), None)
    own = Path(playwright.chromium.executable_path)
    if on_path is None and not own.exists():
        raise MissingPieceError("no Chromium on this machine. Type: make setup")
    return playwright.chromium.launch(executable_path=on_path or own, headless=True, args=_FLAGS)


def provide_chromium() -> None:
    """Installs it where that is possible, or says what to type."""
    if find_chromium() is not None:
        return
    install = "no Chromium on this machine, and {}. Type: .venv/bin/playwright install --with-deps chromium"
    if os.geteuid() != 0:
        raise MissingPieceError(install.format("only root can install Debian's"))
    if shutil.which("apt-get") is None:
        raise MissingPieceError(install.format("this is not a Debian to install it on"))
    print("Installing Debian's chromium", flush=True)  # noqa: T201 - it takes a minute
    for command in (["update"], ["install", "--yes", "--no-install-recommends", "chromium"]):
        done = subprocess.run(
            ["apt-get", "--quiet", *command],
            env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise MissingPieceError(f"{done.stdout}\n{install.format(f'apt-get {command[0]} failed')}")
    if find_chromium() is None:
        raise MissingPieceError(install.format("Debian's package did not bring one"))
