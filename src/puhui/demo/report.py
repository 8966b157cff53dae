"""The demo's final table and its picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from puhui.core.errors import MissingExtra
from puhui.demo.tally import Point, ratios


def print_result(result: Mapping[str, Any], console: Console) -> None:
    """The result as a table that can be read without knowing Puhui."""
    expert, latency, compute, energy = (result[key] for key in ("expert", "latency_ms", "compute_ms", "energy_j"))
    times = ratios(result)
    table = Table(title="The big model alone, and with Puhui in front of it", show_lines=False)
    for name, justify in (("", "left"), ("big model", "right"), ("Puhui", "right"), ("", "right")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]  # literals, which a loop widens
    table.add_row(
        "latency of an answer, p50", _ms(latency["big"]["p50"]), _ms(latency["expert"]["p50"]), _times(times["latency"])
    )
    table.add_row("CPU time of an answer", _ms(compute["big"]), _ms(compute["expert"]), _times(times["compute"]))
    saved = 1.0 - energy["with_puhui"] / energy["big_alone"] if energy["big_alone"] else 0.0
    table.add_row(
        "energy of all, learning and audits included",
        f"{energy['big_alone']:.0f} J",
        f"{energy['with_puhui']:.0f} J",
        f"{abs(saved):.0%} {'less' if saved >= 0 else 'more'}",
    )
    table.add_row(
        "answers that are true", _percent(result["big"]["accuracy"]), _percent(result["system"]["accuracy"]), ""
    )
    console.print(table)
    console.print(f"{result['answered']:,} of {result['requests']:,} requests answered. {_story(expert)}")
    console.print(
        f"Energy is {energy['source']}: between {energy['with_puhui_low']:.0f} and {energy['with_puhui_high']:.0f} J. "
        + _paid_back(energy["paid_back_after"])
    )


def _paid_back(requests: int | None) -> str:
    """When learning, which asks the big model more often, has paid for itself."""
    if requests is None:
        return "What learning took is not paid back at this share."
    if requests == 0:
        return "What learning took is paid back already."
    return f"What learning took is paid back after some {requests:,} more requests."


def _story(expert: Mapping[str, Any]) -> str:
    """What the experts did, in words."""
    if expert["first_at_request"] is None:
        return "No expert was proven on so few requests: the big model answered them all."
    return (
        f"Experts answered [bold]{_percent(expert['share'])}[/bold] of all and "
        f"[bold]{_percent(expert['share_final'])}[/bold] of the last fifth; the first was in place at request "
        f"{expert['first_at_request']}. {expert['promotions']} were promoted, {expert['demotions']} demoted.\n"
        f"Another answer than the big model's reached the user in [bold]{_percent(expert['risk'], 2)}[/bold] of the "
        f"{expert['era_requests']:,} requests since then; proven: at most {_percent(expert['proven_risk'], 2)}. "
        "The promise is about agreement with the big model, not about truth."
    )


def draw(points: Sequence[Point], events: Sequence[tuple[int, str]], epsilon: float, path: Path) -> None:
    """A picture (PNG) of share, risk and energy over the run; `events` are marked at their request."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("the demo's picture", "demo") from error
    figure = Figure(figsize=(9, 9), layout="constrained")
    FigureCanvasAgg(figure)
    share, risk, energy = figure.subplots(3, 1, sharex=True)
    at = [point.requests for point in points]
    share.fill_between(at, [point.share * 100 for point in points], color="#2a9d8f", alpha=0.35)
    share.plot(at, [point.share * 100 for point in points], color="#2a9d8f")
    share.set(ylabel="answered by an expert, %", ylim=(0, 100), title="Puhui in front of a big model")
    risk.plot(at, [point.risk * 100 for point in points], color="#e76f51", label="unlike the big model's answer")
    risk.axhline(epsilon * 100, color="#264653", linestyle="--", label=f"the promise: at most {epsilon:.0%}")
    risk.set(ylabel="risk, %", ylim=(0, max([epsilon * 250, *(point.risk * 105 for point in points)])))
    risk.legend(loc="upper left", frameon=False)
    energy.plot(at, [point.joules_big for point in points], color="#8d99ae", label="big model alone")
    energy.plot(at, [point.joules for point in points], color="#2a9d8f", label="answers with Puhui")
    energy.set(ylabel="energy of answers, J (estimated)", xlabel="requests")
    energy.legend(loc="upper left", frameon=False)
    for number, name in events:
        for axes in (share, risk, energy):
            axes.axvline(number, color="#999999", linewidth=0.8)
        share.annotate(name, (number, 98), rotation=90, va="top", ha="right", fontsize=8, color="#555555")
    for axes in (share, risk, energy):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)


def _ms(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g} ms"


def _times(value: float | None) -> str:
    return "" if value is None else f"{value:.0f} × less"


def _percent(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{value:.{digits}%}"
