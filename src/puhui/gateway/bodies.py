"""What every route does with a request before it reads it: whose it is, of which type, and how much of it."""

from __future__ import annotations

from collections.abc import Collection

from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest

from puhui.core.errors import InvalidRequest, UnknownModel
from puhui.core.request import Caller, Request

MOST_BODY_BYTES = 8 * 1024 * 1024
JSON = "application/json"

_NOBODY = Caller()


class TooLarge(InvalidRequest):
    """The body is larger than this server takes."""


class WrongType(InvalidRequest):
    """The body is said to be something else than JSON."""


def caller_of(http: HttpRequest) -> Caller:
    """Whom the door let in."""
    caller = http.scope.get("state", {}).get("caller")
    return caller if isinstance(caller, Caller) else _NOBODY


async def read_body(http: HttpRequest) -> bytes:
    """The body, read no further than is allowed. Raises `WrongType` and `TooLarge`.

    A body of no type is taken for JSON: many small clients send none.
    """
    kind = http.headers.get("content-type")
    if kind and kind != JSON:
        name = kind.partition(";")[0].strip().lower()
        if name != JSON and not name.endswith("+json"):
            raise WrongType(f"the body is said to be {kind[:100]!r}; send content-type: {JSON}")
    pieces: list[bytes] = []
    size = 0
    try:
        async for piece in http.stream():
            size += len(piece)
            if size > MOST_BODY_BYTES:
                raise TooLarge(f"the body is larger than {MOST_BODY_BYTES} bytes, which is the most taken here")
            pieces.append(piece)
    except ClientDisconnect as error:
        raise InvalidRequest("the client went away before its request was whole") from error
    return b"".join(pieces)


def check_model(request: Request, models: Collection[str]) -> None:
    """Raises `UnknownModel` for a name that is not among `models` (empty: any passes)."""
    if models and request.model not in models:
        raise UnknownModel(f"no model {request.model!r} here; there is: {', '.join(sorted(models))}")
