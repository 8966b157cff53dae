"""The pictures on a card, as SVG text: trade-offs with their Pareto front, and reliability.

Each is drawn 380 units wide, which is about a phone's width: so its letters stay readable there, and on a wide
screen two stand side by side. Colours come from the page's style by class, so that light and dark are one drawing.

Labels are placed greedily, the most important first: each tries places around its point and takes the first
where it covers no point, no line and no other label; one that finds none is left out, for the table below the
picture has every number (the method of Christensen, Marks and Shieber 1995, section 3.1, without its annealing).
"""

from __future__ import annotations

import itertools
import math
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from html import escape
from typing import NamedTuple

from puhui.bundles.card import Bin, on_front
from puhui.bundles.card_figures import wilson_interval
from puhui.bundles.card_words import Text, percent, shown

WIDTH, HEIGHT = 380, 300
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 26, 40
LETTER, LINE = 6.4, 13.0  # of 11-unit letters: the mean width in wide system fonts, and the height
MOST_LABELS, LABEL_CUT = 8, 22
SPACE = 1.0  # between a label and anything else
ROUNDS = (0.05, 0.1, 0.2, 0.25, 0.5)  # distances of ticks on a share's axis, tried from the finest


class Box(NamedTuple):
    """A rectangle: left, top, right, bottom."""

    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: Box) -> bool:
        """Whether they have an inner point in common."""
        return (
            self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom
        )

    def grown(self, by: float) -> Box:
        """The box with so much more on each side."""
        return Box(self.left - by, self.top - by, self.right + by, self.bottom + by)

    def inside(self, other: Box) -> bool:
        """Whether it lies in the other."""
        return (
            other.left <= self.left
            and self.right <= other.right
            and other.top <= self.top
            and self.bottom <= other.bottom
        )


class Mark(NamedTuple):
    """A candidate in the picture: its number in the table, its name, cost > 0, and gain in [0, 1]."""

    number: int
    name: str
    cost: float
    gain: float
    chosen: bool


class Label(NamedTuple):
    """A placed label: its words, the point it belongs to, and the box that it takes."""

    words: str
    point: tuple[float, float]
    box: Box


