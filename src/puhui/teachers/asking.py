"""Asking a teacher: many texts at once, nothing twice, patiently, and within a budget.

Each answer is written down as it comes (`answer_book`), so a run that ends early loses nothing and the next goes on
from there. Passing errors are tried again with growing pauses, or after as long as the server says (Retry-After). A
text that the teacher refuses is left out. A teacher that is gone ends the run, with all that was told kept.

Where two processes ask the same teacher for one folder, the second begins at the end of its texts: so they meet, and
ask next to nothing twice.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import random
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Coroutine, Iterable, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import msgspec

from puhui.core.errors import SettingsError, UpstreamError, UpstreamGarbled, UpstreamRefused
from puhui.teachers.answer_book import AnswerBook, key_of, plain
from puhui.teachers.soft_answers import SoftAnswers
from puhui.teachers.teacher import HasPrice, Teacher, Told

MOST_TRIES = 6
TRIES_OF_GARBLED = 2
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 300.0
GRACE_S = 5.0
MOST_REFUSED_AT_FIRST = 20
TEXT_AT_FAULT = (400, 413, 422)
PASSING = (408, 409, 425, 429, 500, 502, 503, 504, 529)

T = TypeVar("T")


class Budget(msgspec.Struct, frozen=True, kw_only=True):
    """Where asking ends. `money` in USD, `requests` counts texts asked with every new try, `seconds` of wall clock.

    No more is asked once the next questions would go beyond: `money` counts those as dear as the dearest so far, so
    it is exceeded only where an answer is dearer than all before it.
    """

    money: float | None = None
    requests: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise SettingsError(f"the budget's {name} is {value}, but must be 0 or more")

    def after(self, *, tried: int, cost: float, seconds: float) -> Budget:
        """What is left of it.

        >>> Budget(requests=9).after(tried=4, cost=0.0, seconds=1.5)
        Budget(money=None, requests=5, seconds=None)
        """
        return Budget(
            money=None if self.money is None else max(0.0, self.money - cost),
            requests=None if self.requests is None else max(0, self.requests - tried),
            seconds=None if self.seconds is None else max(0.0, self.seconds - seconds),
        )


class Purse:
    """One budget for several rounds of asking: each takes what it spends, however it ends, and finds what is `left`.

    `stopped` says why a round could not ask all that it wanted; it is empty where none was cut short.
    """

    def __init__(self, budget: Budget | None = None) -> None:
        self.whole = self.left = budget or Budget()
        self.stopped = ""


def purse_of(budget: Budget | Purse | None) -> Purse:
    """The purse itself, or a new one with that budget."""
    return budget if isinstance(budget, Purse) else Purse(budget)


class AskProgress(msgspec.Struct, frozen=True, kw_only=True):
    """How far asking has come, in different texts. `known` were told to another run, `eta_s` is what is left."""

    done: int
    total: int
    known: int
    asked: int
    refused: int
    cost: float
    seconds: float
    eta_s: float | None


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What came of asking.

    `told` is in the order of the texts; None where the teacher refused or was not asked. `stopped` says why not all
    were asked, and is empty when all were. `refused` counts texts by reason. `asked`, `tried` (each new try counted),
    `cost` (USD, of answers with a known price) and `seconds` are of this run.
    """

    told: list[Told | None]
    stopped: str
    refused: dict[str, int]
    asked: int
    tried: int
    cost: float
    seconds: float


Show: TypeAlias = Callable[[AskProgress], None]


def ask_all(
    teacher: Teacher,
    texts: Sequence[str],
    *,
    folder: Path,
    budget: Budget | Purse | None = None,
    progress: Show | None = None,
    again: int = 0,
) -> Asked:
    """Asks `teacher` for every text that it has not told of in `folder` yet; equal texts once.

    A `Purse` as the budget is shared with other calls.
    `again` > 0 asks anew for texts that were asked before, and keeps that apart. Ctrl-C waits 5 seconds at most for
    answers under way, keeps them, and raises KeyboardInterrupt. Raises UpstreamError where the teacher is gone;
    all that was told until then is kept, and the same call goes on from there.
    """
    return run(_ask_all(teacher, list(map(plain, texts)), folder, purse_of(budget), progress, again))


async def _ask_all(
    teacher: Teacher, texts: Sequence[str], folder: Path, purse: Purse, progress: Show | None, again: int
) -> Asked:
    with AnswerBook(folder) as book:
        keys = {text: key_of(teacher.digest, text, again) for text in texts}
        found = {text: book.find(key) for text, key in keys.items()}
        waiting = [text for text, told in found.items() if told is None]
        if waiting and not book.leads(teacher.digest):
            waiting.reverse()
        asking = _Asking(teacher, book, keys, found, waiting, purse, progress)
        try:
            await asking.run()
        finally:
            purse.left = purse.left.after(tried=asking.tried, cost=asking.cost, seconds=asking.seconds)
            purse.stopped = asking.stopped or purse.stopped
            await teacher.close()
        # What another process was told meanwhile, which may be all that is left where a budget ended this one.
        found |= {text: book.find(keys[text]) for text, told in found.items() if told is None}
        return Asked(
            told=[found[text] for text in texts],
            stopped=asking.stopped,
            refused=dict(asking.refused),
            asked=asking.asked,
            tried=asking.tried,
            cost=asking.cost,
            seconds=asking.seconds,
        )


