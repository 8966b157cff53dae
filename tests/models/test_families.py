"""What every family of experts promises, tried on each that `models.family.FAMILIES` names, without a list of its own.

A new family needs one builder in `MAKE`: a small real expert. All that is below then holds for it, or fails by name.
"""

from __future__ import annotations

import functools
import pickletools
import random
import shutil
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import experts
from puhui.bundles.bundle import CARD_FILE, SIGNATURE_FILE, open_bundle, seal
from puhui.bundles.card import Card, Ceiling, Data, Kept, Section, Speed, TradeOff
from puhui.bundles.card_figures import calibration_error, confusions_of, reliability_of
from puhui.bundles.card_page import PAGE_FILE, render_card
from puhui.bundles.card_words import gaps
from puhui.bundles.expert_export import FORMS, export_expert
from puhui.bundles.model_card import render_model_card
from puhui.bundles.probes import TEXTS, probe, probes_of
from puhui.cascade.guarantee import calibrate_threshold
from puhui.compress.static_training import StaticOptions, distill_static
from puhui.core.errors import BundleError
from puhui.evolve.traffic import Task
from puhui.models.expert_cascade import CascadeModel
from puhui.models.family import FAMILIES, ExpertModel, family_class
from puhui.models.fields import FieldsModel, RecordForm
from puhui.models.hashing import FeatureOptions
from puhui.models.label_set import LabelSetModel, ListForm
from puhui.models.number import NumberModel
from puhui.models.span import SpanModel
from puhui.models.static import StaticModel
from puhui.trust.keys import load_or_create_key

QUESTIONS = experts.questions(150, seed=1)
SMALL = StaticOptions(features=FeatureOptions(buckets=1 << 14))
WEIGHTS = {".safetensors", ".onnx"}
READABLE = WEIGHTS | {".json"}
SLACK = 2_000  # bytes of a weight file that are its header

DRAW = random.Random(5)
ODD_TEXTS = (
    *TEXTS,
    "\ud800 half a pair \udfff",
    "\x00\x1b[31m\u2028\u2029\ufeff",
    "查询我的账户余额 about my balance and cash",
    "ما رصيدي؟ नमस्ते сколько стоит 👩‍👩‍👧",
    "about my bank " * 1_500,  # 21,000 characters
    "".join(chr(DRAW.randrange(0x20, 0xD7FF)) for _ in range(20_000)),
    "a" * 20_000,
)


# --- a builder for each family ----------------------------------------------------------------------------------


def _static(answer: Callable[[str], str]) -> StaticModel:
    return distill_static(QUESTIONS, [answer(text) for text in QUESTIONS], options=SMALL)


def _number() -> NumberModel:
    levels = _static(lambda text: str(len(experts.subject_of(text))))
    return NumberModel(levels, [float(label) for label in levels.labels], width=3.0, tolerance=0.0)


def _label_set() -> LabelSetModel:
    named = {"cash": "urgent", "hotel": "urgent"}
    which = _static(lambda text: next((tag for word, tag in named.items() if word in text), experts.subject_of(text)))
    count = _static(lambda text: "2" if any(word in text for word in named) else "1")
    return LabelSetModel(which, count, order=sorted(which.labels), form=ListForm('["', '", "', '"]', "[]"))


def _span() -> SpanModel:
    from puhui.compress.span_training import distill_span

    return distill_span(QUESTIONS, [text.split()[2] for text in QUESTIONS])


def _fields() -> FieldsModel:
    form = RecordForm(('{"subject": ', ', "letters": ', ', "first": ', "}"), (True, False, True))
    return FieldsModel([("static", made("static")), ("number", made("number")), ("span", made("span"))], form)


def _encoder() -> ExpertModel:
    """A graph made by hand, on the real runtime: training one takes as long as all that is tried here."""
    import encoders

    return encoders.table_encoder(experts.model().labels)


def _cascade() -> CascadeModel:
    return CascadeModel(("static", "encoder"), (made("static"), made("encoder")), (0.9,))


MAKE: dict[str, Callable[[], ExpertModel]] = {
    "static": experts.model,
    "number": _number,
    "label_set": _label_set,
    "fields": _fields,
    "span": _span,
    "encoder": _encoder,
    "cascade": _cascade,
}


@functools.cache
def made(family: str) -> ExpertModel:
    """The family's small expert; made once, as nothing may change it."""
    if family not in MAKE:
        pytest.fail(f"the family {family!r} has no builder in MAKE: add a small real expert, and the contract holds it")
    return MAKE[family]()