class Scale(NamedTuple):
    """From a value to a place on an axis; logarithmic if `log`."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        turn: Callable[[float], float] = math.log10 if self.log else float
        part = (turn(value) - turn(self.low)) / (turn(self.high) - turn(self.low))
        return self.start + part * (self.end - self.start)


PLOT = Box(LEFT, TOP, WIDTH - RIGHT, HEIGHT - BOTTOM)
ROOM = Box(LEFT + 2, 2, WIDTH - 2, HEIGHT - BOTTOM - 2)  # where labels may be
NAME = Box(0, 2, LEFT + 90, TOP - 6)  # the name of the upright axis


def draw_trade_offs(marks: Sequence[Mark], axis: Text, unit: Callable[[float], str], gain: Text) -> str:
    """Cost (logarithmic) against gain for one mark or more, with the Pareto front as a staircase.

    `axis` and `gain` name the axes, `unit` writes a cost.
    """
    costs, gains = [mark.cost for mark in marks], [mark.gain for mark in marks]
    x = _cost_scale(costs)
    y = _share_scale(min(gains), max(gains), PLOT.bottom, PLOT.top)
    front = [mark for mark, best in zip(marks, on_front(costs, gains), strict=True) if best]
    stairs = _stairs([(x(mark.cost), y(mark.gain)) for mark in sorted(front, key=lambda mark: mark.cost)])
    places = [(x(mark.cost), y(mark.gain)) for mark in marks]
    ranked = sorted(zip(marks, places, strict=True), key=lambda pair: (not pair[0].chosen, -pair[0].gain))
    wanted = [(mark, place) for mark, place in ranked if mark.chosen or mark in front][:MOST_LABELS]
    labels = place_labels(
        [(shown(mark.name, LABEL_CUT), place) for mark, place in wanted],
        taken=[*(_around(mark, place) for mark, place in ranked), *_walls(stairs), NAME],
    )
    return "".join(
        (
            _open(Text(f"{axis.en} against {gain.en}", f"{axis.zh}与{gain.zh}")),
            _grid_y(y),
            "".join(_tick_x(x(value), unit(value)) for value in _log_ticks(x)),
            _axis_names(axis, gain),
            f'<path class="front" d="{_path(stairs)}"/>' if len(stairs) > 1 else "",
            "".join(_dot(mark, place, mark in front, unit) for mark, place in reversed(ranked)),
            "".join(_written(label) for label in labels),
            "</svg>",
        )
    )


def draw_reliability(bins: Sequence[Bin], threshold: float | None) -> str:
    """Confidence against agreement with its 95 % interval, the diagonal, and where the expert answers alone."""
    spans = [wilson_interval(each.agreement, each.rows) for each in bins]
    lowest = min([each.confidence for each in bins] + [low for low, _ in spans])
    x, y = _share_scale(lowest, 1.0, PLOT.left, PLOT.right), _share_scale(lowest, 1.0, PLOT.bottom, PLOT.top)
    axes = Text("confidence", "置信度"), Text("agreement", "一致率")
    points = [(x(each.confidence), y(each.agreement)) for each in bins]
    drawn = [
        _open(Text("confidence against agreement", "置信度与一致率")),
        _alone(x, threshold) if threshold is not None and threshold < 1 else "",
        _grid_y(y),
        "".join(_tick_x(x(value), percent(value)) for value in _share_ticks(x.low, x.high)),
        _axis_names(*axes),
        f'<path class="diagonal" d="{_path([(x(x.low), y(x.low)), (x(x.high), y(x.high))])}"/>',
        f'<path class="curve" d="{_path(points)}"/>' if len(points) > 1 else "",
    ]
    for each, (across, up), (low, high) in zip(bins, points, spans, strict=True):
        said = f"{percent(each.low)}–{percent(each.high)}: {percent(each.agreement)} / {each.rows:,}"
        drawn.append(
            f'<g><title>{said}</title><path class="span" d="{_path([(across, y(low)), (across, y(high))])}"/>'
            f'<circle class="bin" cx="{across:.1f}" cy="{up:.1f}" r="3.5"/></g>'
        )
    return "".join([*drawn, "</svg>"])


def place_labels(wanted: Sequence[tuple[str, tuple[float, float]]], *, taken: Sequence[Box]) -> list[Label]:
    """Those of the labels that find a place, the first ones first; no two boxes meet, nor any of `taken`.

    Each of `wanted` has its words and its point; `taken` are the points and lines that must stay visible.
    """
    placed: list[Label] = []
    for words, point in wanted:
        for box in _tries(point, text_width(words)):
            free = not any(box.meets(other) for other in [*taken, *(label.box.grown(SPACE) for label in placed)])
            if free and box.inside(ROOM):
                placed.append(Label(words, point, box))
                break
    return placed


def text_width(words: str) -> float:
    """Units that the words take at most in 11-unit letters: wide characters count as two narrow ones."""
    return sum(11.5 if unicodedata.east_asian_width(letter) in "WF" else LETTER for letter in words)


def _tries(point: tuple[float, float], width: float) -> Iterator[Box]:
    """Boxes around a point, near ones first; to the left and above, where a front leaves room, before other sides."""
    x, y = point
    for away in (7.0, 11.0, 20.0, 34.0):
        left, right, above, below = x - away - width, x + away, y - away - LINE, y + away
        beside, middle = y - LINE / 2, x - width / 2
        corners = ((left, beside), (x - width, above), (middle, above), (right, beside), (x, above))
        for start, top in (*corners, (x, below), (middle, below), (x - width, below)):
            yield Box(start, top, start + width, top + LINE)


def _around(mark: Mark, place: tuple[float, float]) -> Box:
    reach = 9 if mark.chosen else 5
    return Box(place[0] - reach, place[1] - reach, place[0] + reach, place[1] + reach)


def _walls(path: Sequence[tuple[float, float]]) -> list[Box]:
    """The thin boxes of a path whose lines run along the axes."""
    return [
        Box(min(a, c) - SPACE, min(b, d) - SPACE, max(a, c) + SPACE, max(b, d) + SPACE)
        for (a, b), (c, d) in itertools.pairwise(path)
    ]


def _stairs(front: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The staircase through the front's points: what is reached stays reached until more is paid."""
    path = list(front[:1])
    for x, y in front[1:]:
        path += [(x, path[-1][1]), (x, y)]
    return path


def _cost_scale(costs: Sequence[float]) -> Scale:
    """Half a power of ten around the costs at least, so that a single one has a place in the middle."""
    low, high = min(costs), max(costs)
    room = max(0.12 * math.log10(high / low), 0.15)
    return Scale(low / 10**room, high * 10**room, PLOT.left, PLOT.right, log=True)


def _share_scale(low: float, high: float, start: float, end: float) -> Scale:
    room = max(0.1 * (high - low), 0.01)
    return Scale(max(0.0, low - room), min(1.0, high + room), start, end)


