"""The workshop in one call: a big model and some text in, a signed expert for a device out.

1. The big model is asked (`asking`), nothing twice, within the budget; one that contradicts itself is measured.
2. The answers are parted at random: some teach, some judge the candidates, and some only calibrate the winner. Texts
   that are added (`augment`) are made of those that teach, and teach alone.
3. The `search` finds the cheapest recipe that keeps the floor on the device.
4. The winner is calibrated once (`cascade.guarantee`), and what was tried and measured goes on its card (`bundle`).
"""

from __future__ import annotations

import math
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TypeAlias, get_args

import msgspec
import numpy as np

from puhui.bundles.bundle import Page, read_card, seal
from puhui.bundles.card import Card, Ceiling, Data, Section, Speed
from puhui.bundles.card_figures import calibration_error, confusions_of, reliability_of
from puhui.bundles.card_page import render_card
from puhui.bundles.model_card import render_model_card
from puhui.bundles.probes import PROBES_FILE, probes_of
from puhui.cascade.agreement import agreements
from puhui.cascade.guarantee import Calibration, calibrate_threshold, rows_needed
from puhui.compress.answer_shape import FEWEST_ASKED_FOR, Label, Shape, find_shape, rule_of
from puhui.compress.first_answers import Allowed, look_at
from puhui.compress.inquiry import Inquiry, others
from puhui.compress.lineage import lineage_of
from puhui.compress.precision_kept import kept_of
from puhui.compress.profiles import PROFILES, Footprint, Profile, measure_here
from puhui.compress.recipes import Kitchen, Material, StaticRecipe
from puhui.compress.search import Candidate, Found, Goal, Search, ladder_for, nearest
from puhui.compress.shape_training import FAMILY_OF
from puhui.compress.trade_offs import trade_offs_of
from puhui.compress.watcher import Watcher
from puhui.core.errors import LearningError, SettingsError
from puhui.energy.power import estimate_joules
from puhui.models.encoder import packaged_encoder
from puhui.models.family import ExpertModel
from puhui.store.database import open_store
from puhui.teachers.answer_book import bare
from puhui.teachers.asking import Budget, soften
from puhui.teachers.inputs import Rows, check_answers, read_rows, rows_of_task
from puhui.teachers.probing import SelfAgreement
from puhui.teachers.teacher import CanWrite, IsEncoder, Teacher, Told
from puhui.trust.keys import SigningKey

CALIBRATING, JUDGING = 0.25, 0.15
MOST_CALIBRATING, MOST_JUDGING = 4000, 2000
LEAST_TAUGHT = 20

Reading: TypeAlias = Callable[[str, int, int], None]


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What is wanted of the workshop.

    `goal` says for which device and how good, `budget` what asking may cost. `work` is the folder for everything
    that a next run can use again, `out` the bundle's place. `augment` is how many texts are added to those that teach:
    the big model's paraphrases of them, or where it cannot write crossings of two, all asked within the budget.
    `unlabelled` are texts that are not asked, and teach encoders as they are. `base` is the pretrained encoder that
    encoders start from (`base_for` names the best; None: static experts alone). With `accept_nearest` an expert that
    misses the floor is made all the same, but never one that the device cannot hold. `command` is what makes the
    expert again, `command_of_known` what does so where the budget ended the asking: it asks nothing.
    """

    out: Path
    work: Path
    goal: Goal = Goal()
    budget: Budget = Budget()
    base: Path | None = None
    name: str = "expert"
    source: str = ""
    augment: int = 0
    unlabelled: Sequence[str] = ()
    accept_nearest: bool = False
    command: str = ""
    command_of_known: str = ""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.augment < 0:
            raise SettingsError(f"augment is {self.augment}, but the texts to add must be 0 or more")


class Made(msgspec.Struct, frozen=True):
    """The expert: its id, where it lies, its card, the search that found it, and the floor that it was to keep."""

    id: str
    folder: Path
    card: Card
    found: Found
    keep: float = 0.0

    @property
    def keeps(self) -> bool:
        """Whether it keeps the floor on the rows that calibrated it. The candidates were chosen on others."""
        return self.card.agreement >= self.keep


def open_rows(
    data: Path | None, task: str | None, store: str, reading: Reading = lambda name, read, size: None
) -> Rows:
    """The rows of a file, or of a task in the store at that URL: one of them. SettingsError for both or neither.

    `reading` is called with a file's name, the bytes that were read and all of them."""
    if (data is None) == (task is None):
        raise SettingsError("give the texts to learn from: either a file by --data, or a task of the store by --task")
    if data is not None:
        return read_rows(data, progress=partial(reading, data.name))
    opened = open_store(store, create=False)
    try:
        return rows_of_task(opened, str(task))
    finally:
        opened.close()


