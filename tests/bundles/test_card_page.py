"""`card.html`: whole, small, safe, bilingual, and its pictures without labels that overlap."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import experts
from cards_made import HOSTILE, PARTS, full_card
from puhui.bundles import card_drawings as drawings
from puhui.bundles.card import Bin, Ceiling, TradeOff
from puhui.bundles.card_page import render_card
from puhui.bundles.card_words import Text, size
from puhui.evolve.traffic import Task

VOID = {"meta", "input", "br", "img"}
TAGS = {
    *(
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "input",
        "header",
        "div",
        "span",
        "b",
        "label",
        "h1",
        "h2",
        "h3",
    ),
    *(
        "p",
        "nav",
        "a",
        "main",
        "section",
        "ul",
        "li",
        "i",
        "figure",
        "figcaption",
        "svg",
        "path",
        "text",
        "g",
        "circle",
    ),
    *(
        "rect",
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "code",
        "pre",
        "bdi",
        "dl",
        "dt",
        "dd",
        "details",
        "summary",
    ),
    "footer",
}


class Reader(HTMLParser):
    """Reads a page: its tags must close in order; words by language; every attribute."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str, str | None]] = []
        self.languages: list[str | None] = []
        self.said: dict[str, list[str]] = {"en": [], "zh": [], "": []}
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)
            self.languages.append(dict(attrs).get("lang") if tag != "html" else None)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open, tag
        assert self.open.pop() == tag
        self.languages.pop()

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style" and data.strip():
            language = next((each for each in reversed(self.languages) if each), "")
            self.said[language or ""].append(data)


def test_a_full_page_is_sound() -> None:
    card = full_card()
    page = render_card(card, key="5e" * 32, id="1d" * 32)
    read = Reader(page)
    assert read.tags <= TAGS
    assert len(read.said["en"]) == len(read.said["zh"]) > 80
    assert all(re.search("[一-鿿]", text) or not re.search("[A-Za-z]{4}", text) for text in read.said["zh"])
    words = " ".join(read.said["en"] + read.said[""])
    for told in ("1d" * 32, "5e" * 32, "ef" * 32, "with truth", "Not truth", "expected calibration error"):
        assert told in words
    for label in HOSTILE[:3]:
        assert any(label in said for said in read.said[""])


def test_nothing_from_data_becomes_part_of_the_page() -> None:
    page = render_card(full_card(), key="k", id="i")
    read = Reader(page)
    assert "script" not in read.tags
    assert "img" not in read.tags
    assert not [name for _, name, _ in read.attributes if name.startswith("on") or name in ("src", "action")]
    assert all(value and value.startswith("#") for _, name, value in read.attributes if name == "href")
    assert page.count("</style>") == 1
    assert "url(" not in page
    assert "@import" not in page
    assert re.findall(r"https?://[^\"]*", page) == ["http://www.w3.org/2000/svg"] * page.count("<svg ")
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f]", page)


def test_every_number_has_its_command() -> None:
    page = render_card(full_card())
    for part in PARTS:
        assert page.count(f"<span>{part}</span></code>") == 1, part


@pytest.mark.parametrize("long", ["x" * 500, "<>&\"'" * 100, "标签" * 200])
def test_the_largest_card_stays_under_100_kb(long: str) -> None:
    card = full_card(labels=1_000, candidates=400, words=(long,), recipe={str(n): long for n in range(100)})
    devices = {f"{long}{n}": each for n, each in enumerate([card.devices["phone"]] * 60)}
    crowded = experts.card(
        Task("t", long, "context:1", long),
        **{name: getattr(card, name) for name in ("labels", "calibration", "trade_offs", "confusions", "reliability")},
        **{name: getattr(card, name) for name in ("commands", "ceiling", "data", "recipe")},
        devices=devices,
        precision=card.precision * 50,
        lineage=card.lineage * 80,
        files={f"{n}/{'f' * 90}": "0" * 64 for n in range(200)},
    )
    page = render_card(crowded, key="k" * 64)
    Reader(page)
    assert len(page.encode()) < 100_000
    assert "more, in expert.json" in page


def test_a_thousand_ordinary_labels_are_all_counted() -> None:
    page = render_card(full_card(labels=1_000, words=("an intent of the user",)))
    assert "Its 1,000 answers" in page
    shown = page.count("<li><bdi>an intent of the user ")
    assert 200 < shown < 1_000
    assert f"and {1_000 - shown:,} more, in expert.json" in page


def test_what_is_absent_is_left_out_and_said() -> None:
    bare = experts.card(Task("t", "a task", "context:1", "m"))
    page = render_card(bare)
    Reader(page)
    for part in ("trade-offs", "confusions", "precision"):
        assert f'<section id="{part}">' not in page
    assert '<section id="absent">' in page
    assert page.split('<section id="absent">')[1].count("<li>") == 7
    assert "The card does not say what was proven" in page
    assert "the SHA-256 of expert.json" in page
    nothing = experts.card(Task("t", "a task", "context:1", "m"), calibration={"threshold": None})
    assert "Nothing is proven of this expert" in render_card(nothing)
    assert '<section id="absent">' not in render_card(full_card())


