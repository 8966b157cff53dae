"""What each key may still do: requests and tokens a minute, money and energy a day and a month.

Rates are token buckets: a bucket holds a minute's worth at most and refills steadily, so that in any span of t minutes
no more than limit · (1 + t) passes. Tokens are counted when an answer is there; until then each request under way is
counted as the mean of those before it, for tokens and budgets alike, so that many at once cannot all slip through the
last gap. Days and months are UTC's. Everything happens on the event loop; nothing here waits.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Iterable

from puhui.core.answer import Usage
from puhui.core.errors import BudgetSpent, LimitReached
from puhui.energy.tariff import JOULES_PER_KWH
from puhui.node.observer import Event, Served
from puhui.store.key_table import CHARGED, KeyTable, SpentRow
from puhui.trust.api_keys import ApiKey, Rules

LONGEST_WAIT_S = 86_400.0
"""A month's end is far: nobody is told to sleep longer than a day."""
UNDER_WAY_WAIT_S = 2.0
Header = tuple[bytes, bytes]
_OF_REQUESTS, _OF_TOKENS = (
    tuple(f"x-ratelimit-{part}-{what}".encode() for part in ("limit", "remaining", "reset"))
    for what in ("requests", "tokens")
)


class Bucket:
    """A token bucket of `per_minute`, full at first. Times are seconds of any clock that only goes forward."""

    __slots__ = ("_at", "_level", "_most", "_per_s", "per_minute")

    def __init__(self, per_minute: int) -> None:
        self.per_minute = per_minute
        self._most = self._level = float(per_minute)
        self._per_s = per_minute / 60.0
        self._at = 0.0

    def level(self, now: float) -> float:
        """What is in it; below 0 where more was taken than there was."""
        level = self._level + (now - self._at) * self._per_s
        return level if level < self._most else self._most

    def take(self, amount: float, now: float) -> None:
        """Takes `amount` out, whether it is there or not."""
        self._level = self.level(now) - amount
        self._at = now

    def wait_s(self, wanted: float, now: float) -> float:
        """Seconds until `wanted` is in it; 0 if it is."""
        missing = wanted - self.level(now)
        return missing / self._per_s if missing > 0.0 else 0.0


class Period:
    """What was used in this day or month, and when it ends."""

    __slots__ = ("ends", "kwh", "money", "name", "requests")

    def __init__(self, name: str) -> None:
        self.name = name
        self.ends = 0.0
        self.requests = 0
        self.money = 0.0
        self.kwh = 0.0

    def roll(self, now: float) -> None:
        """Starts anew if the period has ended."""
        if now >= self.ends:
            self.requests, self.money, self.kwh = 0, 0.0, 0.0
            self.ends = _bounds(self.name, now)[1]

    def add(self, requests: int, money: float, kwh: float) -> None:
        """Counts what answers have used."""
        self.requests += requests
        self.money += money
        self.kwh += kwh


