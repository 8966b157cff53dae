"""Asking: nothing twice, patience, budgets, and what is kept when it ends early."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from email.utils import format_datetime
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_teacher import Plain, failing, refused

from puhui.core.errors import LearningError, SettingsError, StoreError, UpstreamError, UpstreamTimeout
from puhui.teachers import asking
from puhui.teachers.answer_book import BOOK_FILE, AnswerBook, key_of
from puhui.teachers.asking import AskProgress, Budget, ask_all, run, seconds_of, soften
from puhui.teachers.probing import estimate
from puhui.teachers.teacher import TeacherOptions, Told
from puhui.teachers.teachers import open_teacher
from serving import BigModel


def answers(asked: asking.Asked) -> list[str | None]:
    return [told and told.answer for told in asked.told]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "FIRST_PAUSE_S", 0.001)


# --- nothing twice


def test_answers_in_order_and_equal_texts_once(tmp_path: Path) -> None:
    teacher = Plain(parallel=3)
    asked = ask_all(teacher, ["b", "a", "b", ""], folder=tmp_path)
    assert answers(asked) == ["B", "A", "B", ""]
    assert teacher.asked == {"a": 1, "b": 1, "": 1}
    assert (asked.asked, asked.stopped, asked.refused, teacher.closed) == (3, "", {}, 1)


def test_nothing_is_asked_twice_across_runs(tmp_path: Path) -> None:
    ask_all(Plain(), ["a", "b"], folder=tmp_path)
    later = Plain()
    asked = ask_all(later, ["a", "b", "c"], folder=tmp_path)
    assert answers(asked) == ["A", "B", "C"]
    assert later.asked == {"c": 1}
    again = Plain()
    ask_all(again, ["a"], folder=tmp_path, again=1)
    ask_all(again, ["a"], folder=tmp_path, again=1)
    assert again.asked == {"a": 1}
    other = Plain()
    other.digest = "plain-2"
    ask_all(other, ["a"], folder=tmp_path)
    assert other.asked == {"a": 1}


def test_everything_told_is_kept(tmp_path: Path) -> None:
    told = Told(
        answer="中",
        probabilities={"中": 0.75, "b": 0.25},
        vector=np.arange(3, dtype=np.float32),
        alternatives=(("中", -0.1),),
        seconds=0.5,
        tokens_in=3,
        tokens_out=4,
        cost=None,
    )
    with AnswerBook(tmp_path) as book:
        book.keep([(key_of("t", "x"), told), (key_of("t", "y"), Told(answer=""))])
        book.keep([(key_of("t", "x"), Told(answer="later"))])
    with AnswerBook(tmp_path) as book:
        found, bare = book.find(key_of("t", "x")), book.find(key_of("t", "y"))
        assert book.find(key_of("t", "z")) is book.find(key_of("u", "x")) is book.find(key_of("t", "x", 1)) is None
    assert found is not None
    assert bare is not None
    assert bare.vector is None
    assert found.vector is not None
    assert found.vector.tolist() == [0.0, 1.0, 2.0]
    for name in ("answer", "probabilities", "alternatives", "seconds", "tokens_in", "tokens_out", "cost"):
        assert getattr(found, name) == getattr(told, name)


@given(st.lists(st.text(), max_size=6))
def test_any_text_is_asked_and_found_again(tmp_path: Path, texts: list[str]) -> None:
    assert answers(ask_all(Plain(str), texts, folder=tmp_path)) == texts


def test_half_a_surrogate_pair(tmp_path: Path) -> None:
    assert answers(ask_all(Plain(), ["a\ud800"], folder=tmp_path)) == ["A?"]


def test_two_processes_at_once(tmp_path: Path) -> None:
    code = """
        import sys
        from pathlib import Path
        from puhui.teachers.asking import ask_all
        from puhui.teachers.teachers import open_teacher
        texts = [f"text {number}" for number in range(300)]
        asked = ask_all(open_teacher("python:string:capwords"), texts, folder=Path(sys.argv[1]))
        assert [told.answer for told in asked.told] == [text.capitalize() for text in texts]
        print(asked.asked)
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    counts = [int(process.communicate(timeout=60)[0]) for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert sum(counts) >= 300
    with sqlite3.connect(tmp_path / BOOK_FILE) as file:
        assert file.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert file.execute("SELECT count(*) FROM answers").fetchone() == (300,)
    file.close()


def test_two_at_once_meet_and_ask_next_to_nothing_twice(tmp_path: Path) -> None:
    """The second begins at the end; alone, or with another teacher beside, the order is that of the texts."""
    texts, both = [f"text {number}" for number in range(100)], threading.Barrier(2)

    def ask(number: int, digest: str = "plain-1") -> list[str]:
        asked = list[str]()

        def rule(text: str) -> str:
            if not asked:
                both.wait(30)
            asked.append(text)
            time.sleep(0.002)
            return text.upper()

        teacher = Plain(rule)
        teacher.digest = digest
        assert answers(ask_all(teacher, texts, folder=tmp_path / str(number))) == [text.upper() for text in texts]
        return asked

    with ThreadPoolExecutor(2) as pool:
        one, two = pool.map(ask, [1, 1])
        assert {one[0], two[0]} == {texts[0], texts[-1]}
        assert len(one) + len(two) <= len(texts) + 2
        assert list(pool.map(ask, [2, 2], ["plain-1", "plain-2"])) == [texts, texts]


def test_a_new_file_is_opened_by_many_at_once(tmp_path: Path) -> None:
    start = threading.Barrier(8)

    def open_one(folder: Path) -> None:
        start.wait()
        with AnswerBook(folder) as book:
            book.keep([(key_of("t", "x"), Told(answer="x"))])

    with ThreadPoolExecutor(8) as pool:
        for number in range(20):
            list(pool.map(open_one, [tmp_path / str(number)] * 8))


def test_what_another_was_told_meanwhile_counts_where_the_budget_ended_the_asking(tmp_path: Path) -> None:
    texts = [f"text {number}" for number in range(9)]
    other = Plain()

    class Meanwhile(Plain):
        async def ask_many(self, texts: Sequence[str]) -> list[Told]:
            with AnswerBook(tmp_path) as book:  # as another process would
                book.keep([(key_of(self.digest, "text 8"), Told(answer="first")), (key_of(self.digest, texts[0]), one)])
            return await super().ask_many(texts)

    one = Told(answer="told another before")
    asked = ask_all(Meanwhile(), texts, folder=tmp_path, budget=Budget(requests=1))
    assert [told.answer for told in asked.told if told is not None] == ["told another before", "first"]
    again = ask_all(other, texts, folder=tmp_path, budget=Budget(requests=0))
    assert [told and told.answer for told in again.told] == [told and told.answer for told in asked.told]


def test_a_torn_file_loses_at_most_its_end(tmp_path: Path) -> None:
    ask_all(Plain(), ["a"], folder=tmp_path)
    log = tmp_path / f"{BOOK_FILE}-wal"
    log.write_bytes(os.urandom(99))  # what a power cut may leave
    assert answers(ask_all(Plain(), ["a", "b"], folder=tmp_path)) == ["A", "B"]


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / BOOK_FILE).write_bytes(b"rubbish" * 1000)
    with pytest.raises(StoreError, match=r"answers\.db cannot be read or written"):
        ask_all(Plain(), ["a"], folder=tmp_path)


