"""BERT's network written as an ONNX graph of few, large operations.

What PyTorch's exporter writes has 90 operations a layer, most of them about shapes and masks. With ten tokens they
take longer than the products that matter. Here a layer has eighteen: one product for queries, keys and values
together, ONNX Runtime's own operators for attention and GELU, and layer norms of operations that it has vectorised. In
eight bits a bias is part of its product. The file is compared with PyTorch like every other
(`onnx_export.check_export`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

FloatArray: TypeAlias = npt.NDArray[np.float32]
Linear: TypeAlias = tuple[npt.NDArray[Any], npt.NDArray[Any]]
"""A weight [d, e] and a bias [e]."""

OPSET = 20
_RUNTIME = "com.microsoft"
"""The domain of ONNX Runtime's own operators."""


def is_bert(body: Any) -> bool:
    """Whether a torch module is a BERT encoder as `bert_graph` knows it: MiniLM, BGE, E5 and GTE among others."""
    told = getattr(body, "config", None)
    return (
        getattr(told, "model_type", "") == "bert"
        and getattr(told, "position_embedding_type", None) in ("absolute", None)
        and getattr(told, "hidden_act", "") == "gelu"
        and not getattr(told, "is_decoder", False)
        and hasattr(body, "embeddings")
    )


def bert_graph(
    body: Any,
    *,
    names: tuple[str, str, str, str],
    pooling: str,
    normalise: bool,
    projection: Linear | None,
    head: Linear | None,
) -> Any:
    """The onnx model of a body, its pooling ("mean" or "cls"), a projection of what is pooled, unit length and a head.

    `names` are those of the inputs (token numbers, mask) and of the outputs (vector, logits).
    """
    ids, mask, vector, logits = names
    made = _Writer()
    states = _embedded(made, body, ids)
    there = made.node("Cast", [mask], "mask/int32", to=6)
    for number, layer in enumerate(body.encoder.layer):
        states = _layer(made, layer, f"encoder.layer.{number}", states, there)
    pooled = _pooled(made, states, mask, pooling)
    if projection is not None:
        mapped = made.node("MatMul", [pooled, made.constant("projection.weight", projection[0])], "projection")
        pooled = made.node("Add", [mapped, made.constant("projection.bias", projection[1])], "projected")
    if normalise:
        made.node("LpNormalization", [pooled], vector, axis=1)
    else:
        made.node("Identity", [pooled], vector)
    if head is not None:
        parts = [made.constant(f"head.{name}", part) for name, part in zip(("weight", "bias"), head, strict=True)]
        made.node("Gemm", [vector, *parts], logits)
    widths = {vector: _width(body if projection is None else projection), **({logits: _width(head)} if head else {})}
    return made.model((ids, mask), widths)


def _embedded(made: _Writer, body: Any, ids: str) -> str:
    """Tokens and their places. All are of the first type, whose vector is made part of the places'."""
    tables = body.embeddings
    places = _array(tables.position_embeddings.weight) + _array(tables.token_type_embeddings.weight)[0]
    count = made.node("Shape", [ids], "tokens", start=1)
    made.each_token("ones", count, 1.0), made.each_token("zeros", count, 0.0)
    first = made.whole("first", [0])
    at = made.node("Slice", [made.constant("embeddings.positions", places), first, count], "positions")
    words = made.constant("embeddings.word_embeddings", _array(tables.word_embeddings.weight))
    found = made.node("Gather", [words, ids], "words", name="embeddings.word_embeddings")
    return made.norm("embeddings.LayerNorm", tables.LayerNorm, found, at)


def _layer(made: _Writer, layer: Any, name: str, x: str, there: str) -> str:
    attention = layer.attention
    three = [attention.self.query, attention.self.key, attention.self.value]
    weight = np.concatenate([_array(part.weight).T for part in three], axis=1)
    bias = np.concatenate([_array(part.bias) for part in three])
    together = made.biased(made.product(f"{name}.attention.self", x, weight), f"{name}.attention.self.bias", bias)
    parts = [f"{name}/{part}" for part in ("query", "key", "value")]
    made.split(together, parts)
    heads = int(attention.self.num_attention_heads)
    seen = made.runtime("MultiHeadAttention", [*parts, "", there], f"{name}/seen", num_heads=heads)
    said = made.linear(f"{name}.attention.output.dense", seen, attention.output.dense)
    x = made.norm(f"{name}.attention.output.LayerNorm", attention.output.LayerNorm, said, x)
    wide = made.linear(f"{name}.intermediate.dense", x, layer.intermediate.dense)
    bent = made.runtime("Gelu", [wide], f"{name}/gelu")
    narrow = made.linear(f"{name}.output.dense", bent, layer.output.dense)
    return made.norm(f"{name}.output.LayerNorm", layer.output.LayerNorm, narrow, x)


