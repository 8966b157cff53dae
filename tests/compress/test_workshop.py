"""The workshop from end to end: a teacher that is really asked, an expert that is really sealed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import experts as sample
from puhui.bundles.bundle import open_bundle, open_expert
from puhui.compress.profiles import Profile
from puhui.compress.search import Goal
from puhui.compress.workshop import Order, Watcher, craft, open_rows
from puhui.core.errors import LearningError, SettingsError
from puhui.teachers.inputs import Rows
from puhui.teachers.probing import Estimate, SelfAgreement
from puhui.teachers.teacher import TeacherOptions, Told
from puhui.teachers.teachers import open_teacher
from puhui.trust.keys import SigningKey, load_or_create_key


class Notes(Watcher):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.asked_for: list[int] = []
        self.ceilings: list[SelfAgreement] = []

    def estimated(self, found: Estimate) -> None:
        self.asked_for.append(found.to_ask)

    def contradicts(self, found: SelfAgreement) -> None:
        self.ceilings.append(found)

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def key(tmp_path: Path) -> SigningKey:
    return load_or_create_key(tmp_path / "key")


def rows(count: int) -> Rows:
    texts = sample.questions(count, seed=4)
    return Rows(texts=texts, told=[None] * count, read=count)


def order(folder: Path, name: str = "made", **more: object) -> Order:
    usual: dict[str, object] = {"out": folder / name, "work": folder / "work", "goal": Goal(keep=0.9)}
    return Order(**usual | more)  # type: ignore[arg-type]


def test_from_a_callable_to_a_signed_expert(tmp_path: Path, key: SigningKey) -> None:
    asked: list[str] = []

    def big(text: str) -> str:
        asked.append(text)
        return sample.subject_of(text)

    teacher = open_teacher(big, TeacherOptions(name="subjects"))
    notes = Notes()
    made = craft(teacher, rows(700), order(tmp_path, command="puhui compress …"), key, notes)
    card, _ = open_bundle(made.folder, expert=made.id, trusted={key.public})
    assert card == made.card
    assert card.family == "static"
    assert card.data is not None
    assert (card.data.rows, card.data.held_out) == (700, 175)
    assert card.calibration["threshold"] is not None
    assert card.ceiling is not None
    assert card.ceiling.agreement == 1.0
    assert notes.ceilings[0].rows == 100
    assert {"this", "browser", "phone", "edge"} <= card.devices.keys()
    assert set(card.commands.values()) == {"puhui compress …"}
    assert [one.chosen for one in card.trade_offs] == [True]
    assert {"card.html", "README.md"} <= {path.name for path in made.folder.iterdir()}
    text = "my cash and my bank account"
    said = open_expert(made.folder).ask(text)
    assert (said.label, said.sure) == ("money", True)

    # Again, elsewhere: nothing that was told is asked twice.
    asked.clear()
    again = craft(teacher, rows(700), order(tmp_path, "again"), key, Notes())
    assert asked == []
    assert again.card.calibration == card.calibration


def test_answers_that_are_known_are_not_asked(tmp_path: Path, key: SigningKey) -> None:
    texts = sample.questions(600, seed=4)
    known = Rows(texts=texts, told=[Told(answer=sample.subject_of(text)) for text in texts], read=600)
    teacher = open_teacher(lambda _: pytest.fail("it was asked"), TeacherOptions(name="never"))
    teacher.deterministic = True
    made = craft(teacher, known, order(tmp_path), key)
    assert made.card.ceiling is None
    assert made.card.agreement > 0.95


def test_json_answers(tmp_path: Path, key: SigningKey) -> None:
    def big(text: str) -> str:
        return json.dumps({"subject": sample.subject_of(text), "ticket": text.rpartition(" ")[2]})

    teacher = open_teacher(big, TeacherOptions(name="tickets"))
    made = craft(teacher, rows(700), order(tmp_path), key)
    assert made.card.family == "fields"
    assert made.card.agreement_rule["type"] == "fields"
    answer = json.loads(open_expert(made.folder).ask("my cash or my bank account number 1234").label)
    assert answer == {"subject": "money", "ticket": "1234"}


def test_few_answers_give_an_expert_that_says_it_is_not_proven(tmp_path: Path, key: SigningKey) -> None:
    notes = Notes()
    teacher = open_teacher(sample.subject_of, TeacherOptions(name="subjects"))
    made = craft(teacher, rows(100), order(tmp_path), key, notes)
    assert made.card.calibration["threshold"] is None
    assert "takes 149 of them" in notes.notes[0]
    assert not open_expert(made.folder).ask("my cash").sure


def test_a_big_model_that_contradicts_itself_has_a_ceiling(tmp_path: Path, key: SigningKey) -> None:
    turns = iter(range(10_000))

    def big(text: str) -> str:
        return "food" if next(turns) % 3 == 0 else sample.subject_of(text)

    notes = Notes()
    teacher = open_teacher(big, TeacherOptions(name="moody"))
    with pytest.raises(LearningError, match=r"keeps 90\.0%"):
        craft(teacher, rows(400), order(tmp_path, goal=Goal(keep=0.9, trials=2)), key, notes)
    assert notes.ceilings[0].share < 0.9
    nearest = order(tmp_path, goal=Goal(keep=0.9, trials=2), accept_nearest=True)
    made = craft(teacher, rows(400), nearest, key, notes)
    assert made.card.ceiling is not None
    assert made.card.ceiling.agreement == notes.ceilings[-1].share
    assert "keeps 90.0%" in notes.notes[-1]


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (lambda text: "yes", "with one answer there is nothing to learn"),
        (lambda text: text[::-1], "no task here: of 200 answers, every answer is different"),
        (lambda text: " ", "all 200 answers are empty"),
    ],
)
def test_no_task_here(tmp_path: Path, key: SigningKey, answer: object, told: str) -> None:
    teacher = open_teacher(answer, TeacherOptions(name=told))  # type: ignore[arg-type]
    with pytest.raises(LearningError, match=told):
        craft(teacher, rows(200), order(tmp_path), key)
    assert not (tmp_path / "made").exists()


def test_a_target_that_nothing_meets(tmp_path: Path, key: SigningKey) -> None:
    teacher = open_teacher(sample.subject_of, TeacherOptions(name="subjects"))
    goal = Goal(profile=Profile(name="button", bytes=100), keep=0.9, trials=2)
    for accept in (False, True):  # what a device cannot hold is never made
        with pytest.raises(LearningError, match="nothing fits the target 'button'"):
            craft(teacher, rows(200), order(tmp_path, goal=goal, accept_nearest=accept), key)


def test_a_folder_that_is_taken(tmp_path: Path, key: SigningKey) -> None:
    (tmp_path / "made").mkdir()
    teacher = open_teacher(sample.subject_of, TeacherOptions(name="subjects"))
    with pytest.raises(SettingsError, match="exists already"):
        craft(teacher, rows(200), order(tmp_path), key)


def test_rows_come_from_a_file_or_a_task_and_from_one_alone(tmp_path: Path) -> None:
    (tmp_path / "some.jsonl").write_text('{"text": "a"}\n')
    assert open_rows(tmp_path / "some.jsonl", None, "sqlite://").texts == ["a"]
    for data, task in ((None, None), (tmp_path / "some.jsonl", "task")):
        with pytest.raises(SettingsError, match="either a file by --data, or a task"):
            open_rows(data, task, "sqlite://")
