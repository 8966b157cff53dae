"""Requests, answers and events as rows of the ledger."""

from __future__ import annotations

import time
from typing import Any

from puhui.core.answer import Answer, Usage
from puhui.core.request import Request

Row = dict[str, Any]


def request_row(request: Request, answer: Answer, task: str | None, *, kind: str = "request") -> Row:
    """The ledger's row for an answered request (or audit)."""
    return _row(
        kind,
        id=request.id,
        task=task,
        model=request.model,
        by=answer.by,
        expert=answer.expert,
        confidence=answer.confidence,
        path=[[step.name, step.confidence, step.taken] for step in answer.path],
        usage=answer.usage,
        key=request.caller.key,
    )


def failure_row(
    request: Request, task: str | None, status: int, reason: str, *, kind: str = "request", usage: Usage = Usage()
) -> Row:
    """The ledger's row for a request that got no answer, or only half of one (`usage` is then what that has used)."""
    caller, model = request.caller, request.model
    return _row(kind, id=request.id, task=task, model=model, status=status, note=reason, usage=usage, key=caller.key)


def event_row(
    kind: str,
    *,
    at: float,
    task: str | None,
    expert: str | None,
    note: str,
    usage: Usage = Usage(),
    id: str = "",
) -> Row:
    """The ledger's row for what happened to an expert, or for energy that no single request used."""
    return _row(kind, id=id or f"{kind}-{at:.6f}", at=at, task=task, expert=expert, usage=usage, note=note)


def _row(
    kind: str,
    *,
    id: str,
    at: float | None = None,
    task: str | None = None,
    model: str = "",
    by: str = "",
    expert: str | None = None,
    confidence: float | None = None,
    path: list[list[Any]] | None = None,
    status: int = 200,
    usage: Usage = Usage(),
    note: str | None = None,
    key: str = "",
) -> Row:
    energy = usage.energy
    return {
        "id": id,
        "at": time.time() if at is None else at,
        "kind": kind,
        "task": task,
        "model": model,
        "by": by,
        "expert": expert,
        "confidence": confidence,
        "path": path,
        "status": status,
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "seconds": usage.seconds,
        "cpu_seconds": usage.cpu_seconds,
        "joules": energy.joules,
        "joules_low": energy.low,
        "joules_high": energy.high,
        "measured": energy.measured,
        "co2_g": usage.co2_g,
        "cost": usage.cost,
        "note": note,
        "key": key,
    }
