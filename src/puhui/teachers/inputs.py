"""What an expert is learned from: rows of a file, read as a stream, or of a task in a node's store."""

from __future__ import annotations

import csv
import io
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeAlias

import msgspec
from sqlalchemy import or_, select

from puhui.cascade.agreement import NOT_TEXT, canonical
from puhui.core.errors import LearningError, UnknownModel
from puhui.core.request import Message
from puhui.store.database import Store
from puhui.store.tables import contexts, experience, tasks
from puhui.teachers.answer_book import bare
from puhui.teachers.teacher import Told

MOST_ROWS = 50_000
MOST_LINE_BYTES = 8 * 1024 * 1024
PROGRESS_EVERY = 1000
OPEN_SET = 0.5
KINDS = (".jsonl", ".ndjson", ".csv", ".tsv", ".txt")

Show: TypeAlias = Callable[[int, int], None]


class Rows(msgspec.Struct, frozen=True, kw_only=True):
    """Rows to learn from, in the order in which they lie.

    `told` holds what is known of each text's answer already, None where it is to be asked. `prompt` is the system
    prompt that the rows share, if they have one. Of the `read` rows, `bad` could not be used (`first_bad` says which
    was the first and why), `left_out` have another system prompt, and `copies` have the text of another. `traffic`
    says that they are what a node was really asked: how often a text lies among them is then its weight.
    """

    texts: list[str]
    told: list[Told | None]
    prompt: str | None = None
    read: int = 0
    bad: int = 0
    first_bad: str = ""
    left_out: int = 0
    copies: int = 0
    traffic: bool = False

    def once(self) -> Rows:
        """Each text once, with the first answer that a copy of it has; traffic as it is.

        A text that teaches must not prove as well: of a file nobody knows that new requests repeat its texts.

        >>> rows = Rows(texts=["a", "b", "a "], told=[None, None, Told(answer="x")])
        >>> rows.once().texts, rows.once().told[0].answer, rows.once().lost
        (['a', 'b'], 'x', ['1 of 3 rows are copies of others: each text counts once'])
        """
        if self.traffic:
            return self
        found: dict[str, tuple[str, Told | None]] = {}
        for text, told in zip(self.texts, self.told, strict=True):
            first, known = found.get(key := bare(text), (text, None))
            found[key] = first, known or told
        return msgspec.structs.replace(
            self,
            texts=[text for text, _ in found.values()],
            told=[told for _, told in found.values()],
            copies=self.copies + len(self.texts) - len(found),
        )

    @property
    def lost(self) -> list[str]:
        """What of the file is not among them, in words.

        >>> Rows(texts=["a"], told=[None], read=2, bad=1, first_bad="line 2: no UTF-8").lost
        ['1 of 2 rows cannot be used; the first: line 2: no UTF-8']
        """
        said, usable = [], self.read - self.bad
        if self.bad:
            said.append(f"{self.bad:,} of {self.read:,} rows cannot be used; the first: {self.first_bad}")
        if self.left_out:
            said.append(f"{self.left_out:,} rows are left out, as their system prompt is not the commonest one")
        if usable > (kept := len(self.texts) + self.copies + self.left_out):
            said.append(f"{kept:,} of {usable:,} rows were drawn at random: no more are used")
        if self.copies:
            rows = len(self.texts) + self.copies
            said.append(f"{self.copies:,} of {rows:,} rows are copies of others: each text counts once")
        return said


class _Row(NamedTuple):
    """One usable row of a file."""

    text: str
    answer: str | None
    prompt: str | None


class _Line(msgspec.Struct):
    """The fields of a JSON row that are read."""

    text: str | None = None
    messages: list[Message] | None = None
    answer: Any = None
    label: Any = None


_decode = msgspec.json.Decoder(_Line | str).decode


