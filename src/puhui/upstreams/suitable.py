"""Who may be asked: the upstreams that meet what a request needs of privacy, cost and latency."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from puhui.core.answer import Usage
from puhui.core.errors import NeedsUnmet
from puhui.core.request import Request
from puhui.core.settings import Tariff
from puhui.energy.power import estimate_remote_joules
from puhui.energy.tariff import price_usage, tariff_at
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
    found = {upstream: cost_of(upstream, read, written, tariff) for upstream in upstreams}
    costs = {upstream: cost for upstream, cost in found.items() if cost is not None}
    if not costs:
        names = ", ".join(upstream.name for upstream in upstreams)
        raise NeedsUnmet(
            f"the answer may cost {most:g} {tariff.currency} at most, and what it would cost is not known: there is no "
            f"price for {names}; whoever runs this node can set price_in and price_out of the upstream, or of [tariff]",
            need="max_cost",
        )
    chosen = [upstream for upstream, cost in costs.items() if cost <= most]
    if not chosen:
        raise NeedsUnmet(
            f"the answer may cost {most:g} {tariff.currency} at most, and the cheapest big model for it would take up "
            f"to {min(costs.values()):.3g} in tokens, or else in electricity (about {read} tokens read, up to "
            f"{written} written); a smaller max_tokens makes it cheaper",
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


def cost_of(upstream: Upstream, read: int, written: int, tariff: Tariff) -> float | None:
    """Money for tokens read and written by an upstream, reckoned as the bill does: the price of the tokens, or of their
    electricity where they have none. None if nobody knows: it has no price, and its electricity is not paid here.
    """
    if upstream.prices is None and not (upstream.on_site or tariff.price_in or tariff.price_out):
        return None
    usage = Usage(prompt_tokens=read, completion_tokens=written, energy=estimate_remote_joules(read, written))
    return price_usage(usage, tariff_at(upstream.prices, tariff)).cost
