"""What a request says beside the question: what it needs, what may be kept of it, and headers to pass on.

Needs come by headers (`x-puhui-quality`, `x-puhui-latency-ms`, `x-puhui-max-cost`, `x-puhui-privacy`) or in the body,
as `"puhui": {"needs": {"quality": 1.0}}`; where both name one, the body's counts, and null names none. What may be
kept of the text comes by `x-puhui-keep` or `"puhui": {"keep": "nothing"}`, and can only be less than the caller's key
allows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, get_args

import msgspec

from puhui.core.errors import InvalidRequest
from puhui.core.request import LEAST_FIRST, Caller, Keep, Needs, Privacy, least_kept
from puhui.models.wire import NOT_JSON

FIELD = "puhui"
NUMBERS = {
    "x-puhui-quality": "quality",
    "x-puhui-latency-ms": "latency_ms",
    "x-puhui-max-cost": "max_cost",
}
PRIVACY_HEADER = "x-puhui-privacy"
KEEP_HEADER = "x-puhui-keep"

# Of one connection (RFC 9110, 7.6.1), of this server, or secrets between the caller and this node.
_NOT_PASSED_ON = frozenset(
    {
        "accept-encoding",
        "authorization",
        "connection",
        "content-length",
        "cookie",
        "expect",
        "forwarded",
        "host",
        "keep-alive",
        "origin",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "referer",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "via",
        "x-real-ip",
    }
)
_OURS = ("x-puhui-", "x-forwarded-", "sec-fetch-", "access-control-")


class Said(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The `puhui` object of a request's body."""

    needs: dict[str, Any] | None = None
    keep: Keep | None = None


_NO_WORD = Said()
_NO_NEEDS = Needs()
_decode_said = msgspec.json.Decoder(Said | None).decode


def read_said(raw: msgspec.Raw | None) -> Said:
    """The body's `puhui` object. Raises `InvalidRequest` that names what is wrong in it."""
    if raw is None:
        return _NO_WORD
    try:
        return _decode_said(raw) or _NO_WORD
    except NOT_JSON as error:
        raise InvalidRequest(f"the field 'puhui' may hold 'needs' and 'keep', no more: {error}", param=FIELD) from error


def read_needs(headers: Mapping[str, str], said: Said) -> Needs:
    """What the caller needs. Raises `InvalidRequest` for a name or a value that is not known."""
    given: dict[str, Any] = {}
    for header, name in NUMBERS.items():
        if (value := headers.get(header)) is not None:
            given[name] = _number(header, value)
    if (privacy := headers.get(PRIVACY_HEADER)) is not None:
        given["privacy"] = privacy.strip().lower()
    for name, value in (said.needs or {}).items():
        if value is not None or name not in Needs.__struct_fields__:  # null is no word, but a wrong name is wrong
            given[name] = value
    if not given:
        return _NO_NEEDS
    try:
        needs = msgspec.convert(given, Needs)
    except msgspec.ValidationError as error:
        raise InvalidRequest(
            f"the needs are not usable: {error}; they may be {', '.join(Needs.__struct_fields__)}, and privacy one of "
            f"{', '.join(get_args(Privacy))}",
            param="puhui.needs",
        ) from error
    _check("quality", needs.quality, 1.0)
    _check("latency_ms", needs.latency_ms)
    _check("max_cost", needs.max_cost)
    return needs


def read_caller(caller: Caller, headers: Mapping[str, str], said: Said) -> Caller:
    """The caller, with less kept of this request where the request says so."""
    keep = said.keep
    if keep is None:
        header = headers.get(KEEP_HEADER)
        if header is None:
            return caller
        known = [name for name in LEAST_FIRST if name == header.strip().lower()]
        if not known:
            raise InvalidRequest(f"the header {KEEP_HEADER} is {header!r}; it may be {', '.join(LEAST_FIRST)}")
        keep = known[0]
    return msgspec.structs.replace(caller, keep=least_kept(keep, caller.keep))


def headers_to_pass_on(headers: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """The caller's headers that are for the upstream, with names in small letters.

    A value that is neither ASCII nor UTF-8 is left out: it could not be sent as it came.
    """
    named = headers.get("connection")
    hop = {name.strip().lower() for name in named.split(",")} if named is not None else ()
    found = []
    for name, value in headers.items():
        if name in _NOT_PASSED_ON or name in hop or name.startswith(_OURS):
            continue
        if not value.isascii():
            try:  # servers give a header's bytes as Latin-1, clients write them as UTF-8
                value = value.encode("latin-1").decode()
            except UnicodeError:
                continue
        if value.isprintable():
            found.append((name, value))
    return tuple(found)


def _number(header: str, given: str) -> float:
    try:
        return float(given) if given.isascii() else math.nan
    except ValueError:
        return math.nan


def _check(name: str, value: float | None, most: float = math.inf) -> None:
    if value is None or (math.isfinite(value) and 0.0 <= value <= most):
        return
    header = next(header for header, field in NUMBERS.items() if field == name)
    allowed = f"a number from 0 to {most:g}" if math.isfinite(most) else "a number, 0 or more"
    raise InvalidRequest(
        f"{name!r} (header {header}, or 'puhui.needs.{name}' in the body) must be {allowed}",
        param=f"puhui.needs.{name}",
    )