def read_rows(path: Path, *, max_rows: int = MOST_ROWS, seed: int = 0, progress: Show | None = None) -> Rows:
    """A fair sample of at most `max_rows` rows of a file, in one pass that holds no more than those.

    A row of JSONL is `{"text": …}`, an OpenAI request `{"messages": […]}` with one question (an assistant's message
    after it is the answer), or a string; `answer` or `label` give the answer. A `.csv` or `.tsv` has the columns text
    and, if known, answer or label. A line of `.txt` is a text. `progress` gets bytes read and bytes in all.

    Raises LearningError for a file that is not there, empty, binary, or without one usable row.

    Method: reservoir sampling (algorithm R, Vitter 1985).
    """
    if path.suffix.lower() not in KINDS or not path.is_file():
        raise LearningError(f"{path} is no file of rows; what can be read is a file {', '.join(KINDS)}")
    draw = random.Random(seed)
    kept: list[tuple[int, _Row]] = []
    read, bad, first_bad, size = 0, 0, "", path.stat().st_size
    with path.open("rb") as file:
        _check_text(path, file)
        for number, row in _rows_in(path.suffix.lower(), file):
            if isinstance(row, str):
                bad, first_bad = bad + 1, first_bad or f"line {number}: {row}"
            elif (place := read - bad) < max_rows:
                kept.append((number, row))
            elif (place := draw.randrange(place + 1)) < max_rows:
                kept[place] = (number, row)
            read += 1
            if progress is not None and read % PROGRESS_EVERY == 0:
                progress(min(file.tell(), size), size)
    if progress is not None:
        progress(size, size)
    if not kept:
        raise LearningError(f"{path} has no row that can be used, of {read}" + (f"; {first_bad}" if bad else ""))
    return _of_one_prompt([row for _, row in sorted(kept, key=itemgetter(0))], read, bad, first_bad)


def _of_one_prompt(rows: list[_Row], read: int, bad: int, first_bad: str) -> Rows:
    prompt = Counter(row.prompt for row in rows).most_common(1)[0][0]
    taken = [row for row in rows if row.prompt == prompt]
    return Rows(
        texts=[row.text for row in taken],
        told=[None if row.answer is None else Told(answer=row.answer) for row in taken],
        prompt=prompt,
        read=read,
        bad=bad,
        first_bad=first_bad,
        left_out=len(rows) - len(taken),
    )


def _check_text(path: Path, file: BinaryIO) -> None:
    """Raises LearningError for what is no UTF-8 text; skips a byte-order mark."""
    start = file.read(8192)
    if not start.strip():
        raise LearningError(f"{path} is empty: give it one row a line")
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise LearningError(f"{path} is text in UTF-16: save it as UTF-8")
    if b"\x00" in start or start.startswith((b"\x1f\x8b", b"PK\x03\x04", b"\x28\xb5\x2f\xfd")):
        raise LearningError(
            f"{path} is a binary file (it begins with {start[:8]!r}): unpack or convert it to text first"
        )
    if path.suffix.lower() not in (".csv", ".tsv", ".txt") and start.lstrip().startswith(b"[") and b"\n" not in start:
        raise LearningError(f"{path} is one JSON list; rows are read one a line: jq -c '.[]' {path.name} > rows.jsonl")
    file.seek(3 if start.startswith(b"\xef\xbb\xbf") else 0)


def _rows_in(kind: str, file: BinaryIO) -> Iterator[tuple[int, _Row | str]]:
    """Line numbers from 1 with the row, or with what is wrong with it; blank lines are passed over."""
    if kind in (".csv", ".tsv"):
        yield from _rows_of_table(file, "," if kind == ".csv" else "\t")
        return
    for number, line in enumerate(_lines(file), 1):
        if line is None:
            yield number, f"longer than {MOST_LINE_BYTES} bytes"
        elif line.strip():
            yield number, _row_of_json(line) if kind != ".txt" else _row_of_text(line)


def _lines(file: BinaryIO) -> Iterator[bytes | None]:
    """Lines; None for one that is too long to be held."""
    while line := file.readline(MOST_LINE_BYTES):
        if len(line) < MOST_LINE_BYTES or line.endswith(b"\n"):
            yield line
            continue
        while line and not line.endswith(b"\n"):
            line = file.readline(MOST_LINE_BYTES)
        yield None


def _row_of_text(line: bytes) -> _Row | str:
    try:
        return _Row(line.decode().strip(), None, None)
    except UnicodeDecodeError as error:
        return f"no UTF-8 ({error.reason})"


def _row_of_json(line: bytes) -> _Row | str:
    try:
        said = _decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        return f"{error}; a row is a text, or an object with text or messages"
    if isinstance(said, str):
        return _Row(said, None, None)
    answer = _answer_of(said.label if said.answer is None else said.answer)
    if said.text is not None:
        return _Row(said.text, answer, None)
    if said.messages is None:
        return "it has neither text nor messages"
    return _row_of_messages(said.messages, answer)


