"""Idle cores, and how to use nothing else."""

from __future__ import annotations

import contextlib
import os

import psutil


def step_back() -> str:
    """Makes this process run only when nothing else wants the core; returns how it was done.

    On Linux that is the scheduling class SCHED_IDLE: a waking server process takes the core at once. Elsewhere
    it is the lowest priority. What the system refuses is left as it is ("unchanged").
    """
    if hasattr(os, "SCHED_IDLE"):
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
            return "sched_idle"
    lowest = getattr(psutil, "IDLE_PRIORITY_CLASS", 19)
    with contextlib.suppress(psutil.Error, OSError):
        psutil.Process().nice(lowest)
        return "lowest priority"
    return "unchanged"
