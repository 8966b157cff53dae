"""An expert's card on a terminal, on about one screen: the same statements and numbers as on its page."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from puhui.bundles import card_words as words
from puhui.bundles.bundle import Signed
from puhui.bundles.card import Card
from puhui.bundles.card_words import duration, energy, percent, shown, size

CANDIDATES, CONFUSIONS, MATRICES = 8, 5, 6
DASH = "–"


def print_card(signed: Signed, console: Console) -> None:
    """What it is, what was proven, sizes and speeds, trade-offs, the worst confusions, precision, and the commands."""
    card = signed.card
    console.print(Text(shown(card.task_name), style="bold"))
    console.print(Text(words.sentence(card, named=False).en))
    console.print()
    said = words.guarantee(card)
    console.print(Text(said[0].en, style="bold green" if len(said) > 1 else "bold yellow"))
    for each in said[1:]:
        console.print(Text(each.en))
    console.print(Text(words.agreement(card).en))
    if (ceiling := words.ceiling(card)) is not None:
        console.print(Text(ceiling.en))
    console.print(Text("The guarantee speaks of agreement with the big model, not of truth.", style="dim"))
    for table in (_devices(card), _trade_offs(card), _confusions(card), _precision(card), _commands(card)):
        if table is not None:
            console.print()
            console.print(table)
    console.print()
    console.print(_origin(signed))
    missing = words.gaps(card)
    if missing:
        console.print(Text(f"Not on this card: {', '.join(missing).replace('_', '-')}.", style="dim"))


def _devices(card: Card) -> Table:
    table = _table("Sizes and speeds", "device", "time", "on disk", "energy", "how known")
    used = f"{energy(card.joules_low)} {DASH} {energy(card.joules_high)}"
    table.add_row("made on", duration(card.answer_us / 1e3), size(card.size_bytes), used, "CPU time; energy estimated")
    for name, each in card.devices.items():
        known = "measured" if each.measured else f"time × {each.factor:.3g} of {each.scaled_from or 'another'}"
        joules = DASH if each.joules is None else energy(each.joules)
        _add(table, name, duration(each.latency_ms), size(each.size_bytes), joules, known)
    return table


def _trade_offs(card: Card) -> Table | None:
    if not card.trade_offs:
        return None
    ranked = sorted(card.trade_offs, key=lambda each: (not each.chosen, -(each.coverage or 0.0)))
    table = _table("Trade-offs", "candidate", "size", "time", "agrees", words.coverage_head(card).en, "")
    for each in ranked[:CANDIDATES]:
        cells = (
            each.name,
            size(each.size_bytes) if each.size_bytes else DASH,
            DASH if each.latency_ms is None else duration(each.latency_ms),
            DASH if each.agreement is None else percent(each.agreement),
            DASH if each.coverage is None else percent(each.coverage),
            "chosen" if each.chosen else each.why_not or DASH,
        )
        _add(table, *cells, style="bold" if each.chosen else "")
    if len(ranked) > CANDIDATES:
        table.caption = f"and {len(ranked) - CANDIDATES:,} more"
    return table


def _confusions(card: Card) -> Table | None:
    if not card.confusions:
        return None
    table = _table("The worst confusions", "the big model says", "the expert says", "rows", "of all")
    for each in card.confusions[:CONFUSIONS]:
        _add(table, each.big, each.expert, f"{each.count:,}", percent(each.share))
    return table


def _precision(card: Card) -> Table | None:
    if not card.precision:
        return None
    table = _table("Precision kept", "matrix", "bits", "sensitivity", "why")
    ranked = sorted(card.precision, key=lambda each: (-each.bits, -(each.sensitivity or 0.0)))  # as on its page
    for each in ranked[:MATRICES]:
        measured = DASH if each.sensitivity is None else f"{each.sensitivity:.3g}"
        _add(table, each.name, str(each.bits), measured, each.reason)
    if len(ranked) > MATRICES:
        table.caption = f"and {len(ranked) - MATRICES:,} more"
    return table


def _commands(card: Card) -> Table | None:
    if not card.commands:
        return None
    table = Table(title="Make it again", box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False, show_header=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for part, command in card.commands.items():
        table.add_row(part.replace("_", "-"), Text(command))
    return table


def _origin(signed: Signed) -> Table:
    card, id, key = signed
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    rows = [("id", id), ("signed by", key), ("learned from", f"{card.rows:,} answers of {card.teacher}")]
    if card.data is not None:
        rows.append(("data", " · ".join(filter(None, (words.data(card.data).en, card.data.source)))))
    rows += [(each.role, f"{each.name} {each.licence}".strip()) for each in card.lineage]
    rows += [("replaces", card.parent)] if card.parent else []
    rows.append(("licence", card.licence))
    for name, value in rows:
        table.add_row(escape(shown(name)), Text(shown(value)))
    return table


def _table(title: str, *columns: str) -> Table:
    """A table whose columns of numbers stand right; words fold."""
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    for column in columns:
        number = (
            column in ("time", "size", "on disk", "energy", "agrees", "rows", "of all", "bits", "sensitivity")
            or "coverage" in column
        )
        table.add_column(column, justify="right" if number else "left", no_wrap=number, overflow="fold")
    return table


def _add(table: Table, *cells: str, style: str = "") -> None:
    """A row of plain words: what looks like markup in a label is none."""
    table.add_row(*(Text(shown(cell) if cell else "") for cell in cells), style=style)
