"""A tokenizer with fewer tokens: those that a task's texts use, the commonest others, and every single character.

A pretrained encoder's table of tokens is half of its bytes, and a task uses a small part of it. What is left out is
split into smaller pieces instead, down to single characters, so that any text still has tokens. WordPiece and Unigram
tokenizers can be pruned; in byte-pair encoding every token is made of others by way of its merges, and such a
tokenizer is kept whole.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

IntArray: TypeAlias = npt.NDArray[np.int64]


def prune_tokens(tokenizer: str, used: Iterable[int], *, common: int) -> tuple[str, IntArray]:
    """The tokenizer's JSON with fewer tokens, and the old numbers [m], ascending, of those that it keeps.

    `used` are numbers of tokens that must stay; of the others the `common` first are kept, as tokenizers number
    the commonest first. Special tokens and single characters always stay. New numbers are places in the result.
    """
    given: dict[str, Any] = json.loads(tokenizer)
    model = given["model"]
    kind = model.get("type") or ("WordPiece" if "max_input_chars_per_word" in model else "")
    pieces = _pieces(model)
    if kind not in ("WordPiece", "Unigram") or max(pieces, default=-1) != len(pieces) - 1:
        whole = {*pieces, *(token["id"] for token in given.get("added_tokens", []))}
        return tokenizer, np.arange(max(whole) + 1)
    special = {token["id"] for token in given.get("added_tokens", [])}
    if kind == "Unigram":
        special |= {model["unk_id"]} if model.get("unk_id") is not None else set()
    else:
        special.add(model["vocab"][model["unk_token"]])
    kept = set(used) | special | {number for number, piece in pieces.items() if _is_needed(piece, model)}
    others = (number for number in sorted(pieces) if number not in kept and not pieces[number].startswith("[unused"))
    kept.update(number for number, _ in zip(others, range(common), strict=False))
    old = np.array(sorted(kept), np.int64)
    _renumber(given, {number: place for place, number in enumerate(old.tolist())})
    return json.dumps(given, ensure_ascii=False), old


def _pieces(model: dict[str, Any]) -> dict[int, str]:
    """Pieces by number."""
    vocabulary: dict[str, int] | Sequence[tuple[str, float]] = model["vocab"]
    if isinstance(vocabulary, dict):
        return {number: piece for piece, number in vocabulary.items()}
    return {number: piece for number, (piece, _) in enumerate(vocabulary)}


def _is_needed(piece: str, model: dict[str, Any]) -> bool:
    """Single characters, within words and at their beginning, and bytes: with these any text can be spelt."""
    prefix = model.get("continuing_subword_prefix") or "▁"
    return len(piece.removeprefix(prefix)) <= 1 or (piece.startswith("<0x") and piece.endswith(">"))


def _renumber(given: dict[str, Any], new: dict[int, int]) -> None:
    """Every place of a tokenizer's JSON that holds a token's number; those of unkept tokens are dropped."""
    model = given["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {piece: new[number] for piece, number in model["vocab"].items() if number in new}
    else:
        model["vocab"] = [entry for number, entry in enumerate(model["vocab"]) if number in new]
        if model.get("unk_id") is not None:
            model["unk_id"] = new[model["unk_id"]]
    for token in given.get("added_tokens", []):
        token["id"] = new[token["id"]]
    if given.get("padding"):
        given["padding"] = None  # an expert's texts are never padded
    for part in _processors(given.get("post_processor")):
        for ends in ("sep", "cls"):  # BertProcessing, RobertaProcessing
            if isinstance(part.get(ends), list):
                part[ends][1] = new[part[ends][1]]
        special = part.get("special_tokens")
        for entry in special.values() if isinstance(special, dict) else ():
            entry["ids"] = [new[number] for number in entry["ids"]]


def _processors(part: dict[str, Any] | None) -> list[dict[str, Any]]:
    """A post-processor, or those that a sequence of them is made of."""
    if part is None:
        return []
    return [inner for each in part["processors"] for inner in _processors(each)] if "processors" in part else [part]
