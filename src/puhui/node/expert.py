"""An expert in place: a verified model for one task, as an answerer, with its threshold and its watch."""

from __future__ import annotations

import time
from collections import deque

from puhui.cascade.agreement import EXACT, Rule, loss_of
from puhui.cascade.monitor import RiskMonitor
from puhui.core.answer import Answer, Step, Usage
from puhui.core.cohort import Cohort
from puhui.core.request import Request
from puhui.energy.power import estimate_joules
from puhui.evolve.traffic import Task
from puhui.models.family import ExpertModel
from puhui.node.fitting import finish_of, fits


class Case:
    """The loss of one sampled request, once it is known. `dropped`: it never will be."""

    def __init__(self, rule: Rule | None = EXACT) -> None:
        """`rule` says how the expert's answers are compared with the big model's (None: that is not known here)."""
        self.loss: float | None = None
        self.dropped = False
        self._rule = rule

    def decide(self, given: str | None, big: str) -> None:
        """The user was given an expert's answer (None: the big model's own), and the big model says `big`."""
        self.loss = self.of(given, big)

    def of(self, given: str | None, big: str) -> float | None:
        """What the loss would be; nothing is decided by it yet."""
        return None if self._rule is None else loss_of(given, big, self._rule)


class Docket:
    """Tells a watch its losses in the order in which the requests came.

    A request that went to the big model has its loss at once, one that the expert answered only after its
    audit. Told as they come, the zeros would be early and the ones late, in bursts: the watch would take that
    for a change (measured: with 500 audits held up, 9 % of runs raised a false alarm at three quarters of ε).
    """

    def __init__(self, watch: RiskMonitor, rule: Rule = EXACT) -> None:
        self.watch = watch
        self._rule = rule
        self._open: deque[Case] = deque()

    def open(self) -> Case:
        """A new case, after all others."""
        case = Case(self._rule)
        self._open.append(case)
        return case

    def settle(self) -> bool:
        """Tells the watch every loss whose turn has come; returns whether the promise is now proven broken."""
        while self._open and (self._open[0].dropped or self._open[0].loss is not None):
            case = self._open.popleft()
            if case.loss is not None and self.watch.update(case.loss):
                return True
        return self.watch.rejected


class Expert:
    """Answers the requests of one task.

    `served` counts the requests it has seen, sure or not; `left_over` are the open cases of an earlier run, by
    request; `stale`: another is to be learned in its place, for which a sample is needed soon.
    """

    def __init__(
        self,
        id: str,
        task: Task,
        model: ExpertModel,
        threshold: float,
        watch: RiskMonitor,
        *,
        rule: Rule = EXACT,
        served: int = 0,
    ) -> None:
        self.id = id
        self.name = f"expert:{id[:12]}"
        self.task = task
        self.model = model
        self.threshold = threshold
        self.watch = watch
        self.docket = Docket(watch, rule)
        self.served = served
        self.left_over: dict[str, Case] = {}
        self.stale = False
        self._known = frozenset(model.labels)
        self._predict = Cohort(self._timed)

    async def __call__(self, request: Request) -> Answer:
        """Its label for the request's question, with its confidence; waits for nothing but its turn."""
        started = time.perf_counter()
        text = self.task.input_of(request.messages[-1].text or "")
        label, confidence, cpu = await self._predict(text or "")
        if not fits(label, request.settings, self._known):
            confidence = 0.0  # an answer in a form that was not asked for is none
        return Answer(
            by=self.name,
            text=label,
            confidence=confidence,
            path=(Step(self.name, confidence, True),),
            usage=Usage(seconds=time.perf_counter() - started, cpu_seconds=cpu, energy=estimate_joules(cpu)),
            expert=self.id,
            finish=finish_of(request.settings),
        )

    def _timed(self, text: str) -> tuple[str, float, float]:
        """Label, confidence, and the CPU seconds that they took."""
        started = time.thread_time()
        label, confidence = self.model.predict_one(text)
        return label, confidence, time.thread_time() - started
