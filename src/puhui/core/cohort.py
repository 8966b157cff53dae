"""Like work of several requests, done one after another: a cohort of requests, not each by itself.

What an expert does for a text takes twice as long when the processor's caches hold what was done for the request
before: reading, writing, JSON. So the requests of one turn of the event loop wait for each other, and their like work
is done in one go. Nobody waits for a clock, and the results are those of each by itself.

Method: cohort scheduling (Larus and Parkes, "Using Cohort Scheduling to Enhance Server Performance", USENIX 2002).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

Given = TypeVar("Given")
Found = TypeVar("Found")


class Cohort(Generic[Given, Found]):
    """`work`, as a coroutine. What `work` raises for an item is raised to who gave that item alone."""

    def __init__(self, work: Callable[[Given], Found]) -> None:
        self._work = work
        self._waiting: list[tuple[Given, asyncio.Future[Found]]] = []

    async def __call__(self, item: Given) -> Found:
        """The work's result for the item."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Found] = loop.create_future()
        if not self._waiting:
            loop.call_soon(self._do_all)
        self._waiting.append((item, done))
        return await done

    def _do_all(self) -> None:
        waiting, self._waiting = self._waiting, []
        for item, done in waiting:
            if done.cancelled():  # its request has gone
                continue
            try:
                done.set_result(self._work(item))
            except Exception as error:  # noqa: BLE001  it is told to who waits for it
                done.set_exception(error)
