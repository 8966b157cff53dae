"""GET /metrics: what a node does, in Prometheus' text format (or OpenMetrics, for whoever asks).

`Metrics` is an observer of the node and of the HTTP layer. It only adds to plain numbers on the event loop, a few
microseconds a request; `prometheus_client` makes series of them when it is scraped. Its own counters take a lock and
two microseconds for each of the fifteen numbers that a request changes, which would be the dearest thing that an
expert's answer does. What other processes do (learning) is read from the ledger at each scrape, only what is new.

Labels are bounded: a caller's model names count one by one up to `MOST_MODELS`, routes are the templates, tasks are
ids and only those with an expert in place. No label holds a prompt, a task's name (which may be a prompt's first
line) or a key.
"""

from __future__ import annotations

import asyncio
import bisect
import importlib.metadata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST as OPEN_METRICS
from prometheus_client.openmetrics.exposition import generate_latest as open_metrics
from prometheus_client.registry import Collector
from sqlalchemy import func, select
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from puhui.core.answer import Usage
from puhui.core.errors import StoreError
from puhui.gateway.access_log import Exchange
from puhui.node.node import Node
from puhui.node.observer import Audited, Event, Served
from puhui.store.database import Store
from puhui.store.tables import experts, ledger

MOST_MODELS = 50
OTHER = "other"
"""The label of models past the first `MOST_MODELS`."""
MOST_EXPERTS = 200
"""Experts with series of their own: those in place longest."""
BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_BOUNDS = ("low", "typical", "high")


class Spread:
    """How durations are spread over `BUCKETS_S`."""

    __slots__ = ("counts", "total_s")

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS_S) + 1)
        self.total_s = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect.bisect_left(BUCKETS_S, seconds)] += 1
        self.total_s += seconds

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulative, with their upper bounds, as Prometheus has them."""
        upto, found = 0, []
        for bound, count in zip((*map(str, BUCKETS_S), "+Inf"), self.counts, strict=True):
            upto += count
            found.append((bound, float(upto)))
        return found


class Spent:
    """Sums of what was used."""

    __slots__ = ("cost", "grams", "joules", "joules_high", "joules_low", "read", "written")

    def __init__(self) -> None:
        self.joules = self.joules_low = self.joules_high = self.grams = self.cost = 0.0
        self.read = self.written = 0

    def add(self, usage: Usage) -> None:
        energy = usage.energy
        self.joules += energy.joules
        self.joules_low += energy.low
        self.joules_high += energy.high
        self.grams += usage.co2_g
        self.cost += usage.cost
        self.read += usage.prompt_tokens
        self.written += usage.completion_tokens


class LedgerTail:
    """What the ledger got since the last look, besides requests and audits: learning, promotions, the node's own work.

    Reading blocks. Rows from before it was made do not count, as Prometheus' counters begin anew with a process.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._from = self._last()
        self.events: Counter[str] = Counter()
        self.spent: dict[str, Spent] = defaultdict(Spent)
        self.proven: dict[str, tuple[float, float, float]] = {}
        """Risk bound, ε and coverage of each active expert, as proven at its promotion."""

    def read(self) -> None:
        """Adds what is new."""
        upto = self._last()
        columns = (ledger.c.joules, ledger.c.joules_low, ledger.c.joules_high, ledger.c.co2_g, ledger.c.cost)
        new = (
            select(ledger.c.kind, func.count(), *(func.sum(column) for column in columns))
            .where(ledger.c.number > self._from, ledger.c.number <= upto, ledger.c.kind.not_in(("request", "audit")))
            .group_by(ledger.c.kind)
        )
        active = select(experts).where(experts.c.status == "active")
        with self._store.begin() as connection:
            rows = connection.execute(new).all()
            self.proven = {
                row.id: (row.risk_bound, row.epsilon, row.coverage) for row in connection.execute(active).all()
            }
        self._from = upto
        for kind, count, joules, low, high, grams, cost in rows:
            self.events[kind] += count
            spent = self.spent[kind]
            spent.joules += joules
            spent.joules_low += low
            spent.joules_high += high
            spent.grams += grams
            spent.cost += cost

    def _last(self) -> int:
        with self._store.begin() as connection:
            return connection.execute(select(func.max(ledger.c.number))).scalar_one() or 0


class Answered(NamedTuple):
    """What requests are counted by."""

    model: str
    by: str
    status: int


