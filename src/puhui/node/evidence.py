"""What each expert's watch has seen, over time, and the requests where it was not agreed with: read from the store.

The node's own watch holds only where it stands. A page wants the way there, also of experts that are gone, so the
losses in the store are told to a watch of the same kind once more, in the order of the requests, and its evidence is
noted as it goes. Nothing is read twice: a reading goes on where the last one ended, and waits, as the node's docket
does, at the first audit that is due.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, func, select

from puhui.cascade.agreement import EXACT, Rule, loss_of
from puhui.cascade.monitor import RiskMonitor
from puhui.store.database import Store
from puhui.store.tables import experience

MOST_POINTS = 240
MOST_DISAGREEMENTS = 500
CHUNK = 2_000
PAUSE_S = 0.002
"""Between two chunks, so that a first reading of a large store does not hold up who answers requests."""


class Point(NamedTuple):
    """After `observations` losses, at `at` (seconds since 1970): the evidence, and the sum of the losses."""

    observations: int
    at: float
    evidence: float
    losses: float


class Terms(NamedTuple):
    """How an expert is watched: the promise's ε, the level δ of the watch, and how answers are compared."""

    epsilon: float
    delta: float
    rule: Rule = EXACT


class Disagreement(NamedTuple):
    """An answer of an expert's with which the big model did not agree, as far as its text is kept."""

    number: int
    at: float
    input: str
    expert: str
    big: str
    loss: float
    key: str


class Story:
    """The evidence of one expert as it grew. `due` counts audits that are not done."""

    def __init__(self, terms: Terms) -> None:
        self.terms = terms
        self.watch = RiskMonitor(epsilon=terms.epsilon, delta=terms.delta)
        self.points: list[Point] = []
        self.waiting: deque[int] = deque()
        self.disagreed: deque[int] = deque(maxlen=MOST_DISAGREEMENTS)
        self.audited = 0
        self.due = 0
        self._every = 1

    def tell(self, row: Any) -> bool:
        """Takes in a row of experience; False if its loss is not known yet."""
        loss = row.loss
        if loss is None and row.answer is not None:
            loss = loss_of(row.expert_answer, row.answer, self.terms.rule)
        if loss is None:
            return not row.due  # an audit that was given up is no loss, and holds up nothing
        self.watch.update(loss)
        self.audited += row.answered
        if loss > 0.0:
            self.disagreed.append(row.number)
        self._note(Point(self.watch.observations, row.at, self.watch.evidence, self.watch.losses))
        return True

    def _note(self, point: Point) -> None:
        """Keeps every point while they are few; of more, the greatest of each few that follow one another."""
        if self.points and (point.observations - 1) % self._every and len(self.points) > 1:
            self.points[-1] = max(self.points[-1], point, key=lambda one: one.evidence)
        else:
            self.points.append(point)
        if len(self.points) > MOST_POINTS:
            pairs = zip(self.points[::2], self.points[1::2], strict=False)
            last = self.points[-1:] if len(self.points) % 2 else []
            self.points = [max(pair, key=lambda one: one.evidence) for pair in pairs] + last
            self._every *= 2


class Evidence:
    """The stories of all experts of a store. Its methods block, and may be called from several threads."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._stories: dict[str, Story] = {}
        self._read_to = 0
        self._lock = threading.Lock()

    def read(self, terms: Mapping[str, Terms]) -> dict[str, Story]:
        """The story of each expert named in `terms`, as far as it is known now."""
        with self._lock:
            fresh = {expert: Story(found) for expert, found in terms.items() if expert not in self._stories}
            if fresh and self._read_to:
                self._catch_up(fresh)
            self._stories |= fresh
            for expert, story in self._stories.items():
                self._go_on(expert, story)
            self._read_new()
            for expert, story in self._stories.items():
                story.due = self._due(expert, story.waiting[0]) if story.waiting else 0
            return {expert: self._stories[expert] for expert in terms}

    def disagreements(self, expert: str, *, most: int = 50, key: str | None = None) -> list[Disagreement]:
        """The latest of them, last first; with `key`, only those of requests of that key's.

        Those whose text is not kept (any more) are left out.
        """
        story = self._stories.get(expert)
        if story is None:
            return []
        columns = (experience.c.number, experience.c.at, experience.c.input, experience.c.key)
        answers = (experience.c.expert_answer, experience.c.answer, experience.c.loss)
        query = (
            select(*columns, *answers)
            .where(experience.c.number.in_(list(story.disagreed)), experience.c.expert == expert)
            .where(experience.c.expert_answer.is_not(None), experience.c.answer.is_not(None))
            .where(experience.c.input != "")
        )
        if key is not None:
            query = query.where(experience.c.key == key)
        with self._store.begin() as connection:
            rows = connection.execute(query.order_by(experience.c.number.desc()).limit(most)).all()
        rule = story.terms.rule
        return [
            Disagreement(
                row.number,
                row.at,
                row.input,
                row.expert_answer,
                row.answer,
                loss_of(row.expert_answer, row.answer, rule) if row.loss is None else row.loss,
                row.key,
            )
            for row in rows
        ]

    def _read_new(self) -> None:
        """Reads on from the last row read, and gives each row to its expert's story."""
        while rows := self._rows(experience.c.number > self._read_to, experience.c.coin):
            for row in rows:
                self._read_to = row.number
                if row.expert in self._stories:
                    _hand(self._stories[row.expert], row)
            time.sleep(PAUSE_S)

    def _catch_up(self, fresh: Mapping[str, Story]) -> None:
        """Reads for experts that are new here what was read for the others already."""
        last = 0
        while rows := self._rows(
            experience.c.number > last, experience.c.number <= self._read_to, experience.c.expert.in_(fresh)
        ):
            for row in rows:
                last = row.number
                _hand(fresh[row.expert], row)
            time.sleep(PAUSE_S)

    def _go_on(self, expert: str, story: Story) -> None:
        """Takes up the rows that waited, as far as their audits are done."""
        while story.waiting:
            first = [story.waiting[position] for position in range(min(CHUNK, len(story.waiting)))]
            rows = {row.number: row for row in self._rows(experience.c.number.in_(first[:500]))}
            for number in first[:500]:
                row = rows.get(number)
                if row is not None and not story.tell(row):
                    return
                story.waiting.popleft()

    def _due(self, expert: str, since: int) -> int:
        waiting = (experience.c.answer.is_(None), experience.c.body != "")
        query = select(func.count()).where(experience.c.number >= since, experience.c.expert == expert, *waiting)
        with self._store.begin() as connection:
            return connection.execute(query).scalar_one()

    def _rows(self, *where: ColumnElement[bool]) -> list[Any]:
        columns = (experience.c.number, experience.c.at, experience.c.expert, experience.c.expert_answer)
        given = experience.c.expert_answer.is_not(None).label("answered")
        due = (experience.c.answer.is_(None) & (experience.c.body != "")).label("due")
        query = select(*columns, experience.c.answer, experience.c.loss, given, due)
        query = query.where(experience.c.coin, experience.c.expert.is_not(None), *where)
        with self._store.begin() as connection:
            return list(connection.execute(query.order_by(experience.c.number).limit(CHUNK)))


def _hand(story: Story, row: Any) -> None:
    """A row in its turn: it waits if another waits before it, or if its own audit is due."""
    if story.waiting or not story.tell(row):
        story.waiting.append(row.number)
