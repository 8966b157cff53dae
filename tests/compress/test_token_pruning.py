"""Tokenizers with fewer tokens: texts that were seen are read as before, and any text can still be spelt."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

tokenizers = pytest.importorskip("tokenizers", reason="the encoder extra is not installed")

from tests.encoders import word_pieces  # noqa: E402

from puhui.compress.token_pruning import prune_tokens  # noqa: E402

WORDS = ["balance", "account", "##fer", "trans", "transfer", "money", "##ing"]
WHOLE = word_pieces(WORDS)


def read(tokenizer: str, text: str) -> list[str]:
    return list(tokenizers.Tokenizer.from_str(tokenizer).encode(text).tokens)


def numbers(tokenizer: str, *tokens: str) -> list[int]:
    return [json.loads(tokenizer)["model"]["vocab"][token] for token in tokens]


def test_used_tokens_stay_and_others_are_spelt() -> None:
    pruned, old = prune_tokens(WHOLE, numbers(WHOLE, "balance", "transfer"), common=0)
    assert read(pruned, "balance transfer") == ["[CLS]", "balance", "transfer", "[SEP]"]
    assert read(pruned, "money") == ["[CLS]", "m", "##o", "##n", "##e", "##y", "[SEP]"]
    assert len(old) == len(json.loads(pruned)["model"]["vocab"]) < len(json.loads(WHOLE)["model"]["vocab"])


def test_the_commonest_others_are_those_with_the_least_numbers() -> None:
    pruned, _ = prune_tokens(WHOLE, (), common=2)
    kept = [word for word in WORDS if word in json.loads(pruned)["model"]["vocab"]]
    assert kept == ["balance", "account"]


@given(st.text(max_size=30))
def test_numbers_name_the_same_pieces_as_before(text: str) -> None:
    whole = tokenizers.Tokenizer.from_str(WHOLE).encode(text)
    pruned, old = prune_tokens(WHOLE, whole.ids, common=0)
    again = tokenizers.Tokenizer.from_str(pruned).encode(text)
    assert again.tokens == whole.tokens
    assert old[again.ids].tolist() == whole.ids
    assert bool(np.all(np.diff(old) > 0))


def test_unigram() -> None:
    pieces = [("<unk>", 0.0), ("▁", -3.0), ("a", -4.0), ("b", -4.0), ("▁ab", -2.0), ("▁abab", -1.0), ("ab", -3.0)]
    made = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, 0, False))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    pruned, old = prune_tokens(made.to_str(), [4], common=0)
    assert old.tolist() == [0, 1, 2, 3, 4]
    assert read(pruned, "abab") == ["▁ab", "a", "b"]


def test_byte_pairs_are_kept_whole() -> None:
    model = tokenizers.models.BPE(vocab={"a": 0, "b": 1, "ab": 2}, merges=[("a", "b")])
    whole = tokenizers.Tokenizer(model).to_str()
    pruned, old = prune_tokens(whole, [0], common=0)
    assert pruned == whole
    assert old.tolist() == [0, 1, 2]
