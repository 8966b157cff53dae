"""Somebody takes an expert out, or puts an earlier one back.

What may be put back is what the promise still covers. All calibrations of a task share out δ, so that every promise
ever made for it holds at once: an expert that only gave way to a better one is as proven as on its first day, and its
watch goes on from what it has seen already. One that the watch refuted is not, nor is one from before such a
refutation: the world it was proven on is gone. Nor one whose bundle does not verify.

Whoever decides has seen how the experts did, on rows of the sample. What they decide changes who answers, and so what
later candidates learn. So a change by hand closes the task's sample as a promotion does (docs/evolve.md).
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Literal, TypeAlias

from sqlalchemy import func, insert, select, update

from puhui.bundles.bundle import open_bundle
from puhui.core.errors import BundleError, UnknownModel
from puhui.evolve.memory import close_sample
from puhui.node.roster import ACTIVE, DEMOTED, REFUSED, RETIRED, Roster
from puhui.store.database import Store
from puhui.store.records import event_row
from puhui.store.tables import experts, ledger

WhyNot: TypeAlias = Literal["in_place", "demoted", "refused", "changed", "stale", "damaged"]
REASONS: dict[WhyNot, str] = {
    "in_place": "it is in place already",
    "demoted": "its promise was proven broken; what it learned is no longer what the big model says",
    "refused": "its bundle did not verify",
    "changed": "an expert of this task was demoted since: what it was proven on is gone",
    "stale": "rows that it learned from had to be forgotten",
    "damaged": "its bundle does not verify",
}


def why_not_back(row: Any, last_demotion: float) -> WhyNot | None:
    """Why an expert (its row in the store) may not be put back; None if it may, as long as its bundle verifies.

    `last_demotion` is when the watch last took out an expert of its task (0: never).
    """
    if row.status == ACTIVE:
        return "in_place"
    if row.status == DEMOTED:
        return "demoted"
    if row.status == REFUSED:
        return "refused"
    if row.stale:
        return "stale"
    return "changed" if row.created <= last_demotion else None


def put_back(store: Store, roster: Roster, expert: str, who: str) -> WhyNot | None:
    """Puts an earlier expert in place of the one there is (blocking); says why not where it may not be.

    The ledger says that it was `who`, by hand. Raises `UnknownModel` for an id that is none.
    """
    row = _row(store, expert)
    demotions = select(func.max(experts.c.ended)).where(experts.c.task == row.task, experts.c.status == DEMOTED)
    with store.begin() as connection:
        last_demotion = connection.execute(demotions).scalar() or 0.0
    if (reason := why_not_back(row, last_demotion)) is not None:
        return reason
    try:
        open_bundle(Path(row.folder), expert=expert, trusted=roster.trusted)
    except BundleError:
        return "damaged"
    now = time.time()
    held = select(experts.c.id).where(experts.c.task == row.task, experts.c.status == ACTIVE)
    with store.begin() as connection:
        earlier = connection.execute(held).scalars().all()
        changed = connection.execute(  # unless it has been refuted meanwhile
            update(experts)
            .where(experts.c.id == expert, experts.c.status == RETIRED)
            .values(status=ACTIVE, ended=None, reason=None)
        )
        if not changed.rowcount:
            return "in_place"
        connection.execute(
            update(experts)
            .where(experts.c.id.in_(earlier))
            .values(status=RETIRED, ended=now, reason=f"by hand ({who}): {expert[:12]} was put back in its place")
        )
        close_sample(connection, row.task)
        note = f"by hand ({who}): put back; it answers {row.coverage:.1%} at a proven risk of at most"
        told = event_row("promotion", at=now, task=row.task, expert=expert, note=f"{note} {row.risk_bound:.2%}")
        connection.execute(insert(ledger), told)
    roster.let_back(expert)
    return None


def take_out(store: Store, expert: str, who: str) -> bool:
    """Retires an expert that is in place (blocking); False if it is not in place.

    The ledger says that it was `who`, by hand. Raises `UnknownModel` for an id that is none. Who calls it takes the
    expert from the roster before, so that it answers nobody any more.
    """
    row = _row(store, expert)
    now, reason = time.time(), f"by hand ({who}): taken out"
    with store.begin() as connection:
        changed = connection.execute(
            update(experts)
            .where(experts.c.id == expert, experts.c.status == ACTIVE)
            .values(status=RETIRED, ended=now, reason=reason)
        )
        if not changed.rowcount:
            return False
        close_sample(connection, row.task)
        connection.execute(insert(ledger), event_row("retirement", at=now, task=row.task, expert=expert, note=reason))
    return True


def _row(store: Store, expert: str) -> Any:
    with store.begin() as connection:
        row = connection.execute(select(experts).where(experts.c.id == expert)).one_or_none()
    if row is None:
        raise UnknownModel(f"no expert has the id {expert[:64]!r}; GET /puhui/v1/experts lists them")
    return row
