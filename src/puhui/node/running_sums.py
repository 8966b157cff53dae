"""The ledger's sums, kept up to date by reading only what is new.

A ledger of a million rows takes a second to sum, and a page asks every few seconds. The ledger only grows, so what was
summed once stays: each reading adds the rows that came since. Rows get their numbers inside the transaction that writes
them, so in SQLite, where one writes at a time, none appears below the last one read. Another database may let it, and
somebody may have taken rows out of the ledger, so everything is summed afresh from time to time.
"""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Iterable

from puhui.node.bill import DAY_S, Sum, read_sums, slot_name
from puhui.store.database import Store

HOUR_S = 3_600
AFRESH_AFTER_S = 86_400.0


class RunningSums:
    """The sums of a store's ledger by hour. Its methods block, and may be called from several threads."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._sums: dict[tuple[object, ...], Sum] = {}
        self._last = 0
        self._begun = 0.0
        self._lock = threading.Lock()

    def read(self, *, since: float | None = None, step_s: int = DAY_S) -> list[Sum]:
        """The sums now, of slots of an hour or of a day that begin at or after `since` (seconds since 1970)."""
        with self._lock:
            if not self._begun or time.monotonic() - self._begun > AFRESH_AFTER_S:
                self._sums, self._last, self._begun = {}, 0, time.monotonic()
            for fresh in read_sums(self._store, None, HOUR_S, after=self._last):
                self._last = max(self._last, fresh.last)
                _put(self._sums, fresh)
            wanted = [one for one in self._sums.values() if since is None or one.start_s >= since]
            return _in_slots(wanted, step_s)


def _in_slots(sums: Iterable[Sum], step_s: int) -> list[Sum]:
    """Copies of the sums, of the same slot together."""
    found: dict[tuple[object, ...], Sum] = {}
    for one in sums:
        moved = copy.copy(one)
        moved.start_s = one.start_s // step_s * step_s
        moved.slot = slot_name(moved.start_s, step_s)
        _put(found, moved)
    return list(found.values())


def _put(sums: dict[tuple[object, ...], Sum], fresh: Sum) -> None:
    key = (fresh.start_s, fresh.task, fresh.model, fresh.kind, fresh.expert, fresh.good)
    held = sums.get(key)
    if held is None:
        sums[key] = fresh
        return
    held.rows += fresh.rows
    held.last = max(held.last, fresh.last)
    held.seconds += fresh.seconds
    held.energy += fresh.energy
    held.co2_g += fresh.co2_g
    held.cost += fresh.cost
