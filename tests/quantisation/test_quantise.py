"""Quantising: what is foreseen comes true, neighbours change nothing, targets are met or refused."""

from __future__ import annotations

import itertools
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

onnx = pytest.importorskip("onnx", reason="the workshop's packages are not installed")
pytest.importorskip("onnxruntime", reason="the workshop's packages are not installed")

from encoders_made import INNER, WIDTH, batches, write_encoder  # noqa: E402
from puhui.core.errors import BundleError, LearningError  # noqa: E402
from puhui.quantisation.fidelity import distances, fidelity, outputs_of  # noqa: E402
from puhui.quantisation.int8_graph import (  # noqa: E402
    Recipe,
    groups_of,
    rewritten,
    rounded_columns,
    rounded_rows,
    rounded_whole,
    tables_of,
    weights_of,
)
from puhui.quantisation.onnx_export import VECTOR, cpu_session  # noqa: E402
from puhui.quantisation.precision import Precision, Target  # noqa: E402
from puhui.quantisation.quantise import quantise  # noqa: E402
from puhui.quantisation.sensitivity import candidates, measured_harm, sampled_inputs  # noqa: E402

MATRICES = hnp.arrays(
    np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=6), elements=st.floats(-1e4, 1e4, width=32)
)
EVERY_WAY = [
    Recipe(),
    Recipe(whole=True),
    Recipe(outliers=(5, 77)),
    Recipe(smoothing=np.linspace(0.5, 4, WIDTH).astype(np.float32)),
    Recipe(outliers=(5,), smoothing=np.linspace(0.5, 4, WIDTH).astype(np.float32)),
    Recipe(floor=40.0),
    Recipe(floor=40.0, outliers=(5, 77)),
    Recipe("weights"),
    Recipe("float16"),
]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    write_encoder(tmp_path / "encoder.onnx")
    return tmp_path / "encoder.onnx"


@given(x=MATRICES, floor=st.sampled_from([0.0, 0.2]))
def test_rows_are_rounded_to_half_a_step(x: np.ndarray, floor: float) -> None:
    allowed = np.maximum(np.abs(x).max(axis=1, keepdims=True) / 127, 1e-9) / 2
    if floor:  # nothing lies below it
        x = np.maximum(x, -np.float32(floor))
        allowed = np.maximum((x + floor).max(axis=1, keepdims=True) / 255, 1e-9) / 2
    assert (np.abs(rounded_rows(x, floor) - x) <= allowed * 1.001 + 1e-6 * np.abs(x).max()).all()


@given(weight=MATRICES, paired=st.booleans())
def test_columns_are_rounded_to_half_a_step(weight: np.ndarray, paired: bool) -> None:
    small, scale = rounded_columns(weight, paired=paired)
    assert np.abs(small.astype(int)).max() <= 127
    assert (np.abs(small * scale - weight) <= scale * 0.5001).all()


@given(weight=MATRICES)
def test_two_products_fit_into_sixteen_bits(weight: np.ndarray) -> None:
    """Processors without VNNI add them there; whatever x is, in 0 to 255, nothing is cut off."""
    small = rounded_columns(weight, paired=True)[0].astype(int)
    small = np.concatenate([small, np.zeros((len(small) % 2, small.shape[1]), int)])
    highest = 255 * (np.maximum(small[::2], 0) + np.maximum(small[1::2], 0)).max()
    lowest = 255 * (np.minimum(small[::2], 0) + np.minimum(small[1::2], 0)).min()
    assert lowest >= -(2**15)
    assert highest < 2**15


