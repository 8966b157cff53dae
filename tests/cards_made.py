"""Cards for tests: one that holds everything, with words that would do harm if they were not escaped."""

from __future__ import annotations

import msgspec
import numpy as np

import experts
from puhui.bundles.card import Ancestor, Card, Ceiling, Data, Kept, Section, Speed, TradeOff
from puhui.bundles.card_figures import calibration_error, confusions_of, reliability_of
from puhui.cascade.guarantee import calibrate_threshold
from puhui.evolve.traffic import Task

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</style><svg onload=alert(1)>",
    "a | b\nc `d` **e** [f](javascript:g)",
    "ما هذا \u202e؟",
    "\x00\x1b[31m[bold]red[/bold]",
    "删除队列 🙂",
    "",
)
PARTS: tuple[Section, ...] = (
    "guarantee",
    "trade_offs",
    "reliability",
    "confusions",
    "devices",
    "precision",
    "ceiling",
    "data",
)


def full_card(*, labels: int = 12, candidates: int = 20, words: tuple[str, ...] = HOSTILE, **more: object) -> Card:
    """A card with every part; its numbers are drawn, seeded, and fit each other."""
    words = (*words, *words, *words)[: max(3, len(words))]
    draw = np.random.default_rng(2)
    names = [f"{words[number % len(words)]} {number}" for number in range(labels)]
    confidence = draw.beta(5, 1.2, 2_000)
    agrees = draw.random(2_000) < confidence**0.3
    big = [names[number] for number in draw.integers(0, labels, 2_000)]
    said = [one if same else names[0] for one, same in zip(big, agrees, strict=True)]
    bins = reliability_of(confidence, agrees)
    tried = tuple(
        TradeOff(
            name=f"{words[number % len(words)]} trial {number}",
            family="static",
            size_bytes=int(10 ** draw.uniform(5, 8)),
            latency_ms=float(10 ** draw.uniform(-2, 1)),
            joules=1e-4,
            agreement=float(draw.uniform(0.8, 0.99)),
            coverage=float(draw.uniform(0.4, 0.95)),
            training_s=12.0,
            chosen=number == 3,
            why_not="" if number == 3 else words[0],
        )
        for number in range(candidates)
    )
    return experts.card(
        Task("task-1", words[0], "context:1", words[1]),
        **{
            "labels": tuple(names),
            "recipe": {"note": words[2], "rows": 30_000},
            "calibration": msgspec.structs.asdict(calibrate_threshold(confidence, agrees)),
            "agreement": float(np.mean(agrees)),
            "trade_offs": tried,
            "confusions": confusions_of(big, said),
            "reliability": bins,
            "calibration_error": calibration_error(bins),
            "devices": {
                words[0]: Speed(latency_ms=0.5, size_bytes=4_000_000, joules=1e-4, memory_bytes=9_000_000),
                "phone": Speed(latency_ms=2.0, size_bytes=4_000_000, measured=False, factor=4.0, scaled_from=words[1]),
            },
            "precision": tuple(Kept(f"{words[2]}.{n}", 16 if n < 2 else 8, 0.01 / (n + 1), words[0]) for n in range(9)),
            "commands": {part: f"puhui compress --note '{words[0]}' # {part}" for part in PARTS},
            "ceiling": Ceiling(0.98, 0.97, 0.99, 1_000),
            "data": Data(rows=20_000, held_out=2_000, source=words[1], digest="ab" * 32),
            "lineage": (Ancestor(words[0], words[1], "cd" * 32, words[2]),),
            "licence": words[0],
            "created": 1.7e9,
            "files": {"weights.safetensors": "ef" * 32},
        }
        | more,
    )
