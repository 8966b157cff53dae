"""What every route does with a request before it reads it: whose it is, of which type, and how much of it."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from starlette.requests import Request as HttpRequest

from puhui.core.errors import InvalidRequest, UnknownModel
from puhui.core.request import Caller, Request

MEBIBYTE = 1024 * 1024
MOST_BODY_MB = 8
"""Mebibytes of a body, unless the node is told otherwise."""
JSON = "application/json"

_NOBODY = Caller()


class TooLarge(InvalidRequest):
    """The body is larger than this server takes."""


class WrongType(InvalidRequest):
    """The body is said to be something else than JSON."""


class WrongEncoding(WrongType):
    """The body is said to be packed."""


def caller_of(http: HttpRequest) -> Caller:
    """Whom the door let in."""
    caller = http.scope.get("state", {}).get("caller")
    return caller if isinstance(caller, Caller) else _NOBODY


def read_headers(http: HttpRequest) -> dict[str, str]:
    """The headers, names in small letters; the values of one that is there several times, with commas (RFC 9110, 5.3).

    A dictionary, as a request is looked through for a dozen of them, and each look at the library's takes them all.
    """
    found: dict[str, str] = {}
    for raw_name, raw_value in http.scope["headers"]:
        name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
        found[name] = f"{found[name]}, {value}" if name in found else value
    return found


async def read_body(http: HttpRequest, headers: Mapping[str, str], most_mb: int = MOST_BODY_MB) -> bytes:
    """The body, read no further than `most_mb` mebibytes. Raises `WrongType`, `WrongEncoding` and `TooLarge`.

    A body of no type is taken for JSON: many small clients send none.
    """
    kind = headers.get("content-type")
    if kind and kind != JSON:
        name = kind.partition(";")[0].strip().lower()
        if name != JSON and not name.endswith("+json"):
            raise WrongType(f"the body is said to be {kind[:100]!r}; send content-type: {JSON}")
    encoding = headers.get("content-encoding")
    if encoding and encoding.strip().lower() != "identity":
        raise WrongEncoding(
            f"the body is said to be encoded as {encoding[:100]!r}; send it as it is, without a content-encoding"
        )
    receive = http.receive
    pieces: list[bytes] = []
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise InvalidRequest("the client went away before its request was whole")
        piece = message.get("body", b"")
        size += len(piece)
        if size > most_mb * MEBIBYTE:
            raise TooLarge(
                f"the body is larger than {most_mb} MiB, the most taken here; send less, or have the node started with "
                "a larger --max-body-mb"
            )
        pieces.append(piece)
        more = message.get("more_body", False)
    return b"".join(pieces) if len(pieces) > 1 else pieces[0]


def check_model(request: Request, models: Collection[str]) -> None:
    """Raises `UnknownModel` for a name that is not among `models` (empty: any passes)."""
    if models and request.model not in models:
        raise UnknownModel(f"no model {request.model!r} here; there is: {', '.join(sorted(models))}")