@pytest.mark.parametrize("recipe", EVERY_WAY, ids=lambda r: f"{r.form}-{r.whole}-{len(r.outliers)}-{r.floor}")
def test_the_graph_computes_what_was_foreseen(tmp_path: Path, source: Path, recipe: Recipe) -> None:
    """The products of the rewritten graph, in ONNX Runtime, are those of the recipe in NumPy."""
    model = onnx.load(source)
    group = groups_of(model, VECTOR)[0]
    weight = weights_of(model, group.matrices)[group.matrices[0].weight]
    new = rewritten(model, {group.input: recipe}, tables="float32")
    new.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in (group.input, "inner"))
    onnx.save(new, tmp_path / "new.onnx")
    ids, mask = batches(1)[0]
    given = {"input_ids": ids, "attention_mask": mask}
    x, found = cpu_session(tmp_path / "new.onnx").run([group.input, "inner"], given)
    x, found = x.reshape(-1, WIDTH), found.reshape(-1, INNER)
    small, scale = rounded_columns(recipe.weight(weight), paired=recipe.form == "int8")
    if recipe.form == "float16":
        wanted = x @ weight.astype(np.float16).astype(np.float32)
    elif recipe.form == "weights":
        wanted = x @ (small * scale)
    elif recipe.whole:
        ends = np.tile([x.min(), x.max()], (len(x), 1)).astype(np.float32)
        wanted = rounded_whole(x, *ends.T) @ (small * scale)
    else:
        factor = recipe.factor(WIDTH)
        inner = rounded_rows(x if factor is None else x * factor, recipe.floor)
        kept = list(recipe.outliers)
        wanted = inner @ (small * scale) + x[:, kept] @ weight[kept]
    # A number on the edge between two steps may fall either way.
    assert np.abs(found - wanted).mean() < 1e-3 * np.abs(wanted).mean()


def test_a_bias_is_part_of_a_whole_product(tmp_path: Path) -> None:
    write_encoder(tmp_path / "encoder.onnx", extremes=False)
    model = onnx.load(tmp_path / "encoder.onnx")
    gelu = next(node for node in model.graph.node if node.op_type == "Gelu")
    product, gelu.input[0] = gelu.input[0], "biased"
    bias = np.linspace(-1, 1, INNER).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(bias, "bias"))
    place = list(model.graph.node).index(gelu)
    model.graph.node.insert(place, onnx.helper.make_node("Add", ["bias", product], ["biased"]))
    group = next(group for group in groups_of(model, VECTOR) if group.matrices[0].output == product)
    for recipe, added in ((Recipe(whole=True), 0), (Recipe(), 1)):
        small = rewritten(model, {group.input: recipe}, tables="float32")
        assert [node.op_type for node in small.graph.node].count("Add") == added
        onnx.save(model, tmp_path / "biased.onnx")
        onnx.save(small, tmp_path / "small.onnx")
        texts = batches(5)
        assert (
            fidelity(outputs_of(tmp_path / "small.onnx", texts), outputs_of(tmp_path / "biased.onnx", texts)).cosine
            > 0.995
        )


def test_tables_and_what_lies_behind_the_vector(source: Path) -> None:
    model = onnx.load(source)
    assert [table.weight for table in tables_of(model)] == ["table"]
    assert [m.weight for group in groups_of(model, VECTOR) for m in group.matrices] == ["up", "down"]
    kept = {tensor.name: tensor.data_type for tensor in rewritten(model, {}).graph.initializer}
    assert "table" not in kept
    assert kept["table/int8"] == onnx.TensorProto.INT8
    assert kept["head"] == onnx.TensorProto.FLOAT


def test_a_neighbour_changes_nothing(tmp_path: Path, source: Path) -> None:
    """Plain dynamic int8 has one scale for a batch; here each token has its own."""
    report = quantise(source, tmp_path / "small.onnx", batches=batches(), target=Target(cosine=0.99))
    assert any(matrix.form == "int8" for matrix in report.matrices[1:])
    given = batches(20, rows=6, seed=5)
    together = outputs_of(tmp_path / "small.onnx", given).vectors
    alone = [(ids[i : i + 1, : m.sum()], m[None, : m.sum()]) for ids, mask in given for i, m in enumerate(mask)]
    assert distances(outputs_of(tmp_path / "small.onnx", alone).vectors, together).max() < 1e-5


def test_extremes_are_found_kept_finer_and_said(tmp_path: Path, source: Path) -> None:
    report = quantise(source, tmp_path / "small.onnx", batches=batches(), target=Target(cosine=0.9995))
    by_name = {matrix.name: matrix for matrix in report.matrices}
    up, down = by_name["inner"], by_name["states"]
    assert up.harm > 10 * down.harm  # the extremes are what the up-projection reads
    assert up.finer
    assert up.harm_left < up.harm / 10
    assert up.name in report.summary()
    assert by_name["x"].form == "float16"  # so does what the table holds, by row
    assert report.bytes == (tmp_path / "small.onnx").stat().st_size < report.bytes_before / 2.5
    found = fidelity(outputs_of(tmp_path / "small.onnx", batches(seed=9)), outputs_of(source, batches(seed=9)))
    assert found.cosine >= 0.999
    assert report.verified.cosine >= 0.9995
    assert abs(report.foreseen_cosine - report.verified.cosine) < 5e-4
    assert msgspec.json.decode(msgspec.json.encode(report), type=Precision) == report


