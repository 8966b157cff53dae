"""Rows of files and of tasks in the store, good and bad."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import insert

from puhui.core.errors import LearningError, UnknownModel
from puhui.store.database import Store
from puhui.store.tables import contexts, experience, tasks
from puhui.teachers.inputs import Rows, check_answers, read_rows, rows_of_task


def written(folder: Path, *rows: object, name: str = "rows.jsonl") -> Path:
    path = folder / name
    lines = [row if isinstance(row, bytes) else msgspec.json.encode(row) for row in rows]
    path.write_bytes(b"\n".join(lines))
    return path


def answers(rows: Rows) -> list[str | None]:
    return [told and told.answer for told in rows.told]


def chat(*turns: tuple[str, object]) -> dict[str, object]:
    return {"model": "gpt", "messages": [{"role": role, "content": content} for role, content in turns]}


def test_rows_of_every_form(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        {"text": "one", "answer": " a\n", "more": [1]},
        "two",
        {"text": "", "label": "b"},
        b"",
        {"text": "four", "answer": {"y": 2, "x": "1"}},
        chat(("user", "five")),
        chat(("user", [{"type": "text", "text": "six"}]), ("assistant", "c")),
        {"text": "中文🍕", "answer": 7},
    )
    rows = read_rows(path)
    assert rows.texts == ["one", "two", "", "four", "five", "six", "中文🍕"]
    assert answers(rows) == ["a", None, "b", '{"x":"1","y":2}', None, "c", "7"]
    assert (rows.read, rows.bad, rows.first_bad, rows.left_out, rows.prompt) == (7, 0, "", 0, None)


@given(st.lists(st.tuples(st.text(), st.none() | st.text())).filter(bool))
def test_what_is_written_is_read(tmp_path: Path, pairs: list[tuple[str, str | None]]) -> None:
    rows = read_rows(written(tmp_path, *({"text": text, "answer": answer} for text, answer in pairs)))
    assert rows.texts == [text for text, _ in pairs]
    assert answers(rows) == [None if answer is None else answer.strip() for _, answer in pairs]


def test_the_system_prompt_that_most_rows_share(tmp_path: Path) -> None:
    sort = [chat(("system", "Sort."), ("user", f"text {number}")) for number in range(3)]
    rows = read_rows(written(tmp_path, *sort, chat(("developer", "Count."), ("user", "x"))))
    assert (rows.prompt, rows.texts, rows.left_out) == ("Sort.", ["text 0", "text 1", "text 2"], 1)


def test_bad_lines_are_counted_and_the_first_is_named(tmp_path: Path) -> None:
    bad = (
        b"{",
        {"input": "x"},
        {"text": 3},
        [1],
        b"\xff\xfe\x41",
        chat(("user", "a"), ("assistant", "b"), ("user", "c")),
        chat(("user", [{"type": "image_url", "image_url": {"url": "x"}}])),
        chat(),
        b'{"text": "x" * 3}',
    )
    for row in bad:
        rows = read_rows(written(tmp_path, {"text": "good"}, b"", row, {"text": "good too"}))
        assert rows.texts == ["good", "good too"]
        assert (rows.read, rows.bad) == (3, 1)
        assert rows.first_bad.startswith("line 3: ")
    with pytest.raises(LearningError, match="no row that can be used, of 2; line 1: "):
        read_rows(written(tmp_path, b"{", b"["))


def test_a_line_that_is_too_long(tmp_path: Path) -> None:
    path = written(tmp_path, {"text": "x" * 20_000_000}, {"text": "good"})
    rows = read_rows(path)
    assert (rows.texts, rows.first_bad) == (["good"], "line 1: longer than 8388608 bytes")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "is empty"),
        (b" \n\n", "is empty"),
        (b"\x89PNG\r\n\x1a\n\x00\x00", "is a binary file"),
        (b"\x1f\x8b\x08abc", "is a binary file"),
        ('{"text": "x"}'.encode("utf-16"), "UTF-16: save it as UTF-8"),
        (b'[{"text": "x"}, {"text": "y"}]', "is one JSON list; rows are read one a line"),
    ],
)
def test_files_that_are_no_rows(tmp_path: Path, content: bytes, why: str) -> None:
    (tmp_path / "x.jsonl").write_bytes(content)
    with pytest.raises(LearningError, match=why):
        read_rows(tmp_path / "x.jsonl")


def test_no_file(tmp_path: Path) -> None:
    for name in ("none.jsonl", "rows.parquet", "."):
        with pytest.raises(LearningError, match=r"is no file of rows; what can be read is a file \.jsonl"):
            read_rows(tmp_path / name)


def test_tables_and_plain_text(tmp_path: Path) -> None:
    table = 'id,Text,label\n1,"one, two",a\n2,"three\nfour",\n3,x\n'
    for name, content in (("t.csv", table), ("t.tsv", table.replace(",", "\t").replace("one\t", "one,"))):
        (tmp_path / name).write_text("\ufeff" + content)
        rows = read_rows(tmp_path / name)
        assert (rows.texts, answers(rows)) == (["one, two", "three\nfour"], ["a", None])
        assert (rows.bad, rows.first_bad) == (1, "line 5: 2 fields, but 3 columns")
    (tmp_path / "t.txt").write_text("one\r\n\ntwo\n")
    assert read_rows(tmp_path / "t.txt").texts == ["one", "two"]
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    with pytest.raises(LearningError, match="columns a, b; name the one with the texts: text"):
        read_rows(tmp_path / "t.csv")


def test_a_sample_is_fair_repeatable_and_in_order(tmp_path: Path) -> None:
    path = written(tmp_path, *({"text": f"{number:03}"} for number in range(100)))
    drawn = [read_rows(path, max_rows=20, seed=seed).texts for seed in range(200)]
    assert all(len(texts) == 20 and texts == sorted(set(texts)) for texts in drawn)
    assert read_rows(path, max_rows=20, seed=3).texts == drawn[3]
    counts = Counter(text for texts in drawn for text in texts)
    # Each row is in Binomial(200, 0.2) of the draws, mean 40 and deviation 5.7: five of them either way.
    assert min(counts[f"{number:03}"] for number in range(100)) >= 12
    assert max(counts.values()) <= 68
    assert read_rows(path, max_rows=20).read == 100


def test_progress_is_in_bytes(tmp_path: Path) -> None:
    path = written(tmp_path, *({"text": "x" * 100} for _ in range(2500)))
    seen: list[tuple[int, int]] = []
    read_rows(path, progress=lambda done, total: seen.append((done, total)))
    size = path.stat().st_size
    assert [total for _, total in seen] == [size] * 3
    assert 0 < seen[0][0] < seen[1][0] < seen[2][0] == size


def test_a_large_file_is_streamed(tmp_path: Path) -> None:
    path = tmp_path / "large.jsonl"
    line = msgspec.json.encode({"text": "a text of some length " * 40}) + b"\n"
    with path.open("wb") as file:
        for _ in range(150):
            file.write(line * 1000)  # 132 MB
    code = """
        import resource, sys
        from pathlib import Path
        from puhui.teachers.inputs import read_rows
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        rows = read_rows(Path(sys.argv[1]), max_rows=1000)
        print(rows.read, len(rows.texts), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(path)], capture_output=True, text=True, check=True, timeout=60
    )
    read, kept, grown_kb = map(int, ran.stdout.split())
    assert (read, kept) == (150_000, 1000)
    assert grown_kb < 30_000 * (1024 if sys.platform == "darwin" else 1)


