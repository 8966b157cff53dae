"""What a node's pages are told: the bill over a period, and each task with all of its experts. Read from the store.

A reading takes a moment on a large store, so it is done off the event loop, kept for a second, and for longer where it
took long: whoever asks, and however often, reading takes a tenth of one core at most.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Generic, Literal, TypeAlias, TypeVar

import msgspec
from sqlalchemy import or_, select

from puhui.bundles.bundle import Card, read_card
from puhui.cascade.agreement import EXACT, Rule
from puhui.core.errors import BundleError
from puhui.core.settings import Tariff
from puhui.evolve.memory import Memory
from puhui.gateway.device import learning_progress
from puhui.node.bill import DAY_S, By, Sum, bill_of, read_sums
from puhui.node.by_hand import why_not_back
from puhui.node.evidence import Evidence, Story, Terms
from puhui.node.roster import DEMOTED, Roster
from puhui.node.running_sums import HOUR_S, RunningSums
from puhui.store.database import Store
from puhui.store.tables import experts, ledger, tasks

KEPT_FOR_S, TIMES_AS_LONG = 1.0, 10.0
MINUTE_S, FEW_MINUTES = 60, 8
MOST_EVENTS = 200
EVENTS = ("promotion", "demotion", "retirement", "refusal", "learning")

Period: TypeAlias = Literal["hour", "today", "week", "month", "all"]
Read = TypeVar("Read")


class Kept(Generic[Read]):
    """The last reading of `read`, which blocks; read again when it has been kept long enough."""

    def __init__(self, read: Callable[[], Read]) -> None:
        self._read = read
        self._lock = asyncio.Lock()
        self._until = 0.0
        self._value: Read | None = None

    async def get(self) -> Read:
        """The reading, a second old at most where reading is quick."""
        async with self._lock:  # of many who ask at once, one reads
            if self._value is None or time.monotonic() >= self._until:
                started = time.monotonic()
                self._value = await asyncio.to_thread(self._read)
                took = time.monotonic() - started
                self._until = started + took + max(KEPT_FOR_S, TIMES_AS_LONG * took)
            return self._value

    def forget(self) -> None:
        """The next who asks gets a fresh one."""
        self._until = 0.0


class NodeView:
    """A node's store as its pages show it. The methods block."""

    def __init__(self, store: Store, roster: Roster, tariff: Tariff) -> None:
        self.evidence = Evidence(store)
        self._store = store
        self._roster = roster
        self._tariff = tariff
        self._sums = RunningSums(store)
        self._memory = Memory(store)
        self._cards: dict[str, Card | None] = {}

    def bill(self, period: Period) -> dict[str, Any]:
        """The bill since the period began: in total, by time, by task and by model."""
        now = time.time()
        step_s, since, rows = self._slots(period, now)
        kinds: dict[str, By] = {"by_time": "slot", "by_task": "task", "by_model": "model"}
        drawn = {
            name: bill_of(rows, self._store, by, currency=self._tariff.currency, since=since, now=now)
            for name, by in kinds.items()
        }
        whole = drawn["by_task"].as_dict()
        lines = {name: [line.as_dict() for line in one.lines] for name, one in drawn.items()}
        return lines | {
            "period": period,
            "step_s": step_s,
            "since": since,
            "drawn_up": now,
            "currency": self._tariff.currency,
            "energy_basis": whole["energy_basis"],
            "total": whole["total"],
            "parts": _parts(rows),
            "delta": self._roster.delta,
            "carbon_g_per_kwh": self._tariff.carbon_g_per_kwh,
            "price_per_kwh": self._tariff.price_per_kwh,
        }

    def _slots(self, period: Period, now: float) -> tuple[int, float | None, list[Sum]]:
        """The length of a slot, the beginning of the first, and the sums; the slots are fine where there are few."""
        midnight = now // DAY_S * DAY_S
        match period:
            case "hour":
                since = now // MINUTE_S * MINUTE_S - HOUR_S + MINUTE_S
                return self._fine(since)
            case "today":
                return HOUR_S, midnight, self._sums.read(since=midnight, step_s=HOUR_S)
            case "week" | "month":
                since = midnight - (6 if period == "week" else 29) * DAY_S
                return DAY_S, since, self._sums.read(since=since)
        rows = self._sums.read(step_s=HOUR_S)
        began = min((row.start_s for row in rows), default=midnight)
        if now - began <= 3 * HOUR_S:
            return self._fine(None)
        return (HOUR_S, None, rows) if now - began <= 2 * DAY_S else (DAY_S, None, self._sums.read())

    def _fine(self, since: float | None) -> tuple[int, float | None, list[Sum]]:
        """Minutes; or a sixth of them, while there are only few with anything in them."""
        rows = read_sums(self._store, since, MINUTE_S)
        if len({row.start_s for row in rows if row.kind == "request"}) <= FEW_MINUTES:
            return MINUTE_S // 6, since, read_sums(self._store, since, MINUTE_S // 6)
        return MINUTE_S, since, rows

    def experts(self) -> dict[str, Any]:
        """Each task with its experts, those that were tried last first, and how far learning is elsewhere."""
        with self._store.begin() as connection:
            known = connection.execute(select(tasks).order_by(tasks.c.created)).all()
            rows = connection.execute(select(experts).order_by(experts.c.created.desc())).all()
        cards = {row.id: self._card(row) for row in rows}
        terms = {row.id: Terms(row.epsilon, self._roster.delta, _rule(cards[row.id])) for row in rows}
        stories = self.evidence.read(terms)
        told, counts = self._events(), self._counts()
        held = {expert.task.group for expert in self._roster.experts}
        shown = []
        for task in known:
            own = [row for row in rows if row.task == task.id]
            refuted = max((row.ended or 0.0 for row in own if row.status == DEMOTED), default=0.0)
            versions = [self._version(row, cards[row.id], stories[row.id], refuted) for row in own]
            shown.append(
                {
                    "id": task.id,
                    "name": task.name,
                    "model": task.model,
                    "created": task.created,
                    **counts[task.id],
                    "versions": versions,
                    "events": told.get(task.id, []),
                }
            )
        return {"tasks": shown, "learning": learning_progress(self._memory, held), "delta": self._roster.delta}

    def _version(self, row: Any, card: Card | None, story: Story, refuted: float) -> dict[str, Any]:
        """One expert. What its card says is None where the card cannot be read."""
        names = ("status", "threshold", "coverage", "risk_bound", "epsilon", "delta", "created", "ended", "reason")
        placed = self._roster.get(row.id)
        watch = placed.watch if placed is not None else story.watch
        return {
            "id": row.id,
            **{name: getattr(row, name) for name in (*names, "stale")},
            "family": card.family if card is not None else None,
            "labels": len(card.labels) if card is not None else None,
            "rows": card.rows if card is not None else None,
            "bytes": card.size_bytes if card is not None else None,
            "answer_us": card.answer_us if card is not None else None,
            "seen": placed.served if placed is not None else None,
            "audited": story.audited,
            "audits_due": story.due,
            "observations": watch.observations,
            "losses": watch.losses,
            "evidence": watch.evidence,
            "limit": 1 / watch.delta,
            "points": story.points,
            "disagreements": len(story.disagreed),
            "why_not": why_not_back(row, refuted),
        }

    def _card(self, row: Any) -> Card | None:
        if row.id not in self._cards:
            try:
                self._cards[row.id] = read_card(Path(row.folder), expert=row.id).card
            except BundleError:
                self._cards[row.id] = None
        return self._cards[row.id]

    def _counts(self) -> Mapping[str, dict[str, int]]:
        """Requests, experts' answers, failures and audits of each task."""
        found: defaultdict[str, dict[str, int]] = defaultdict(
            lambda: {"requests": 0, "by_expert": 0, "failed": 0, "audits": 0}
        )
        for row in self._sums.read():
            count = found[row.task or ""]
            if row.kind == "audit":
                count["audits"] += row.rows
            elif row.kind == "request" and row.good:
                count["requests"] += row.rows
                count["by_expert"] += row.rows if row.expert else 0
            elif row.kind == "request":
                count["failed"] += row.rows
        return found

    def _events(self) -> dict[str, list[dict[str, Any]]]:
        """What came to pass with each task's experts and in learning, the latest first."""
        # Their ids begin with their kind, and the ledger has an index of ids: this reads no other row.
        of_kinds = or_(*(ledger.c.id.between(f"{kind}-", f"{kind}-~") for kind in EVENTS))
        columns = (ledger.c.at, ledger.c.kind, ledger.c.task, ledger.c.expert, ledger.c.note, ledger.c.number)
        query = select(*columns).where(of_kinds).order_by(ledger.c.number.desc()).limit(MOST_EVENTS)
        found: dict[str, list[dict[str, Any]]] = {}
        with self._store.begin() as connection:
            for row in connection.execute(query):
                event = {"at": row.at, "kind": row.kind, "expert": row.expert, "note": row.note or ""}
                found.setdefault(row.task or "", []).append(event)
        return found


def _parts(rows: Iterable[Sum]) -> dict[str, float]:
    """Joules by what they were used for."""
    found = dict.fromkeys(("big", "expert", "audit", "learning", "node"), 0.0)
    for row in rows:
        kind = ("expert" if row.expert else "big") if row.kind == "request" else row.kind
        if kind in found:
            found[kind] += row.energy.joules
    return found


def _rule(card: Card | None) -> Rule:
    if card is None:
        return EXACT
    try:
        return msgspec.convert(card.agreement_rule, Rule)  # type: ignore[no-any-return]  # a union is no type to `convert`
    except msgspec.ValidationError:
        return EXACT
