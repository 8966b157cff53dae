"""Child processes that end with the demo, however it ends."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from puhui.core.errors import PuhuiError

START_WITHIN_S = 90.0
END_WITHIN_S = 15.0

# A proxy in the environment is not for this machine's own addresses.
open_local = urllib.request.build_opener(urllib.request.ProxyHandler({})).open


class Processes:
    """Python processes with their logs in one folder. A context manager: leaving it ends them all."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._running: list[tuple[str, subprocess.Popen[bytes]]] = []

    def __enter__(self) -> Processes:
        self._logs.mkdir(parents=True, exist_ok=True)
        # A polite kill must end the children as well as Ctrl-C does.
        self._before = signal.signal(signal.SIGTERM, _as_interrupt)
        return self

    def __exit__(self, *_: object) -> None:
        for _name, process in reversed(self._running):
            process.terminate()
        until = time.monotonic() + END_WITHIN_S
        for _name, process in reversed(self._running):
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.1, until - time.monotonic()))
                continue
            process.kill()
            process.wait()
        signal.signal(signal.SIGTERM, self._before)

    def start(self, name: str, arguments: Sequence[str], health: str) -> None:
        """Starts `python -m arguments…` and waits until the URL `health` answers."""
        log = self._logs / f"{name}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", *arguments],
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=os.environ | {"PYTHONUNBUFFERED": "1"},
                start_new_session=True,  # Ctrl-C reaches the demo alone, which ends them in order
            )
        self._running.append((name, process))
        until = time.monotonic() + START_WITHIN_S
        while time.monotonic() < until:
            if process.poll() is not None:
                last = log.read_text(errors="replace").strip().splitlines()[-3:]
                raise PuhuiError(f"{name} did not start: {' | '.join(last) or 'no output'}; its log is {log}")
            with contextlib.suppress(OSError), open_local(health, timeout=5.0):
                return
            time.sleep(0.1)
        raise PuhuiError(f"{name} did not answer at {health} within {START_WITHIN_S:.0f} s; its log is {log}")


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
        return port


def _as_interrupt(*_: object) -> None:
    raise KeyboardInterrupt
