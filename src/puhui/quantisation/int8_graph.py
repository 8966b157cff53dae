"""An encoder's ONNX graph with its matrices in eight bits, each in the form that was chosen for it.

Forms, of the matrices that read one tensor x [.., K] (such as query, key and value), coarsest first:

* `int8`: weights int8 with a scale a column, so that products are exact on every processor (`rounded_columns`); x as
  uint8 with a scale *a row*, so that one token's extremes cost the others nothing and a text's result is the same in
  any batch (LLM.int8()'s vector-wise scheme, Dettmers et al. 2022; plain dynamic quantisation has one scale for the
  whole batch). Finer, by what else is done to x: `smoothing` moves range from x to the weights (SmoothQuant, Xiao et
  al. 2022); `outliers` are channels of x that stay float32 in a product of their own (LLM.int8()); `floor` uses all
  256 steps where x is hardly below zero. Coarser and quicker: `whole`, one scale for all of x, where texts are run
  one by one and it does no harm.
* `weights`: int8 weights made float32 as the file is loaded. As small as int8, as slow as float32.
* `float16`: stored in 16 bits, computed in float32.

Token tables become int8 by row, or float16. Whatever lies behind the vector (a head) stays as it was.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from puhui.core.errors import MissingExtra
from puhui.quantisation.onnx_export import VECTOR

FloatArray: TypeAlias = npt.NDArray[np.float32]
Form: TypeAlias = Literal["int8", "weights", "float16"]
TableForm: TypeAlias = Literal["int8", "float16", "float32"]

SMALLEST = 16_384
"""Matrices and tables with fewer numbers stay float32: there is nothing to gain."""
_TINY = 1e-9


class Matrix(msgspec.Struct, frozen=True):
    """A weight [K, N] that a MatMul multiplies x with; `name` is the module's, where the exporter left it."""

    name: str
    output: str
    weight: str
    shape: tuple[int, int]


class Group(msgspec.Struct, frozen=True):
    """The matrices that read the tensor `input`."""

    input: str
    matrices: tuple[Matrix, ...]


class Recipe(msgspec.Struct, frozen=True, eq=False):
    """How a group is stored and computed; the module's docstring explains. `smoothing` [K] divides x; `whole` goes
    with nothing else."""

    form: Form = "int8"
    whole: bool = False
    outliers: tuple[int, ...] = ()
    smoothing: FloatArray | None = None
    floor: float = 0.0

    def factor(self, channels: int) -> FloatArray | None:
        """What x [.., K] is multiplied with before it is rounded: 0 for outliers. None: nothing."""
        if self.smoothing is None and not self.outliers:
            return None
        factor = np.ones(channels, np.float32) if self.smoothing is None else (1 / self.smoothing).astype(np.float32)
        factor[list(self.outliers)] = 0
        return factor

    def weight(self, weight: FloatArray) -> FloatArray:
        """What of the weight [K, N] meets the rounded x."""
        smoothed = weight.copy() if self.smoothing is None else weight * self.smoothing[:, None]
        smoothed[list(self.outliers)] = 0
        return smoothed


def rounded_columns(weight: FloatArray, *, paired: bool = False) -> tuple[npt.NDArray[np.int8], FloatArray]:
    """int8 [K, N] and float32 scales [N] of their columns.

    `paired`: of two neighbours in a column (rows 0 and 1, 2 and 3, …) neither what is positive nor what is negative
    adds up to more than 128. x86 processors before VNNI add two uint8 · int8 products in 16 bits and cut off what is
    above; so nothing ever is, and a file gives the same products on every processor. Steps grow by a quarter.
    """
    most = np.abs(weight).max(axis=0)
    if paired:
        even = np.concatenate([weight, np.zeros((len(weight) % 2, weight.shape[1]), weight.dtype)])
        for side in (np.maximum(even, 0), np.minimum(even, 0)):
            most = np.maximum(most, np.abs(side[::2] + side[1::2]).max(axis=0))
    # In float64, and steps a hair wider: at 127 steps, two rounded halves make 128 and no more.
    scale = (np.maximum(most, _TINY).astype(np.float64) / 127 * (1 + 1e-6)).astype(np.float32)
    return np.rint(weight / scale).astype(np.int8), scale


