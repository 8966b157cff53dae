"""Tiny real models, made with random weights, for the tests of teachers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [*SPECIAL, *"send cash to my bank book the flight home a pizza recipe".split()]  # noqa: SIM905
CHAT = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}says:{% endif %}"
)
LETTERS = [chr(code) for code in range(97, 123)]


def tokenizer(folder: Path, **more: Any) -> Any:
    """A word-piece tokenizer of a few words and all letters."""
    from transformers import BertTokenizer

    vocabulary = {word: number for number, word in enumerate([*WORDS, *LETTERS, *(f"##{each}" for each in LETTERS)])}
    made = BertTokenizer(vocab=vocabulary, model_max_length=64, **more)
    made.save_pretrained(folder)
    return made


def encoder(folder: Path, labels: list[str] | None, **more: Any) -> Any:
    """A BERT of 16 numbers and one layer in a folder, with a head where labels are given."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification, BertModel

    torch.manual_seed(1)
    size = len(tokenizer(folder))
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    if labels is not None:
        more |= {"id2label": dict(enumerate(labels)), "label2id": {label: n for n, label in enumerate(labels)}}
    config = BertConfig(vocab_size=size, max_position_embeddings=64, initializer_range=1.0, **shape, **more)
    model = BertModel(config) if labels is None else BertForSequenceClassification(config)
    model.eval().save_pretrained(folder)
    return model


def causal(folder: Path, *, template: str | None = None) -> Any:
    """A GPT-2 of 16 numbers and one layer in a folder."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(2)
    made = tokenizer(folder, eos_token="[SEP]", bos_token="[CLS]")
    made.chat_template = template
    made.save_pretrained(folder)
    ends = {"bos_token_id": made.bos_token_id, "eos_token_id": made.eos_token_id}
    config = GPT2Config(
        vocab_size=len(made), n_positions=64, n_embd=16, n_layer=1, n_head=2, initializer_range=0.5, **ends
    )
    model = GPT2LMHeadModel(config).eval()
    model.save_pretrained(folder)
    return model


def onnx_classifier(path: Path, rows: int | str = "rows", tokens: int | str = "tokens") -> tuple[Any, Any]:
    """Writes an ONNX file: the mean of word vectors, and a linear head. Gives its vectors [v, 4] and weights [4, 3]."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    draw = np.random.default_rng(3)
    vectors = draw.standard_normal((len(WORDS) + 2 * len(LETTERS), 4)).astype(np.float32)
    weights = draw.standard_normal((4, 3)).astype(np.float32)
    constants = {"vectors": vectors, "weights": weights, "last": np.array([2]), "middle": np.array([1])}
    nodes = [
        ("Gather", ["vectors", "input_ids"], "states"),
        ("Cast", ["attention_mask"], "mask"),
        ("Unsqueeze", ["mask", "last"], "weight"),
        ("Mul", ["states", "weight"], "masked"),
        ("ReduceSum", ["masked", "middle"], "sum"),
        ("ReduceSum", ["mask", "middle"], "count"),
        ("Div", ["sum", "count"], "mean"),
        ("MatMul", ["mean", "weights"], "logits"),
    ]
    special = {"Cast": {"to": TensorProto.FLOAT}, "ReduceSum": {"keepdims": 1}}
    graph = helper.make_graph(
        [
            helper.make_node(kind, given, [name], **special.get(kind, {}) | ({"keepdims": 0} if name == "sum" else {}))
            for kind, given, name in nodes
        ],
        "classifier",
        [
            helper.make_tensor_value_info(name, TensorProto.INT64, [rows, tokens])
            for name in ("input_ids", "attention_mask")
        ],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [rows, 3])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return vectors, weights


def gguf_llama(path: Path) -> None:
    """Writes a GGUF file: a llama of 32 numbers and one layer with random weights, that reads bytes."""
    import gguf

    draw = np.random.default_rng(4)
    tokens = [b"<unk>", b"<s>", b"</s>", *(f"<0x{byte:02X}>".encode() for byte in range(256))]
    kinds = [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL, *[gguf.TokenType.BYTE] * 256]
    width, inner = 32, 64
    out = gguf.GGUFWriter(path, "llama")
    for say, value in (
        (out.add_context_length, 4096),
        (out.add_embedding_length, width),
        (out.add_block_count, 1),
        (out.add_feed_forward_length, inner),
        (out.add_head_count, 2),
        (out.add_head_count_kv, 2),
        (out.add_rope_dimension_count, width // 2),
        (out.add_layer_norm_rms_eps, 1e-5),
        (out.add_vocab_size, len(tokens)),
        (out.add_tokenizer_model, "llama"),
        (out.add_token_list, tokens),
        (out.add_token_types, kinds),
        (out.add_token_scores, [0.0] * len(tokens)),
        (out.add_bos_token_id, 1),
        (out.add_eos_token_id, 2),
        (out.add_unk_token_id, 0),
        (out.add_chat_template, CHAT),
    ):
        say(value)
    shapes = dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_output"), (width, width))
    shapes |= {"ffn_gate": (inner, width), "ffn_up": (inner, width), "ffn_down": (width, inner)}
    weights = {f"blk.0.{name}.weight": draw.standard_normal(shape) * 0.3 for name, shape in shapes.items()}
    weights |= {f"{name}.weight": np.ones(width) for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm")}
    weights |= {f"{name}.weight": draw.standard_normal((len(tokens), width)) for name in ("token_embd", "output")}
    for name, array in weights.items():
        out.add_tensor(name, array.astype(np.float32))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
