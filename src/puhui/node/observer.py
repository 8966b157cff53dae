"""Who is told what a node has done: a request that is finished, an audit, an expert that came or went.

An `Observer` is any callable that takes an `Event`. It is called on the node's event loop, after the ledger's row is
committed and (of a whole answer) before the reply leaves, so it must be quick: count, add up, put into a queue. What
it raises is logged, once for each observer, and never fails a request. A node without observers does no work for them.

An observer that matters only to some events looks at their type:

>>> spent = {}
>>> def spend(event):
...     if isinstance(event, Served) and event.answer is not None:
...         key = event.request.caller.key
...         spent[key] = spent.get(key, 0.0) + event.answer.usage.cost
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, TypeAlias

import msgspec

from puhui.core.answer import Answer, Usage
from puhui.core.request import Request

log = logging.getLogger("puhui.node")


class Served(msgspec.Struct, frozen=True, kw_only=True):
    """A finished request, answered or not; its row is in the ledger.

    `answer` has its usage filled in (tokens, energy, grams, money) and is None where there was none; `reason` then
    says why. `status` is 200 for an answer, what the ledger says otherwise (499: the client of a stream went away).
    `task` is the id of the task, None if the request is of none. `expert` is the id of the expert in place, whether
    it answered or not. `coin`: the request is in the fair sample that the watch sees. `seconds` is from the request's
    arrival at the node to its row, `first_s` from its arrival to the first event (None unless it streamed). `usage` is
    the answer's, or what is known to have been used without one: a stream that was broken off has cost something.
    """

    request: Request
    answer: Answer | None
    task: str | None
    expert: str | None = None
    coin: bool = False
    status: int = 200
    reason: str | None = None
    seconds: float = 0.0
    first_s: float | None = None
    usage: Usage = Usage()
    at: float = msgspec.field(default_factory=time.time)

    @property
    def by(self) -> Literal["expert", "big", "none"]:
        """Who answered."""
        if self.answer is None:
            return "none"
        return "big" if self.answer.expert is None else "expert"


class Audited(msgspec.Struct, frozen=True, kw_only=True):
    """An audit that is done: the big model was asked what the expert `expert` had answered to `request`.

    `loss` is 1 where the two disagree, 0 where they agree, and None where the big model refused (`answer` is None
    then, and `status` what it answered with). `request` is the one that was audited: same id, same caller.
    """

    request: Request
    answer: Answer | None
    task: str
    expert: str
    loss: float | None
    status: int = 200
    at: float = msgspec.field(default_factory=time.time)


class Changed(msgspec.Struct, frozen=True, kw_only=True):
    """An expert that was put in place (`promotion`), refuted by the watch (`demotion`) or taken out (`retirement`).

    A `retirement` is whatever another process wrote down: a better expert took over, or somebody demoted it.
    """

    kind: Literal["promotion", "demotion", "retirement"]
    task: str
    task_name: str
    expert: str
    reason: str = ""
    at: float = msgspec.field(default_factory=time.time)


Event: TypeAlias = Served | Audited | Changed
Observer: TypeAlias = Callable[[Event], None]


class Observers:
    """Tells all of them, in order. Falsy when there are none, so that nothing need be made to tell."""

    def __init__(self, observers: Iterable[Observer] = ()) -> None:
        self._observers: Sequence[Observer] = tuple(observers)
        self._failed: set[int] = set()

    def __bool__(self) -> bool:
        return bool(self._observers)

    def tell(self, event: Event) -> None:
        """Each observer is told, whatever another one raises."""
        for number, observer in enumerate(self._observers):
            try:
                observer(event)
            except Exception as error:  # whatever it is, no request may fail of it
                if number not in self._failed:
                    self._failed.add(number)
                    log.error("an observer failed; further failures of it are not logged: %r", error, exc_info=error)


NOBODY = Observers()
