"""Which requests are of one kind: the same model and system prompt, or a name that the caller gave.

A request is sorted by what does not vary in it; what varies is the input. Only requests with one question
(an optional system prompt and one user message, in plain text) are sorted: an expert sees that question and
nothing else, so an answer that hangs on earlier turns, pictures or tools is left to the big model. So is a request
that is too large.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from puhui.core.request import Request
from puhui.trust.redaction import redact, redact_shared

BARE = "bare"
MOST_BYTES = 64 * 1024
"""Of a request's body. What is sorted is looked through for personal matter on the event loop, which others wait for:
this much takes some 30 ms at the worst, 8 MiB would take four seconds. Experts are for short questions."""


class Traffic(NamedTuple):
    """A sorted request: its group, the text that the group shares, and the input."""

    group: str
    context: str
    input: str


class Task(msgspec.Struct, frozen=True):
    """A job that repeats: a group of requests, or those of a group whose input has one prefix and suffix."""

    id: str
    name: str
    group: str
    model: str
    prefix: str = ""
    suffix: str = ""

    def input_of(self, text: str) -> str | None:
        """The part of `text` that varies; None when it is not of this task."""
        if not self.prefix and not self.suffix:
            return text
        if len(text) < len(self.prefix) + len(self.suffix):
            return None
        if not (text.startswith(self.prefix) and text.endswith(self.suffix)):
            return None
        return text[len(self.prefix) : len(text) - len(self.suffix)]


def sort_request(request: Request, *, redacted: bool = False) -> Traffic | None:
    """Where a request belongs; None when no expert may answer it. `redacted`: read without personal matter."""
    if not request.plain or not request.messages or len(request.body) > MOST_BYTES:
        return None
    *before, last = request.messages
    if last.role != "user" or any(message.role not in ("system", "developer") for message in before):
        return None
    question = last.text
    texts = [message.text for message in before]
    if question is None or None in texts:
        return None
    context = "\n".join(text for text in texts if text)
    if redacted:
        context, question = redact_shared(context), redact(question)
    kind, shared = ("named", request.task) if request.task else ("context" if context else BARE, context)
    return Traffic(group_key(request.model, request.settings, kind, shared, request.caller.pool), context, question)


def group_key(model: str, settings: str, kind: str, shared: str, pool: str = "") -> str:
    """A short stable key. Requests to another model or with other settings (`max_tokens`, `stop`, an answer's
    format, …) are of another group: an expert then gives only answers that those settings allow. So are those of
    another pool: nobody's traffic teaches, or is answered by, an expert of those who did not agree to share.
    """
    parts = (kind, model, settings, shared, *([pool] if pool else []))
    digest = hashlib.sha256("\x00".join(parts).encode(errors="surrogatepass")).hexdigest()
    return f"{kind}:{digest[:24]}"


class TaskIndex:
    """Finds the task of a sorted request in a dictionary look-up (and a few string comparisons)."""

    def __init__(self, tasks: Iterable[Task] = ()) -> None:
        self._by_group: dict[str, list[Task]] = {}
        for task in sorted(tasks, key=lambda task: -len(task.prefix) - len(task.suffix)):
            self._by_group.setdefault(task.group, []).append(task)

    def find(self, traffic: Traffic) -> tuple[Task, str] | None:
        """The task and its input; the task with the longest fixed part wins."""
        for task in self._by_group.get(traffic.group, ()):
            text = task.input_of(traffic.input)
            if text is not None:
                return task, text
        return None
