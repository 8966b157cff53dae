"""Who may be asked: the upstreams that meet what a request needs of privacy, cost and latency."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from puhui.core.errors import NeedsUnmet
from puhui.core.request import Request
from puhui.core.settings import Tariff
from puhui.energy.token_estimate import estimate_tokens
from puhui.models.wire import NOT_JSON
from puhui.upstreams.upstream import Upstream

TOKENS_IF_UNSAID = 1_024
"""Tokens that an answer is taken to have where the request sets no bound."""
MOST_TOKENS = 2**40
"""Nobody asks for more; a number of a thousand digits in a body is no number to reckon with."""


class _Bounds(msgspec.Struct):
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    max_output_tokens: int | None = None
    n: int | None = None


_decode_bounds = msgspec.json.Decoder(_Bounds).decode


def suitable(upstreams: Sequence[Upstream], request: Request, tariff: Tariff) -> Sequence[Upstream]:
    """Those of `upstreams` that meet the request's needs. Raises `NeedsUnmet`, which says why none does."""
    needs = request.needs
    if needs.privacy == "device":
        raise NeedsUnmet(
            "the request may not leave this node, and no expert here is sure of its answer", need="privacy"
        )
    if needs.privacy == "site":
        upstreams = [upstream for upstream in upstreams if upstream.on_site]
        if not upstreams:
            raise NeedsUnmet("the request may not leave this site, and no big model for it is here", need="privacy")
    if needs.max_cost is not None:
        upstreams = _affordable(upstreams, request, needs.max_cost, tariff)
    if needs.latency_ms is not None:
        upstreams = _quick(upstreams, request, needs.latency_ms / 1000.0)
    return upstreams


def _affordable(upstreams: Sequence[Upstream], request: Request, most: float, tariff: Tariff) -> Sequence[Upstream]:
    read, written = expected_tokens(request.body)
    costs = {upstream: cost_of(upstream, read, written, tariff) for upstream in upstreams}
    chosen = [upstream for upstream in upstreams if costs[upstream] <= most]
    if not chosen:
        raise NeedsUnmet(
            f"the answer may cost {most:g} {tariff.currency} at most, and the cheapest big model for it would take up "
            f"to {min(costs.values()):.3g} (about {read} tokens read, up to {written} written); a smaller max_tokens "
            "makes it cheaper",
            need="max_cost",
        )
    return chosen


def _quick(upstreams: Sequence[Upstream], request: Request, within_s: float) -> Sequence[Upstream]:
    usual = {upstream: upstream.taken_s(0.5, stream=request.stream) or 0.0 for upstream in upstreams}
    chosen = [upstream for upstream in upstreams if usual[upstream] <= within_s]
    if not chosen:
        raise NeedsUnmet(
            f"the answer is needed within {1000.0 * within_s:g} ms, and the quickest big model for it took "
            f"{1000.0 * min(usual.values()):.0f} ms of late (median)",
            need="latency_ms",
        )
    return chosen


def expected_tokens(body: bytes) -> tuple[int, int]:
    """About how many tokens a request's body has, and how many its answer may have.

    >>> expected_tokens(b'{"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 5, "n": 2}')
    (18, 10)
    """
    try:
        bounds = _decode_bounds(body)
    except NOT_JSON:
        bounds = _Bounds()
    said = (bounds.max_completion_tokens, bounds.max_tokens, bounds.max_output_tokens)
    written = next((tokens for tokens in said if tokens is not None), TOKENS_IF_UNSAID)
    written = min(max(0, written), MOST_TOKENS) * min(max(1, bounds.n or 1), MOST_TOKENS)
    return estimate_tokens(body), written


def cost_of(upstream: Upstream, read: int, written: int, tariff: Tariff) -> float:
    """Money for tokens read and written by an upstream."""
    price_in, price_out = upstream.settings.price_in, upstream.settings.price_out
    if price_in is None and price_out is None:
        price_in, price_out = tariff.price_in, tariff.price_out
    return (read * (price_in or 0.0) + written * (price_out or 0.0)) / 1_000_000
