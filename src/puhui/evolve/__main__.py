"""The learning loop as a process of its own: `python -m puhui.evolve`, started by the node.

It reads its settings as one JSON object from standard input, uses only cores that nothing else wants, and ends
when the node that started it is gone.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path

import msgspec

from puhui.core.errors import StoreError
from puhui.core.log_lines import set_up_logging
from puhui.evolve.learner import Learner
from puhui.evolve.memory import Memory
from puhui.evolve.process import LearnerSettings
from puhui.sense.idle import step_back
from puhui.store.database import open_store
from puhui.trust.keys import load_or_create_key

log = logging.getLogger("puhui.evolve")

LOOK_EVERY_S = 0.3
PARENT_EVERY_S = 1.0
AFTER_STORE_ERROR_S = 10.0


def main() -> None:
    """Runs until the parent process is gone or a signal comes."""
    settings = msgspec.json.decode(sys.stdin.buffer.read(), type=LearnerSettings)
    parent = settings.parent or os.getppid()
    threading.Thread(target=_end_with, args=(parent,), name="puhui-orphan", daemon=True).start()
    set_up_logging(settings.log_format, settings.log_level)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the node, which then ends this process
    log.debug("runs as %s", step_back())
    store = open_store(settings.store)
    learner = Learner(
        Memory(store),
        Path(settings.folder),
        load_or_create_key(Path(settings.key)),
        promise=settings.promise,
        tariff=settings.tariff,
        audit_rate=settings.audit_rate,
    )
    while True:
        pause = LOOK_EVERY_S
        try:
            learner.step()
        except StoreError as error:
            log.warning("%s", error)
            pause = AFTER_STORE_ERROR_S
        time.sleep(pause)


def _end_with(parent: int) -> None:
    """Ends this process soon after `parent`, whatever it does: what it writes is whole or not there at any moment."""
    while os.getppid() == parent:
        time.sleep(PARENT_EVERY_S)
    os._exit(0)


if __name__ == "__main__":
    main()
