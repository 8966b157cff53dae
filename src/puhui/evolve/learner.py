"""The learning loop: tasks found, experts distilled, calibrated, gated and promoted. No labels, no settings."""

from __future__ import annotations

import hashlib
import logging
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import msgspec

from puhui.bundles.bundle import Card, open_bundle, seal
from puhui.bundles.probes import PROBES_FILE, probes_of
from puhui.cascade.agreement import Rule, loss_of
from puhui.cascade.guarantee import calibrate_threshold, spend
from puhui.compress.answer_shape import rule_of
from puhui.core.answer import Usage
from puhui.core.errors import BundleError, LearningError
from puhui.core.settings import AuditRate, Promise, Tariff
from puhui.energy.power import estimate_joules
from puhui.energy.tariff import price_usage
from puhui.evolve.candidate import Candidate, confront, learn, newest, shape_of
from puhui.evolve.discovery import find_templates, task_of_group
from puhui.evolve.gate import Verdict, is_worth_trying, judge
from puhui.evolve.memory import Memory, Progress, Row
from puhui.evolve.traffic import BARE, Task
from puhui.models.encoder import packaged_encoder
from puhui.trust.keys import SigningKey

log = logging.getLogger("puhui.evolve")

FIRST_ATTEMPT_ROWS = 400
WAIT_ROWS = 20
LOOK_AT_TEMPLATES_EVERY = 200
GROWTH = 1.25
STILL_TRUE_SHARE, STILL_TRUE_ROWS = 0.9, 3