def base_for(teacher: Teacher) -> Path | None:
    """The pretrained encoder that experts best start from: the big model itself where it is one, for nothing else
    says so nearly the same; else all-MiniLM-L6-v2, where its package is installed."""
    own = teacher.body if isinstance(teacher, IsEncoder) else None
    return own or packaged_encoder()


def craft(teacher: Teacher, rows: Rows, order: Order, key: SigningKey, watcher: Watcher | None = None) -> Made:
    """Makes the smallest, fastest expert for the order's device that still says what `teacher` says of `rows`.

    Raises LearningError where no expert can be learned, or none that will do (what came nearest, and what it would
    take), SettingsError where `out` is taken, UpstreamError where the teacher is gone. Whatever ends it, the same
    call goes on from there.
    """
    watcher = watcher or Watcher()
    _check_places(order)
    _check_target(teacher, order)
    rows = rows.once()
    for each in rows.lost:
        watcher.note(f"{order.source or 'the data'}: {each}")
    allowed = Allowed(teacher.labels)
    inquiry = _inquiry(teacher, order, allowed, watcher)
    texts, told = inquiry.answers(rows)
    for each in (unlike := allowed.check([one.answer for one in told])):
        watcher.note(each)
    if empty := sum(not one.answer for one in told if one.answer in allowed):
        watcher.note(
            f"{empty} of {len(told)} answers are empty: an expert learns to say nothing there, like any answer"
        )
    parts = _parts(len(texts), order, watcher)
    shape = _shape(teacher, texts, told, parts[0], allowed)
    ladder_for(type(shape), order.goal.profile, with_base=order.base is not None)  # before more is paid for
    with_itself = inquiry.self_agreement(rule_of(shape))
    added = inquiry.added([texts[row] for row in parts[0]])
    if inquiry.ended_early:
        order = msgspec.structs.replace(order, command=order.command_of_known)
    material = _material([*texts, *added], [*told, *added.values()], shape, others(order.unlabelled, texts), allowed)
    parts[0].extend(range(len(texts), len(material.texts)))
    taught, held, sample = (material.pick(part) for part in parts)
    taught = allowed.taught_by(taught, LEAST_TAUGHT)
    search = Search(
        taught,
        held,
        order.goal,
        order.work,
        base=order.base,
        seed=order.seed,
        show=watcher.judged,
        progress=watcher.building,
        note=watcher.note,
        ceiling=1.0 if with_itself is None else with_itself.ceiling,
    )
    if not search.proves:
        watcher.note(
            f"{len(held.texts)} answers judge the candidates, too few to prove a risk of "
            f"{order.goal.promise.epsilon:.1%}: their coverage is what these answers show, and no proof"
        )
    found = search.run()
    chosen = _chosen(found, order, watcher)
    model = _finished(chosen, search.kitchen, taught, held, allowed, order, watcher)
    if added:
        how = "paraphrased by the big model" if isinstance(teacher, CanWrite) else "crossed from others"
        order = msgspec.structs.replace(order, source=f"{order.source}; {len(added)} texts were {how}")
    lost = (*rows.lost, *unlike)
    return _sealed(model, chosen, found, sample, material, _ceiling_of(with_itself), lost, teacher, order, key)


def _inquiry(teacher: Teacher, order: Order, allowed: Allowed, watcher: Watcher) -> Inquiry:
    def look(first: Mapping[str, Told]) -> None:
        profile, labels = order.goal.profile, bool(teacher.labels)
        look_at(first, allowed, profile, labels=labels, note=watcher.note)

    folder, augment = order.work / "answers", order.augment
    return Inquiry(teacher, folder, order.budget, watcher, augment=augment, seed=order.seed, look=look)


def _check_places(order: Order) -> None:
    """Finds what would end the work when all answers are paid for. SettingsError where a folder cannot be used."""
    for option, folder in (("-o", order.out.parent), ("--work", order.work)):
        try:
            if order.out.exists():
                raise SettingsError(f"{order.out} exists already; give another folder with -o, or remove it")
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise SettingsError(_unwritable(folder, error, option)) from error
    if order.base is not None:
        missing = [name for name in ("config.json", "tokenizer.json") if not (order.base / name).is_file()]
        if missing:
            raise SettingsError(
                f"{order.base} holds no encoder to start from, as {' and '.join(missing)} are not in it; name a "
                "Hugging Face folder with --base, or leave it out"
            )