class _Asking:
    """One run: what is waiting, what is under way, what it has cost."""

    def __init__(
        self,
        teacher: Teacher,
        book: AnswerBook,
        keys: dict[str, bytes],
        found: dict[str, Told | None],
        waiting: Iterable[str],
        purse: Purse,
        progress: Show | None,
    ) -> None:
        self._teacher, self._book, self._keys, self._found = teacher, book, keys, found
        self._budget, self._whole, self._progress = purse.left, purse.whole, progress
        self._waiting = deque(waiting)
        self._known = len(found) - len(self._waiting)
        self.started = time.monotonic()
        self._under_way = self.tried = self.asked = 0
        self._dearest = self.cost = 0.0
        self._not_before = 0.0
        self._over = False
        self.stopped = ""
        self.refused: Counter[str] = Counter()

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self.started

    async def run(self) -> None:
        """Asks until nothing waits or the budget is spent."""
        self._show()
        if self._waiting and isinstance(self._teacher, HasPrice) and self._teacher.prices is None:
            self._count(None)
        if self._budget.money is not None and (first := self._next(1)):
            await self._ask(first)  # alone: now it is known what an answer costs
        tasks = [asyncio.create_task(self._work()) for _ in range(self._teacher.parallel)]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        finally:  # at an error and at Ctrl-C too: what is under way was asked for and is worth waiting for
            self._over = True
            _, late = await asyncio.wait(tasks, timeout=GRACE_S)
            for task in late:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for task in done:
            task.result()
        if not self._waiting:
            self.stopped = ""

    async def _work(self) -> None:
        while texts := self._next(self._teacher.batch):
            await self._ask(texts)

    def _next(self, most: int) -> list[str]:
        """The next texts, within the budget; none when it is time to end."""
        while self._waiting and not self._over:
            most = self._within_budget(min(most, len(self._waiting)))
            texts = [self._waiting.popleft() for _ in range(most)]
            left = [text for text in texts if not self._told_meanwhile(text)]
            if left or not most:
                self._under_way += len(left)
                self.tried += len(left)
                return left
        return []

    def _told_meanwhile(self, text: str) -> bool:
        """Whether another process has been told since this run began."""
        self._found[text] = self._book.find(self._keys[text])
        if self._found[text] is None:
            return False
        self._known += 1
        return True

    def _within_budget(self, wanted: int) -> int:
        """How many of the wanted texts the budget allows now; says why when it is none."""
        budget, whole = self._budget, self._whole
        if budget.seconds is not None and self.seconds >= budget.seconds:
            self.stopped = f"the budget of {whole.seconds:g} seconds is spent"
            return 0
        if budget.requests is not None:
            wanted = min(wanted, budget.requests - self.tried)
            if wanted <= 0:
                self.stopped = f"the budget of {whole.requests} requests is spent"
                return 0
        if budget.money is not None:
            left = budget.money - self.cost - self._under_way * self._dearest
            wanted = min(wanted, int(left / self._dearest)) if self._dearest else wanted
            if left <= 0 or wanted <= 0:
                spent = (whole.money or 0.0) - budget.money + self.cost
                self.stopped = f"the next answer could go beyond the budget of {whole.money:g} (spent: {spent:.4g})"
                return 0
        return wanted

    async def _ask(self, texts: list[str]) -> None:
        """Asks for texts that `_next` gave, and writes down what is told."""
        try:
            told = await self._tell(texts)
        finally:
            self._under_way -= len(texts)
        answers = [(text, answer) for text, answer in zip(texts, told, strict=True) if answer is not None]
        self._book.keep((self._keys[text], answer) for text, answer in answers)
        for text, answer in answers:
            # Another process may have been told first, and something else: what is in the book counts for all.
            self._found[text] = self._book.find(self._keys[text]) or answer
            self.asked += 1
            self._count(answer.cost)
        self._show()

    def _count(self, cost: float | None) -> None:
        if cost is None and self._budget.money is not None:
            raise SettingsError(
                f"the budget is in money, but what {self._teacher.name} costs is not known: give its prices for a "
                "million tokens read and written (--price-tokens IN,OUT), or a budget in requests or seconds "
                "(--most-requests, --most-seconds)"
            )
        self.cost += cost or 0.0
        self._dearest = max(self._dearest, cost or 0.0)

    async def _tell(self, texts: list[str]) -> list[Told | None]:
        """What is told of texts, with patience; None for one that is refused."""
        for attempt in range(1, MOST_TRIES + 1):
            await asyncio.sleep(self._not_before - time.monotonic())
            try:
                return list(await self._teacher.ask_many(texts))
            except UpstreamError as error:
                if self._at_fault(error, attempt):
                    if len(texts) == 1:
                        self._refuse(error)
                        return [None]
                    self.tried += len(texts)
                    return [answer for text in texts for answer in await self._tell([text])]
                pause = self._pause_after(error, attempt)
                if pause is None:
                    raise self._gone(error) from error
            if not self._may_retry(texts, pause):
                break
            self.tried += len(texts)
            await asyncio.sleep(pause)
        self._waiting.extend(texts)
        return [None] * len(texts)

    def _may_retry(self, texts: list[str], pause: float) -> bool:
        """Whether the budget allows another try after `pause` seconds; if not, the run ends."""
        budget, at = self._budget, max(time.monotonic() + pause, self._not_before)
        if budget.seconds is not None and at > self.started + budget.seconds:
            self.stopped, self._over = f"the budget of {self._whole.seconds:g} seconds allows no other try", True
        elif budget.requests is not None and self.tried + len(texts) > budget.requests:
            self.stopped, self._over = f"the budget of {self._whole.requests} requests allows no other try", True
        return not self._over

    def _at_fault(self, error: UpstreamError, attempt: int) -> bool:
        """Whether the text is why there is no answer."""
        if isinstance(error, UpstreamGarbled):
            return attempt >= TRIES_OF_GARBLED
        return isinstance(error, UpstreamRefused) and error.status in TEXT_AT_FAULT

    def _refuse(self, error: UpstreamError) -> None:
        self.refused[_reason(error)] += 1
        if self.asked == 0 and self.refused.total() >= MOST_REFUSED_AT_FIRST:
            raise UpstreamError(
                f"{self._teacher.name} answered none of the first {self.refused.total()} texts: {_reason(error)}"
            ) from error

    def _pause_after(self, error: UpstreamError, attempt: int) -> float | None:
        """Seconds until the next try; None where another try is useless."""
        if isinstance(error, UpstreamRefused) and error.status not in PASSING:
            return None
        if attempt >= MOST_TRIES:
            return None
        said = seconds_of(error.retry_after) if isinstance(error, UpstreamRefused) else None
        if said is None:
            return FIRST_PAUSE_S * 2.0 ** (attempt - 1) * random.uniform(0.5, 1.5)
        if said > LONGEST_PAUSE_S:
            return None
        self._not_before = max(self._not_before, time.monotonic() + said)  # it was said to all of us
        return 0.0

    def _gone(self, error: UpstreamError) -> UpstreamError:
        told = sum(answer is not None for answer in self._found.values())
        return UpstreamError(
            f"{self._teacher.name} gives no more answers: {_reason(error)}. What it told of {told} of "
            f"{len(self._found)} texts is kept in {self._book.path}: the same call again goes on from there"
        )

    def _show(self) -> None:
        if self._progress is None:
            return
        refused, seconds = self.refused.total(), self.seconds
        done = self.asked + refused
        left = len(self._found) - self._known - done
        self._progress(
            AskProgress(
                done=self._known + done,
                total=len(self._found),
                known=self._known,
                asked=self.asked,
                refused=refused,
                cost=self.cost,
                seconds=seconds,
                eta_s=seconds / done * left if done else None,
            )
        )


