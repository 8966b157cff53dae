"""A small encoder as an ONNX file, with the extremes that make plain int8 fail, made without PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import TensorProto, helper, numpy_helper, save

WIDTH, INNER, WORDS, CLASSES = 128, 256, 300, 4


def write_encoder(path: Path, *, extremes: bool = True, seed: int = 0) -> None:
    """Table, up and down projection, residual, layer norm, mean over the tokens, unit length; then a head.

    With `extremes`, channels 5 and 77 of every token are a hundred times as large as the others, as in real encoders.
    """
    rng = np.random.default_rng(seed)
    table = rng.normal(size=(WORDS, WIDTH))
    if extremes:
        table[:, [5, 77]] *= 100
    up = rng.normal(size=(WIDTH, INNER)) / np.sqrt(WIDTH)
    if extremes:
        up[[5, 77]] /= 100  # what is large is not what matters
    constants: dict[str, npt.NDArray[Any]] = {
        "table": table.astype(np.float32),
        "up": up.astype(np.float32),
        "down": (rng.normal(size=(INNER, WIDTH)) / np.sqrt(INNER)).astype(np.float32),
        "ones": np.ones(WIDTH, np.float32),
        "head": rng.normal(size=(WIDTH, CLASSES)).astype(np.float32),
        "tokens": np.array([1], np.int64),
        "last": np.array([-1], np.int64),
    }
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["x"]),
        helper.make_node("MatMul", ["x", "up"], ["inner"]),
        helper.make_node("Gelu", ["inner"], ["gelu"]),
        helper.make_node("MatMul", ["gelu", "down"], ["states"]),
        helper.make_node("LayerNormalization", ["states", "ones"], ["normal"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=1),
        helper.make_node("Unsqueeze", ["mask", "last"], ["wide"]),
        helper.make_node("Mul", ["normal", "wide"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "tokens"], ["sum"], keepdims=0),
        helper.make_node("ReduceL2", ["sum", "last"], ["length"], keepdims=1),
        helper.make_node("Div", ["sum", "length"], ["sentence_embedding"]),
        helper.make_node("MatMul", ["sentence_embedding", "head"], ["logits"]),
    ]
    whole, real = TensorProto.INT64, TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "encoder",
        [helper.make_tensor_value_info(name, whole, ["batch", "tokens"]) for name in ("input_ids", "attention_mask")],
        [
            helper.make_tensor_value_info("sentence_embedding", real, ["batch", WIDTH]),
            helper.make_tensor_value_info("logits", real, ["batch", CLASSES]),
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)


def batches(count: int = 30, rows: int = 2, seed: int = 1) -> list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Random texts; in each batch the last is a little shorter."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        tokens = int(rng.integers(3, 12))
        mask = np.ones((rows, tokens), np.int64)
        mask[-1, -2:] = 0
        made.append((rng.integers(0, WORDS, (rows, tokens)), mask))
    return made