# --- tasks in the store


def remember(store: Store, *rows: tuple[str, str | None]) -> None:
    usual = {"at": 1.0, "group": "context:1", "coin": False}
    with store.begin() as connection:
        for number, (text, answer) in enumerate(rows):
            row = {"id": f"r{number}", "input": text, "answer": answer, "alternatives": [["a", -0.5]]}
            connection.execute(insert(experience), usual | row)


def add_task(store: Store, **more: object) -> None:
    row = {"id": "task-1", "name": "mail", "group": "context:1", "model": "m", "created": 0.0, "state": {}}
    with store.begin() as connection:
        connection.execute(insert(tasks), row | {"prefix": "", "suffix": ""} | more)


def test_the_rows_of_a_task(store: Store) -> None:
    add_task(store)
    with store.begin() as connection:
        connection.execute(insert(contexts), {"group": "context:1", "model": "m", "text": "Sort."})
    remember(store, ("one", " a "), ("two", None), ("three", "(not text)"), ("four", "b"))
    for name in ("mail", "task-1", "task"):
        rows = rows_of_task(store, name)
        assert (rows.texts, answers(rows), rows.prompt) == (["one", "four"], ["a", "b"], "Sort.")
        assert rows.traffic
        assert rows.told[0] is not None
        assert rows.told[0].alternatives == (("a", -0.5),)


