"""More texts: what a big model writes is read robustly and asked for once, and crossings are the same each time."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import teachers_made as made
from hypothesis import given
from hypothesis import strategies as st

from puhui.core.errors import SettingsError
from puhui.models.span_words import find_words
from puhui.teachers.asking import Budget, Purse, ask_all
from puhui.teachers.paraphrase import TIMES_LONGER, lines_of, paraphrases, recombined, writer
from puhui.teachers.teacher import TeacherOptions
from puhui.teachers.teachers import open_teacher
from serving import BigModel

TEXTS = ["where is my parcel", "cancel the order now", "i want my money back"]


def writes(asked: str) -> str:
    """A big model that paraphrases where it is told to, and else names the last word."""
    told = re.match(r"Write (\d+) different ways .*\n\n(.*)", asked, re.DOTALL)
    if told is None:
        return asked.split()[-1]
    lines = [f"{number + 1}. please, {told[2]} {'!' * number}" for number in range(int(told[1]))]
    return "\n".join(["Sure! Here you are:", *lines, "", f"- {told[2]}.", "Anything else?"])


# --- reading what was written


@given(st.text(), st.text(max_size=60))
def test_whatever_is_written(reply: str, text: str) -> None:
    lines = lines_of(reply, text)
    assert len(set(lines)) == len(lines)
    for line in lines:
        assert line == line.strip() != ""
        assert line != text
        assert line in reply
        assert len(line) <= TIMES_LONGER * len(text)


PHRASE = st.lists(st.text("abcdefgh中文", min_size=1, max_size=6), min_size=1, max_size=5).map(" ".join)
STYLES = (
    "{n}. {x}",
    "{n}) {x}",
    "({n}) {x}",
    "{n}: {x}",
    "- {x}",
    "* {x}",
    "• {x}",
    "{n}、{x}",
    '{n}. "{x}"',
    "- **{x}**",
)


@given(st.lists(PHRASE, min_size=1, max_size=6, unique=True), st.sampled_from(STYLES), st.booleans())
def test_lists_of_every_style(phrases: list[str], style: str, talkative: bool) -> None:
    lines = [style.format(n=number, x=phrase) for number, phrase in enumerate(phrases, 1)]
    if talkative:
        lines = ["<think>1. they ask\n2. I write</think>", "Of course:", "", *lines, "", "Shall I go on?"]
    assert lines_of("\n".join(lines), "z" * 40) == phrases


@given(st.lists(PHRASE, min_size=1, max_size=6, unique=True))
def test_bare_lines(phrases: list[str]) -> None:
    assert lines_of("Here they are:\n" + "\r\n\n".join(phrases), "z" * 40) == phrases


@pytest.mark.parametrize(
    ("reply", "read"),
    [
        ("Where is my parcel?\nwhere's the parcel\nWhere's the parcel.", ["where's the parcel"]),
        ("<think>1. where is it\n2. never ended", []),
        ("word " * 15, []),
        ('"has it been sent"', ["has it been sent"]),
        ("it costs 3.5 euros\n3.5 euros is dear", ["it costs 3.5 euros", "3.5 euros is dear"]),
    ],
)
def test_lines_that_are_left_out(reply: str, read: list[str]) -> None:
    assert lines_of(reply, "where is my parcel") == read


# --- asking for it


def test_a_big_model_writes_and_nothing_is_asked_twice(big: BigModel, tmp_path: Path) -> None:
    big.rule = writes
    options = TeacherOptions(prompt="Name the last word.", labels=("a", "b"), settings={"max_tokens": 5, "top_p": 0.5})
    teacher = open_teacher(f"openai:gpt@{big.url}", options, key="secret")
    found = paraphrases(teacher, [*TEXTS, TEXTS[0], " "], each=2, folder=tmp_path)
    assert found.texts == [f"please, {text}" for text in TEXTS]  # the second differs by its "!" alone
    assert (found.asked.asked, found.asked.tried, len(big.bodies)) == (3, 3, 3)
    body = big.bodies[0]
    assert body["messages"][-1]["content"].startswith("Write 2 different ways in which somebody else might say")
    assert len(body["messages"]) == 1
    assert (body["temperature"], body["top_p"]) == (0, 0.5)
    assert not {"max_tokens", "logprobs"} & body.keys()
    assert big.headers[0]["authorization"] == "Bearer secret"
    again = paraphrases(teacher, TEXTS, each=2, folder=tmp_path)
    assert (again.texts, again.asked.asked, len(big.bodies)) == (found.texts, 0, 3)
    ask_all(teacher, TEXTS[:1], folder=tmp_path)  # an answer is something else than a paraphrase
    assert big.bodies[-1]["max_tokens"] == 5


def test_a_paraphrase_that_is_another_text_is_not_new(big: BigModel, tmp_path: Path) -> None:
    big.rule = lambda asked: "Where is my parcel?\nhas it been lost"
    teacher = open_teacher(f"openai:gpt@{big.url}")
    assert paraphrases(teacher, TEXTS, each=2, folder=tmp_path).texts == ["has it been lost"]


def test_a_budget_ends_it_and_the_next_run_goes_on(big: BigModel, tmp_path: Path) -> None:
    big.rule = writes
    teacher = open_teacher(f"openai:gpt@{big.url}", TeacherOptions(parallel=1))
    purse = Purse(Budget(requests=2, seconds=600.0))
    first = paraphrases(teacher, TEXTS, each=1, folder=tmp_path, budget=purse)
    assert (len(first.texts), first.asked.stopped) == (2, "the budget of 2 requests is spent")
    assert purse.left.requests == 0
    assert 590.0 < (purse.left.seconds or 0.0) < 600.0
    assert not paraphrases(teacher, TEXTS, each=2, folder=tmp_path, budget=purse).texts
    second = paraphrases(teacher, TEXTS, each=1, folder=tmp_path)
    assert (len(second.texts), len(big.bodies)) == (3, 3)


def test_one_that_cannot_write() -> None:
    with pytest.raises(SettingsError, match="cannot write paraphrases; cross the texts instead"):
        writer(open_teacher("python:string:capwords"), 3)
    with pytest.raises(SettingsError, match="0 paraphrases of each text"):
        writer(open_teacher("openai:gpt@http://127.0.0.1:9/v1"), 0)


def test_a_causal_model_writes(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="the workshop extra is not installed")
    made.causal(tmp_path / "model")
    teacher = open_teacher(str(tmp_path / "model"), TeacherOptions(labels=("money", "food")))
    writing = writer(teacher, 1)
    assert (writing.labels, writing.digest != teacher.digest) == ((), True)
    assert writing.digest == writer(teacher, 1).digest != writer(teacher, 2).digest
    free = open_teacher(str(tmp_path / "model")).writing("book {text}")  # type: ignore[attr-defined]
    (told,) = ask_all(free, ["the flight"], folder=tmp_path / "work").told
    assert told is not None
    assert told.answer not in ("money", "food", "")
    assert told.tokens_out == 32  # half of what it reads


def test_a_gguf_model_writes_without_its_grammar(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp", reason="the gguf extra is not installed")
    pytest.importorskip("gguf", reason="the package that writes GGUF files is not installed")
    made.gguf_llama(tmp_path / "tiny.gguf")
    teacher = open_teacher(str(tmp_path / "tiny.gguf"), TeacherOptions(labels=("yes", "no")))
    free = writer(teacher, 1)
    told = ask_all(free, ["hello"], folder=tmp_path / "work").told[0]
    bound = ask_all(teacher, ["hello"], folder=tmp_path / "work").told[0]
    assert told is not None
    assert bound is not None
    assert bound.answer in ("yes", "no")
    assert told.answer not in ("yes", "no")
    assert told.tokens_out > 10


# --- crossing

TEXT = st.lists(st.sampled_from("the my Bill is 的 账 flight pay late,".split()), max_size=8).map(" ".join)  # noqa: SIM905


@given(st.lists(TEXT, max_size=8), st.integers(0, 12), st.integers(0, 3))
def test_crossings(texts: list[str], count: int, seed: int) -> None:
    found = recombined(texts, count=count, seed=seed)
    assert found == recombined(texts, count=count, seed=seed)
    assert len(found) == len(set(found)) <= count
    for text in found:
        assert text not in texts
        assert any(
            text == one[: word.end] + other[same.end :]
            for one in texts
            for other in texts
            for word in find_words(one)
            for same in find_words(other)
            if one[word.start : word.end].casefold() == other[same.start : same.end].casefold()
        )


def test_all_crossings_are_found_and_another_seed_draws_others() -> None:
    texts = [f"{verb} my {thing}" for verb in ("pay", "see", "get", "lose") for thing in ("bill", "card", "key")]
    assert recombined(texts, count=9) == []  # each is there already
    assert sorted(recombined(["付我的账", "看我的卡"], count=9)) == ["付我的卡", "看我的账"]
    many = [f"{verb} my {number}" for number, verb in enumerate("abcdefghijklmnop")]
    assert recombined(many, count=5, seed=1) != recombined(many, count=5, seed=2)
