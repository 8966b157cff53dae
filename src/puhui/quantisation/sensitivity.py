"""Which of an encoder's matrices eight bits would harm, and how much each finer form would leave of the harm.

Two measures on real text, multiplied. How far the vector moves when the input of one group alone is rounded is its
*harm*, 1 - cosine: it is measured by running the encoder once a group, with a switch for each group in one graph.
The *error* of a group under a recipe is that of its products on a sample of its input, relative to their variance:
cheap, so every recipe is tried. Small independent errors add up, and harm grows as the error does, so the harm of a
whole plan is foreseen as Σ harm · error of the recipe / error of the rounded input. What was foreseen is verified
by running (`quantise.py`).
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from puhui.quantisation.fidelity import Progress, distances
from puhui.quantisation.int8_graph import Group, Recipe, rounded_columns, rounded_rows, rounded_whole
from puhui.quantisation.onnx_export import INPUTS, VECTOR, Batch, cpu_session

FloatArray: TypeAlias = npt.NDArray[np.float32]

OUTLIERS = (4, 16, 64)
"""Numbers of channels that may stay float32: in BERT and MPNet four hold nearly all extremes."""
SMOOTHINGS = (0.5, 0.7)
"""Exponents α of SmoothQuant's max|x|^α / max|w|^(1-α) that are tried."""
_FLOOR_SHARE = 0.25
"""Inputs that reach below zero by less than this share of their greatest value may have a floor (GELU's do)."""
_SAMPLED_ROWS = 192
_FLOAT_COST = 4.0
_PASS_COST = 32.0
"""A float32 multiplication, and touching one number once more, in int8 multiplications; as measured, roughly."""


class Sample(msgspec.Struct, frozen=True, eq=False):
    """Rows [n, K] of what a group reads; `low` and `high` [n] are of the whole tensor that each row is from."""

    rows: FloatArray
    low: FloatArray
    high: FloatArray


class Candidate(msgspec.Struct, frozen=True, eq=False):
    """A recipe for a group: its error, 0 for exact, and its cost for a token, in int8 multiplications."""

    recipe: Recipe
    error: float
    cost: float


def sampled_inputs(
    path: Path, groups: Sequence[Group], batches: Sequence[Batch], *, rows: int = _SAMPLED_ROWS
) -> dict[str, Sample]:
    """Of each group, by its input's name, at most so many rows of what it reads: tokens, not padding."""
    import onnx
    from onnx import helper

    model = onnx.load(path)
    names = [group.input for group in groups]
    model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    parts: dict[str, list[FloatArray]] = {name: [] for name in names}
    ends: dict[str, list[FloatArray]] = {name: [] for name in names}
    total = sum(int(mask.sum()) for _, mask in batches)
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        session = _saved_session(model, Path(folder))
        for ids, mask in batches:
            kept = (rng.random(mask.shape) < rows / total) & (mask > 0)
            kept[0, 0] |= not parts[names[0]]  # never nothing
            for name, value in zip(names, session.run(names, dict(zip(INPUTS, (ids, mask), strict=True))), strict=True):
                by_token = value.ndim == 3 and value.shape[:2] == mask.shape
                part = value[kept] if by_token else value.reshape(-1, value.shape[-1])
                parts[name].append(part)
                ends[name].append(np.tile(np.array([value.min(), value.max()], np.float32), (len(part), 1)))
    found = {}
    for name, taken in parts.items():
        low, high = np.concatenate(ends[name])[:rows].T
        found[name] = Sample(np.concatenate(taken)[:rows], low, high)
    return found