def test_the_rows_of_a_template(store: Store) -> None:
    add_task(store, prefix="Sort: ", suffix="!")
    remember(store, ("Sort: one!", "a"), ("sort: two!", "a"), ("Sort: three", "a"), ("Sort: !", "b"), ("Sort:!", "b"))
    assert rows_of_task(store, "mail").texts == ["one", ""]


def test_a_task_that_is_not_there(store: Store) -> None:
    with pytest.raises(UnknownModel, match="'mail' names 0 tasks; known are none yet"):
        rows_of_task(store, "mail")
    add_task(store)
    add_task(store, id="task-2", name="other")
    for name in ("task-", ""):
        with pytest.raises(UnknownModel, match="known are mail, other: give the name or id of one"):
            rows_of_task(store, name)


# --- sanity of answers


def test_answers_that_can_be_learned() -> None:
    assert check_answers(["a", " a", "b", "c"]) == {"a": 2, "b": 1, "c": 1}
    assert check_answers(["a", "", "a", ""]) == {"a": 2, "": 2}


@pytest.mark.parametrize(
    ("answers", "why"),
    [
        ([], "all 0 answers are empty"),
        (["", " \n"], "all 2 answers are empty"),
        (["a", "a "], "all 2 answers are 'a': with one answer there is nothing to learn"),
        ([f"text {n}" for n in range(50)], "of 50 answers, every answer is different .* chance .* is about 100%"),
        ([*"abcdefghij", "z", "z"], "no task here: of 12 answers, 11 answers are different .* about 83%"),
    ],
)
def test_answers_that_cannot_be_learned(answers: list[str], why: str) -> None:
    with pytest.raises(LearningError, match=why):
        check_answers(answers)


def test_what_is_lost_of_a_file_is_said(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    plain = [msgspec.json.encode({"text": str(number)}).decode() for number in range(30)]
    other = {"messages": [{"role": "system", "content": "Sort."}, {"role": "user", "content": "a"}]}
    file.write_text("\n".join([*plain, msgspec.json.encode(other).decode(), "{"]))
    assert [said.partition(";")[0] for said in read_rows(file).lost] == [
        "1 of 32 rows cannot be used",
        "1 rows are left out, as their system prompt is not the commonest one",
    ]
    assert read_rows(file, max_rows=20).lost[-1] == "20 of 31 rows were drawn at random: no more are used"


def test_copies_count_once_but_for_traffic(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    lines = ['{"text": "a", "answer": "x"}', '"b"', '{"text": " a", "answer": "y"}', '{"text": "b\\n", "answer": "z"}']
    path.write_text("\n".join([*lines, '"c"']))
    rows = read_rows(path)
    once = rows.once()
    assert (once.texts, answers(once)) == (["a", "b", "c"], ["x", "z", None])  # the first answer that a copy has
    assert once.lost == ["2 of 5 rows are copies of others: each text counts once"]
    assert once.once() == once
    few = read_rows(path, max_rows=2).once()
    assert few.lost[0] == "2 of 5 rows were drawn at random: no more are used"
    traffic = msgspec.structs.replace(rows, traffic=True)
    assert traffic.once() is traffic
