"""What the demo measured, put together as it goes and at the end."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from puhui.core.settings import AuditRate
from puhui.demo.job import Item
from puhui.demo.load import Sent

LAST = 0.2  # the share of the requests that counts as the end of the run


class Point(msgspec.Struct, frozen=True):
    """The demo at one moment, over the last few hundred requests: what the picture draws."""

    requests: int
    share: float
    risk: float
    joules: float
    joules_big: float


def percentile(values: Sequence[float], share: float) -> float | None:
    """The value below which `share` of the values lie; None without values."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def typical_joules(sent: Sequence[Sent]) -> float:
    """Mean joules of the big model's answers."""
    return _mean([one.joules for one in sent if _by_big(one)])


def summarise(
    items: Sequence[Item],
    sent: Sequence[Sent],
    said: Mapping[int, str | None],
    compute_ms: Mapping[str, float | None],
    bill: Mapping[str, Any],
    experts: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """The demo's result as one object. `said` is what the big model says to each answered request, by number.

    `compute_ms` is the CPU time of an answer, measured side by side on the same texts, one at a time.
    """
    answered = [one for one in sent if one.status == 200]
    by_expert = [one for one in answered if one.by_expert]
    era = [
        one for one in answered if one.number >= min((x.number for x in answered if x.saw_expert), default=len(items))
    ]
    wrong = [one for one in by_expert if one.answer != said.get(one.number)]
    wrong_numbers = {one.number for one in wrong}
    last = [one for one in answered if one.number >= len(items) * (1.0 - LAST)]
    big = [one for one in answered if _by_big(one)]
    big_alone = [one for one in big if one.stages == 1]
    truth = [(one, items[one.number].truth) for one in answered if items[one.number].truth is not None]
    total = bill["total"]
    return {
        "requests": len(items),
        "answered": len(answered),
        "failed": len(sent) - len(answered),
        "big": {"accuracy": _share([said.get(one.number) == true for one, true in truth])},
        "system": {"accuracy": _share([one.answer == true for one, true in truth])},
        "expert": {
            "share": _share([one.by_expert for one in answered]),
            "share_final": _share([one.by_expert for one in last]),
            "risk": _share([one.number in wrong_numbers for one in era]),
            "agreement": _share([one.number not in wrong_numbers for one in by_expert]),
            "first_at_request": min((one.number for one in by_expert), default=None),
            "era_requests": len(era),
            "promotions": len(experts),
            "demotions": sum(expert["status"] == "demoted" for expert in experts),
            "proven_risk": max((expert["risk_bound"] for expert in experts), default=None),
        },
        "latency_ms": {
            "big": _latencies(big_alone or big),
            "expert": _latencies(by_expert),
        },
        "compute_ms": dict(compute_ms),
        "compute_in_traffic_ms": {
            "big": _median([one.cpu_ms for one in big_alone or big]),
            "expert": _median([one.cpu_ms for one in by_expert]),
        },
        "energy_j": {
            "source": "measured" if total["energy"]["measured"] else "estimated from CPU time",
            "with_puhui": total["energy"]["joules"],
            "with_puhui_low": total["energy"]["low"],
            "with_puhui_high": total["energy"]["high"],
            "big_alone": total["big_energy"]["joules"],
            "answers_only": sum(one.joules for one in answered),
            "paid_back_after": _paid_back_after(total, last),
        },
        "bill": dict(total),
        "experts": [dict(expert) for expert in experts],
    }


def _paid_back_after(total: Mapping[str, Any], last: Sequence[Sent]) -> int | None:
    """More requests like the `last` until learning has paid for itself, once few are audited; None: it never does."""
    extra = total["energy"]["joules"] - total["big_energy"]["joules"]
    by_expert = [one.joules for one in last if one.by_expert]
    if extra <= 0.0 or not by_expert:
        return 0 if extra <= 0.0 else None
    saved_each = (1.0 - AuditRate().steady) * typical_joules(last) - _mean(by_expert)
    saved = len(by_expert) / len(last) * saved_each
    return math.ceil(extra / saved) if saved > 0.0 else None


def ratios(result: Mapping[str, Any]) -> dict[str, float | None]:
    """How many times cheaper and faster an expert's answer is, from `summarise`'s result."""
    latency, compute = result["latency_ms"], result["compute_ms"]
    return {
        "latency": _ratio(latency["big"]["p50"], latency["expert"]["p50"]),
        "compute": _ratio(compute["big"], compute["expert"]),
    }


def timeline(sent: Sequence[Sent], said: Mapping[int, str | None], window: int = 250) -> list[Point]:
    """Share, risk and energy over the run, each over the `window` requests before."""
    ordered = sorted((one for one in sent if one.status == 200), key=lambda one: one.number)
    typical = typical_joules(ordered)
    points, joules = [], 0.0
    for number, one in enumerate(ordered, 1):
        joules += one.joules
        if number % 25 and number != len(ordered):
            continue
        recent = ordered[max(0, number - window) : number]
        wrong = [one.by_expert and one.answer != said.get(one.number) for one in recent]
        points.append(Point(number, _mean([x.by_expert for x in recent]), _mean(wrong), joules, typical * number))
    return points


def _by_big(one: Sent) -> bool:
    return one.status == 200 and not one.by_expert


def _latencies(sent: Sequence[Sent]) -> dict[str, float | None]:
    latencies = [one.latency_s * 1000.0 for one in sent]
    return {"p50": percentile(latencies, 0.5), "p95": percentile(latencies, 0.95)}


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values) if values else 0.0


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def _share(values: Sequence[bool]) -> float | None:
    return statistics.fmean(values) if values else None


def _ratio(big: float | None, expert: float | None) -> float | None:
    return big / expert if big and expert else None