def test_answers_are_not_printed_in_secret(tmp_path: Path) -> None:
    """What `asyncio.run` is given back it prints for a message that nobody sees: minutes for long vectors."""

    class Exact(Plain):
        async def ask_many(self, texts: Sequence[str]) -> list[Told]:
            return [Told(answer=text, vector=np.zeros(4, np.float32)) for text in texts]

    def fail(array: object) -> str:
        raise AssertionError("a vector was printed")

    with np.printoptions(override_repr=fail):
        for _ in range(2):
            ask_all(Exact(), ["a", "b"], folder=tmp_path)


# --- many at once


def test_as_many_at_once_as_the_teacher_bears(tmp_path: Path) -> None:
    teacher = Plain(parallel=4, batch=3)
    texts = [str(number) for number in range(50)]
    assert answers(ask_all(teacher, texts, folder=tmp_path)) == texts
    assert teacher.most_at_once == 4
    assert set(teacher.asked.values()) == {1}


async def test_from_a_running_loop(tmp_path: Path) -> None:
    assert answers(ask_all(Plain(), ["a"], folder=tmp_path)) == ["A"]


def test_progress(tmp_path: Path) -> None:
    ask_all(Plain(), ["a"], folder=tmp_path)
    seen: list[AskProgress] = []
    ask_all(Plain(cost=0.5), ["a", "b", "c", "d"], folder=tmp_path, progress=seen.append)
    assert [(each.done, each.total, each.known, each.asked, each.cost) for each in seen] == [
        (1, 4, 1, 0, 0.0),
        (2, 4, 1, 1, 0.5),
        (3, 4, 1, 2, 1.0),
        (4, 4, 1, 3, 1.5),
    ]
    assert seen[0].eta_s is None
    assert (seen[1].eta_s or 0.0) > 0.0
    assert seen[-1].eta_s == 0.0


# --- patience


