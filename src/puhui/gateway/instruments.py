"""What looks at a node from outside, put together: metrics, log lines, traces and readiness."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO

from starlette.applications import Starlette
from starlette.routing import Route

from puhui.core.answer import Answerer
from puhui.core.log_lines import LogFormat
from puhui.gateway.access_log import AccessLayer, AccessLog, Exchanges, LineWriter
from puhui.gateway.health import journal_moves, ready_route, somebody_answers, store_is_writable
from puhui.gateway.metrics import Metrics
from puhui.node.forwarding import Forward
from puhui.node.node import Node
from puhui.node.observer import Observer
from puhui.store.database import Store

if TYPE_CHECKING:
    from puhui.gateway.tracing import Tracing

States = Callable[[], Sequence[Mapping[str, Any]]]


class Instruments:
    """All of them, for one node. Requests are served within `at_work`.

    `upstreams` gives each upstream's state, as `Pool.state` does, and `refused` how many requests were too much.
    Without `log_format` no lines are written for
    requests; they go to `stream` (None: standard error). `otlp_endpoint` is the base URL of a collector for traces;
    without one, and without `tracing`, there are none.
    """

    def __init__(
        self,
        store: Store,
        upstreams: States,
        *,
        refused: Callable[[], int] = lambda: 0,
        currency: str = "USD",
        log_format: LogFormat | None = "text",
        otlp_endpoint: str | None = None,
        tracing: Tracing | None = None,
        stream: BinaryIO | None = None,
    ) -> None:
        self._store = store
        self._upstreams = upstreams
        self._writer = LineWriter(stream) if log_format else None
        self._metrics = Metrics(store, upstreams=upstreams, refused=refused, currency=currency)
        lines = [AccessLog(self._writer, log_format).end] if self._writer is not None and log_format else []
        self._exchanges = Exchanges([self._metrics.exchanged, *lines])
        self._tracing = tracing if tracing is not None else _tracing(otlp_endpoint)
        self.observers: tuple[Observer, ...] = (self._metrics, self._exchanges)
        """For the node."""

    def around_big(self, big: Answerer) -> Answerer:
        """The big model, traced if there are traces; for the node."""
        return big if self._tracing is None else self._tracing.around_big(big, self._url())

    def around_forward(self, forward: Forward) -> Forward:
        """What passes other requests on, traced if there are traces; for the node."""
        return forward if self._tracing is None else self._tracing.around_forward(forward, self._url())

    def around_node(self, node: Node) -> Answerer:
        """The node, traced if there are traces; for `build_app`."""
        return node if self._tracing is None else self._tracing.around_node(node)

    def _url(self) -> str | None:
        """Where the big model is, if it is in one place."""
        states = self._upstreams()
        return states[0]["url"] if len(states) == 1 else None

    def routes(self, node: Node) -> list[Route]:
        """GET /metrics and /readyz."""
        self._metrics.node = node
        checks = {
            "store": store_is_writable(self._store),
            "journal": journal_moves(node.settle_journal),
            "answers": somebody_answers(
                lambda: sum(state["breaker"] != "open" for state in self._upstreams()),
                lambda: len(node.roster.experts),
            ),
        }
        return [self._metrics.route(), ready_route(checks)]

    def surround(self, app: Starlette) -> None:
        """Puts the layers for ids, lines and spans around `app`. Comes after all other layers: it is outermost."""
        if self._tracing is not None:
            from puhui.gateway.tracing import TraceLayer

            app.add_middleware(TraceLayer, tracer=self._tracing.tracer, routes=app.routes)
        app.add_middleware(AccessLayer, exchanges=self._exchanges, routes=app.routes)

    @contextlib.asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        """While requests are served; afterwards what has been gathered is written and sent."""
        try:
            with self._writer if self._writer is not None else contextlib.nullcontext():
                yield
        finally:
            if self._tracing is not None:
                self._tracing.close()


def _tracing(endpoint: str | None) -> Tracing | None:
    if endpoint is None:
        return None
    from puhui.gateway.tracing import Tracing

    return Tracing(endpoint)
