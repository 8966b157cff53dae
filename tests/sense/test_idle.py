"""A process that uses nothing but idle cores."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

STEP_BACK = """
import os, psutil
from puhui.sense import step_back
print(step_back(), getattr(os, "sched_getscheduler", lambda _: -1)(0), psutil.Process().nice(), sep=";")
"""


def test_stepping_back() -> None:
    ran = subprocess.run([sys.executable, "-c", STEP_BACK], capture_output=True, text=True, timeout=30, check=True)
    how, scheduler, nice = ran.stdout.strip().split(";")
    if how == "sched_idle":
        assert int(scheduler) == os.SCHED_IDLE
    elif how == "lowest priority":
        assert int(nice) > 0
    else:
        pytest.skip("this system lets no process step back")