def _check_target(teacher: Teacher, order: Order) -> None:
    """LearningError where the device allows no expert that can be built here, whatever the answers are."""
    profile, why = order.goal.profile, list[LearningError]()
    for shape in (Label,) if teacher.labels else FAMILY_OF:
        try:
            ladder_for(shape, profile, with_base=order.base is not None)
        except LearningError as error:
            why.append(error)
        else:
            return
    raise why[0]


def _unwritable(folder: Path, error: OSError, option: str) -> str:
    return f"nothing can be written to {folder} ({error.strerror or error}); give another folder with {option}"


def _ceiling_of(found: SelfAgreement | None) -> Ceiling | None:
    return None if found is None else Ceiling(found.share, found.low, found.high, found.rows)


def _shape(
    teacher: Teacher, texts: Sequence[str], told: Sequence[Told], teaching: Sequence[int], allowed: Allowed
) -> Shape:
    """Labels where the big model has a list of them or tells their probabilities, whatever they look like; else what
    the answers that teach look like: what is proven by the others must not depend on them."""
    if teacher.labels or any(one.probabilities is not None for one in told):
        return _labels([one.answer for one in told if one.answer in allowed])
    taught = [told[row].answer for row in teaching]
    found = find_shape([texts[row] for row in teaching], taught, fewest=FEWEST_ASKED_FOR)
    if found is None and len(taught) < FEWEST_ASKED_FOR:
        return _labels([one.answer for one in told], few=True)
    return found or _labels([one.answer for one in told])


def _labels(answers: Sequence[str], *, few: bool = False) -> Label:
    """The answers as labels, those said once left out. LearningError where an expert can learn nothing of them.

    `few`: there are too few to see whether they are something else.
    """
    try:
        counts = check_answers(answers)
    except LearningError as error:
        if not few:
            raise
        needed = math.ceil(FEWEST_ASKED_FOR / (1 - CALIBRATING - JUDGING))
        raise LearningError(
            f"{error}. Or there are too few: whether answers are sets, numbers, passages or records is seen from "
            f"{needed} on, and here are {len(answers)}"
        ) from error
    return Label(tuple(answer for answer, count in counts.most_common() if count > 1))


def _material(
    texts: Sequence[str], told: Sequence[Told], shape: Shape, unlabelled: Sequence[str], allowed: Allowed
) -> Material:
    answers = [one.answer for one in told]
    soft = soften(told, sorted(answer for answer in set(answers) if answer in allowed))
    probabilities = None
    if any(one is not None for one in soft):
        probabilities = [one or {answer: 1.0} for one, answer in zip(soft, answers, strict=True)]
    vectors = [one.vector for one in told if one.vector is not None]
    whole = np.stack(vectors) if vectors and len(vectors) == len(told) else None
    return Material(texts, answers, shape, probabilities, whole, unlabelled)


def _parts(count: int, order: Order, watcher: Watcher) -> tuple[list[int], list[int], list[int]]:
    """The rows that teach, judge and calibrate: drawn at random, so that all are alike."""
    promise = order.goal.promise
    calibrating = min(MOST_CALIBRATING, round(count * CALIBRATING))
    judging = min(MOST_JUDGING, round(count * JUDGING))
    if count - calibrating - judging < LEAST_TAUGHT:
        raise LearningError(
            f"{count} answers; an expert needs {LEAST_TAUGHT / (1 - CALIBRATING - JUDGING):.0f} or more"
        )
    needed = rows_needed(promise.epsilon, promise.delta)
    if calibrating < needed:
        watcher.note(
            f"{calibrating} answers calibrate; to prove a risk of {promise.epsilon:.1%} takes {needed} of them without "
            f"an error, so about {needed / CALIBRATING:.0f} answers in all: until then the expert is never sure"
        )
    drawn = np.random.default_rng(order.seed).permutation(count).tolist()
    sample, held = drawn[:calibrating], drawn[calibrating : calibrating + judging]
    return drawn[calibrating + judging :], held, sample


def _chosen(found: Found, order: Order, watcher: Watcher) -> Candidate:
    if found.chosen is not None:
        return found.chosen
    fitting = [candidate for candidate in found.tried if not candidate.misses]
    if not order.accept_nearest or not fitting:
        raise LearningError(found.why)
    watcher.note(found.why)
    return nearest(fitting)


