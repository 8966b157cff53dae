"""When two answers are the same answer."""

from __future__ import annotations

NOT_TEXT = "(not text)"
"""What experience holds where the big model's answer was no text (a tool call, say): no expert says so."""


def canonical(answer: str) -> str:
    """The form in which answers are compared: white space around them does not count, all else does.

    >>> canonical(" glue\\n")
    'glue'
    """
    return answer.strip()


def loss_of(given: str | None, big: str) -> float:
    """The loss of one request: 1.0 if the user got `given` from an expert and the big model says otherwise.

    None means that the expert was not sure and the user got the big model's own answer: no loss.

    >>> loss_of("glue", "glue "), loss_of("glue", "iot"), loss_of(None, "iot")
    (0.0, 1.0, 0.0)
    """
    return 0.0 if given is None or canonical(given) == canonical(big) else 1.0
