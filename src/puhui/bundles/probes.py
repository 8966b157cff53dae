"""What an expert says of a few texts, kept in its bundle: does it say the same on the runtime that runs it?

ONNX Runtime's int8 kernels differ from machine to machine, and a browser's from Python's. So where an expert is made it
answers `TEXTS`, which are nobody's, and its own labels; and whoever runs it, in Python or in a browser (`puhui.js`),
may ask it the same. `probes.json` is a list of {"text", "label", "confidence"}, signed like every file of the bundle.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from puhui.core.errors import BundleError
from puhui.models.family import ExpertModel
from puhui.models.wire import NOT_JSON

PROBES_FILE = "probes.json"
TEXTS = (
    "Please move fifty dollars from savings to checking.",
    "what is the weather like in Shanghai tomorrow",
    "DELETE the queue named orders-2026 !!",
    "把明天早上八点的闹钟取消。",
    "帮我 book 一张去 Paris 的机票 ✈️",
    "",
    "\u202eعربى 🙂 naïve",
    "again " * 400,
    "yes",
    "How long does it take to get there by train?",
    "my order has not arrived yet and nobody answers the phone",
    "打开客厅的灯",
    "The pump in hall 3 makes a grinding noise since Monday; bearing worn?",
    "translate good morning into French",
    "ERROR 504 upstream timed out while reading response header",
    "这个药饭前吃还是饭后吃？",
)
MOST_LABELS = 16


class Probe(msgspec.Struct, frozen=True):
    """A text, and what the expert said of it where it was made."""

    text: str
    label: str
    confidence: float


class Probed(NamedTuple):
    """Of so many texts so many got the same label, and confidences were off by `furthest` at most."""

    texts: int
    same: int
    furthest: float


def probes_of(model: ExpertModel) -> bytes:
    """The file for a bundle of this model."""
    texts = [*TEXTS, *(label.replace("_", " ") for label in model.labels[:MOST_LABELS])]
    return msgspec.json.format(msgspec.json.encode([Probe(text, *model.predict_one(text)) for text in texts]), indent=1)


def probe(model: ExpertModel, content: bytes, threshold: float | None) -> Probed:
    """How the model answers here what the file says that it answered where it was made.

    Raises BundleError for another label where either is sure, which is at `threshold` and above: nothing that was
    proven holds for this runtime then.
    """
    try:
        probes: Sequence[Probe] = msgspec.json.decode(content, type=list[Probe])
    except NOT_JSON as error:
        raise BundleError(f"{PROBES_FILE} is damaged: {error}") from error
    same, furthest = 0, 0.0
    for made in probes:
        label, confidence = model.predict_one(made.text)
        furthest = max(furthest, abs(confidence - made.confidence))
        same += label == made.label
        if label != made.label and threshold is not None and max(confidence, made.confidence) >= threshold:
            raise BundleError(
                f"of {made.text[:60]!r} the expert says {label!r} ({confidence:.3f}) here, {made.label!r} "
                f"({made.confidence:.3f}) where it was made: its guarantee does not hold here; make it on this runtime"
            )
    return Probed(len(probes), same, furthest)