def _share_ticks(low: float, high: float) -> list[float]:
    """Round shares within [low, high], three to six of them."""
    steps = [scale * each for scale in (0.01, 0.1, 1.0) for each in ROUNDS]
    step = next((each for each in sorted(set(steps)) if (high - low) / each <= 6.0), 1.0)
    first = math.ceil(low / step - 1e-9)
    return [round(count * step, 6) for count in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(x: Scale) -> list[float]:
    """1, 2 and 5 times powers of ten within the scale; powers of ten alone where those would be many."""
    powers = range(math.floor(math.log10(x.low)), math.ceil(math.log10(x.high)) + 1)
    for steps in ((1, 2, 5), (1, 3), (1,)):
        found = [step * 10.0**power for power in powers for step in steps if x.low <= step * 10.0**power <= x.high]
        if len(found) <= 5:
            return found
    return found[:: math.ceil(len(found) / 5)]


def _open(title: Text) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title.en)} · {escape(title.zh)}" '
        'xmlns="http://www.w3.org/2000/svg">'
    )


def _grid_y(y: Scale) -> str:
    drawn = []
    for value in _share_ticks(y.low, y.high):
        up = y(value)
        drawn.append(f'<path class="grid" d="M{PLOT.left} {up:.1f}H{PLOT.right}"/>')
        drawn.append(
            f'<text class="tick" x="{PLOT.left - 6}" y="{up + 4:.1f}" text-anchor="end">{percent(value)}</text>'
        )
    return "".join(drawn)


def _tick_x(across: float, words: str) -> str:
    return (
        f'<path class="grid" d="M{across:.1f} {PLOT.bottom}v4"/>'
        f'<text class="tick" x="{across:.1f}" y="{PLOT.bottom + 17}" text-anchor="middle">{escape(words)}</text>'
    )


def _axis_names(across: Text, up: Text) -> str:
    return (
        f'<path class="axis" d="M{PLOT.left} {PLOT.bottom}H{PLOT.right}"/>'
        + _both(across, f'class="name" x="{PLOT.right}" y="{PLOT.bottom + 33}" text-anchor="end"')
        + _both(up, f'class="name" x="{PLOT.left - 40}" y="{PLOT.top - 13}"')
    )


def _alone(x: Scale, threshold: float) -> str:
    """The part of the plot where the expert answers by itself."""
    start = x(max(threshold, x.low))
    words = Text("answers alone", "独自回答")
    anchor, at = ("end", start - 5) if start > (PLOT.left + PLOT.right) / 2 else ("start", start + 5)
    return (
        f'<rect class="alone" x="{start:.1f}" y="{PLOT.top}" width="{PLOT.right - start:.1f}" '
        f'height="{PLOT.bottom - PLOT.top}"/><path class="edge" d="M{start:.1f} {PLOT.top}V{PLOT.bottom}"/>'
        + _both(words, f'class="hint" x="{at:.1f}" y="{PLOT.bottom - 8}" text-anchor="{anchor}"')
    )


def _both(words: Text, attributes: str) -> str:
    return (
        f'<text lang="en" {attributes}>{escape(words.en)}</text><text lang="zh" {attributes}>{escape(words.zh)}</text>'
    )


def _dot(mark: Mark, place: tuple[float, float], best: bool, unit: Callable[[float], str]) -> str:
    kind = "chosen" if mark.chosen else "best" if best else "other"
    told = f"{mark.number}. {shown(mark.name, LABEL_CUT)}: {unit(mark.cost)}, {percent(mark.gain)}"
    ring = f'<circle class="ring" cx="{place[0]:.1f}" cy="{place[1]:.1f}" r="8"/>' if mark.chosen else ""
    return (
        f'<g><title>{escape(told)}</title>{ring}<circle class="{kind}" cx="{place[0]:.1f}" cy="{place[1]:.1f}" '
        f'r="{4.5 if mark.chosen else 4 if best else 3}"/></g>'
    )


def _written(label: Label) -> str:
    """The label in the middle of its box, with a thin line to its point where that is not beside it."""
    box, (x, y) = label.box, label.point
    middle_x, middle_y = (box.left + box.right) / 2, (box.top + box.bottom) / 2
    near_x, near_y = min(max(x, box.left), box.right), min(max(y, box.top), box.bottom)
    line = (
        f'<path class="leader" d="{_path([(x, y), (near_x, near_y)])}"/>'
        if math.hypot(near_x - x, near_y - y) > 12
        else ""
    )
    return (
        f'{line}<text class="label" x="{middle_x:.1f}" y="{middle_y + 4:.1f}" text-anchor="middle">'
        f"{escape(label.words)}</text>"
    )


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
