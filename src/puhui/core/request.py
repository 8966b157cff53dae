"""What is asked: messages, what the request needs, and the body as the caller sent it."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias, get_args

import msgspec

from puhui.core.errors import NotAllowed


class Message(msgspec.Struct, frozen=True):
    """One chat message. Fields that are not named here stay in `Request.body`."""

    role: str
    content: str | list[dict[str, Any]] | None = None

    @property
    def text(self) -> str | None:
        """The content when it is plain text (a string, or parts that are all text); else None."""
        if isinstance(self.content, str):
            return self.content
        if not self.content or any(part.get("type") != "text" for part in self.content):
            return None
        return "".join(str(part.get("text", "")) for part in self.content)


Privacy: TypeAlias = Literal["device", "site", "any"]
"""How far a request may travel: not off this node, not off this site, or anywhere."""
Keep: TypeAlias = Literal["nothing", "redacted", "whole"]
"""What may be kept of a request's text, least first."""
LEAST_FIRST: tuple[Keep, ...] = get_args(Keep)


def least_kept(keep: Keep, most: Keep | None) -> Keep:
    """The lesser of what two agree to be kept; None agrees to anything.

    >>> least_kept("whole", "redacted"), least_kept("nothing", None)
    ('redacted', 'nothing')
    """
    return keep if most is None else min(keep, most, key=LEAST_FIRST.index)


class Needs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the caller needs of the answer.

    `quality` lies in [0, 1]: 1.0 always asks the big model, anything less accepts an expert whose promised risk is at
    most 1 - `quality`. `latency_ms` is the longest that the answer may take, `max_cost` the most that it may cost, in
    the tariff's currency.
    """

    quality: float = 0.0
    latency_ms: float | None = None
    max_cost: float | None = None
    privacy: Privacy = "any"


class Caller(msgspec.Struct, frozen=True):
    """Whose request it is, as the gateway's door found out.

    `key` is the id of the key that was shown ("" where there are no keys). Requests of one `pool` may teach an
    expert together, and it answers nobody else. `keep` is the most that may be kept of their text (None: what
    the node keeps). `models` are the names that it may ask for (none: any).
    """

    key: str = ""
    pool: str = ""
    keep: Keep | None = None
    models: tuple[str, ...] = ()

    def check_model(self, model: str) -> None:
        """Raises `NotAllowed` if the caller may not ask for `model`."""
        if self.models and model not in self.models:
            raise NotAllowed(f"this key may not ask for the model {model!r}, only for {', '.join(self.models)}")


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One request on its way through answerers.

    `body` is the JSON object as the caller sent it and is what an upstream gets, so that fields which Puhui
    does not know pass through. `task` is the caller's own name for the job, if they gave one. `plain` is True
    when one text is the whole answer: no tools, several choices, token log-probabilities or sound. `settings`
    are the remaining fields, in one spelling: what may change an answer beside the messages. `alternatives`
    asks an upstream that can for the likelihood of other answers as well. `authorization` and `headers` (names in
    small letters) are the caller's own, for an upstream that has no key of its own and for what Puhui does not know.
    `query` is what stood behind the path's question mark, of a request that is passed on as it is. `awaited` is False
    where nobody waits for the answer, as with audits.
    """

    id: str
    model: str
    messages: tuple[Message, ...]
    body: bytes
    task: str | None = None
    plain: bool = True
    settings: str = ""
    stream: bool = False
    alternatives: bool = False
    needs: Needs = Needs()
    caller: Caller = Caller()
    authorization: str | None = None
    headers: tuple[tuple[str, str], ...] = ()
    query: str = ""
    awaited: bool = True