@pytest.fixture(params=list(FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def model(family: str) -> ExpertModel:
    return made(family)


@pytest.fixture
def saved(model: ExpertModel, tmp_path: Path) -> Path:
    model.save(tmp_path / "deep" / "expert")
    return tmp_path / "deep" / "expert"


def files_of(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def answers_of(model: ExpertModel, texts: Sequence[str] = ODD_TEXTS) -> list[tuple[str, float]]:
    return [model.predict_one(text) for text in texts]


# --- the contract -----------------------------------------------------------------------------------------------


def test_every_family_has_a_builder() -> None:
    assert FAMILIES.keys() <= MAKE.keys(), f"no builder in MAKE for {sorted(FAMILIES.keys() - MAKE.keys())}"


def test_the_builder_makes_the_family(family: str, model: ExpertModel) -> None:
    assert type(model) is family_class(family)
    assert len(set(model.labels)) == len(model.labels)


def check(model: ExpertModel, texts: Sequence[str]) -> None:
    """The laws of answering: of every text, alone and in a batch."""
    answers, confidences = model.predict_many(texts)
    assert len(answers) == len(confidences) == len(texts)
    assert confidences.dtype == np.float32
    for text, answer, confidence in zip(texts, answers, confidences.tolist(), strict=True):
        one, sure = model.predict_one(text)
        assert one == answer, f"alone {one!r}, in a batch {answer!r}, for {text[:60]!r}"
        assert sure == pytest.approx(confidence, abs=1e-5)
        assert 0.0 <= sure <= 1.0
        assert 0.0 <= confidence <= 1.0
        assert isinstance(sure, float)
        assert not model.labels or one in model.labels


def test_texts_of_any_script_and_length(model: ExpertModel) -> None:
    check(model, ODD_TEXTS)
    assert model.predict_many([])[0] == []


@settings(max_examples=25)
@given(st.data())
def test_any_text(family: str, data: st.DataObject) -> None:
    check(made(family), data.draw(st.lists(st.text(st.characters(exclude_categories=())), max_size=4)))


def test_the_same_input_gives_the_same_output(model: ExpertModel) -> None:
    first = answers_of(model)
    assert answers_of(model, ODD_TEXTS[::-1])[::-1] == first
    assert answers_of(model) == first


def test_a_saved_expert_is_the_same_expert(family: str, model: ExpertModel, saved: Path, tmp_path: Path) -> None:
    again = family_class(family).load(saved)
    assert (again.labels, again.size_bytes) == (model.labels, model.size_bytes)
    assert answers_of(again) == answers_of(model)
    again.save(tmp_path / "again")
    assert files_of(tmp_path / "again") == files_of(saved)
    for name in files_of(saved):
        assert (tmp_path / "again" / name).read_bytes() == (saved / name).read_bytes(), name


def test_files_are_plain_data(saved: Path) -> None:
    """Nothing that anything would unpickle, and no archive in which a pickle could hide."""
    assert files_of(saved)
    for name in files_of(saved):
        data = (saved / name).read_bytes()
        assert Path(name).suffix in READABLE, name
        assert not data.startswith((b"PK", b"\x80", b"\x1f\x8b")), name
        with pytest.raises(ValueError, match=r"opcode|pickle|expected|not enough|newline"):
            list(pickletools.genops(data))


def test_size_is_that_of_the_weights_on_disk(model: ExpertModel, saved: Path) -> None:
    """To 2 %, headers apart. An encoder's tokenizer counts as weights: it holds a vocabulary."""
    weights = [saved / name for name in files_of(saved) if Path(name).suffix in WEIGHTS or "tokenizer" in name]
    assert weights
    on_disk = sum(path.stat().st_size for path in weights)
    assert abs(on_disk - model.size_bytes) <= 0.02 * on_disk + SLACK * len(weights)


def test_it_answers_its_probes_as_where_it_was_made(model: ExpertModel, saved: Path) -> None:
    probed = probe(type(model).load(saved), probes_of(model), threshold=0.0)
    assert probed.texts == probed.same >= len(TEXTS)
    assert probed.furthest < 1e-6


def test_threads_get_the_same_answers(model: ExpertModel) -> None:
    texts = [*QUESTIONS[:40], *TEXTS]
    expected = answers_of(model, texts)
    found: dict[int, list[tuple[str, float]]] = {}

    def ask(number: int) -> None:
        found[number] = answers_of(model, texts)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(60)
    assert [found.get(number) for number in range(4)] == [expected] * 4


def harmed(data: bytes, how: str) -> bytes | None:
    """The file's bytes, damaged; None: it is gone."""
    if how == "missing":
        return None
    if how in ("empty", "cut"):
        return data[: len(data) // 2] if how == "cut" else b""
    place = {"first": 0, "tenth": len(data) // 10, "middle": len(data) // 2, "last": len(data) - 1}[how]
    return data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :]


HARMS = ("missing", "empty", "cut", "first", "tenth", "middle", "last")


@pytest.mark.parametrize("how", HARMS)
def test_damage_is_a_bundle_error_or_the_digests_find_it(family: str, saved: Path, tmp_path: Path, how: str) -> None:
    """A file that is not there or not whole is named by the family itself; a flipped bit by the bundle at least."""
    _, place = seal(tmp_path / "experts", card_of(family), made(family), load_or_create_key(tmp_path / "key"))
    for name in files_of(saved):
        whole = (saved / name).read_bytes()
        data = harmed(whole, how)
        for folder in (saved, place):
            (folder / name).unlink()
            if data is not None:
                (folder / name).write_bytes(data)
        if how in ("missing", "empty", "cut"):
            with pytest.raises(BundleError, match=Path(name).name.replace(".", r"\.")):
                family_class(family).load(saved)
        else:
            with_bit_flipped(family, saved)
        with pytest.raises(BundleError, match=Path(name).name.replace(".", r"\.")):
            open_bundle(place)
        for folder in (saved, place):
            (folder / name).write_bytes(whole)
    open_bundle(place)


def with_bit_flipped(family: str, folder: Path) -> None:
    """Loads or is refused, but nothing else; what loads still answers."""
    try:
        model = family_class(family).load(folder)
    except BundleError:
        return
    assert 0.0 <= model.predict_one("about my bank")[1] <= 1.0


# --- sealed, shown and exported ---------------------------------------------------------------------------------


@functools.cache
def card_of(family: str) -> Card:
    """A card with every number that it may hold, each counted or measured on the family's expert."""
    model, texts = made(family), experts.questions(400, seed=9)
    said, confidence = model.predict_many(texts)
    # The big model says the same, but for every ninth text: so something can be counted.
    big = [f"not {answer}" if number % 9 == 0 else answer for number, answer in enumerate(said)]
    agrees = [one == other for one, other in zip(said, big, strict=True)]
    bins = reliability_of(confidence, agrees)
    proven = calibrate_threshold(confidence, agrees, epsilon=0.2, delta=0.05)
    parts: tuple[Section, ...] = (
        "guarantee",
        "trade_offs",
        "reliability",
        "confusions",
        "devices",
        "precision",
        "ceiling",
    )
    return experts.card(
        Task("task-1", "a task", "context:1", "m"),
        family=family,
        labels=model.labels,
        calibration=msgspec.structs.asdict(proven),
        agreement=float(np.mean(agrees)),
        size_bytes=model.size_bytes,
        trade_offs=(
            TradeOff(name="it", family=family, size_bytes=model.size_bytes, coverage=proven.coverage, chosen=True),
        ),
        confusions=confusions_of(big, said),
        reliability=bins,
        calibration_error=calibration_error(bins),
        devices={"this": Speed(latency_ms=0.5, size_bytes=model.size_bytes)},
        precision=(Kept("all", 8, 0.001, "labels changed"),),
        commands={part: f"puhui compress --seed 0 # {part}" for part in (*parts, "data")},
        ceiling=Ceiling(1.0, 0.99, 1.0, 400),
        data=Data(rows=550, held_out=400, source="tests", digest="0" * 64),
        created=1.7e9,
    )


def test_a_sealed_expert_opens_with_a_whole_card(family: str, tmp_path: Path) -> None:
    key = load_or_create_key(tmp_path / "key")
    pages = {PAGE_FILE: render_card, "README.md": render_model_card}
    expert, place = seal(tmp_path / "experts", card_of(family), made(family), key, more=pages)
    card, model = open_bundle(place, expert=expert, trusted={key.public})
    assert answers_of(model, TEXTS) == answers_of(made(family), TEXTS)
    assert set(files_of(place)) == {*card.files, CARD_FILE, SIGNATURE_FILE}
    assert {PAGE_FILE, "README.md"} < card.files.keys()
    assert gaps(card) == {}
    assert msgspec.structs.replace(card, files={}) == card_of(family)
    page = (place / PAGE_FILE).read_text(encoding="utf-8")
    for part in ("guarantee", "trade-offs", "agreement", "confusions", "devices", "precision", "origin", "seal"):
        assert f'<section id="{part}">' in page
    assert 'id="absent"' not in page
    assert key.public in page
    assert all(digest in page for name, digest in card.files.items() if name not in pages)


@pytest.mark.parametrize("form", ["onnx", "static", "huggingface"])
def test_an_export_answers_as_the_expert_or_there_is_none(family: str, form: str, tmp_path: Path) -> None:
    _, place = seal(tmp_path / "experts", card_of(family), made(family), load_or_create_key(tmp_path / "key"))
    out = tmp_path / "out"
    if form != "huggingface" and FORMS.get(family) != form:
        with pytest.raises(BundleError, match=f"{family!r} has no form {form!r}"):
            export_expert(place, out, form)  # type: ignore[arg-type]
        assert not out.exists()
        return
    exported = export_expert(place, out, form, texts=ODD_TEXTS)  # type: ignore[arg-type]
    assert list(exported.files) == files_of(out)
    assert exported.texts == len(ODD_TEXTS)
    if form == "huggingface":
        assert answers_of(open_bundle(out / "expert")[1]) == answers_of(made(family))
        shutil.rmtree(place)
        open_bundle(out / "expert")