@pytest.mark.parametrize("error", [refused(429), refused(503), UpstreamTimeout("late"), refused(500, "0")])
def test_passing_errors_are_tried_again(tmp_path: Path, error: Exception) -> None:
    teacher = Plain(failing(2, error), parallel=2)
    assert answers(ask_all(teacher, ["a", "b", "c"], folder=tmp_path)) == ["A", "B", "C"]
    assert set(teacher.asked.values()) == {3}


def test_retry_after_holds_for_all(tmp_path: Path) -> None:
    teacher = Plain(failing(1, refused(429, "0.3")), parallel=2)
    started = time.monotonic()
    ask_all(teacher, ["a", "b", "c", "d"], folder=tmp_path)
    assert time.monotonic() - started >= 0.3


def test_retry_after_as_a_date() -> None:
    from datetime import UTC, datetime, timedelta

    at = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
    assert seconds_of(at) == pytest.approx(99.0, abs=2.0)
    assert seconds_of("-3") == 0.0
    assert seconds_of(None) is None


def test_what_the_teacher_refuses_is_left_out(tmp_path: Path) -> None:
    def rule(text: str) -> str:
        if text == "bad":
            raise refused(400)
        return text

    asked = ask_all(Plain(rule, batch=3), ["a", "bad", "b", "c"], folder=tmp_path)
    assert answers(asked) == ["a", None, "b", "c"]
    assert asked.refused == {"status 400 no": 1}
    assert asked.stopped == ""


def test_a_teacher_that_refuses_all_is_not_asked_on(tmp_path: Path) -> None:
    teacher = Plain(failing(99, refused(400)))
    with pytest.raises(UpstreamError, match="answered none of the first 20 texts: status 400 no"):
        ask_all(teacher, [str(number) for number in range(100)], folder=tmp_path)
    assert teacher.asked.total() == 20


@pytest.mark.parametrize(
    ("error", "tries"), [(refused(401), 1), (UpstreamTimeout("late"), 6), (refused(429, "999"), 1)]
)
def test_a_teacher_that_is_gone(tmp_path: Path, error: Exception, tries: int) -> None:
    ask_all(Plain(), ["a"], folder=tmp_path)
    teacher = Plain(failing(99, error))
    with pytest.raises(UpstreamError, match=r"What it told of 1 of 2 texts is kept in .*answers\.db"):
        ask_all(teacher, ["a", "b"], folder=tmp_path)
    assert teacher.asked == {"b": tries}
    assert teacher.closed == 1


def test_what_is_under_way_is_kept_when_another_fails(tmp_path: Path) -> None:
    class Slow(Plain):
        async def ask_many(self, texts: Sequence[str]) -> list[Told]:
            if texts == ["bad"]:
                raise refused(401)
            await asyncio.sleep(0.2)
            return await super().ask_many(texts)

    with pytest.raises(UpstreamError):
        ask_all(Slow(parallel=2), ["slow", "bad", "never"], folder=tmp_path)
    later = Plain()
    ask_all(later, ["slow", "bad", "never"], folder=tmp_path)
    assert set(later.asked) == {"bad", "never"}


# --- budgets


def test_a_budget_of_requests(tmp_path: Path) -> None:
    texts = [str(number) for number in range(10)]
    teacher = Plain(parallel=3, batch=2)
    asked = ask_all(teacher, texts, folder=tmp_path, budget=Budget(requests=5))
    assert teacher.asked.total() == asked.asked == 5
    assert asked.stopped == "the budget of 5 requests is spent"
    rest = ask_all(Plain(), texts, folder=tmp_path, budget=Budget(requests=5))
    assert (rest.asked, rest.stopped, answers(rest)) == (5, "", texts)


def test_tries_count_as_requests(tmp_path: Path) -> None:
    teacher = Plain(failing(99, refused(503)))
    asked = ask_all(teacher, ["a", "b"], folder=tmp_path, budget=Budget(requests=3))
    assert (teacher.asked.total(), answers(asked)) == (3, [None, None])
    assert asked.stopped == "the budget of 3 requests allows no other try"


@settings(max_examples=30)
@given(st.floats(0.0, 20.0), st.integers(1, 5), st.integers(1, 3))
def test_a_budget_of_money(tmp_path_factory: pytest.TempPathFactory, money: float, parallel: int, batch: int) -> None:
    texts = [str(number) for number in range(10)]
    teacher = Plain(cost=1.0, parallel=parallel, batch=batch)
    asked = ask_all(teacher, texts, folder=tmp_path_factory.mktemp("money"), budget=Budget(money=money))
    assert asked.cost <= max(money, 1.0 if money > 0 else 0.0)
    assert asked.asked == (min(10, max(1, int(money))) if money > 0 else 0)
    assert bool(asked.stopped) == (asked.asked < 10)


def test_a_budget_of_money_needs_prices(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="give its prices"):
        ask_all(Plain(cost=None), ["a"], folder=tmp_path, budget=Budget(money=1.0))