def rounded_rows(x: FloatArray, floor: float = 0.0) -> FloatArray:
    """What x [n, K] is after it was uint8 with a scale for each row, as the graph rounds it."""
    if floor:
        top = np.maximum((x + floor).max(axis=1, keepdims=True), _TINY)
        raised: FloatArray = np.clip(np.rint((x + floor) / top * 255), 0, 255) / 255 * top
        return (raised - floor).astype(np.float32)
    top = np.maximum(np.abs(x).max(axis=1, keepdims=True), _TINY)
    rounded: FloatArray = np.rint(x / top * 127) / 127 * top
    return rounded.astype(np.float32)


def rounded_whole(x: FloatArray, low: FloatArray, high: FloatArray) -> FloatArray:
    """What x [n, K] is after it was uint8 with one scale; row i is of a tensor from `low[i]` to `high[i]`."""
    least, most = np.minimum(low, 0)[:, None], np.maximum(high, 0)[:, None]
    step = np.maximum(most - least, _TINY) / 255
    zero = np.rint(-least / step)
    rounded: FloatArray = (np.clip(np.rint(x / step) + zero, 0, 255) - zero) * step
    return rounded.astype(np.float32)


def groups_of(model: Any, output: str) -> list[Group]:
    """The groups on the way to an output of an onnx model, in the order in which they are computed."""
    initial = {tensor.name: tensor for tensor in model.graph.initializer}
    needed, grouped = _upstream(model, output), dict[str, list[Matrix]]()
    for node in model.graph.node:
        weight = initial.get(node.input[1]) if node.op_type == "MatMul" else None
        if weight is None or len(weight.dims) != 2 or np.prod(weight.dims) < SMALLEST or node.output[0] not in needed:
            continue
        shape = (int(weight.dims[0]), int(weight.dims[1]))
        grouped.setdefault(node.input[0], []).append(Matrix(_module(node), node.output[0], weight.name, shape))
    return [Group(name, tuple(matrices)) for name, matrices in grouped.items()]


def tables_of(model: Any) -> list[Matrix]:
    """Token and position tables that a Gather reads: `shape` is rows, columns."""
    initial = {tensor.name: tensor for tensor in model.graph.initializer}
    found = []
    for node in model.graph.node:
        table = initial.get(node.input[0]) if node.op_type == "Gather" else None
        by_row = all(attribute.i == 0 for attribute in node.attribute if attribute.name == "axis")
        if table is None or not by_row or len(table.dims) != 2 or np.prod(table.dims) < SMALLEST:
            continue
        found.append(Matrix(_module(node), node.output[0], table.name, (int(table.dims[0]), int(table.dims[1]))))
    return found


def weights_of(model: Any, matrices: Iterable[Matrix]) -> dict[str, FloatArray]:
    """float32 arrays of weights, by the initializer's name."""
    from onnx import numpy_helper

    wanted = {matrix.weight for matrix in matrices}
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer if t.name in wanted}


def rewritten(model: Any, plan: Mapping[str, Recipe], *, tables: TableForm = "int8") -> Any:
    """A copy of an onnx model in which the groups named in `plan`, by their input, have their recipes' forms.

    MissingExtra without the package onnx.
    """
    return _Rewriter(model).run(plan, tables=tables)