def measured_harm(
    path: Path,
    groups: Sequence[Group],
    batches: Sequence[Batch],
    *,
    work: Path | None = None,
    progress: Progress | None = None,
) -> dict[str, float]:
    """Of each group, by its input's name, the mean of 1 - cosine when its input alone is rounded.

    It takes one run of the encoder for each group. What is measured is kept in the folder `work`, if there is one:
    the same call takes up there what was interrupted.
    """
    import onnx

    memory = None if work is None else work / f"harm-{_digest(path, batches)}.json"
    harm: dict[str, float] = {}
    if memory is not None and memory.exists():
        harm = msgspec.json.decode(memory.read_bytes(), type=dict[str, float])
    if all(group.input in harm for group in groups):
        return harm
    with tempfile.TemporaryDirectory() as folder:
        session = _saved_session(_with_switches(onnx.load(path), groups), Path(folder))

    def vectors(on: int | None) -> FloatArray:
        switch = np.zeros(len(groups), np.float32)
        if on is not None:
            switch[on] = 1
        given = (dict(zip(INPUTS, batch, strict=True)) | {"switch": switch} for batch in batches)
        return np.concatenate([session.run([VECTOR], one)[0] for one in given])

    wanted = vectors(None)
    for number, group in enumerate(groups):
        if group.input not in harm:
            harm[group.input] = float(distances(vectors(number), wanted).mean())
            if memory is not None:
                _kept(memory, harm)
        if progress is not None:
            progress(number + 1, len(groups))
    return harm


