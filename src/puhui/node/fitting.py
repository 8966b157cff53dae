"""Whether an expert's answer keeps to the form that the request asks for: `stop`, most tokens, JSON.

Traffic with other settings is other traffic (`evolve.traffic.group_key`), so what an expert learned was said by the
big model under the very settings of the request. An answer that is one of those, word for word, keeps to them. One
that is put together (a passage, a number, a list, a record) is looked at:

- it must hold no `stop` sequence: the big model would have ended there;
- it must be shorter in bytes than the most tokens allowed, as no tokenizer makes more tokens than bytes;
- it must be a JSON object where one is asked for, and valid by the schema where there is one. Some schemas allow only
  known answers: patterns of strangers may run for ever, formats are not checked by all, `$ref`s that lie in each
  other and unevaluated properties double the work with each level, and unique items are compared each with each.

What does not keep to it is not given: the big model is asked. That makes the expert answer less, so the promise on
the risk holds as it did.

An answer that the big model was made to break off (`finish_reason` `length`) or to hold back (`content_filter`) is no
whole answer: nothing is learned from it, and an audit that gets it disagrees. At one token at most, as classifiers
are often asked, every answer ends so: those are learned, and an expert's says `length` as well.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection
from typing import Any

import msgspec

from puhui.cascade.agreement import NOT_TEXT
from puhui.core.answer import Answer
from puhui.core.request import Request
from puhui.models.wire import NOT_JSON

MOST_TOKENS = ("max_tokens", "max_completion_tokens")
BROKEN_OFF = frozenset({"length", "content_filter"})
UNCHECKED = ("pattern", "format", "$ref", "$dynamicRef", "unevaluated", "uniqueItems")
MOST_SCHEMA_BYTES = 16_000
MOST_WORK = 2_000_000
"""Bytes of the schema times bytes of the answer, each part of which may meet each: some 0.2 s at the worst."""


class Form(msgspec.Struct, frozen=True):
    """What the settings of a request ask of the form of its answer. `closed`: only known answers will do."""

    stop: tuple[str, ...] = ()
    most_tokens: int | None = None
    is_valid: Callable[[str], bool] | None = None
    closed: bool = False


def fits(text: str, settings: str, known: Collection[str]) -> bool:
    """Whether the answer `text` keeps to the request's `settings`; `known` are answers that the big model gave."""
    if not settings or text in known:
        return True
    form = _form_of(settings)
    if form.closed or any(sequence in text for sequence in form.stop):
        return False
    if form.most_tokens is not None and len(text.encode(errors="surrogatepass")) >= form.most_tokens:
        return False
    if form.is_valid is None:
        return True
    try:
        return form.is_valid(text)
    except NOT_JSON:
        return False


def finish_of(settings: str) -> str:
    """Why an expert's answer ends, in OpenAI's words: at one token at most, for `length`."""
    return "length" if settings and _form_of(settings).most_tokens == 1 else "stop"


def said(request: Request, answer: Answer) -> str:
    """What the big model said, for learning and audits; `NOT_TEXT` where it is no text, or not all of it."""
    if answer.text is None:
        return NOT_TEXT
    if answer.finish in BROKEN_OFF and not (answer.finish == "length" and _asks_for_one_token(request.body)):
        return NOT_TEXT
    return answer.text


def _asks_for_one_token(body: bytes) -> bool:
    try:
        fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
        return any(bytes(fields[name]).strip() == b"1" for name in MOST_TOKENS if name in fields)
    except NOT_JSON:
        return False


@functools.lru_cache(maxsize=1024)
def _form_of(settings: str) -> Form:
    fields: dict[str, Any] = dict(msgspec.json.decode(settings))
    stop = fields.get("stop") or []
    stop = [stop] if isinstance(stop, str) else stop
    limits = [fields[name] for name in MOST_TOKENS if fields.get(name) is not None]
    is_valid, open_format = _validity(fields.get("response_format"))
    usable = (
        isinstance(stop, list)
        and all(isinstance(sequence, str) for sequence in stop)
        and all(isinstance(limit, int) for limit in limits)
        and open_format
    )
    if not usable:  # a setting that nobody here understands
        return Form(closed=True, most_tokens=1 if 1 in limits else None)
    return Form(tuple(stop), min(limits, default=None), is_valid)


def _validity(wanted: Any) -> tuple[Callable[[str], bool] | None, bool]:
    """What says whether an answer is valid (None: any text is), and whether that can be said at all."""
    if wanted is None or wanted == {"type": "text"}:
        return None, True
    kind = wanted.get("type") if isinstance(wanted, dict) else None
    if kind == "json_object":
        return (lambda text: isinstance(msgspec.json.decode(text), dict)), True
    if kind == "json_schema" and isinstance(wanted.get("json_schema"), dict):
        validator = _validator(wanted["json_schema"].get("schema"))
        return validator, validator is not None
    return None, False


def _validator(schema: Any) -> Callable[[str], bool] | None:
    """What says whether a text is valid by a JSON Schema (2020-12); None where that cannot be had safely."""
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    if not isinstance(schema, dict):
        return None
    spelled = msgspec.json.encode(schema).decode()
    if len(spelled) > MOST_SCHEMA_BYTES or any(word in spelled for word in UNCHECKED):
        return None
    try:
        Draft202012Validator.check_schema(schema)
    except (SchemaError, RecursionError):
        return None
    # A registry of nothing: a reference to another host is an error, not a request to that host.
    validator = Draft202012Validator(schema, registry=Registry())

    def is_valid(text: str) -> bool:
        if len(text) * len(spelled) > MOST_WORK:
            return False
        try:
            return bool(validator.is_valid(msgspec.json.decode(text)))
        except (Unresolvable, RecursionError):
            return False

    return is_valid
