"""Live progress: a bar and what has been learned so far; plain lines where there is no terminal."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections import deque
from typing import Any

import rich.live
from rich.console import Console, Group
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from puhui.demo.load import Sent
from puhui.demo.processes import open_local
from puhui.demo.tally import percentile

RECENT = 300
PLAIN_LINE_EVERY_S = 15.0


class Live:
    """Progress of one step. A context manager; `add` and `show` may be called from several threads."""

    def __init__(self, console: Console, what: str, total: int, *, node: str | None = None) -> None:
        self._console = console
        self._what = what
        self._total = total
        self._node = node
        self._done = 0
        self._recent: deque[Sent] = deque(maxlen=RECENT)
        self._joules = self._joules_big = 0.0
        self._of_big: deque[float] = deque(maxlen=RECENT)
        self._state: dict[str, Any] = {}
        self._stop = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._bar = Progress(
            TextColumn("   {task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        self._task = self._bar.add_task(what, total=total)
        self._below = Text()  # in a line of its own: beside the bar it leaves no room for it in 80 columns
        self._display = rich.live.Live(Group(self._bar, self._below), console=console, transient=True)

    def __enter__(self) -> Live:
        if self._console.is_terminal:
            self._display.start()
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._watcher.join()
        if self._console.is_terminal:
            self._display.stop()
        self._line()

    def show(self, done: int) -> None:
        """So many are done."""
        self._done = done

    def advance(self) -> None:
        """One more is done."""
        self._done += 1

    def add(self, one: Sent) -> None:
        """One more request is back."""
        self._done += 1
        self._recent.append(one)
        self._joules += one.joules
        if one.status == 200 and not one.by_expert:
            self._of_big.append(one.joules)
        self._joules_big += sum(self._of_big) / len(self._of_big) if self._of_big else 0.0

    def _watch(self) -> None:
        last_line = time.monotonic()
        while not self._stop.wait(0.5):
            if self._node is not None:
                state = f"{self._node}/puhui/state"
                with contextlib.suppress(OSError, ValueError), open_local(state, timeout=5.0) as reply:
                    self._state = json.load(reply)
            self._bar.update(self._task, completed=self._done)
            self._below.plain = f"   {self._facts()}"
            if not self._console.is_terminal and time.monotonic() - last_line > PLAIN_LINE_EVERY_S:
                last_line = time.monotonic()
                self._line()

    def _line(self) -> None:
        self._console.print(f"   {self._what}: {self._done:,} of {self._total:,}  {self._facts()}", highlight=False)

    def _facts(self) -> str:
        recent = list(self._recent)
        if not recent:
            return ""
        experts = [one.latency_s * 1000 for one in recent if one.by_expert]
        big = [one.latency_s * 1000 for one in recent if one.status == 200 and not one.by_expert]
        facts = [f"expert {len(experts) / len(recent):.0%}"]
        audited = sum(expert["audited"] for expert in self._state.get("experts", ()))
        if audited:
            losses = sum(expert["losses"] for expert in self._state["experts"])
            facts.append(f"sampled risk {losses / audited:.1%} of {audited}")
        for name, latencies in (("big", big), ("expert", experts)):
            if latencies:
                facts.append(f"{name} {percentile(latencies, 0.5):.1f} ms")
        facts.append(f"{self._joules:.0f} J for {self._joules_big:.0f} J")
        failed = sum(one.status != 200 for one in recent)
        return " · ".join(facts + ([f"{failed} failed lately"] if failed else []))
