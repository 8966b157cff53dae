"""Starting, watching and ending the learning loop's process."""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import threading
import time

import msgspec

from puhui.core.log_lines import LogFormat
from puhui.core.settings import AuditRate, Promise, Tariff

log = logging.getLogger("puhui.evolve")

BACK_OFF_S = (1.0, 5.0, 30.0, 120.0)
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


class LearnerSettings(msgspec.Struct, frozen=True):
    """What the learning process is told: the store's URL, the folder for bundles, the signing key's file.

    `parent` is the process that it ends with (None: whoever started it).
    """

    store: str
    folder: str
    key: str
    promise: Promise = Promise()
    tariff: Tariff = Tariff()
    audit_rate: AuditRate = AuditRate()
    log_level: str = "WARNING"
    log_format: LogFormat = "text"
    parent: int | None = None


class LearnerProcess:
    """The learning loop beside a node: started again when it dies, ended with it. A context manager."""

    def __init__(self, settings: LearnerSettings) -> None:
        self._settings = settings
        self._stopping = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._keeper = threading.Thread(target=self._keep, name="puhui-learner-keeper", daemon=True)

    def __enter__(self) -> LearnerProcess:
        self._keeper.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        if self._process is not None:
            self._process.terminate()
        self._keeper.join(timeout=10.0)

    def _keep(self) -> None:
        deaths = 0
        while not self._stopping.is_set():
            started = time.monotonic()
            code = self._run_once()
            if self._stopping.is_set():
                return
            deaths = 1 if time.monotonic() - started > 600.0 else deaths + 1
            pause = BACK_OFF_S[min(deaths, len(BACK_OFF_S)) - 1]
            log.warning("the learning process ended with code %s; it starts again in %.0f s", code, pause)
            self._stopping.wait(pause)

    def _run_once(self) -> int:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "puhui.evolve"], stdin=subprocess.PIPE, env=os.environ | ONE_THREAD
        )
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError), self._process.stdin as pipe:
            pipe.write(msgspec.json.encode(msgspec.structs.replace(self._settings, parent=os.getpid())))
        if self._stopping.is_set():
            self._process.terminate()
        return self._process.wait()
