"""The bill: what was used, by whom it was answered, and what it would have been with the big model alone."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import Any, Literal

import msgspec
from sqlalchemy import case, func, select

from puhui.core.answer import Energy
from puhui.energy.tariff import JOULES_PER_KWH
from puhui.store.database import Store
from puhui.store.tables import experts, ledger, tasks

By = Literal["day", "slot", "task", "model", "total"]
DAY_S = 86_400


class Line(msgspec.Struct, kw_only=True):
    """One line of a bill: a day (or another slot of time), a task, a model, or all together.

    `energy`, `co2_g` and `cost` count everything that was used: answers, audits, learning and the node's own
    work. `big_energy`, `big_co2_g`, `big_cost` are estimates of the same requests all answered by the big
    model: each expert's answer at the mean of the big model's answers to its task.
    """

    name: str
    requests: int = 0
    by_expert: int = 0
    failed: int = 0
    audits: int = 0
    seconds: float = 0.0
    energy: Energy = Energy()
    co2_g: float = 0.0
    cost: float = 0.0
    big_energy: Energy = Energy()
    big_co2_g: float = 0.0
    big_cost: float = 0.0
    proven_risk: float | None = None
    epsilon: float | None = None

    @property
    def share_by_expert(self) -> float:
        """Share of the answered requests that an expert answered, in [0, 1]."""
        return self.by_expert / self.requests if self.requests else 0.0

    def as_dict(self) -> dict[str, Any]:
        """The line as plain values, with kWh and the share filled in."""
        plain: dict[str, Any] = msgspec.to_builtins(self)
        kwh = {"kwh": self.energy.joules / JOULES_PER_KWH, "big_kwh": self.big_energy.joules / JOULES_PER_KWH}
        return plain | kwh | {"share_by_expert": self.share_by_expert}


class Bill(msgspec.Struct, kw_only=True):
    """Lines by one key, and their total. `drawn_up` is when, in seconds since 1970."""

    by: By
    currency: str
    lines: list[Line]
    total: Line
    since: float | None
    drawn_up: float

    def as_dict(self) -> dict[str, Any]:
        """The bill as plain values for `--json`."""
        return {
            "by": self.by,
            "currency": self.currency,
            "since": self.since,
            "drawn_up": self.drawn_up,
            "energy_basis": "measured" if self.total.energy.measured else "estimated from CPU time and tokens",
            "lines": [line.as_dict() for line in self.lines],
            "total": self.total.as_dict(),
        }


def draw_up(store: Store, by: By, *, currency: str, since: float | None = None, now: float) -> Bill:
    """The bill over the ledger's rows at or after `since` (seconds since 1970; None: all)."""
    return bill_of(read_sums(store, since), store, by, currency=currency, since=since, now=now)


def bill_of(rows: list[Sum], store: Store, by: By, *, currency: str, since: float | None = None, now: float) -> Bill:
    """The bill over sums that were read already (`read_sums`); by "slot", the lines are their slots."""
    typical = _typical_big(rows)
    names, proven = _tasks(store)
    key: dict[By, Callable[[Any], str]] = {
        "day": lambda row: row.slot,
        "slot": lambda row: row.slot,
        "task": lambda row: names.get(row.task, "(no task)") if row.task else "(no task)",
        "model": lambda row: row.model or "(none)",
        "total": lambda row: "total",
    }
    lines: dict[str, Line] = {}
    total = Line(name="total")
    for row in rows:
        line = lines.setdefault(key[by](row), Line(name=key[by](row)))
        for entry in (line, total):
            _add(entry, row, typical)
            if row.task in proven and row.expert and row.kind == "request":
                risks = (proven[row.task][0], entry.proven_risk or 0.0)
                entry.proven_risk, entry.epsilon = max(risks), max(proven[row.task][1], entry.epsilon or 0.0)
    ordered = [lines[name] for name in sorted(lines)]
    return Bill(by=by, currency=currency, lines=ordered, total=total, since=since, drawn_up=now)


