"""What `puhui compress` shows while it works, and at its end."""

from __future__ import annotations

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from puhui.bundles import card_words as words
from puhui.bundles.card import on_front
from puhui.compress.recipes import Recipe
from puhui.compress.search import Candidate
from puhui.compress.watcher import Watcher
from puhui.compress.workshop import Made
from puhui.teachers.asking import AskProgress
from puhui.teachers.probing import Estimate, SelfAgreement


class View(Watcher):
    """A live screen in a terminal, plain lines elsewhere. A context manager."""

    def __init__(self, console: Console, *, ask: bool) -> None:
        """`ask`: whether people are asked before money is spent, where there is a terminal."""
        self._console = console
        self._ask = ask
        self._judged: list[Candidate] = []
        self._bar = Progress(
            TextColumn("   {task.description}"),
            BarColumn(bar_width=24),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[facts]}"),
            console=console,
        )
        self._step = self._bar.add_task("", total=1.0, facts="", visible=False)
        self._now: object = None
        self._live = Live(get_renderable=self._screen, console=console, transient=True, refresh_per_second=4)

    def __enter__(self) -> View:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def estimated(self, found: Estimate) -> None:
        """Says what asking will take; asks whether to go on where it costs money."""
        cost = "at an unknown price" if found.cost is None else money(found.cost, about="about ")
        if not found.to_ask + found.repeats + found.more:
            self.note(f"All {found.distinct:,} answers are known from an earlier run.")
            return
        twice = f", {found.repeats:,} a second time" if found.repeats else ""
        more = f", and {found.more:,} requests at most for texts to add" if found.more else ""
        self.note(
            f"To ask: {found.to_ask:,} of {found.distinct:,} texts{twice}{more}; "
            f"{found.tokens_in + found.tokens_out:,} tokens, {cost}, about {_time(found.seconds)}."
        )
        if self._ask and self._console.is_terminal and found.cost != 0.0:
            self._live.stop()
            typer.confirm("Go on?", abort=True, err=True)
            self._live.start()

    def asked(self, progress: AskProgress) -> None:
        """Moves the bar."""
        spent = money(progress.cost) if progress.cost else ""
        self._show("asking the big model", progress.done / max(1, progress.total), spent)

    def reading(self, name: str, read: int, size: int) -> None:
        """Moves the bar: bytes of a file."""
        self._show(f"reading {name}", read / max(1, size), "")

    def contradicts(self, found: SelfAgreement) -> None:
        """Says how often it agrees with itself, and names the ceiling where there is one."""
        interval = f"({found.low:.1%} to {found.high:.1%})"
        if not found.whole:
            self.note(
                f"The big model agrees with itself by {found.share:.1%} on the mean over {found.rows} requests asked "
                f"twice {interval}."
            )
            return
        self.note(
            f"The big model agrees with itself in {found.share:.1%} of {found.rows} requests asked twice {interval}; "
            f"no expert can agree with it in more than {found.ceiling:.1%}."
        )

    def building(self, recipe: Recipe, share: float) -> None:
        """Moves the bar."""
        self._show(f"building: {recipe.name}", share, "")

    def judged(self, candidate: Candidate) -> None:
        """Adds a line to the table."""
        self._judged.append(candidate)
        if not self._console.is_terminal:
            self.note(
                f"{candidate.name}: agreement {candidate.agreement:.2%}, coverage {candidate.coverage:.1%}, "
                f"{candidate.footprint.latency_ms:.2f} ms, {candidate.footprint.bytes / 1e6:.1f} MB"
            )

    def note(self, text: str) -> None:
        """A line above the screen."""
        self._console.print(f"   {text}", highlight=False)

    def conclude(self, made: Made) -> None:
        """The table of what was tried, and what was made."""
        card, say = made.card, self.note
        self._console.print(_table(list(made.found.tried)))
        say(
            f"{'An' if card.family == 'encoder' else 'A'} {card.family} expert of {card.size_bytes / 1e6:.1f} MB, "
            f"{card.answer_us:.0f} µs an answer: "
            f"{made.folder}"
        )
        say(words.agreement(card).en)
        if not made.keeps:
            judged = next(one.agreement for one in card.trade_offs if one.chosen) or 0.0
            say(
                f"That is less than the {words.percent(made.keep)} asked for: on the rows that chose it, it kept "
                f"{words.percent(judged)}."
            )
        proven = card.calibration
        if proven["threshold"] is None:
            rows = proven["rows"] or 0  # a card holds numbers alone, so counts are floats
            say(f"Nothing is proven at ε = {proven['epsilon']:.1%} on {rows:,.0f} rows, so it is never sure.")
        else:
            say(
                f"It answers {proven['coverage']:.1%} of the requests by itself, at a proven risk of at most "
                f"{proven['risk_bound']:.2%} (δ = {proven['delta']:.0%})."
            )
        say(f"Its card, with pictures: {made.folder / 'card.html'}")

    def _show(self, what: str, share: float, facts: str) -> None:
        if what != self._now:
            self._now = what
            self._bar.reset(self._step, description=what, completed=0, visible=True)
            if not self._console.is_terminal:
                self.note(f"{what} …")
        self._bar.update(self._step, completed=share, facts=facts)

    def _screen(self) -> RenderableType:
        return Group(_table(self._judged), self._bar) if self._judged else self._bar


def _table(tried: list[Candidate]) -> Table:
    """The candidates, those that none beats (Pareto) in bold."""
    table = Table(title="Tried so far; bold: nothing is both faster and closer to the big model", title_justify="left")
    coverage = "coverage" if all(one.proven for one in tried) else "coverage, not proven"
    for column in ("expert", "agreement", coverage, "ms", "MB", "trained in"):
        table.add_column(column, justify="left" if column == "expert" else "right")
    front = on_front([one.footprint.latency_ms for one in tried], [one.agreement for one in tried])
    for candidate, best in zip(tried, front, strict=True):
        table.add_row(
            candidate.name,
            f"{candidate.agreement:.2%}",
            f"{candidate.coverage:.1%}",
            f"{candidate.footprint.latency_ms:.3f}",
            f"{candidate.footprint.bytes / 1e6:.1f}",
            _time(candidate.training_s),
            style="bold" if best else "dim" if candidate.misses else "",
        )
    return table


def money(cost: float, *, about: str = "") -> str:
    """Dollars for people; less than a cent is not shown as nothing.

    >>> money(1.234, about="about "), money(0.0004, about="about "), money(0.0)
    ('about $1.23', 'less than $0.01', 'free')
    """
    if cost <= 0.0:
        return "free"
    return f"{about}${cost:,.2f}" if cost >= 0.01 else "less than $0.01"


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