class Allowance:
    """What one key may still do. `admit` before a request, `leave` when it is over, `charge` for each answer."""

    def __init__(self, rules: Rules) -> None:
        self._day, self._month = Period("day"), Period("month")
        self._tokens_seen = self._answers_seen = 0
        self._under_way = 0
        self.rules = rules
        self._fit()

    def follow(self, rules: Rules) -> None:
        """Takes over other rules; what was spent stays spent."""
        if rules is not self.rules:
            self.rules = rules
            self._fit()

    def admit(self, now: float, clock: float) -> None:
        """Lets one request in, or raises `BudgetSpent` or `LimitReached`, and then nothing is counted.

        `now` is the time of day in seconds since 1970, `clock` that of a clock which only goes forward.
        """
        if self._budgets:
            self._check_budgets(now)
        if self._tokens is not None:
            under_way = self._under_way * self._tokens_seen / max(1, self._answers_seen)
            _check(self._tokens, "tokens", 1.0 + under_way, clock)
        if self._requests is not None:
            _check(self._requests, "requests", 1.0, clock)
            self._requests.take(1.0, clock)
        self._under_way += 1

    def leave(self) -> None:
        """A request that was let in is over."""
        self._under_way -= 1

    def charge(self, usage: Usage, now: float, clock: float) -> None:
        """Counts what an answer used."""
        tokens = usage.prompt_tokens + usage.completion_tokens
        self._answers_seen += 1
        self._tokens_seen += tokens
        if self._tokens is not None:
            self._tokens.take(tokens, clock)
        for period in (self._day, self._month):
            period.roll(now)
            period.add(1, usage.cost, usage.energy.joules / JOULES_PER_KWH)

    def recall(self, row: SpentRow, period: str, now: float) -> None:
        """Counts what the ledger says was used in this `period` before the node started."""
        spent = self._day if period == "day" else self._month
        spent.roll(now)
        spent.add(row.requests, row.money, row.joules / JOULES_PER_KWH)
        self._answers_seen, self._tokens_seen = row.requests, row.tokens

    def spent(self, now: float) -> dict[str, dict[str, float]]:
        """What was used this day and this month."""
        for period in (self._day, self._month):
            period.roll(now)
        return {
            period.name: {"requests": period.requests, "money": period.money, "kwh": period.kwh}
            for period in (self._day, self._month)
        }

    def headers(self, clock: float) -> list[Header]:
        """How much is left, in the headers that OpenAI has for it."""
        shown: list[Header] = []
        for bucket, (limit, remaining, reset) in ((self._requests, _OF_REQUESTS), (self._tokens, _OF_TOKENS)):
            if bucket is not None:
                left = int(bucket.level(clock))
                shown.append((limit, b"%d" % bucket.per_minute))
                shown.append((remaining, b"%d" % left if left > 0 else b"0"))
                shown.append((reset, span(bucket.wait_s(bucket.per_minute, clock)).encode()))
        return shown

    def _fit(self) -> None:
        rules = self.rules
        self._requests = Bucket(rules.requests_per_minute) if rules.requests_per_minute else None
        self._tokens = Bucket(rules.tokens_per_minute) if rules.tokens_per_minute else None
        budgets = (
            (self._day, "money", rules.money_per_day),
            (self._month, "money", rules.money_per_month),
            (self._day, "kwh", rules.kwh_per_day),
            (self._month, "kwh", rules.kwh_per_month),
        )
        self._budgets = [(period, unit, limit) for period, unit, limit in budgets if limit is not None]

    def _check_budgets(self, now: float) -> None:
        for period, unit, limit in self._budgets:
            period.roll(now)
            spent = period.money if unit == "money" else period.kwh
            if spent + self._under_way * spent / max(1, period.requests) < limit:
                continue
            what = f"the key's budget of {limit:g}{' kWh' if unit == 'kwh' else ''} a {period.name}"
            if spent < limit:
                raise LimitReached(
                    f"what is left of {what} is set aside for {self._under_way} requests under way; ask again then",
                    retry_after_s=UNDER_WAY_WAIT_S,
                )
            again = datetime.datetime.fromtimestamp(period.ends, datetime.UTC)
            raise BudgetSpent(
                f"{what} is spent ({spent:.6g}); there is more from {again:%Y-%m-%d} (UTC)",
                retry_after_s=min(LONGEST_WAIT_S, period.ends - now),
            )


class Allowances:
    """Those of all keys. Its `observe` is told by the node of each answer."""

    def __init__(self, table: KeyTable) -> None:
        self._by_key: dict[str, Allowance] = {}
        self._recall(table, time.time())

    def of(self, key: ApiKey) -> Allowance:
        """What `key` may still do, by its present rules."""
        allowance = self._by_key.get(key.id)
        if allowance is None:
            allowance = self._by_key[key.id] = Allowance(key.rules)
        allowance.follow(key.rules)
        return allowance

    def observe(self, event: Event) -> None:
        """Charges the key for the answer that it has got, or for the part of one that it has waited for."""
        if not isinstance(event, Served) or event.status not in CHARGED:
            return
        allowance = self._by_key.get(event.request.caller.key)
        if allowance is not None:
            allowance.charge(event.usage, time.time(), time.monotonic())

    def _recall(self, table: KeyTable, now: float) -> None:
        for period in ("day", "month"):
            rows: Iterable[SpentRow] = table.spent_since(_bounds(period, now)[0])
            for row in rows:
                allowance = self._by_key.setdefault(row.key, Allowance(Rules()))
                allowance.recall(row, period, now)


def span(seconds: float) -> str:
    """A time as OpenAI writes it in its headers: 12ms, 1.5s, 6m0s.

    >>> span(0.0121), span(1.5), span(360.2), span(0)
    ('13ms', '1.5s', '6m1s', '0s')
    """
    if seconds < 1.0:
        milliseconds = -int(-seconds * 1000.0 // 1)
        return f"{milliseconds}ms" if milliseconds else "0s"
    if seconds < 60.0:
        return f"{seconds:.3g}s"
    whole = -int(-seconds // 1)
    return f"{whole // 60}m{whole % 60}s"


def _check(bucket: Bucket, what: str, wanted: float, clock: float) -> None:
    wait = bucket.wait_s(wanted, clock)
    if wait > 0.0:
        raise LimitReached(
            f"the key's limit of {bucket.per_minute} {what} a minute is reached; ask again in {max(wait, 1.0):.0f} s",
            retry_after_s=wait,
        )


def _bounds(period: str, now: float) -> tuple[float, float]:
    """When the day or month of the time `now` begins and ends, in UTC."""
    today = datetime.datetime.fromtimestamp(now, datetime.UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    if period == "day":
        return today.timestamp(), (today + datetime.timedelta(days=1)).timestamp()
    first = today.replace(day=1)
    return first.timestamp(), (first + datetime.timedelta(days=32)).replace(day=1).timestamp()