def test_the_ceiling_is_the_root_of_the_self_agreement() -> None:
    """A big model that says one thing nine times of ten agrees with itself on 82 %, and an expert with it on 90 %."""
    page = render_card(full_card(ceiling=Ceiling(0.81, 0.78, 0.84, 1_000)))
    assert "agrees with itself on 81% of 1,000 requests (95% interval: 78% to 84%)" in page
    assert "agree with it on more than 90%." in page


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        ({"type": "set", "separator": ","}, "sets of labels"),
        ({"type": "number", "width": 4.0, "tolerance": 0.5}, "Numbers at most 0.5 apart"),
        ({"type": "span"}, "F1 of their words"),
        ({"type": "fields", "fields": {"beds": {"type": "number", "width": 4.0}}}, "&quot;beds&quot;"),
        ({"type": "of a later version"}, "of a later version"),
    ],
)
def test_losses_between_0_and_1_are_not_told_as_shares_of_requests(rule: dict[str, Any], told: str) -> None:
    page = render_card(full_card(agreement_rule=rule))
    assert told in page
    assert "the mean loss of this expert" in page
    assert "get an answer from this expert that" not in page
    assert 'class="share"' not in page


# --- the pictures -----------------------------------------------------------------------------------------------

NAMES = st.sampled_from(
    ["static", "static → encoder", "三层编码器 int8", "a very long name of a candidate indeed", "m" * 40]
)
MARKS = st.lists(st.tuples(NAMES, st.floats(1e-3, 1e9), st.floats(0, 1)), min_size=1, max_size=40).map(
    lambda rows: [drawings.Mark(n, *row, chosen=n == 0) for n, row in enumerate(rows)]
)


@settings(max_examples=60)
@given(MARKS)
def test_labels_never_overlap_and_points_stay_visible(marks: list[drawings.Mark]) -> None:
    drawn = ElementTree.fromstring(
        drawings.draw_trade_offs(marks, Text("size", "大小"), size, Text("coverage", "覆盖率"))
    )
    circles = [
        (float(each.get("cx", "")), float(each.get("cy", ""))) for each in drawn.iter() if each.tag.endswith("circle")
    ]
    boxes = []
    for each in drawn.iter():
        if each.get("class") == "label":
            x, y, width = float(each.get("x", "")), float(each.get("y", "")), drawings.text_width(each.text or "")
            boxes.append(drawings.Box(x - width / 2, y - 10, x + width / 2, y + 2))
    assert len(boxes) <= drawings.MOST_LABELS
    for number, box in enumerate(boxes):
        assert box.inside(drawings.Box(0, 0, drawings.WIDTH, drawings.HEIGHT))
        assert not any(box.meets(other) for other in boxes[number + 1 :])
        assert not any(box.left < x < box.right and box.top < y < box.bottom for x, y in circles)
    for x, y in circles:
        assert drawings.PLOT.left <= x <= drawings.PLOT.right
        assert drawings.PLOT.top <= y <= drawings.PLOT.bottom


def test_a_picture_names_its_chosen_one_and_draws_the_front() -> None:
    marks = [drawings.Mark(n, f"model {n}", 10.0**n, 0.5 + n / 10, chosen=n == 3) for n in range(1, 5)]
    marks.append(drawings.Mark(5, "beaten", 10.0**4, 0.55, chosen=False))
    picture = drawings.draw_trade_offs(marks, Text("size", "大小"), size, Text("coverage", "覆盖率"))
    assert [picture.count(f'class="{kind}"') for kind in ("ring", "chosen", "best", "other", "front")] == [
        1,
        1,
        3,
        1,
        1,
    ]
    assert ">model 3</text>" in picture
    assert ">beaten</text>" not in picture


@given(
    st.lists(st.tuples(st.floats(0, 1), st.integers(1, 500), st.floats(0, 1)), min_size=1, max_size=10),
    st.none() | st.floats(0, 1),
)
def test_any_reliability_can_be_drawn(rows: list[tuple[float, int, float]], threshold: float | None) -> None:
    bins = [Bin(sure, sure, sure, count, agree) for sure, count, agree in sorted(rows)]
    drawn = ElementTree.fromstring(drawings.draw_reliability(bins, threshold))
    circles = [each for each in drawn.iter() if each.tag.endswith("circle")]
    assert len(circles) == len(bins)
    assert all(-0.1 <= float(each.get("cx", "")) <= drawings.WIDTH + 0.1 for each in circles)
    assert all(0 <= float(each.get("cy", "")) <= drawings.HEIGHT for each in circles)


def test_candidates_without_measurements_are_in_the_table_alone() -> None:
    tried = (TradeOff(name="failed", family="encoder", size_bytes=1, why_not="out of memory"),)
    page = render_card(full_card(trade_offs=tried))
    assert "out of memory" in page
    assert 'class="ring"' not in page