def read_sums(store: Store, since: float | None, step_s: int = DAY_S, *, after: int = 0) -> list[Sum]:
    """The ledger summed by slot, task, model, kind, status and whether an expert answered.

    A slot is `step_s` seconds long and begins at a multiple of that. Rows count that are at or after `since` and have
    a number above `after`.
    """
    slot_number = func.floor(ledger.c.at / float(step_s))
    answered_by_expert = case((ledger.c.expert.is_not(None), 1), else_=0)
    good = case((ledger.c.status == 200, 1), else_=0)
    keys = (slot_number, ledger.c.task, ledger.c.model, ledger.c.kind, answered_by_expert, good)
    sums = (
        func.count().label("rows"),
        *(
            func.sum(column).label(column.name)
            for column in (
                ledger.c.seconds,
                ledger.c.joules,
                ledger.c.joules_low,
                ledger.c.joules_high,
                ledger.c.co2_g,
                ledger.c.cost,
            )
        ),
        func.min(case((ledger.c.measured, 1), else_=0)).label("measured"),
        func.max(ledger.c.number).label("last"),
    )
    labelled = [
        key.label(name) for key, name in zip(keys, ("d", "task", "model", "kind", "expert", "good"), strict=True)
    ]
    query = select(*labelled, *sums).group_by(*keys)
    if since is not None:
        query = query.where(ledger.c.at >= since)
    if after:
        query = query.where(ledger.c.number > after)
    with store.begin() as connection:
        return [Sum(row, step_s) for row in connection.execute(query)]


class Sum:
    """One group of ledger rows. `slot` is when it was, in UTC (`slot_name`), `last` the greatest number in it."""

    def __init__(self, row: Any, step_s: int) -> None:
        self.start_s = int(row.d) * step_s
        self.slot = slot_name(self.start_s, step_s)
        self.last: int = row.last
        self.task: str | None = row.task
        self.model: str = row.model
        self.kind: str = row.kind
        self.rows: int = row.rows
        self.expert = bool(row.expert)
        self.good = bool(row.good)
        self.seconds = float(row.seconds)
        self.energy = Energy(row.joules, row.joules_low, row.joules_high, bool(row.measured))
        self.co2_g = float(row.co2_g)
        self.cost = float(row.cost)

    @property
    def by_big(self) -> bool:
        """Whether these are answers of the big model's."""
        return self.kind in ("request", "audit") and self.good and not self.expert


def slot_name(start_s: int, step_s: int) -> str:
    """The day that begins at `start_s` (seconds since 1970), or the second where a slot is less than a day, in UTC."""
    began = datetime.datetime.fromtimestamp(start_s, datetime.UTC)
    return began.date().isoformat() if step_s == DAY_S else began.strftime("%Y-%m-%dT%H:%M:%SZ")


def _typical_big(rows: list[Any]) -> Callable[[Any], tuple[Energy, float, float]]:
    """For a group of expert's answers: energy, CO₂ and money that one answer by the big model takes on average."""

    def mean(wanted: Callable[[Any], bool]) -> tuple[Energy, float, float] | None:
        chosen = [row for row in rows if row.by_big and wanted(row)]
        count = sum(row.rows for row in chosen)
        if not count:
            return None
        energy = sum((row.energy for row in chosen), Energy())
        return (
            Energy(energy.joules / count, energy.low / count, energy.high / count, energy.measured),
            sum(row.co2_g for row in chosen) / count,
            sum(row.cost for row in chosen) / count,
        )

    known: dict[tuple[str | None, str], tuple[Energy, float, float]] = {}

    def typical(row: Any) -> tuple[Energy, float, float]:
        key = (row.task, row.model)
        if key not in known:
            found = mean(lambda other: (other.task, other.model) == key) or mean(lambda other: other.model == row.model)
            known[key] = found or (Energy(), 0.0, 0.0)
        return known[key]

    return typical


def _tasks(store: Store) -> tuple[dict[str, str], dict[str, tuple[float, float]]]:
    """Each task's name, and the greatest proven bound of its experts whose promise held, with its ε."""
    with store.begin() as connection:
        names = {row.id: row.name for row in connection.execute(select(tasks.c.id, tasks.c.name))}
        bounds = connection.execute(
            select(experts.c.task, func.max(experts.c.risk_bound), func.max(experts.c.epsilon))
            .where(experts.c.status.in_(("active", "retired")))
            .group_by(experts.c.task)
        )
        return names, {task: (risk, epsilon) for task, risk, epsilon in bounds}


def _add(line: Line, row: Sum, typical: Callable[[Any], tuple[Energy, float, float]]) -> None:
    line.energy += row.energy
    line.co2_g += row.co2_g
    line.cost += row.cost
    if row.kind == "audit":
        line.audits += row.rows
    if row.kind != "request":
        return
    if not row.good:
        line.failed += row.rows
        return
    line.requests += row.rows
    line.seconds += row.seconds
    energy, co2_g, cost = row.energy, row.co2_g, row.cost
    if row.expert:
        line.by_expert += row.rows
        one, one_co2_g, one_cost = typical(row)
        energy = Energy(one.joules * row.rows, one.low * row.rows, one.high * row.rows, one.measured)
        co2_g, cost = one_co2_g * row.rows, one_cost * row.rows
    line.big_energy += energy
    line.big_co2_g += co2_g
    line.big_cost += cost
