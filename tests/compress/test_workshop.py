"""The workshop from end to end: a teacher that is really asked, an expert that is really sealed."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest

import experts as sample
from encoders import random_base
from puhui.bundles.bundle import open_bundle, open_expert
from puhui.compress.answer_shape import Label
from puhui.compress.profiles import Profile
from puhui.compress.recipes import Cooked, Kitchen, Material, Recipe
from puhui.compress.search import LADDER, Goal, Search
from puhui.compress.watcher import Watcher
from puhui.compress.workshop import Order, base_for, craft, open_rows
from puhui.core.errors import LearningError, SettingsError
from puhui.models.encoder import packaged_encoder
from puhui.teachers.asking import Budget
from puhui.teachers.inputs import Rows
from puhui.teachers.paraphrase import recombined
from puhui.teachers.probing import Estimate, SelfAgreement
from puhui.teachers.teacher import TeacherOptions, Told
from puhui.teachers.teachers import open_teacher
from puhui.trust.keys import SigningKey, load_or_create_key
from serving import BigModel


class Notes(Watcher):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.estimates: list[Estimate] = []
        self.ceilings: list[SelfAgreement] = []

    def estimated(self, found: Estimate) -> None:
        self.estimates.append(found)

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
    assert (made.keep, made.keeps) == (0.9, True)
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
    assert [(one.name, one.bits) for one in card.precision] == [("table of n-grams", 8)]
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


def test_numbers_are_labels_where_the_big_model_says_so(tmp_path: Path, key: SigningKey) -> None:
    """The 20 numbers fill their range: only the list of labels, or probabilities, tell that they are names."""

    def number(text: str) -> str:
        return str(int(text.rpartition(" ")[2]) % 20)

    texts = [f"please open drawer {drawer}" for drawer in range(400)]
    given = Rows(texts=texts, told=[None] * 400)
    listed = open_teacher(number, TeacherOptions(name="a", labels=tuple(map(str, range(20)))))
    soft = open_teacher(lambda text: (number(text), {number(text): 1.0}), TeacherOptions(name="b"))
    plain = open_teacher(number, TeacherOptions(name="c"))
    for name, teacher, rule in (("a", listed, "exact"), ("b", soft, "exact"), ("c", plain, "number")):
        goal = Goal(keep=0.0, trials=1)
        made = craft(teacher, given, order(tmp_path, name, goal=goal), key)
        assert made.card.agreement_rule["type"] == rule


def test_few_answers_give_an_expert_that_says_it_is_not_proven(tmp_path: Path, key: SigningKey) -> None:
    notes = Notes()
    teacher = open_teacher(sample.subject_of, TeacherOptions(name="subjects"))
    made = craft(teacher, rows(100), order(tmp_path), key, notes)
    assert made.card.calibration["threshold"] is None
    assert "takes 149 of them" in notes.notes[0]
    assert "15 answers judge the candidates, too few to prove a risk of 2.0%" in notes.notes[1]
    assert made.card.trade_offs[0].coverage
    assert not made.card.trade_offs[0].proven
    assert "coverage, not proven" in (made.folder / "README.md").read_text()
    assert not open_expert(made.folder).ask("my cash").sure


def test_a_big_model_that_contradicts_itself_has_a_ceiling(tmp_path: Path, key: SigningKey) -> None:
    turns = iter(range(10_000))

    def big(text: str) -> str:
        return "food" if next(turns) % 3 == 0 else sample.subject_of(text)

    notes = Notes()
    teacher = open_teacher(big, TeacherOptions(name="moody"))
    with pytest.raises(LearningError, match=r"keeps 90\.0%.*no expert can keep more than about .*--accept-nearest"):
        craft(teacher, rows(400), order(tmp_path, goal=Goal(keep=0.9, trials=2)), key, notes)
    assert notes.ceilings[0].share < 0.9
    nearest = order(tmp_path, goal=Goal(keep=0.9, trials=2), accept_nearest=True)
    made = craft(teacher, rows(400), nearest, key, notes)
    assert made.card.ceiling is not None
    assert made.card.ceiling.agreement == notes.ceilings[-1].share
    assert "keeps 90.0%" in notes.notes[-1]


def test_answers_that_agree_in_part_are_counted_by_their_rule(tmp_path: Path, key: SigningKey) -> None:
    """Numbers that are one off are nearly right: no expert is bound by how often they are the very same."""
    turns = iter(range(10_000))

    def big(text: str) -> str:
        return str(len(text) + next(turns) % 2)

    texts, notes = ["x" * (1 + number % 90) + f" {number}" for number in range(900)], Notes()
    teacher = open_teacher(big, TeacherOptions(name="scale"))
    given = Rows(texts=texts, told=[None] * 900)
    made = craft(teacher, given, order(tmp_path, goal=Goal(keep=0.5)), key, notes)
    assert made.card.family == "number"
    (twice,) = notes.ceilings
    assert not twice.whole
    assert 0.99 < twice.share < 1.0
    assert made.card.ceiling is not None
    assert made.card.ceiling.agreement == twice.share
    bins = made.card.reliability
    mean = sum(each.agreement * each.rows for each in bins) / sum(each.rows for each in bins)
    assert mean == pytest.approx(made.card.agreement)
    told = (made.folder / "README.md").read_text()
    assert "with itself by 99" in told
    assert "ceiling:" not in told


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (lambda text: "yes", "with one answer there is nothing to learn"),
        (lambda text: '["a", "b"]', "with one answer there is nothing to learn"),
        (lambda text: text[::-1], "no task here: of 200 answers, every answer is different"),
        (lambda text: " ", "all 200 answers are empty"),
    ],
)
def test_no_task_here(tmp_path: Path, key: SigningKey, answer: object, told: str) -> None:
    teacher = open_teacher(answer, TeacherOptions(name=told))  # type: ignore[arg-type]
    with pytest.raises(LearningError, match=told):
        craft(teacher, rows(200), order(tmp_path), key)
    assert not (tmp_path / "made").exists()


COLOURS = ("red", "blue", "green", "white", "black", "grey")


def colours_of(n: int) -> list[str]:
    return [colour for bit, colour in enumerate(COLOURS) if n * 37 >> bit & 1]


SHAPED = {
    "label_set": lambda n: json.dumps(colours_of(n)),
    "number": lambda n: f"{n % 73} km",
    "span": lambda n: f"Bad {n % 60}",
    "fields": lambda n: json.dumps({"town": f"Bad {n % 60}", "beds": n % 73}),
}


@pytest.mark.parametrize("family", SHAPED)
def test_answers_of_any_shape_need_no_more_than_a_hundred_and_fifty(
    tmp_path: Path, key: SigningKey, family: str
) -> None:
    texts = [f"{n % 73} {' '.join(colours_of(n))} rooms in Bad {n % 60}, please" for n in range(150)]
    told: list[Told | None] = [Told(answer=SHAPED[family](n)) for n in range(150)]
    teacher = open_teacher(sample.subject_of, TeacherOptions(name="subjects"))
    made = craft(teacher, Rows(texts=texts, told=told), order(tmp_path, goal=Goal(keep=0.0, trials=1)), key)
    assert made.card.family == family
    with pytest.raises(LearningError, match="records is seen from 84 on, and here are 60"):
        craft(teacher, Rows(texts=texts[:60], told=told[:60]), order(tmp_path, "few"), key)


def test_a_target_that_nothing_meets(tmp_path: Path, key: SigningKey) -> None:
    teacher = open_teacher(sample.subject_of, TeacherOptions(name="subjects"))
    goal = Goal(profile=Profile(name="button", bytes=100), keep=0.9, trials=2)
    for accept in (False, True):  # what a device cannot hold is never made
        with pytest.raises(LearningError, match="nothing fits the target 'button'"):
            craft(teacher, rows(200), order(tmp_path, goal=goal, accept_nearest=accept), key)


def test_answers_that_are_empty_are_told(tmp_path: Path, key: SigningKey) -> None:
    def big(text: str) -> str:
        return sample.subject_of(text).replace("food", "")

    notes = Notes()
    craft(open_teacher(big, TeacherOptions(name="mute")), rows(120), order(tmp_path, goal=Goal(keep=0.5)), key, notes)
    assert re.match(r"\d+ of 120 answers are empty", notes.notes[0])


def test_answers_outside_the_labels_teach_nothing(
    tmp_path: Path, key: SigningKey, learned: list[tuple[Material, Material]]
) -> None:
    def big(text: str) -> str:
        return "Sure! It is food." if text.endswith("7") else sample.subject_of(text)

    teacher, notes = open_teacher(big, TeacherOptions(name="talks", labels=tuple(sample.CLASSES))), Notes()
    given = rows(600)
    made = craft(teacher, given, order(tmp_path, goal=Goal(keep=0.5)), key, notes)
    count = sum(text.endswith("7") for text in given.texts)
    said = f"{count} of 600 answers are none of the labels (money, travel, food), such as 'Sure! It is food.'"
    assert notes.notes[0].startswith(said)
    assert made.card.labels == ("food", "money", "travel")
    assert made.card.data is not None
    assert made.card.data.lost[0].startswith(said)
    taught, held = learned[0]
    assert set(taught.answers) == set(sample.CLASSES)
    assert "Sure! It is food." in held.answers  # such requests will come: an expert that is sure there is wrong
    assert made.card.agreement < 0.95


def test_where_most_first_answers_are_outside_the_labels_no_more_is_paid_for(
    tmp_path: Path, key: SigningKey, big: BigModel
) -> None:
    big.rule = lambda text: f"I think it is {sample.subject_of(text)}."
    teacher, notes = open_teacher(f"openai:gpt@{big.url}", TeacherOptions(labels=tuple(sample.CLASSES))), Notes()
    told = r"8 of 8 answers are none of the labels \(money, travel, food\), such as 'I think it is \w+\.'\. Say in"
    with pytest.raises(LearningError, match=told):
        craft(teacher, rows(200), order(tmp_path), key, notes)
    assert len(big.bodies) == 8
    assert not notes.estimates
    texts = sample.questions(100)  # nor where a file tells all
    known = Rows(texts=texts, told=[Told(answer="I think so")] * 100)
    with pytest.raises(LearningError, match="100 of 100 answers are none of the labels"):
        craft(teacher, known, order(tmp_path), key)
    assert len(big.bodies) == 8


def test_a_target_that_allows_nothing_costs_nothing(tmp_path: Path, key: SigningKey) -> None:
    teacher = open_teacher(lambda _: pytest.fail("it was asked"), TeacherOptions(name="never", labels=("a", "b")))
    for families in (("encoder",), ("span",)):  # without a base, and with labels for answers
        goal = Goal(profile=Profile(name="odd", families=families))
        with pytest.raises(LearningError, match="none of them can be built here"):
            craft(teacher, rows(200), order(tmp_path, goal=goal), key)


def test_what_a_target_does_not_allow_is_found_before_answers_are_asked_twice(tmp_path: Path, key: SigningKey) -> None:
    asked = list[str]()

    def big(text: str) -> str:
        asked.append(text)
        return text.rpartition(" ")[2]

    given, notes = rows(300), Notes()
    goal = Goal(profile=Profile(name="browser", families=("static", "encoder")))
    with pytest.raises(LearningError, match=r"'browser' allows static, encoder experts alone.*of the family span"):
        craft(open_teacher(big, TeacherOptions(name="ends")), given, order(tmp_path, goal=goal, augment=50), key, notes)
    assert len(asked) == len(set(given.texts))
    assert not notes.ceilings
    assert notes.notes[0].startswith("The first answers look like passages of the texts.")
    assert [one.to_ask for one in notes.estimates] == [292]


def test_what_could_not_be_built_is_on_the_card(
    tmp_path: Path, key: SigningKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    cook = Kitchen.cook

    def fails(self: Kitchen, recipe: Recipe, *more: object) -> Cooked:
        if recipe == LADDER[0]:
            raise LearningError("too large")
        return cook(self, recipe)

    monkeypatch.setattr(Kitchen, "cook", fails)
    notes = Notes()
    made = craft(open_teacher(sample.subject_of, TeacherOptions(name="a")), rows(200), order(tmp_path), key, notes)
    assert [(one.chosen, one.why_not) for one in made.card.trade_offs] == [
        (True, ""),
        (False, "could not be built: too large"),
    ]
    assert any(note.endswith("cannot be built: too large") for note in notes.notes)
    assert "could not be built: too large" in (made.folder / "card.html").read_text()


def test_an_expert_that_grows_over_the_limit_is_the_one_that_was_judged(tmp_path: Path, key: SigningKey) -> None:
    """Learning from the judging answers as well makes more features, and so more bytes."""
    teacher, notes = open_teacher(sample.subject_of, TeacherOptions(name="subjects")), Notes()
    free = craft(teacher, rows(300), order(tmp_path, "free"), key).card
    limit = free.trade_offs[0].size_bytes
    assert free.devices["this"].size_bytes > limit
    goal = Goal(keep=0.9, profile=Profile(name="small", bytes=limit))
    made = craft(teacher, rows(300), order(tmp_path, goal=goal), key, notes).card
    assert made.devices["small"].size_bytes == limit
    assert any(note.startswith("learned from the judging answers as well, its bytes is") for note in notes.notes)


def test_a_folder_that_is_taken(tmp_path: Path, key: SigningKey) -> None:
    (tmp_path / "made").mkdir()
    teacher = open_teacher(sample.subject_of, TeacherOptions(name="subjects"))
    with pytest.raises(SettingsError, match="exists already"):
        craft(teacher, rows(200), order(tmp_path), key)


@pytest.mark.parametrize("given", [{"out": Path("file/made")}, {"work": Path("file/work")}, {"base": Path("nowhere")}])
def test_what_would_fail_at_the_end_fails_before_a_question(
    tmp_path: Path, key: SigningKey, given: dict[str, Path]
) -> None:
    (tmp_path / "file").write_text("")
    teacher = open_teacher(lambda _: pytest.fail("it was asked"), TeacherOptions(name="never"))
    places = {name: tmp_path / place for name, place in given.items()}
    with pytest.raises(SettingsError, match=r"(-o|--work|--base)"):
        craft(teacher, rows(200), order(tmp_path, **places), key)


def test_rows_that_are_lost_are_told_and_on_the_card(tmp_path: Path, key: SigningKey) -> None:
    lines = [json.dumps({"text": text, "answer": sample.subject_of(text)}) for text in sample.questions(100)]
    (tmp_path / "mail.jsonl").write_text("\n".join([*lines, "{broken", '{"no": "text"}']))
    teacher, notes = open_teacher(sample.subject_of, TeacherOptions(name="subjects")), Notes()
    given = open_rows(tmp_path / "mail.jsonl", None, "sqlite://")
    made = craft(teacher, given, order(tmp_path, source="mail.jsonl", unlabelled=("a", "b")), key, notes)
    assert made.card.data is not None
    (lost,) = made.card.data.lost
    assert lost.startswith("2 of 102 rows cannot be used; the first: line 101: ")
    assert f"mail.jsonl: {lost}" in notes.notes
    assert made.card.data.unlabelled == 2
    assert "2 of 102 rows cannot be used" in (made.folder / "README.md").read_text()


def test_copies_neither_teach_nor_prove_what_another_does(
    tmp_path: Path, key: SigningKey, learned: list[tuple[Material, Material]]
) -> None:
    texts = sample.questions(200, seed=4)
    often = [*texts, *(f" {text}\n" for text in texts), *texts]
    told: list[Told | None] = [Told(answer=sample.subject_of(text)) for text in often]
    teacher, notes = open_teacher(sample.subject_of, TeacherOptions(name="subjects")), Notes()
    made = craft(
        teacher, Rows(texts=often, told=told), order(tmp_path, unlabelled=(f"{texts[0]} ", "x", " x")), key, notes
    )
    assert made.card.data is not None
    assert (made.card.data.rows, made.card.data.held_out, made.card.data.repeated) == (200, 50, 0)
    assert "the data: 400 of 600 rows are copies of others: each text counts once" in notes.notes
    told_in = (made.folder / "README.md").read_text()
    assert "400 of 600 rows are copies of others" in told_in
    assert "of 50 requests that it had never seen" in told_in
    assert list(learned[0][0].unlabelled) == ["x"]

    # The same rows as traffic: how often a text came is its weight, but then nobody says that it was never seen.
    traffic = Rows(texts=often, told=told, traffic=True)
    made = craft(teacher, traffic, order(tmp_path, "traffic"), key, notes)
    assert made.card.data is not None
    assert (made.card.data.rows, made.card.data.held_out) == (600, 150)
    assert made.card.data.repeated
    told_in = (made.folder / "README.md").read_text()
    assert "never seen" not in told_in
    assert "of 150 requests that did not teach it" in told_in
    assert f"({made.card.data.repeated} repeat texts of the others)" in told_in


def test_a_text_that_teaches_is_in_no_proof(tmp_path: Path, key: SigningKey) -> None:
    """Answers that follow from nothing in the text: what is known by heart must not count as learned."""
    texts = [f"request {number}" for number in range(150)] * 3
    told: list[Told | None] = [Told(answer="yn"[hash_of(text) % 2]) for text in texts]
    teacher = open_teacher(sample.subject_of, TeacherOptions(name="subjects"))
    goal = Goal(keep=0.0, trials=1)
    assert craft(teacher, Rows(texts=texts, told=told), order(tmp_path, goal=goal), key).card.agreement < 0.8


def hash_of(text: str) -> int:
    return hashlib.sha256(text.encode()).digest()[0]


def test_rows_come_from_a_file_or_a_task_and_from_one_alone(tmp_path: Path) -> None:
    (tmp_path / "some.jsonl").write_text('{"text": "a"}\n')
    assert open_rows(tmp_path / "some.jsonl", None, "sqlite://").texts == ["a"]
    for data, task in ((None, None), (tmp_path / "some.jsonl", "task")):
        with pytest.raises(SettingsError, match="either a file by --data, or a task"):
            open_rows(data, task, "sqlite://")


# --- more texts


@pytest.fixture
def learned(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Material, Material]]:
    """What each search is given: rows that teach, and rows that judge."""
    seen: list[tuple[Material, Material]] = []
    begin = Search.__init__

    def noted(self: Search, taught: Material, held: Material, *given: object, **more: object) -> None:
        seen.append((taught, held))
        begin(self, taught, held, *given, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Search, "__init__", noted)
    return seen


def paraphrasing(asked: str) -> str:
    """A big model that names subjects, and writes where it is told to."""
    told = re.match(r"Write (\d+) different ways .*\n\n(.*)", asked, re.DOTALL)
    if told is None:
        return sample.subject_of(asked)
    return "\n".join(f"{n}. well {n}, {told[2]}" for n in range(1, int(told[1]) + 1))


@pytest.mark.parametrize("can_write", [True, False])
def test_added_texts_teach_and_do_nothing_else(
    tmp_path: Path, key: SigningKey, big: BigModel, learned: list[tuple[Material, Material]], can_write: bool
) -> None:
    big.rule = paraphrasing
    reference = f"openai:gpt@{big.url}" if can_write else sample.subject_of
    teacher, given = open_teacher(reference, TeacherOptions(name="subjects")), rows(200)
    craft(teacher, given, order(tmp_path, "plain"), key)
    made = craft(teacher, given, order(tmp_path, augment=90, source="mail"), key)
    (plain_taught, plain_held), (taught, held) = learned
    assert (held.texts, len(taught.texts)) == (plain_held.texts, 120 + 90)
    assert taught.texts[:120] == plain_taught.texts
    added = taught.texts[120:]
    assert not set(added) & set(given.texts)
    assert list(taught.answers[120:]) == [sample.subject_of(text) for text in added]
    if can_write:  # each was made of a text that teaches
        assert {text.partition(", ")[2] for text in added} <= set(plain_taught.texts)
    else:
        assert added == recombined(plain_taught.texts, count=90)
    assert made.card.data is not None
    assert (made.card.data.rows, made.card.data.held_out) == (290, 50)
    how = "paraphrased by the big model" if can_write else "crossed from others"
    assert made.card.data.source == f"mail; 90 texts were {how}"

    # The same again, elsewhere: nothing is asked, and the same is made.
    asked = len(big.bodies)
    again = craft(teacher, given, order(tmp_path, "again", augment=90, source="mail"), key)
    assert len(big.bodies) == asked
    assert again.card.data == made.card.data
    assert again.card.calibration == made.card.calibration


def test_experts_start_from_the_big_model_where_it_is_an_encoder(tmp_path: Path, key: SigningKey) -> None:
    given = rows(500)
    words = sorted(
        {word for text in given.texts for word in text.replace(",", " ").split() if word.isalpha() and word[1:]}
    )
    folder = random_base(tmp_path / "big-bert", words, layers=2, labels=("yes", "no", "maybe"))
    teacher = open_teacher(str(folder))
    assert base_for(teacher) == folder
    assert base_for(open_teacher(sample.subject_of, TeacherOptions(name="subjects"))) == packaged_encoder()
    goal = Goal(keep=0.85, profile=Profile(name="here", families=("encoder",)), trials=4)
    made = craft(teacher, given, order(tmp_path, goal=goal, base=base_for(teacher)), key)
    assert made.card.family == "encoder"
    assert made.card.agreement > 0.85
    (ancestor,) = made.card.lineage
    assert (ancestor.role, ancestor.name, len(ancestor.digest)) == ("pretrained encoder", "big-bert", 64)
    plain = craft(teacher, given, order(tmp_path, "plain", goal=Goal(keep=0.0), base=base_for(teacher)), key)
    assert plain.card.family == "static"
    assert not plain.card.lineage


def test_one_budget_pays_for_all_that_is_asked(tmp_path: Path, key: SigningKey, big: BigModel) -> None:
    """Probes, answers, second answers, paraphrases and the answers to them."""
    big.rule = paraphrasing
    teacher, notes = open_teacher(f"openai:gpt@{big.url}", TeacherOptions(parallel=1)), Notes()
    bound = order(tmp_path, augment=80, budget=Budget(requests=100 + 100 + 20 + 30))
    made = craft(teacher, rows(100), bound, key, notes)
    assert len(big.bodies) == 100 + 100 + 20 + 30
    assert made.card.data is not None
    assert made.card.data.rows == 100 + 30
    assert "asking ended early: the budget of 250 requests is spent; 30 of 80 texts have an answer" in notes.notes
    assert [(one.to_ask, one.repeats, one.more) for one in notes.estimates] == [(92, 100, 100), (12, 0, 80), (72, 0, 0)]


def test_where_the_budget_is_spent_nothing_is_asked_twice(tmp_path: Path, key: SigningKey, big: BigModel) -> None:
    big.rule, notes = sample.subject_of, Notes()
    teacher = open_teacher(f"openai:gpt@{big.url}", TeacherOptions(parallel=1))
    bound = order(tmp_path, budget=Budget(requests=100), command="as typed", command_of_known="what asks nothing")
    made = craft(teacher, rows(100), bound, key, notes)
    assert len(big.bodies) == 100
    assert made.card.ceiling is None
    assert made.card.commands["guarantee"] == "what asks nothing"
    assert any("asked nothing twice, as the budget is spent" in note for note in notes.notes)


def test_fewer_can_be_made_than_are_wanted(tmp_path: Path, key: SigningKey) -> None:
    texts = [f"{word} {number}" for number in range(50) for word in ("bank", "pizza")]
    notes = Notes()
    teacher = open_teacher(sample.subject_of, TeacherOptions(name="subjects"))
    craft(teacher, Rows(texts=texts, told=[None] * 100), order(tmp_path, augment=5000), key, notes)
    assert any("5000 texts were to be added, but only" in note for note in notes.notes)
    with pytest.raises(SettingsError, match="augment is -1"):
        order(tmp_path, augment=-1)


def test_unlabelled_texts_are_none_that_prove(
    tmp_path: Path, key: SigningKey, learned: list[tuple[Material, Material]]
) -> None:
    given = rows(100)
    teacher = open_teacher(sample.subject_of, TeacherOptions(name="subjects"))
    craft(teacher, given, order(tmp_path, unlabelled=("a", *given.texts, "b", "a")), key)
    assert list(learned[0][0].unlabelled) == ["a", "b"]


def test_the_digest_is_of_the_unlabelled_as_well() -> None:
    def digest(*unlabelled: str) -> str:
        return Material(["x"], ["y"], Label(("y",)), unlabelled=unlabelled).digest

    assert len({digest(), digest("a"), digest("a", "b"), digest("ab"), digest("b", "a"), digest("\ud800")}) == 6
    assert Material(["x"], ["y"], Label(("y",))).pick([0]).digest == digest()