class _Rewriter:
    """Nodes and initializers of the new graph, as they come to be."""

    def __init__(self, model: Any) -> None:
        try:
            from onnx import helper, numpy_helper
        except ImportError as error:
            raise MissingExtra("Quantising an ONNX file", "workshop") from error
        self._old, self._helper, self._numpy = model, helper, numpy_helper
        self._nodes: list[Any] = []
        self._made: dict[str, Any] = {}

    def run(self, plan: Mapping[str, Recipe], *, tables: TableForm) -> Any:
        graph = self._old.graph
        groups = [group for group in groups_of(self._old, VECTOR) if group.input in plan]
        readers = {matrix.output: (group, matrix) for group in groups for matrix in group.matrices}
        gathers = {table.output: table for table in tables_of(self._old)} if tables != "float32" else {}
        listed = [*(m for _, m in readers.values()), *gathers.values()]
        arrays = weights_of(self._old, listed)
        begun: set[str] = set()
        biases = _biases(graph)
        joined: set[str] = set()
        for node in graph.node:
            if node.output[0] in joined:
                continue
            if (table := gathers.get(node.output[0])) is not None:
                self._table(table, node.input[1], tables, arrays[table.weight])
            elif (found := readers.get(node.output[0])) is not None:
                group, matrix = found
                recipe = plan[group.input]
                if recipe.form == "int8":
                    if group.input not in begun:
                        self._rounded_input(group, recipe)
                        begun.add(group.input)
                    bias, biased = biases.get(matrix.output, ("", "")) if recipe.whole else ("", "")
                    joined.add(biased)
                    self._int8(group, matrix, recipe, arrays[matrix.weight], bias=bias, output=biased)
                else:
                    self._stored(group, matrix, recipe.form, arrays[matrix.weight])
            else:
                self._nodes.append(node)
        return self._assembled()

    def _assembled(self) -> Any:
        new = type(self._old)()
        new.CopyFrom(self._old)
        del new.graph.node[:], new.graph.value_info[:]
        new.graph.node.extend(self._nodes)
        read = {name for node in self._nodes for name in node.input}
        kept = [tensor for tensor in self._old.graph.initializer if tensor.name in read]
        del new.graph.initializer[:]
        new.graph.initializer.extend([*kept, *self._made.values()])
        if not any(opset.domain == "com.microsoft" for opset in new.opset_import):
            new.opset_import.append(self._helper.make_opsetid("com.microsoft", 1))
        return new

    def _add(self, kind: str, inputs: list[str], output: str, *, domain: str = "", **attributes: Any) -> str:
        node = self._helper.make_node(kind, inputs, [output], name=f"{output}/node", domain=domain, **attributes)
        self._nodes.append(node)
        return output

    def _constant(self, name: str, value: npt.NDArray[Any]) -> str:
        if name not in self._made:
            self._made[name] = self._numpy.from_array(value, name)
        return name

    def _table(self, table: Matrix, rows: str, form: TableForm, values: FloatArray) -> None:
        """Rows of float16, or of int8 times a scale for each."""
        out = table.output
        if form == "float16":
            halves = self._constant(f"{table.weight}/float16", values.astype(np.float16))
            self._add("Cast", [self._add("Gather", [halves, rows], f"{out}/float16")], out, to=1)
            return
        transposed, scale = rounded_columns(values.T)
        small = np.ascontiguousarray(transposed.T)
        picked = self._add("Gather", [self._constant(f"{table.weight}/int8", small), rows], f"{out}/int8")
        scales = self._constant(f"{table.weight}/scale", scale[:, None])
        scale_of = self._add("Gather", [scales, rows], f"{out}/scale")
        self._add("Mul", [self._add("Cast", [picked], f"{out}/float", to=1), scale_of], out)

    def _stored(self, group: Group, matrix: Matrix, form: Form, weight: FloatArray) -> None:
        """Small on disk; the runtime makes it float32 once, as it loads the file."""
        name = matrix.output
        if form == "float16":
            half = self._constant(f"{name}/float16", weight.astype(np.float16))
            whole = self._add("Cast", [half], f"{name}/weight", to=1)
        else:
            small, scale = rounded_columns(weight)
            cast = self._add("Cast", [self._constant(f"{name}/int8", small)], f"{name}/cast", to=1)
            whole = self._add("Mul", [cast, self._constant(f"{name}/scale", scale)], f"{name}/weight")
        self._add("MatMul", [group.input, whole], name)

    def _rounded_input(self, group: Group, recipe: Recipe) -> None:
        """x to uint8 `x/uint8` with the row's scale `x/top` [.., 1], or the whole's; outliers to `x/outliers`."""
        x = group.input
        if recipe.whole:
            outputs = [f"{x}/uint8", f"{x}/step", f"{x}/middle"]
            self._nodes.append(self._helper.make_node("DynamicQuantizeLinear", [x], outputs, name=f"{x}/uint8/node"))
            return
        if recipe.outliers:
            index = self._constant(f"{x}/index", np.array(recipe.outliers, np.int64))
            self._add("Gather", [x, index], f"{x}/outliers", axis=-1)
        inner, factor = x, recipe.factor(group.matrices[0].shape[0])
        if factor is not None:
            inner = self._add("Mul", [x, self._constant(f"{x}/factor", factor)], f"{x}/inner")
        if recipe.floor:
            raised = inner = self._add(
                "Add", [inner, self._constant(f"{x}/floor", np.array(recipe.floor, np.float32))], f"{x}/raised"
            )
        else:
            raised = self._add("Abs", [inner], f"{x}/size")
        axes = self._constant("last_axis", np.array([-1], np.int64))
        top = self._add("ReduceMax", [raised, axes], f"{x}/most", keepdims=1)
        top = self._add("Max", [top, self._constant("tiny", np.array(_TINY, np.float32))], f"{x}/top")
        unit = self._add("Div", [inner, top], f"{x}/unit")
        self._add("QuantizeLinear", [unit, *self._grid(recipe)], f"{x}/uint8")

    def _grid(self, recipe: Recipe) -> tuple[str, str]:
        """Scale and zero point of rows that were divided by their greatest value."""
        steps, zero = (255, 0) if recipe.floor else (127, 128)
        scale = self._constant(f"scale{steps}", np.array(1 / steps, np.float32))
        return scale, self._constant(f"zero{zero}", np.array(zero, np.uint8))

    def _int8(
        self, group: Group, matrix: Matrix, recipe: Recipe, weight: FloatArray, *, bias: str, output: str
    ) -> None:
        """The product; with a `bias`, which only a whole one has, product and bias are the tensor `output`."""
        x, name = group.input, matrix.output
        small, scale = rounded_columns(recipe.weight(weight), paired=True)
        x_scale, zero = (f"{x}/step", f"{x}/middle") if recipe.whole else self._grid(recipe)
        inputs = [f"{x}/uint8", self._constant(f"{name}/int8", small), x_scale]
        inputs += [self._constant(f"{name}/scale", scale), zero]
        if recipe.whole:
            with_bias = [*inputs, "", bias] if bias else inputs  # between them a zero point, which is 0
            self._add("MatMulIntegerToFloat", with_bias, output or name, domain="com.microsoft")
            return
        product = self._add("MatMulIntegerToFloat", inputs, f"{name}/product", domain="com.microsoft")
        beside: list[str] = []
        if recipe.floor:
            columns = -recipe.floor * (small.astype(np.float32) * scale).sum(axis=0)
            beside.append(self._constant(f"{name}/floor", columns.astype(np.float32)))
        if recipe.outliers:
            kept = self._constant(f"{name}/outliers", np.ascontiguousarray(weight[list(recipe.outliers)]))
            beside.append(self._add("MatMul", [f"{x}/outliers", kept], f"{name}/beside"))
        total = self._add("Mul", [product, f"{x}/top"], f"{name}/scaled" if beside else name)
        for number, part in enumerate(beside, 1):
            total = self._add("Add", [total, part], name if number == len(beside) else f"{name}/sum{number}")


def _biases(graph: Any) -> dict[str, tuple[str, str]]:
    """Of a tensor that a single operation reads, which adds a constant vector to it: that vector, and the sum."""
    vectors = {tensor.name for tensor in graph.initializer if len(tensor.dims) == 1}
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    found = {}
    for name, nodes in readers.items():
        if len(nodes) == 1 and nodes[0].op_type == "Add" and len(nodes[0].input) == 2:
            first, second = nodes[0].input
            other = second if first == name else first
            if other in vectors:
                found[name] = (other, nodes[0].output[0])
    return found


def _upstream(model: Any, output: str) -> set[str]:
    """Names of all tensors that an output is computed from."""
    needed = {output}
    for node in reversed(model.graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
    return needed


def _module(node: Any) -> str:
    """The PyTorch module's name, such as `encoder.layer.0.output.dense`."""
    for prop in node.metadata_props:
        if prop.key == "pkg.torch.onnx.name_scopes":
            scopes = [scope for scope in ast.literal_eval(prop.value)[:-1] if scope]
            if scopes:
                return str(scopes[-1]).removeprefix("body.")
    return str(node.name or node.output[0])
