"""In what precision the matrices of an expert are kept, and what coarser ones would change, for its card."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from puhui.bundles.card import Kept
from puhui.compress.static_training import coarser
from puhui.models.expert_cascade import CascadeModel
from puhui.models.family import ExpertModel
from puhui.models.onnx_encoder import EncoderModel
from puhui.models.static import StaticModel

MOST_OF_FOUR_BITS = 7
NAMES = {"all": "n-grams", "words": "words", "order": "words by their place"}


def kept_of(model: ExpertModel, texts: Sequence[str]) -> tuple[Kept, ...]:
    """The matrices of the encoders and static experts in a model; `texts` are held out, and count what would change."""
    steps = model.steps if isinstance(model, CascadeModel) else (model,)
    found: list[Kept] = []
    for step in steps:
        if isinstance(step, EncoderModel):
            found += [Kept(note.name, note.bits, note.harm, note.why) for note in step.precision]
        elif isinstance(step, StaticModel):
            found += _tables(step, texts)
    return tuple(found)


def _tables(model: StaticModel, texts: Sequence[str]) -> list[Kept]:
    """The static expert's tables, each made coarser by itself where that can still be done."""
    said, coarse, found = model.predict_many(texts)[0], coarser(model).towers, list[Kept]()
    for number, tower in enumerate(model.towers):
        name = f"table of {NAMES[tower.reads]}"
        if np.abs(tower.table).max() <= MOST_OF_FOUR_BITS:
            found.append(Kept(name, 4, None, "asked for by the recipe; its harm was not measured"))
            continue
        towers = (*model.towers[:number], coarse[number], *model.towers[number + 1 :])
        other = StaticModel(model.labels, model.options, towers, model.reliability).predict_many(texts)[0]
        changed = sum(one != two for one, two in zip(said, other, strict=True)) / max(1, len(texts))
        found.append(Kept(name, 8, changed, "the share of held-out answers that 4 bits would change"))
    return found