def _finished(
    chosen: Candidate,
    kitchen: Kitchen,
    taught: Material,
    held: Material,
    allowed: Allowed,
    order: Order,
    watcher: Watcher,
) -> ExpertModel:
    """The chosen model. One that is quick to build learns from the judging answers as well, unless the device could
    not hold what comes of it."""
    judged, profile = kitchen.cook(chosen.recipe).model, order.goal.profile
    if not isinstance(chosen.recipe, StaticRecipe):
        return judged
    more = allowed.taught_by(held)
    kitchen = Kitchen(taught.with_rows(more), order.work / "candidates", base=order.base, seed=order.seed)
    model = kitchen.cook(chosen.recipe).model
    footprint = measure_here(model, held.texts, memory=profile.memory_bytes is not None)
    misses = profile.misses(footprint.scaled(profile))
    if not misses:
        return model
    watcher.note(f"learned from the judging answers as well, its {misses[0]}: the expert is the one that was judged")
    return judged


def _sealed(
    model: ExpertModel,
    chosen: Candidate,
    found: Found,
    sample: Material,
    material: Material,
    ceiling: Ceiling | None,
    lost: Sequence[str],
    teacher: Teacher,
    order: Order,
    key: SigningKey,
) -> Made:
    said, confidence = model.predict_many(sample.texts)
    rule = rule_of(sample.shape)
    agrees = agreements(said, sample.answers, rule)
    promise = order.goal.promise
    proven = calibrate_threshold(confidence, agrees, epsilon=promise.epsilon, delta=promise.delta)
    footprint = measure_here(model, sample.texts)
    card = _card(model, chosen, found, proven, footprint, material, teacher, order)
    bins = reliability_of(confidence, agrees)
    card = msgspec.structs.replace(
        card,
        agreement=float(agrees.mean()),
        precision=kept_of(model, sample.texts),
        confusions=confusions_of(sample.answers, said, agrees=(agrees == 1.0).tolist()),
        reliability=bins,
        calibration_error=calibration_error(bins),
        ceiling=ceiling,
        agreement_rule=msgspec.to_builtins(rule),
        data=Data(
            rows=len(material.texts),
            held_out=len(sample.texts),
            repeated=_repeated(sample.texts, material.texts),
            source=order.source,
            digest=material.digest,
            lost=tuple(lost),
            unlabelled=len(material.unlabelled),
        ),
    )
    files: dict[str, bytes | Page] = {
        "card.html": render_card,
        "README.md": render_model_card,
        PROBES_FILE: probes_of(model),
    }
    try:
        with tempfile.TemporaryDirectory(dir=order.out.parent, prefix=".") as draft:
            expert, place = seal(Path(draft), card, model, key, more=files)
            place.rename(order.out)  # whole or not at all
    except OSError as error:
        raise SettingsError(_unwritable(order.out, error, "-o")) from error
    return Made(expert, order.out, read_card(order.out, expert=expert).card, found, order.goal.keep)


def _repeated(some: Sequence[str], whole: Sequence[str]) -> int:
    """How many of some rows have a text that another row of the whole has, which is not among these."""
    counts, among = Counter(map(bare, whole)), Counter(map(bare, some))
    return sum(count for text, count in among.items() if counts[text] > count)


def _card(
    model: ExpertModel,
    chosen: Candidate,
    found: Found,
    proven: Calibration,
    footprint: Footprint,
    material: Material,
    teacher: Teacher,
    order: Order,
) -> Card:
    energy = estimate_joules(footprint.cpu_s)
    return Card(
        task=f"task-{material.digest[:16]}",
        task_name=order.name,
        family=chosen.family,
        labels=model.labels,
        teacher=teacher.name,
        recipe=msgspec.to_builtins(chosen.recipe),
        rows=len(material.texts),
        data_digest=material.digest,
        calibration=msgspec.structs.asdict(proven),
        agreement=0.0,
        size_bytes=model.size_bytes,
        answer_us=footprint.cpu_s * 1e6,
        joules_low=energy.low,
        joules_high=energy.high,
        trade_offs=trade_offs_of(found, chosen, order.goal),
        devices={name: _speed(footprint, name, profile.speed) for name, profile in _devices(order).items()},
        commands=dict.fromkeys(get_args(Section), order.command) if order.command else {},
        lineage=lineage_of(order.base, chosen.recipe, chosen.family, teacher),
    )


def _devices(order: Order) -> dict[str, Profile]:
    wanted = order.goal.profile
    return {**PROFILES, wanted.name: wanted}


def _speed(footprint: Footprint, name: str, factor: float) -> Speed:
    here = name == "this"
    return Speed(
        latency_ms=footprint.latency_ms * factor,
        size_bytes=footprint.bytes,
        joules=footprint.joules if here else None,
        memory_bytes=footprint.memory_bytes,
        measured=here,
        factor=factor,
        scaled_from="" if here else "this",
    )
