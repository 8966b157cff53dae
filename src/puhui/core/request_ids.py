"""One id for each HTTP request: in the reply's header, the ledger, the log and traces alike."""

from __future__ import annotations

import os
import time
from contextvars import ContextVar

request_id: ContextVar[str | None] = ContextVar("puhui_request_id", default=None)
"""The id of the HTTP request under way; None outside of any."""


def new_id() -> str:
    """An id that nobody has had: `req_` and 24 hexadecimal digits. It is no secret.

    Half of them are the time in ms, so that ids rise: a database finds room for the next one where the last one is.
    """
    return f"req_{time.time_ns() // 1_000_000:012x}{os.urandom(6).hex()}"


def current_id() -> str:
    """The id of the HTTP request under way, or a new one outside of any."""
    return request_id.get() or new_id()