class Metrics(Collector):
    """A node's metrics: an observer of the node, told of exchanges by the HTTP layer, and a collector of series.

    `upstreams` gives the state of each upstream, as mappings with `url`, `model`, `breaker` ("closed", "half-open" or
    "open") and counts such as `requests` and `errors`; what they lack is left out.
    """

    def __init__(
        self,
        store: Store,
        *,
        upstreams: Callable[[], Iterable[Mapping[str, Any]]] = tuple,
        refused: Callable[[], int] = lambda: 0,
        currency: str = "USD",
    ) -> None:
        self.node: Node | None = None
        """The node whose experts are shown; set once it is there (it is told of its observers when it is made)."""
        self._tail = LedgerTail(store)
        self._upstreams = upstreams
        self._refused = refused
        self._currency = currency
        self._models: dict[str, str] = {}
        self._requests: Counter[Answered] = Counter()
        self._spent: dict[tuple[str, str], Spent] = {}
        self._duration: dict[str, Spread] = defaultdict(Spread)
        self._first: dict[str, Spread] = defaultdict(Spread)
        self._audits: Counter[str] = Counter()
        self._audits_spent = Spent()
        self._replies: Counter[tuple[str, int]] = Counter()
        self._reply_s: dict[str, Spread] = defaultdict(Spread)
        self._scraping = asyncio.Lock()
        self._readable = 1.0
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self._registry)

    def __call__(self, event: Event) -> None:
        """Counts what the node did."""
        if isinstance(event, Served):
            self._count(event)
        elif isinstance(event, Audited):
            self._audits[_result(event)] += 1
            if event.answer is not None:
                self._audits_spent.add(event.answer.usage)

    def _count(self, event: Served) -> None:
        by = event.by
        model = self._model(event.request.model)
        self._requests[Answered(model, by, event.status)] += 1
        self._duration[by].add(event.seconds)
        if event.first_s is not None:
            self._first[by].add(event.first_s)
        if event.answer is not None:
            spent = self._spent.get((model, by))
            if spent is None:
                spent = self._spent[model, by] = Spent()
            spent.add(event.answer.usage)

    def _model(self, name: str) -> str:
        """A caller may ask for any name: the first ones are counted one by one, the others together."""
        known = self._models.get(name)
        if known is None:
            if len(self._models) >= MOST_MODELS:
                return OTHER
            known = self._models[name] = name.encode(errors="replace").decode()
        return known

    def exchanged(self, exchange: Exchange) -> None:
        """Counts a reply to an HTTP request, whatever it was for."""
        self._replies[exchange.route, exchange.status] += 1
        self._reply_s[exchange.route].add(exchange.seconds)

    def route(self) -> Route:
        """GET /metrics."""

        async def show(http: HttpRequest) -> Response:
            async with self._scraping:
                try:
                    await asyncio.to_thread(self._tail.read)
                    self._readable = 1.0
                except StoreError:
                    self._readable = 0.0
            # Not by the library's `choose_encoder`: it fails at versions that are no numbers.
            if "application/openmetrics-text" in http.headers.get("accept", ""):
                shown: bytes = open_metrics(self._registry)  # type: ignore[no-untyped-call]  # the library has no type for it
                return Response(shown, headers={"content-type": OPEN_METRICS})
            return Response(generate_latest(self._registry), headers={"content-type": CONTENT_TYPE_PLAIN_0_0_4})

        return Route("/metrics", show)

    def collect(self) -> Iterator[Metric]:
        """Every series, now. Called on the event loop, so no number changes meanwhile."""
        yield InfoMetricFamily("puhui_build", "Puhui's version.", {"version": importlib.metadata.version("puhui")})
        yield _gauge("puhui_store_readable", "1 if the last scrape could read the store.", self._readable)
        yield from self._of_requests()
        yield from self._of_usage()
        yield from self._of_experts()
        yield from self._of_events()
        yield from upstream_families(self._upstreams())

    def _of_requests(self) -> Iterator[Metric]:
        requests = CounterMetricFamily(
            "puhui_requests",
            "Finished requests, by model asked for, who answered (expert, big, none) and status.",
            labels=("model", "by", "status"),
        )
        for (model, by, status), count in self._requests.items():
            requests.add_metric((model, by, str(status)), count)
        yield requests
        replies = CounterMetricFamily(
            "puhui_http_replies", "Replies to HTTP requests of any kind, refused ones too.", labels=("route", "status")
        )
        for (route, status), count in self._replies.items():
            replies.add_metric((route, str(status)), count)
        yield replies
        yield CounterMetricFamily(
            "puhui_overload_refusals", "Requests refused because the node is at its limit.", self._refused()
        )
        yield _histogram("puhui_request_duration_seconds", "From a request's arrival to its row.", "by", self._duration)
        yield _histogram(
            "puhui_time_to_first_token_seconds",
            "From a request's arrival to a stream's first event.",
            "by",
            self._first,
        )
        yield _histogram("puhui_http_reply_duration_seconds", "Until the reply's last byte.", "route", self._reply_s)

    def _of_usage(self) -> Iterator[Metric]:
        tokens = CounterMetricFamily("puhui_tokens", "Tokens read and written.", labels=("model", "by", "type"))
        parts: dict[str, list[Spent]] = {"expert": [], "big": [], "audit": [self._audits_spent]}
        for (model, by), spent in self._spent.items():
            tokens.add_metric((model, by, "input"), spent.read)
            tokens.add_metric((model, by, "output"), spent.written)
            parts[by].append(spent)
        yield tokens
        for kind, spent in self._tail.spent.items():
            parts[kind if kind in ("learning", "node") else OTHER] = [spent]
        energy = CounterMetricFamily(
            "puhui_energy_joules",
            "Energy of answers by experts and by the big model, audits, learning and the node itself.",
            labels=("part", "bound"),
        )
        grams = CounterMetricFamily("puhui_co2_grams", "CO2 of that energy.", labels=("part",))
        money = CounterMetricFamily("puhui_cost", "Money for it and for tokens.", labels=("part", "currency"))
        for part, summed in parts.items():
            joules = (
                sum(spent.joules_low for spent in summed),
                sum(spent.joules for spent in summed),
                sum(spent.joules_high for spent in summed),
            )
            for bound, value in zip(_BOUNDS, joules, strict=True):
                energy.add_metric((part, bound), value)
            grams.add_metric((part,), sum(spent.grams for spent in summed))
            money.add_metric((part, self._currency), sum(spent.cost for spent in summed))
        yield from (energy, grams, money)

    def _of_experts(self) -> Iterator[Metric]:
        node = self.node
        if node is None:
            return
        held = node.roster.experts
        yield _gauge("puhui_experts", "Experts in place.", len(held))
        yield _gauge("puhui_audits_due", "Audits that wait for the big model.", node.audits_due)
        series: dict[str, GaugeMetricFamily] = {
            name: GaugeMetricFamily(f"puhui_expert_{name}", text, labels=("task", "expert"))
            for name, text in _OF_EXPERT.items()
        }
        for expert in held[:MOST_EXPERTS]:
            labels = (expert.task.id, expert.id[:12])
            watch = expert.watch
            now = {
                "threshold_ratio": expert.threshold,
                "seen_requests": expert.served,
                "watched_requests": watch.observations,
                "watched_losses": watch.losses,
                "evidence": watch.evidence,
                "evidence_limit": 1 / watch.delta,
                "suspicious": float(watch.suspicious),
            }
            if expert.id in self._tail.proven:
                bound, epsilon, coverage = self._tail.proven[expert.id]
                now |= {"risk_bound_ratio": bound, "risk_promised_ratio": epsilon, "coverage_ratio": coverage}
            for name, value in now.items():
                series[name].add_metric(labels, value)
        yield from series.values()

    def _of_events(self) -> Iterator[Metric]:
        audits = CounterMetricFamily(
            "puhui_audits", "Audits done: the big model agreed, disagreed or refused.", labels=("result",)
        )
        for result in ("agree", "disagree", "refused"):
            audits.add_metric((result,), self._audits[result])
        yield audits
        events = CounterMetricFamily(
            "puhui_expert_changes",
            "Attempts to learn, and experts promoted, demoted, retired or refused.",
            labels=("kind",),
        )
        for kind in sorted({"learning", "promotion", "demotion", "refusal"} | self._tail.events.keys() - {"node"}):
            events.add_metric((kind,), self._tail.events[kind])
        yield events