def _row_of_messages(messages: list[Message], answer: str | None) -> _Row | str:
    *asked, last = messages or [Message("")]
    if last.role == "assistant" and asked:
        answer = canonical(last.text) if answer is None and last.text is not None else answer
        *asked, last = asked
    before = [message.text for message in asked]
    if last.role != "user" or any(message.role not in ("system", "developer") for message in asked):
        return "its messages are not one question (system prompts, then one message of the user's)"
    if last.text is None or None in before:
        return "its messages hold something that is no text"
    return _Row(last.text, answer, "\n".join(text for text in before if text) or None)


def _answer_of(said: Any) -> str | None:
    """An answer as text: strings as they are, all else as JSON."""
    if said is None:
        return None
    return canonical(said if isinstance(said, str) else msgspec.json.encode(said, order="sorted").decode())


def _rows_of_table(file: BinaryIO, delimiter: str) -> Iterator[tuple[int, _Row | str]]:
    lines = io.TextIOWrapper(file, "utf-8", errors="replace", newline="")
    reader = csv.reader(lines, delimiter=delimiter)
    names = [name.strip().lower() for name in next(reader, [])]
    if "text" not in names:
        raise LearningError(f"the table has the columns {', '.join(names)[:200]}; name the one with the texts: text")
    text, answer = names.index("text"), next((names.index(name) for name in ("answer", "label") if name in names), None)
    try:
        for fields in reader:
            if len(fields) != len(names):
                yield reader.line_num, f"{len(fields)} fields, but {len(names)} columns"
            else:
                told = None if answer is None else fields[answer]
                yield reader.line_num, _Row(fields[text], canonical(told) if told else None, None)
    except csv.Error as error:
        yield reader.line_num, str(error)
    finally:
        lines.detach()  # the file is the caller's to close


def rows_of_task(store: Store, name: str) -> Rows:
    """The big model's answers to a task of the node's, oldest first; `name` is its name, its id or how the id begins.

    UnknownModel where no task, or more than one, is meant.
    """
    with store.begin() as connection:
        meant = or_(tasks.c.name == name, tasks.c.id.startswith(name, autoescape=True))
        found = connection.execute(select(tasks).where(meant)).all() if name else []
        if len(found) != 1:
            known = ", ".join(connection.execute(select(tasks.c.name)).scalars().all())[:400] or "none yet"
            raise UnknownModel(f"{name!r} names {len(found)} tasks; known are {known}: give the name or id of one")
        task = found[0]
        prompt = connection.execute(select(contexts.c.text).where(contexts.c.group == task.group)).scalar()
        query = (
            select(experience.c.input, experience.c.answer, experience.c.alternatives)
            .where(
                experience.c.group == task.group,
                experience.c.answer.is_not(None),
                experience.c.answer != NOT_TEXT,
            )
            .order_by(experience.c.number)
        )
        rows = [row for row in connection.execute(query) if _within(row.input, task.prefix, task.suffix)]
    texts = [row.input[len(task.prefix) : len(row.input) - len(task.suffix)] for row in rows]
    told: list[Told | None] = [
        Told(
            answer=canonical(row.answer), alternatives=tuple((token, share) for token, share in row.alternatives or ())
        )
        for row in rows
    ]
    return Rows(texts=texts, told=told, prompt=prompt or None, read=len(rows), traffic=True)


def _within(text: str, prefix: str, suffix: str) -> bool:
    return len(text) >= len(prefix) + len(suffix) and text.startswith(prefix) and text.endswith(suffix)


def check_answers(answers: Sequence[str]) -> Counter[str]:
    """How often each answer was given. LearningError where they are nothing that an expert can learn, and why.

    Whether the answers come from a closed set is told by Good and Turing (Good 1953): the chance that the next answer
    is one never seen is about the share of those seen once. Above one half there is no task here.
    """
    counts = Counter(canonical(answer) for answer in answers)
    empty = counts.get("", 0)
    if not counts or empty == len(answers):
        raise LearningError(f"all {len(answers)} answers are empty: does the big model answer this prompt at all?")
    shown = ", ".join(repr(answer)[:40] for answer, _ in counts.most_common(3))
    if len(counts) == 1:
        raise LearningError(
            f"all {len(answers)} answers are {shown}: with one answer there is nothing to learn. Is the data all of "
            "one kind, or does the prompt allow no other answer?"
        )
    once = sum(count == 1 for count in counts.values())
    if once > OPEN_SET * len(answers):
        many = "every answer is different" if len(counts) == len(answers) else f"{len(counts)} answers are different"
        raise LearningError(
            f"no task here: of {len(answers)} answers, {many} (such as {shown}), and the chance that the next is a new "
            f"one is about {once / len(answers):.0%}. That is free text; a prompt that names the answers allowed makes "
            "a task of it"
        )
    return counts
