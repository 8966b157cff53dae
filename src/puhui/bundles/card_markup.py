"""The pieces of HTML that a card's page is put together from; all that came from data is escaped in them.

A piece is text that is safe in a page. `Text` and plain strings are not pieces: `both` and `own` make them so.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from html import escape

import msgspec

from puhui.bundles import card_words
from puhui.bundles.card_words import CUT, Text


def shown(name: str, most: int = CUT) -> str:
    """As `card_words.shown`, cut to `most` letters or 2 · `most` bytes on the page, whichever is less."""
    line = card_words.shown(name, most)
    ends = list(itertools.accumulate(len(escape(letter).encode()) for letter in line))
    return line if ends[-1] <= 2 * most else card_words.shown(line, sum(end < 2 * most - 2 for end in ends))


def both(text: Text) -> str:
    """A statement in both languages, of which the page's switch shows one."""
    return f'<span lang="en">{escape(text.en)}</span><span lang="zh">{escape(text.zh)}</span>'


def own(words: str) -> str:
    """Words that came from data, kept apart from the direction of the text around them."""
    return f"<bdi>{escape(words)}</bdi>"


def code(words: str) -> str:
    """Words to be read letter by letter."""
    return f"<code>{escape(words)}</code>"


def section(place: str, title: Text, *pieces: str) -> str:
    """A part of the page that can be linked to."""
    return f'\n<section id="{place}"><h2>{both(title)}</h2><div>{"".join(pieces)}</div></section>'


def table(head: Sequence[Text], rows: Iterable[str]) -> str:
    """A table whose first column holds words and all others numbers; `rows` are pieces of `row`."""
    cells = "".join(f'<th scope="col" class="n">{both(each)}</th>' for each in head[1:])
    many = f' class="many" style="--n:{len(head) - 1}"' if len(head) > 3 else ""
    return (
        f'<div class="wide"><table{many}><thead><tr><th scope="col">{both(head[0])}</th>{cells}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def long_table(head: Sequence[Text], rows: Sequence[str], *, first: int) -> str:
    """A table of the `first` rows, the others to be opened."""
    if len(rows) <= first + 2:
        return table(head, rows)
    more = len(rows) - first
    summary = both(Text(f"{more} more", f"另外 {more} 行"))
    return f"{table(head, rows[:first])}<details><summary>{summary}</summary>{table(head, rows[first:])}</details>"


def row(first: str, cells: Sequence[str], *, on: bool = False) -> str:
    """A row of a table, from pieces; `on` marks it."""
    rest = "".join(f'<td class="n">{cell}</td>' for cell in cells)
    return f'<tr{" class=on" if on else ""}><th scope="row">{first}</th>{rest}</tr>'


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """Names with their values, both of them pieces."""
    return "<dl>" + "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in pairs) + "</dl>"


def why(text: Text) -> str:
    """A remark below a row's first words."""
    return f'<span class="why">{both(text)}</span>'


def cut(total: int, drawn: int) -> str:
    """How many of a list are not shown, and where they are; nothing if all are."""
    if total <= drawn:
        return ""
    more = f"{total - drawn:,}"
    return f'<p class="soft">{both(Text(f"and {more} more, in expert.json", f"另有 {more} 个，见 expert.json"))}</p>'


def command(words: str, what: Text) -> str:
    """A command to be copied, and what it is for."""
    whole = " ".join(f"<span>{escape(word)}</span>" for word in words.split(" "))  # lines break between words
    return f'<p class="again"><span>{both(what)}</span><code>{whole}</code></p>'


def block(value: object, most: int) -> str:
    """A JSON value as it is written, cut to `most` letters."""
    text = msgspec.json.format(msgspec.json.encode(value), indent=1).decode()
    return f"<pre>{own(text if len(text) <= most else f'{text[:most]}…')}</pre>"