def test_a_budget_of_seconds(tmp_path: Path) -> None:
    teacher = Plain(failing(99, refused(503, "200")))
    asked = ask_all(teacher, ["a"], folder=tmp_path, budget=Budget(seconds=5.0))
    assert asked.stopped == "the budget of 5 seconds allows no other try"
    assert ask_all(Plain(), ["a"], folder=tmp_path, budget=Budget(seconds=0.0)).stopped
    with pytest.raises(SettingsError, match="budget's seconds is -1"):
        Budget(seconds=-1)


@pytest.mark.parametrize("how", ["plainly", "in a running loop"])
def test_ctrl_c_keeps_what_was_told(tmp_path: Path, how: str) -> None:
    code = """
        import asyncio, sys, time
        from pathlib import Path
        from puhui.teachers.asking import ask_all
        from puhui.teachers.teacher import TeacherOptions
        from puhui.teachers.teachers import open_teacher
        def ask(text):
            time.sleep(0.05)
            print(text, flush=True)
            return text
        teacher = open_teacher(ask, TeacherOptions(name="slow"))
        def run():
            try:
                ask_all(teacher, [str(n) for n in range(1000)], folder=Path(sys.argv[1]))
            except KeyboardInterrupt:
                sys.exit(7)
        async def as_a_notebook_does():
            run()
        if sys.argv[2] == "plainly":
            run()
        else:
            asyncio.new_event_loop().run_until_complete(as_a_notebook_does())
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path), how], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for _ in range(3):
        process.stdout.readline()
    process.send_signal(signal.SIGINT)
    said = 3 + len(process.stdout.readlines())
    process.stdout.close()
    assert process.wait(timeout=20) == 7
    with sqlite3.connect(tmp_path / BOOK_FILE) as file:
        assert file.execute("SELECT count(*) FROM answers").fetchone() == (said,)
    file.close()


def test_ctrl_c_at_the_very_end_in_a_running_loop() -> None:
    """When it comes, the loop that did the work is closed already."""

    async def interrupted() -> None:
        raise KeyboardInterrupt

    async def as_a_notebook_does() -> None:
        with pytest.raises(KeyboardInterrupt):
            run(interrupted())

    asyncio.run(as_a_notebook_does())


# --- over HTTP


def test_an_endpoint_is_asked_once_for_each_text(big: BigModel, tmp_path: Path) -> None:
    teacher = open_teacher(f"openai:gpt@{big.url}", TeacherOptions(prices=(1.0, 1.0)))
    texts = [f"text {number % 40}" for number in range(60)]
    forecast = estimate(teacher, texts, folder=tmp_path, probe=5)
    assert len(big.bodies) == 5
    assert (forecast.texts, forecast.distinct, forecast.known, forecast.to_ask, forecast.probed) == (60, 40, 5, 35, 5)
    assert (forecast.tokens_in, forecast.tokens_out) == (35 * 11, 35 * 3)
    assert forecast.cost == pytest.approx(35 * 14 / 1e6)
    assert forecast.seconds > 0.0
    asked = ask_all(teacher, texts, folder=tmp_path)
    assert answers(asked) == [text.upper() for text in texts]
    assert len(big.bodies) == 40
    assert asked.cost == pytest.approx(forecast.cost or 0.0)
    done = estimate(teacher, texts, folder=tmp_path)
    assert (done.to_ask, done.cost, done.seconds, done.probed) == (0, 0.0, 0.0, 0)


def test_an_endpoint_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UpstreamError, match=r"gives no more answers: http://127\.0\.0\.1:9/v1 cannot be reached"):
        ask_all(open_teacher("openai:gpt@http://127.0.0.1:9/v1"), ["a"], folder=tmp_path)


def test_log_probabilities_become_probabilities(big: BigModel, tmp_path: Path) -> None:
    big.logprobs = True
    teacher = open_teacher(f"openai:gpt@{big.url}")
    told = [each for each in ask_all(teacher, ["hello", "other"], folder=tmp_path).told if each]
    (soft, _) = soften(told, {"HELLO", "other"})
    assert soft == pytest.approx({"HELLO": 1 - np.exp(-2.5), "other": np.exp(-2.5)}, abs=0.03)
    given_by_itself = Told(answer="a", probabilities={"a": 1.0}, alternatives=(("b", -1.0),))
    assert soften([given_by_itself, Told(answer="a")], {"a", "b"}) == [{"a": 1.0}, None]


def test_run_gives_errors_on() -> None:
    async def fail() -> None:
        raise LearningError("why")

    with pytest.raises(LearningError, match="why"):
        run(fail())
    assert msgspec.to_builtins(Budget(requests=3)) == {"money": None, "requests": 3, "seconds": None}