def seconds_of(retry_after: str | None) -> float | None:
    """A Retry-After header in seconds from now, 0 or more; None where it says nothing.

    >>> seconds_of("7"), seconds_of("Wed, 21 Oct 2015 07:28:00 GMT"), seconds_of("soon")
    (7.0, 0.0, None)
    """
    if retry_after is None:
        return None
    try:
        return max(0.0, float(retry_after))
    except ValueError:
        pass
    try:
        at = parsedate_to_datetime(retry_after)
    except ValueError:
        return None
    return max(0.0, (at.replace(tzinfo=at.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


def _reason(error: UpstreamError) -> str:
    body = error.body.decode(errors="replace")[:200] if isinstance(error, UpstreamRefused) else ""
    return f"{error} {body}".strip()


def soften(told: Sequence[Told], labels: Collection[str]) -> list[dict[str, float] | None]:
    """What the teacher held each label to be likely, for each answer; None where it does not say.

    Its own probabilities where it gave them, else those that its first tokens speak for.
    """
    teller = SoftAnswers(labels)
    return [
        each.probabilities
        if each.probabilities is not None
        else (teller.of(each.answer, each.alternatives) if each.alternatives else None)
        for each in told
    ]


def run(work: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine to its end from ordinary code, also where an event loop runs already (a notebook)."""
    tasks: list[asyncio.Task[Any]] = []
    results: list[T] = []

    async def kept() -> None:
        tasks.extend(asyncio.all_tasks())
        results.append(await work)  # not returned: `asyncio.run` has its task's result printed, for nobody to see

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(kept())
        return results[0]
    with concurrent.futures.ThreadPoolExecutor(1) as elsewhere:
        done = elsewhere.submit(asyncio.run, kept())
        try:
            done.result()
        except KeyboardInterrupt:
            for task in tasks:
                with contextlib.suppress(RuntimeError):  # the loop is closed: all of it had just been done
                    task.get_loop().call_soon_threadsafe(task.cancel)
            raise  # leaving the block waits until it has ended
    return results[0]