def _pooled(made: _Writer, states: str, mask: str, pooling: str) -> str:
    """States [n, t, d] to vectors [n, d]."""
    if pooling == "cls":
        return made.node("Gather", [states, made.whole("zeroth", 0)], "pooled", axis=1)
    middle = made.whole("middle", [1])
    there = made.node("Unsqueeze", [made.node("Cast", [mask], "mask/float", to=1), middle], "mask/row")
    count = made.node("ReduceSum", [there, made.whole("last", [2])], "mask/count", keepdims=1)
    shares = made.node("Div", [there, count], "mask/shares")
    return made.node("Squeeze", [made.node("MatMul", [shares, states], "pooled/row"), middle], "pooled")


class _Writer:
    """Nodes and constants, as they come to be."""

    def __init__(self) -> None:
        from onnx import helper, numpy_helper

        self._helper, self._numpy = helper, numpy_helper
        self._nodes: list[Any] = []
        self._constants: dict[str, Any] = {}
        self._floats: list[str] = []

    def constant(self, name: str, value: Any) -> str:
        """float32; of an array or a tensor."""
        array = np.ascontiguousarray(_array(value))
        self._constants[name] = self._numpy.from_array(array, name)
        return name

    def whole(self, name: str, value: int | Sequence[int]) -> str:
        """int64."""
        self._constants[name] = self._numpy.from_array(np.array(value, np.int64), name)
        return name

    def node(
        self, kind: str, inputs: Sequence[str], output: str, *, name: str = "", domain: str = "", **given: Any
    ) -> str:
        self._nodes.append(self._helper.make_node(kind, inputs, [output], name=name, domain=domain, **given))
        return output

    def runtime(self, kind: str, inputs: Sequence[str], output: str, **given: Any) -> str:
        """An operator of ONNX Runtime's own: other tools cannot tell the type of its result, so it is written down."""
        self._floats.append(output)
        return self.node(kind, inputs, output, domain=_RUNTIME, **given)

    def product(self, name: str, x: str, weight: FloatArray) -> str:
        """With a weight [d, e], under the module's name."""
        return self.node("MatMul", [x, self.constant(f"{name}.weight", weight)], f"{name}/product", name=name)

    def linear(self, name: str, x: str, layer: Any) -> str:
        """A torch.nn.Linear."""
        return self.biased(self.product(name, x, _array(layer.weight).T), f"{name}.bias", layer.bias)

    def biased(self, product: str, name: str, bias: Any) -> str:
        """A product with its bias, which in int8 is part of the same operation (`int8_graph`)."""
        return self.node("Add", [product, self.constant(name, bias)], f"{name}/added")

    def split(self, x: str, parts: Sequence[str]) -> None:
        self._nodes.append(self._helper.make_node("Split", [x], parts, axis=-1, num_outputs=len(parts)))

    def each_token(self, name: str, count: str, value: float) -> str:
        """The same number for each of `count` tokens."""
        filled = self._numpy.from_array(np.array([value], np.float32))
        return self.node("ConstantOfShape", [count], name, value=filled)

    def norm(self, name: str, layer: Any, x: str, beside: str) -> str:
        """Layer norm of x + beside: an instance norm whose channels are the tokens, then the norm's weight and bias.

        ONNX Runtime's own layer norms go number by number: 17 µs for eleven tokens of 384 where these four take 4.
        """
        both = self.node("Add", [x, beside], f"{name}/sum")
        unit = self.node("InstanceNormalization", [both, "ones", "zeros"], f"{name}/even", epsilon=float(layer.eps))
        scaled = self.node("Mul", [unit, self.constant(f"{name}.weight", layer.weight)], f"{name}/scaled")
        return self.node("Add", [scaled, self.constant(f"{name}.bias", layer.bias)], name)

    def model(self, inputs: Sequence[str], outputs: dict[str, int]) -> Any:
        """Of int64 inputs [n, t] and float32 outputs [n, width]."""
        from onnx import TensorProto

        value = self._helper.make_tensor_value_info
        graph = self._helper.make_graph(
            self._nodes,
            "encoder",
            [value(name, TensorProto.INT64, ["batch", "tokens"]) for name in inputs],
            [value(name, TensorProto.FLOAT, ["batch", width]) for name, width in outputs.items()],
            list(self._constants.values()),
            value_info=[value(name, TensorProto.FLOAT, None) for name in self._floats],
        )
        opsets = [self._helper.make_opsetid("", OPSET), self._helper.make_opsetid(_RUNTIME, 1)]
        return self._helper.make_model(graph, opset_imports=opsets, ir_version=10)


def _array(value: Any) -> FloatArray:
    found: FloatArray = np.asarray(value.detach().numpy() if hasattr(value, "detach") else value, np.float32)
    return found


def _width(part: Any) -> int:
    """Of a body's states, or of a linear map's results."""
    return len(part[1]) if isinstance(part, tuple) else int(part.config.hidden_size)