def _digest(path: Path, batches: Sequence[Batch]) -> str:
    """Names the file's content and the texts."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 24):
            digest.update(part)
    for ids, mask in batches:
        digest.update(repr(ids.shape).encode() + ids.tobytes() + mask.tobytes())
    return digest.hexdigest()[:16]


def _kept(memory: Path, harm: Mapping[str, float]) -> None:
    """Whole or not at all, whenever this is interrupted."""
    memory.parent.mkdir(parents=True, exist_ok=True)
    draft = memory.with_suffix(".draft")
    draft.write_bytes(msgspec.json.encode(harm))
    draft.replace(memory)


def input_error(x: FloatArray, weights: Sequence[FloatArray]) -> float:
    """The error of a group whose input alone is rounded: what `measured_harm` does to it."""
    rounded = rounded_rows(x)
    return sum(_relative(rounded @ weight, x @ weight) for weight in weights)


def candidates(
    sample: Sample, weights: Sequence[FloatArray], *, half: bool = True, whole: bool = False
) -> list[Candidate]:
    """Recipes for the group that reads the sample [n, K] with weights [K, N], each dearer and more exact than the one
    before.

    `half`: float16, which takes twice the bytes, is among them. `whole`: one scale for a whole text is.
    """
    x = sample.rows
    extremes, channels = np.abs(x).max(axis=0), x.shape[1]
    tried = [Recipe()]
    heaviest = np.maximum(np.max([np.abs(weight).max(axis=1) for weight in weights], axis=0), 1e-6)
    for alpha in SMOOTHINGS:
        smoothing = np.maximum(extremes, 1e-4) ** alpha / heaviest ** (1 - alpha)
        tried.append(Recipe(smoothing=smoothing.astype(np.float32)))
    order = np.argsort(extremes)[::-1]
    tried += [Recipe(outliers=tuple(sorted(order[:k].tolist()))) for k in OUTLIERS if k <= channels // 8]
    tried = [_floored(recipe, sample, weights) for recipe in tried]
    tried += [Recipe(whole=True)] if whole else []
    tried += [Recipe("weights"), Recipe("float16")] if half else [Recipe("weights")]
    wanted = [x @ weight for weight in weights]
    listed = [Candidate(recipe, _error(recipe, sample, weights, wanted), _cost(recipe, weights)) for recipe in tried]
    kept: list[Candidate] = []
    for one in sorted(listed, key=lambda one: (one.cost, one.error)):
        if not kept or one.error < kept[-1].error:
            kept.append(one)
    return kept


def _floored(recipe: Recipe, sample: Sample, weights: Sequence[FloatArray]) -> Recipe:
    """The recipe with a floor, where the sample allows it and it helps."""
    x = sample.rows
    factor = recipe.factor(x.shape[1])
    inner = x if factor is None else x * factor
    lowest = float(inner.min())
    if not 0 < -lowest < _FLOOR_SHARE * float(inner.max()):
        return recipe
    floored = msgspec.structs.replace(recipe, floor=-lowest)
    wanted = [x @ weight for weight in weights]
    return min(recipe, floored, key=lambda one: _error(one, sample, weights, wanted))


def _error(recipe: Recipe, sample: Sample, weights: Sequence[FloatArray], wanted: Sequence[FloatArray]) -> float:
    """Of the products as the graph computes them, relative to their variance, summed over the matrices."""
    x = sample.rows
    factor = recipe.factor(x.shape[1])
    inner = x if factor is None else x * factor
    rounded = rounded_whole(x, sample.low, sample.high) if recipe.whole else rounded_rows(inner, recipe.floor)
    kept = list(recipe.outliers)
    total = 0.0
    for weight, right in zip(weights, wanted, strict=True):
        if recipe.form == "float16":
            found = x @ weight.astype(np.float16).astype(np.float32)
        else:
            small, scale = rounded_columns(recipe.weight(weight), paired=recipe.form == "int8")
            coarse = small.astype(np.float32) * scale
            found = x @ coarse if recipe.form == "weights" else rounded @ coarse + x[:, kept] @ weight[kept]
        total += _relative(found, right)
    return total


def _relative(found: FloatArray, wanted: FloatArray) -> float:
    return float(((found - wanted) ** 2).sum() / max(float(((wanted - wanted.mean(axis=0)) ** 2).sum()), 1e-12))


def _cost(recipe: Recipe, weights: Sequence[FloatArray]) -> float:
    inputs, outputs = int(weights[0].shape[0]), sum(int(weight.shape[1]) for weight in weights)
    if recipe.form != "int8":
        return _FLOAT_COST * inputs * outputs
    passes = inputs * (recipe.factor(inputs) is not None) + outputs * (bool(recipe.outliers) + (recipe.floor > 0))
    passes += 0 if recipe.whole else 3 * inputs + outputs  # the greatest of each row, the division, and back
    return inputs * outputs + _FLOAT_COST * len(recipe.outliers) * outputs + _PASS_COST * passes


def _with_switches(model: Any, groups: Sequence[Group]) -> Any:
    """The graph with one more input, `switch` [groups]: 1 rounds that group's input as `int8` would."""
    from onnx import TensorProto, helper, numpy_helper

    graph, nodes = model.graph, []
    constants: Mapping[str, npt.NDArray[Any]] = {
        "switch/last": np.array([-1], np.int64),
        "switch/steps": np.array(127, np.float32),
        "switch/tiny": np.array(1e-9, np.float32),
        **{f"switch/{number}": np.array(number, np.int64) for number in range(len(groups))},
    }
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    graph.input.append(helper.make_tensor_value_info("switch", TensorProto.FLOAT, [len(groups)]))
    readers = {matrix.output: (number, group) for number, group in enumerate(groups) for matrix in group.matrices}
    begun: set[int] = set()
    for node in graph.node:
        if node.output[0] in readers:
            number, group = readers[node.output[0]]
            if number not in begun:
                nodes += _switched(group.input, number)
                begun.add(number)
            node.input[0] = f"{group.input}/switched"
        nodes.append(node)
    held = [type(node).FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(held)
    return model


def _switched(x: str, number: int) -> list[Any]:
    """x + switch · (x rounded - x)."""
    from onnx import helper

    steps: tuple[tuple[str, list[str], str], ...] = (
        ("Abs", [x], "size"),
        ("ReduceMax", [f"{x}/size", "switch/last"], "most"),
        ("Max", [f"{x}/most", "switch/tiny"], "top"),
        ("Div", [f"{x}/top", "switch/steps"], "step"),
        ("Div", [x, f"{x}/step"], "unit"),
        ("Round", [f"{x}/unit"], "round"),
        ("Mul", [f"{x}/round", f"{x}/step"], "rounded"),
        ("Sub", [f"{x}/rounded", x], "moved"),
        ("Gather", ["switch", f"switch/{number}"], "on"),
        ("Mul", [f"{x}/moved", f"{x}/on"], "change"),
        ("Add", [x, f"{x}/change"], "switched"),
    )
    return [helper.make_node(kind, inputs, [f"{x}/{output}"]) for kind, inputs, output in steps]


def _saved_session(model: Any, folder: Path) -> Any:
    """A session of a model of any size: above 2 GB its weights go to a file of their own."""
    import onnx

    path = folder / "measured.onnx"
    onnx.save(model, path, save_as_external_data=model.ByteSize() > 2_000_000_000)
    return cpu_session(path)
