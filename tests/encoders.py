"""Small real encoders for tests: an ONNX graph made by hand, and a pretrained folder with random weights."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

onnx = pytest.importorskip("onnx", reason="the workshop extra is not installed")
pytest.importorskip("onnxruntime", reason="the encoder extra is not installed")
tokenizers = pytest.importorskip("tokenizers", reason="the encoder extra is not installed")

from puhui.models.onnx_encoder import EncoderModel  # noqa: E402

LABELS = ("pay", "查询", "other")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


def word_pieces(words: Sequence[str]) -> str:
    """JSON of a BERT tokenizer of the letters, in a word and at its beginning, and after them these words."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)] + list("0123456789查询余额")
    pieces = [*SPECIAL, *letters, *(f"##{letter}" for letter in letters), *words]
    made = Tokenizer(models.WordPiece({piece: number for number, piece in enumerate(pieces)}, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    made.add_special_tokens(list(SPECIAL))
    return str(made.to_str())


def table_graph(table: npt.NDArray[np.float32]) -> bytes:
    """ONNX: logits of a text are the mean over its tokens of their rows of the table [v, k]."""
    from onnx import TensorProto, checker, helper, numpy_helper

    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
        helper.make_node("Cast", ["attention_mask"], ["there"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["there", "two"], ["weights"]),
        helper.make_node("Mul", ["rows", "weights"], ["seen"]),
        helper.make_node("ReduceSum", ["seen", "one"], ["sum"], keepdims=0),
        helper.make_node("ReduceSum", ["there", "one"], ["count"], keepdims=1),
        helper.make_node("Div", ["sum", "count"], ["logits"]),
    ]
    inputs = [helper.make_tensor_value_info(n, TensorProto.INT64, ["n", "t"]) for n in ("input_ids", "attention_mask")]
    output = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", table.shape[1]])
    constants = [numpy_helper.from_array(table, "table")]
    constants += [numpy_helper.from_array(np.array([n], np.int64), name) for n, name in ((1, "one"), (2, "two"))]
    graph = helper.make_graph(nodes, "table", inputs, [output], constants)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    checker.check_model(made)
    return bytes(made.SerializeToString())


@functools.cache
def table_encoder(labels: tuple[str, ...] = LABELS, seed: int = 0) -> EncoderModel:
    """An encoder expert whose every number is known: see `table_graph`."""
    tokenizer = word_pieces(["balance", "account", "transfer"])
    table = np.random.default_rng(seed).normal(size=(len(json.loads(tokenizer)["model"]["vocab"]), len(labels)))
    return EncoderModel(labels, table_graph(table.astype(np.float32)), tokenizer, max_tokens=16)


def random_base(folder: Path, words: Sequence[str], *, layers: int = 3, labels: Sequence[str] = ()) -> Path:
    """A Hugging Face folder of a small BERT with random weights that knows these words; with `labels` a classifier."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification, BertModel

    tokenizer = word_pieces(words)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(json.loads(tokenizer)["model"]["vocab"]),
        hidden_size=128,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=128,
        max_position_embeddings=64,
        initializer_range=0.1,
        id2label=dict(enumerate(labels)) if labels else None,
        label2id={label: number for number, label in enumerate(labels)} if labels else None,
    )
    if labels:
        model = BertForSequenceClassification(config).eval()
        with torch.no_grad():  # so that each label is some text's
            model.classifier.bias -= model(torch.randint(4, config.vocab_size, (64, 12))).logits.mean(dim=0)
    else:
        model = BertModel(config)
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(tokenizer, encoding="utf-8")
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "[UNK]", "pad_token": "[PAD]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    return folder
