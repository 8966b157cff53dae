"""How log lines look: for people, or as JSON objects for what collects them; the learning loop's are the same.

A line has the id of the request under way, if it is about one.
"""

from __future__ import annotations

import datetime
import functools
import logging
import sys
from typing import Any, Literal, TextIO, TypeAlias

import msgspec

from puhui.core.request_ids import request_id

LogFormat: TypeAlias = Literal["text", "json"]


class JsonFormatter(logging.Formatter):
    """Each record as a JSON object on a line of its own."""

    def format(self, record: logging.LogRecord) -> str:
        """The record's line."""
        line: dict[str, Any] = {
            "time": clock(record.created),
            "level": record.levelname,
            "logger": record.name,
            "request_id": request_id.get(),
            "message": record.getMessage(),
            "exception": self.formatException(record.exc_info) if record.exc_info else None,
        }
        # Half a surrogate pair, which no JSON can hold, is spelled out.
        said = {name: str(value).encode(errors="backslashreplace").decode() for name, value in line.items() if value}
        return msgspec.json.encode(said).decode()


class TextFormatter(logging.Formatter):
    """Each record as a line for people; an exception's traceback comes below it."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  the library's name
        """The record's line; line feeds in its message are spelled out, so that nobody can add lines."""
        message = record.message.replace("\r", "\\r").replace("\n", "\\n")
        about = request_id.get()
        return " ".join(filter(None, (clock(record.created), record.levelname, record.name, about, message)))


def clock(at: float) -> str:
    """Seconds since 1970 as ISO 8601 in UTC, to the millisecond."""
    second, milliseconds = divmod(int(at * 1000.0), 1000)
    return f"{_second(second)}.{milliseconds:03d}+00:00"


@functools.lru_cache(maxsize=4)
def _second(second: int) -> str:
    """Many lines have the same second."""
    return datetime.datetime.fromtimestamp(second, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S")


def set_up_logging(form: LogFormat, level: str, stream: TextIO | None = None) -> None:
    """Sends what is logged to `stream` (None: standard error) in that form, from `level` on."""
    handler = logging.StreamHandler(stream if stream is not None else sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