_OF_EXPERT = {
    "threshold_ratio": "Confidence from which it answers.",
    "risk_bound_ratio": "Proven bound of the share of its task's requests with another answer than the big model's.",
    "risk_promised_ratio": "The bound that was asked for (epsilon).",
    "coverage_ratio": "Share of requests that it answered of the calibration sample.",
    "seen_requests": "Requests of its task that it has seen, sure or not.",
    "watched_requests": "Requests whose loss the watch knows.",
    "watched_losses": "Sum of those losses: disagreements with the big model.",
    "evidence": "Evidence against its promise (an e-value); it steps down at the limit.",
    "evidence_limit": "The evidence at which it steps down (1 / delta).",
    "suspicious": "1 while the watch asks for more audits.",
}
_BREAKERS = {"closed": 0.0, "half-open": 0.5, "open": 1.0}


def upstream_families(states: Iterable[Mapping[str, Any]]) -> Iterator[Metric]:
    """Series of the upstreams' states: the breaker, and a counter for each count."""
    breaker = GaugeMetricFamily(
        "puhui_upstream_breaker_open", "0 closed, 0.5 half open, 1 open: it gets no requests.", labels=("upstream",)
    )
    counts: dict[str, CounterMetricFamily] = {}
    for state in states:
        name = _name(state)
        if "breaker" in state:
            breaker.add_metric((name,), _BREAKERS[state["breaker"]])
        for key, text in (("requests", "Requests sent."), ("errors", "Requests that failed."), ("retries", "Retries.")):
            if key in state:
                family = counts.setdefault(
                    key, CounterMetricFamily(f"puhui_upstream_{key}", text, labels=("upstream",))
                )
                family.add_metric((name,), state[key])
    yield breaker
    yield from counts.values()


def _name(state: Mapping[str, Any]) -> str:
    """The model and the host of an upstream; nothing else that its URL may hold."""
    host = urlsplit(str(state["url"])).netloc.rpartition("@")[2]
    return host if state.get("model") is None else f"{state['model']}@{host}"


def _result(audit: Audited) -> str:
    if audit.loss is None:
        return "refused"
    return "disagree" if audit.loss > 0 else "agree"


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value)


def _histogram(name: str, text: str, label: str, spreads: Mapping[str, Spread]) -> Metric:
    family = HistogramMetricFamily(name, text, labels=(label,))
    for value, spread in spreads.items():
        family.add_metric((value,), spread.buckets(), spread.total_s)
    return family
