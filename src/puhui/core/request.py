"""What is asked: messages, what the request needs, and the body as the caller sent it."""

from __future__ import annotations

from typing import Any

import msgspec


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


class Needs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the caller needs of the answer.

    `quality` lies in [0, 1]: 1.0 always asks the big model, anything less accepts a proven expert.
    """

    quality: float = 0.0


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One request on its way through answerers.

    `body` is the JSON object as the caller sent it and is what an upstream gets, so that fields which Puhui
    does not know pass through. `task` is the caller's own name for the job, if they gave one. `plain` is True
    when one text is the whole answer: no tools, several choices, token log-probabilities or sound. `settings`
    are the remaining fields, in one spelling: what may change an answer beside the messages. `alternatives`
    asks an upstream that can for the likelihood of other answers as well.
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
    authorization: str | None = None