class Learner:
    """Learns what can be learned from a store. `step` is one round; it returns how many attempts it made."""

    def __init__(
        self,
        memory: Memory,
        folder: Path,
        key: SigningKey,
        *,
        promise: Promise = Promise(),
        tariff: Tariff = Tariff(),
        audit_rate: AuditRate = AuditRate(),
    ) -> None:
        self._memory = memory
        self._folder = folder
        self._key = key
        self._promise = promise
        self._tariff = tariff
        self._audit_rate = audit_rate
        self._looked: dict[str, int] = {}

    def step(self) -> int:
        """Finds new tasks, then makes every attempt that is due. Raises `StoreError` alone."""
        counts = self._find_tasks()
        attempts = 0
        for task, progress in self._memory.tasks():
            if self._after_demotion(task, progress) | self._is_stale(task, progress):
                self._memory.save(task, progress)
            rows = counts.get(task.group, 0)
            if rows >= progress.next_rows:
                attempts += self._attempt(task, progress, rows)
        return attempts

    def _find_tasks(self) -> dict[str, int]:
        known = {task.id for task, _ in self._memory.tasks()}
        counts = {}
        for group, model, context, rows in self._memory.groups():
            counts[group] = rows
            if rows < FIRST_ATTEMPT_ROWS:
                continue
            if not group.startswith(BARE):
                fresh = [task_of_group(group, model, context)]
            elif rows < self._looked.get(group, 0) + LOOK_AT_TEMPLATES_EVERY:
                continue
            else:
                self._looked[group] = rows
                fresh = find_templates(group, model, [row.input for row in self._memory.rows(group)])
            for task in fresh:
                if task.id not in known:
                    log.info("a task was found: %s", task.id)  # its name may be a prompt's first line
                    self._memory.add_task(task)
        return counts

    def _after_demotion(self, task: Task, progress: Progress) -> bool:
        """After a demotion only what came later calibrates; an attempt may be due much sooner, too."""
        demoted_at = self._memory.demoted_at(task)
        if demoted_at <= progress.demoted_at:
            return False
        progress.demoted_at = demoted_at
        progress.changed_at = self._memory.last_row_at(demoted_at)
        progress.closed_at = max(progress.closed_at, progress.changed_at)
        progress.next_rows = 0
        return True

    def _is_stale(self, task: Task, progress: Progress) -> bool:
        """An expert that learned what was forgotten since is to be replaced soon: an attempt is brought forward."""
        held = self._memory.in_place(task)
        if held is None or not held.stale or held.id == progress.relearned:
            return False
        progress.relearned = held.id
        progress.next_rows = 0
        return True

    def _attempt(self, task: Task, progress: Progress, rows: int) -> int:
        """One try, now that the group has `rows` rows; 1 if it came to a calibration, which spends a part of δ."""
        forgettings = self._memory.forgettings(task)
        judged_before = self._memory.judged_before(task.group)
        everything = _of_task(task, self._memory.rows(task.group))
        recent = [row for row in everything if row.number > progress.changed_at]
        sample = [row for row in recent if row.coin and progress.closed_at < row.number < judged_before]
        if len(recent) < FIRST_ATTEMPT_ROWS or not is_worth_trying(self._promise, len(sample), progress.attempts + 1):
            return self._wait(task, progress, rows + WAIT_ROWS)
        started = time.process_time()
        taught = [row for row in recent if not row.coin or row.number <= progress.closed_at]
        lessons: Sequence[Row] = taught + self._still_true(task, progress, everything, taught)
        shape = shape_of(lessons)  # not of the sample: what is proven by it must not depend on it
        if shape is None or not is_worth_trying(self._promise, len(sample), progress.attempts + 1, rule_of(shape)):
            return self._wait(task, progress, rows + WAIT_ROWS)
        lessons = newest(shape, lessons)
        try:
            candidate = learn(
                shape,
                lessons,
                base=packaged_encoder(),
                folder=self._folder / f".attempt-{task.id}",
                epsilon=self._promise.epsilon,
            )
        except LearningError as error:
            self._note_work(task, f"nothing learned: {error}", started)
            return self._wait(task, progress, int(rows * GROWTH))
        progress.attempts += 1
        progress.next_rows = int(rows * GROWTH)
        verdict, agreement = self._examine(task, progress, candidate, sample)
        if verdict.promoted:
            progress.closed_at = everything[-1].number
            self._promote(task, progress, candidate, verdict, lessons, agreement, forgettings)
        else:
            self._memory.save(task, progress)
        self._note_work(task, f"attempt {progress.attempts} on {len(lessons)} answers: {verdict.reason}", started)
        return 1

    def _wait(self, task: Task, progress: Progress, rows: int) -> int:
        progress.next_rows = rows
        self._memory.save(task, progress)
        return 0

    def _examine(
        self, task: Task, progress: Progress, candidate: Candidate, sample: Sequence[Row]
    ) -> tuple[Verdict, float]:
        """The gate's verdict on a candidate, and its agreement on the sample."""
        inputs = [row.input for row in sample]
        confidence, agrees = confront(candidate, sample)
        level = spend(self._promise.delta, progress.attempts)
        calibration = calibrate_threshold(confidence, agrees, epsilon=self._promise.epsilon, delta=level)
        verdict = judge(
            calibration,
            progress.attempts,
            coverage_in_place=self._coverage_in_place(task, inputs),
            joules_expert=estimate_joules(candidate.answer_s).joules,
            joules_big=self._memory.joules_of_big(task),
            audit_rate=self._audit_rate.steady,
        )
        return verdict, float(agrees.mean())

    def _coverage_in_place(self, task: Task, inputs: Sequence[str]) -> float:
        held = self._memory.in_place(task)
        if held is None or held.stale:
            return 0.0  # in place of a stale one anything goes that is proven and worth it
        try:
            _, model = open_bundle(held.folder, expert=held.id)
        except BundleError:
            return 0.0
        _, confidence = model.predict_many(inputs)
        return float((confidence >= held.threshold).mean())

    def _still_true(
        self, task: Task, progress: Progress, everything: Sequence[Row], taught: Sequence[Row]
    ) -> list[Row]:
        """Answers from before the last demotion that the big model would still give.

        The demoted expert stands for the old answers: where the big model still says what that expert says of
        a class, what was learned of the class is still true.
        """
        demoted = self._memory.demoted(task)
        if demoted is None:
            return []
        try:
            card, model = open_bundle(demoted.folder, expert=demoted.id)
            rule = msgspec.convert(card.agreement_rule, Rule)
        except (BundleError, msgspec.ValidationError):
            return []
        answers, confidence = model.predict_many([row.input for row in taught])
        asked: Counter[str] = Counter()
        kept: Counter[str] = Counter()
        for row, answer, sure in zip(taught, answers, confidence, strict=True):
            if sure >= demoted.threshold:
                asked[answer] += 1
                kept[answer] += loss_of(answer, row.answer, rule) == 0.0
        still = {
            label
            for label, count in asked.items()
            if count >= STILL_TRUE_ROWS and kept[label] >= STILL_TRUE_SHARE * count
        }
        return [row for row in everything if row.number <= progress.changed_at and row.answer in still]

    def _promote(
        self,
        task: Task,
        progress: Progress,
        candidate: Candidate,
        verdict: Verdict,
        lessons: Sequence[Row],
        agreement: float,
        forgettings: int,
    ) -> None:
        held = self._memory.in_place(task)
        energy = estimate_joules(candidate.answer_s)
        card = Card(
            task=task.id,
            task_name=task.name,
            family=candidate.family,
            labels=candidate.model.labels,
            teacher=task.model,
            recipe=msgspec.to_builtins(candidate.recipe),
            rows=len(lessons),
            data_digest=_digest(lessons),
            calibration=msgspec.structs.asdict(verdict.calibration),
            agreement=agreement,
            size_bytes=candidate.model.size_bytes,
            answer_us=candidate.answer_s * 1e6,
            joules_low=energy.low,
            joules_high=energy.high,
            parent=held.id if held is not None else None,
            agreement_rule=msgspec.to_builtins(candidate.rule),
        )
        probes = {PROBES_FILE: probes_of(candidate.model)}
        expert, place = seal(self._folder, card, candidate.model, self._key, more=probes)
        self._memory.promote(task, progress, expert, place, verdict, forgettings=forgettings)
        log.info("expert %s of task %s: %s", expert[:12], task.id, verdict.reason)

    def _note_work(self, task: Task, note: str, started: float) -> None:
        spent = time.process_time() - started
        usage = Usage(cpu_seconds=spent, energy=estimate_joules(spent))
        log.info("task %s: %s (%.1f CPU seconds)", task.id, note, spent)
        self._memory.note("learning", task, note, price_usage(usage, self._tariff))


def _of_task(task: Task, rows: Sequence[Row]) -> list[Row]:
    """The group's rows that are of the task, with the part that varies as their input."""
    found = ((row, task.input_of(row.input)) for row in rows)
    return [row._replace(input=text) for row, text in found if text is not None]


def _digest(rows: Sequence[Row]) -> str:
    digest = hashlib.sha256()
    for pair in sorted((row.input, row.answer) for row in rows):
        digest.update(msgspec.json.encode(pair))
    return digest.hexdigest()
