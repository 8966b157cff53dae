"""An expert's card: what it is, where it came from, what was tried, and what was proven of it.

The card is `expert.json` in a bundle (`bundle`), and everything that people are shown of an expert is made from
it alone: the page `card.html` (`card_page`), the model card that Hugging Face reads (`model_card`) and
`puhui experts show`. Each number on it was measured when the expert was made; `commands` says how to measure it
again. What was not measured is absent, and the pages then say so: nothing here is filled in afterwards.

The idea is that of Mitchell et al. 2019, "Model Cards for Model Reporting" (arXiv:1810.03993), for one task and
one teacher. `card_figures` counts what is counted from held-out rows: confusions and reliability.
"""

from __future__ import annotations

import time
from typing import Any, Literal

import msgspec

Section = Literal["guarantee", "trade_offs", "reliability", "confusions", "devices", "precision", "ceiling", "data"]
"""The parts of a card that hold measured numbers; the keys of `Card.commands`."""


class TradeOff(msgspec.Struct, frozen=True, kw_only=True):
    """One candidate that the search tried.

    `agreement` and `coverage` (at the card's ε, `proven` or as the rows show it) are shares in [0, 1] of held-out rows,
    `latency_ms` and `joules` those of one answer on the machine that made the card. `why_not` says why it was not
    chosen; a recipe that could not be tried to its end has None for what was not measured (0 bytes).
    """

    name: str
    family: str
    size_bytes: int
    latency_ms: float | None = None
    joules: float | None = None
    agreement: float | None = None
    coverage: float | None = None
    proven: bool = True
    training_s: float | None = None
    recipe: dict[str, Any] = {}
    chosen: bool = False
    why_not: str = ""


class Confusion(msgspec.Struct, frozen=True):
    """`count` held-out rows to which the big model says `big` and the expert `expert`.

    `share` is their share of all disagreements, in [0, 1].
    """

    big: str
    expert: str
    count: int
    share: float


class Bin(msgspec.Struct, frozen=True):
    """The held-out rows whose confidence lies in [`low`, `high`]: their number and the share that agrees.

    `confidence` is their mean confidence. All but `rows` in [0, 1].
    """

    low: float
    high: float
    confidence: float
    rows: int
    agreement: float


class Speed(msgspec.Struct, frozen=True, kw_only=True):
    """What one answer takes on a device, at batch 1.

    `measured` is false where the numbers were scaled from those of another device, `scaled_from`, whose
    latency was multiplied by `factor`. `size_bytes` is what must be on the device, `memory_bytes` what the
    process holds while it answers. None: not known.
    """

    latency_ms: float
    size_bytes: int
    joules: float | None = None
    memory_bytes: int | None = None
    measured: bool = True
    factor: float = 1.0
    scaled_from: str = ""


class Kept(msgspec.Struct, frozen=True):
    """The precision in which one matrix was kept, and why.

    `sensitivity` is the harm measured when this matrix alone is made coarse, in the unit that `reason` names;
    None where it was not measured.
    """

    name: str
    bits: int
    sensitivity: float | None = None
    reason: str = ""


class Ceiling(msgspec.Struct, frozen=True):
    """How often the big model agrees with itself when `rows` requests are asked twice, with its 95 % interval.

    By the card's `agreement_rule`. Where that is 0 or 1 by its nature, no expert can be expected to agree with its
    next answer more often than √`agreement` (`teachers.probing` says why): the most that any can reach.
    """

    agreement: float
    low: float
    high: float
    rows: int


class Data(msgspec.Struct, frozen=True, kw_only=True):
    """What the expert was made from: `rows` in all, `held_out` of them kept from training. Of these, `repeated` have a
    text that another row, not held out, has as well (None: nobody counted).

    `source` says in words where they came from; `digest` is the SHA-256 of the texts and answers. `lost` says what of
    the source was not used, and why; `unlabelled` texts without an answer taught as well.
    """

    rows: int
    held_out: int
    source: str = ""
    digest: str = ""
    lost: tuple[str, ...] = ()
    unlabelled: int = 0
    repeated: int | None = None


class Ancestor(msgspec.Struct, frozen=True):
    """Something that the expert was made from other than the data: a pretrained encoder, word vectors, an expert."""

    role: str
    name: str
    digest: str = ""
    licence: str = ""


class Card(msgspec.Struct, frozen=True, kw_only=True):
    """What an expert is, where it came from and what was proven of it.

    `calibration` holds the fields of `cascade.guarantee.Calibration`; a device that reads a card needs no more
    than its `threshold`. `agreement` is the share of held-out rows on which the big model agrees (the mean agreement
    where rows may agree in part), `calibration_error` the expected calibration error of `reliability`, `answer_us` CPU
    microseconds of one answer. `agreement_rule` is a `cascade.agreement.Rule` in JSON: when two answers are the same,
    and how far apart they are where not.
    """

    task: str
    task_name: str
    family: str
    labels: tuple[str, ...]
    teacher: str
    recipe: dict[str, Any]
    rows: int
    data_digest: str
    calibration: dict[str, float | None]
    agreement: float
    size_bytes: int
    answer_us: float
    joules_low: float
    joules_high: float
    parent: str | None = None
    licence: str = "as the big model's answers"
    created: float = msgspec.field(default_factory=time.time)
    format: int = 1
    files: dict[str, str] = {}
    trade_offs: tuple[TradeOff, ...] = ()
    confusions: tuple[Confusion, ...] = ()
    reliability: tuple[Bin, ...] = ()
    calibration_error: float | None = None
    devices: dict[str, Speed] = {}
    precision: tuple[Kept, ...] = ()
    commands: dict[Section, str] = {}
    agreement_rule: dict[str, Any] = msgspec.field(default_factory=lambda: {"type": "exact"})
    ceiling: Ceiling | None = None
    data: Data | None = None
    lineage: tuple[Ancestor, ...] = ()

    @property
    def held_out(self) -> int:
        """Rows on which `agreement` was counted; 0 where the card does not say."""
        return self.data.held_out if self.data is not None else int(self.calibration.get("rows") or 0)


def on_front(costs: list[float], gains: list[float]) -> list[bool]:
    """Which points are on the Pareto front: no other costs no more and gains no less, one of them strictly.

    >>> on_front([1.0, 2.0, 3.0], [0.5, 0.4, 0.9])
    [True, False, True]
    """
    points = list(zip(costs, gains, strict=True))
    return [not any(c <= cost and g >= gain and (c, g) != (cost, gain) for c, g in points) for cost, gain in points]
