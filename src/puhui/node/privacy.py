"""What a node keeps of a request's words: nothing, what is left when personal matter is taken out, or all.

The least counts of what the node, the caller's key and the request itself say. Then, of a request that may teach:

    whole      input, answer and system prompt are kept as they are
    redacted   they are kept with marks such as ⟨mail⟩ in place of what `trust.redaction` finds. The expert is asked
               the same text: what it learned is what it reads. An answer with such matter in it is not learned, nor is
               an expert's answer with a mark in it given: the user must get the real one, from the big model
    nothing    no text and no group; only the loss of a sampled answer of an expert's is kept, for its watch

An audit asks the big model what the user asked, in full. So the request of an audit is kept on the disk only where it
may be kept as it is; else in memory, and a node that is killed drops the case. It drops it whatever the loss would have
been, as nobody knows it yet: the watch sees fewer of the same losses, and its promise holds.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import select

from puhui.bundles.bundle import CARD_FILE
from puhui.cascade.agreement import NOT_TEXT
from puhui.core.answer import Answer, Answerer
from puhui.core.errors import StoreError
from puhui.core.request import Keep, Request, least_kept
from puhui.core.request import Privacy as Travels
from puhui.core.settings import Privacy
from puhui.evolve.traffic import MOST_BYTES, Traffic, sort_request
from puhui.node.fitting import said
from puhui.store.database import Store
from puhui.store.retention import sweep, sweep_contexts
from puhui.store.tables import experts
from puhui.store.write_ahead import empty_log
from puhui.trust.redaction import MARKS, redact

log = logging.getLogger("puhui.node")

SWEEP_EVERY_S = 60.0
BETWEEN_BATCHES_S = 0.05
DAY_S = 86_400.0
IN_MEMORY = ""
"""The body of an audit whose request may not lie on the disk."""


class Reading(NamedTuple):
    """A request as its expert reads it (None: no expert may), and what may be kept of it."""

    traffic: Traffic | None
    keep: Keep


def read_request(request: Request, privacy: Privacy) -> Reading:
    """How a request is read: redacted, unless node, key and request all let it be kept whole or the whole is read
    and nothing kept."""
    keep = least_kept(privacy.keep, request.caller.keep)
    whole = privacy.keep == "whole" and keep != "redacted"
    return Reading(sort_request(request, redacted=not whole), keep)


def reader(expert: Answerer, request: Request, traffic: Traffic) -> Answerer:
    """The expert as it is asked: with the text of `traffic`, where that is not the request's own."""
    last = request.messages[-1]
    if last.text == traffic.input:
        return expert

    async def read(asked: Request) -> Answer:
        redacted = msgspec.structs.replace(last, content=traffic.input)
        answer = await expert(msgspec.structs.replace(asked, messages=(*asked.messages[:-1], redacted)))
        if any(mark in (answer.text or "") for mark in MARKS):
            answer.confidence = 0.0
        return answer

    return read


def learned_text(request: Request, answer: Answer, keep: Keep) -> str | None:
    """What is kept of the big model's answer; None where nothing is. One that is too long is not learned."""
    if keep == "nothing":
        return None
    text = said(request, answer)
    if len(text) > MOST_BYTES:
        return NOT_TEXT
    return NOT_TEXT if keep == "redacted" and redact(text) != text else text


def learned_alternatives(answer: Answer, text: str | None) -> Any:
    """The likelihood of other answers, kept with an answer that is kept."""
    return None if text is None or text == NOT_TEXT else answer.alternatives or None


def kept_body(body: bytes, keep: Keep, travels: Travels = "any") -> str:
    """The body of a request that is to be audited, as far as it may lie on the disk; else `IN_MEMORY`.

    One that may not travel anywhere stays in memory as well: what is taken up after a start has no needs any more.
    """
    if keep == "nothing" or travels != "any":
        return IN_MEMORY
    if keep == "redacted":
        spelled = msgspec.json.encode(msgspec.json.decode(body)).decode()  # without escapes, which hide characters
        if redact(spelled) != spelled:
            return IN_MEMORY
    return body.decode()


def experience_row(
    request: Request,
    answer: Answer,
    reading: Reading,
    *,
    task: str | None,
    expert: str | None,
    coin: bool,
    body: bytes,
) -> dict[str, Any] | None:
    """The row of experience of an answered request; None where there is nothing to keep.

    `body` is the request without streaming, `expert` the one in place. The loss of a sampled request that the expert
    left to the big model is 0, and known at once.
    """
    traffic, keep = reading
    assert traffic is not None
    by_expert, sampled = answer.expert is not None, coin and expert is not None
    if keep == "nothing":
        if not sampled:
            return None
        traffic = Traffic("", "", "")
    text = None if by_expert else learned_text(request, answer, keep)
    return {
        "id": request.id,
        "at": time.time(),
        "group": traffic.group,
        "input": traffic.input,
        "answer": text,
        "alternatives": learned_alternatives(answer, text),
        "coin": coin,
        "expert": expert,
        "expert_answer": answer.text if by_expert and keep != "nothing" else None,
        "body": kept_body(body, keep, request.needs.privacy) if by_expert else None,
        "task": task,
        "key": request.caller.key,
        "loss": 0.0 if sampled and not by_expert else None,
    }


async def sweep_for_ever(store: Store, keep_days: float, *, every_s: float = SWEEP_EVERY_S) -> None:
    """Deletes text that is older than `keep_days`, a few rows at a time and off the event loop, and the bundles of
    stale experts that answer no more, until cancelled."""
    swept = True  # an earlier run may have been stopped before its log was emptied
    while True:
        try:
            while await asyncio.to_thread(sweep, store, time.time() - keep_days * DAY_S):
                swept = True
                await asyncio.sleep(BETWEEN_BATCHES_S)
            swept = bool(await asyncio.to_thread(sweep_contexts, store)) or swept
            await asyncio.to_thread(delete_stale_bundles, store)
            if swept:
                swept = not await asyncio.to_thread(empty_log, store)
        except (StoreError, OSError) as error:
            log.warning("text that is too old could not be deleted: %s", error)
        await asyncio.sleep(every_s)


def delete_stale_bundles(store: Store) -> None:
    """Deletes experts that may know what was forgotten, once they are out of place (blocking)."""
    ended = select(experts.c.folder).where(experts.c.stale.is_not(None), experts.c.status != "active")
    with store.begin() as connection:
        folders = connection.execute(ended).scalars().all()
    for folder in map(Path, folders):
        if (folder / CARD_FILE).is_file():  # a bundle, and nothing else that may lie there
            shutil.rmtree(folder)