def test_nothing_is_finer_where_int8_does(tmp_path: Path) -> None:
    write_encoder(tmp_path / "even.onnx", extremes=False)
    report = quantise(tmp_path / "even.onnx", tmp_path / "small.onnx", batches=batches(), target=Target(cosine=0.99))
    assert not any(matrix.finer for matrix in report.matrices)


def test_one_scale_for_a_text_where_texts_are_alone_and_it_does_no_harm(tmp_path: Path, source: Path) -> None:
    write_encoder(tmp_path / "even.onnx", extremes=False)
    wish = Target(cosine=0.99, alone=True)
    report = quantise(tmp_path / "even.onnx", tmp_path / "small.onnx", batches=batches(rows=1), target=wish)
    assert all(matrix.whole for matrix in report.matrices[1:])
    assert report.verified.cosine >= 0.99
    report = quantise(
        source, tmp_path / "small.onnx", batches=batches(rows=1), target=Target(cosine=0.9995, alone=True)
    )
    up = next(matrix for matrix in report.matrices if matrix.name == "inner")
    assert not up.whole  # which reads the extremes
    assert up.finer
    assert not any(one.whole for one in quantise(source, tmp_path / "any.onnx", batches=batches()).matrices)


def test_recipes_are_dearer_and_more_exact_one_after_another(source: Path) -> None:
    model = onnx.load(source)
    groups = groups_of(model, VECTOR)
    sampled = sampled_inputs(source, groups, batches())
    for group in groups:
        sample = sampled[group.input]
        assert 100 <= len(sample.rows) == len(sample.low) == len(sample.high) <= 192
        assert (sample.low <= sample.rows.min(axis=1)).all()
        assert (sample.high >= sample.rows.max(axis=1)).all()
        weights = list(weights_of(model, group.matrices).values())
        for whole in (False, True):
            listed = candidates(sample, weights, whole=whole)
            assert len(listed) > 2
            assert listed[0].recipe.whole == whole  # the quickest
            for one, finer in itertools.pairwise(listed):
                assert finer.cost > one.cost
                assert finer.error < one.error


def test_measuring_goes_on_where_it_stopped(tmp_path: Path, source: Path) -> None:
    groups = groups_of(onnx.load(source), VECTOR)
    part = measured_harm(source, groups[:1], batches(), work=tmp_path / "work")
    (memory,) = (tmp_path / "work").iterdir()
    memory.write_bytes(msgspec.json.encode({groups[0].input: 0.125}))  # as if it had been this
    whole = measured_harm(source, groups, batches(), work=tmp_path / "work")
    assert whole[groups[0].input] == 0.125 != part[groups[0].input]
    assert whole[groups[1].input] > 0
    assert msgspec.json.decode(memory.read_bytes()) == whole


@pytest.mark.parametrize(
    ("target", "said"),
    [
        (Target(max_bytes=1000), "max_bytes is 1,000"),
        (Target(cosine=1.0), "ask for less"),
        (Target(cosine=0.9, agreement=1.01), "agreement"),
    ],
)
def test_a_target_that_nothing_meets_is_refused(tmp_path: Path, source: Path, target: Target, said: str) -> None:
    with pytest.raises(LearningError, match=said):
        quantise(source, tmp_path / "small.onnx", batches=batches(), target=target)
    assert [path.name for path in tmp_path.iterdir()] == [source.name]


def test_what_cannot_be_quantised_says_so(tmp_path: Path, source: Path) -> None:
    with pytest.raises(LearningError, match="2 batches"):
        quantise(source, tmp_path / "small.onnx", batches=batches(2))
    with pytest.raises(BundleError, match="cannot be read"):
        quantise(tmp_path / "none.onnx", tmp_path / "small.onnx", batches=batches())
    (tmp_path / "damaged.onnx").write_bytes(b"\xff" * 100)
    with pytest.raises(BundleError, match="cannot be read"):
        quantise(tmp_path / "damaged.onnx", tmp_path / "small.onnx", batches=batches())


def test_fidelity_of_a_file_to_itself(source: Path) -> None:
    found = outputs_of(source, batches())
    same = fidelity(found, found)
    assert (same.texts, same.neighbours, same.agreement) == (60, 1.0, 1.0)
    assert same.cosine == same.cosine_p05 == 1.0
    with pytest.raises(LearningError, match="not of the same texts"):
        fidelity(found, outputs_of(source, batches(2)))
