"""Exports: run and compared before they appear, for any batch, in the encoders' usual families."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the workshop's packages are not installed")
transformers = pytest.importorskip("transformers", reason="the workshop's packages are not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="the workshop's packages are not installed")

from puhui.core.errors import BundleError, LearningError  # noqa: E402
from puhui.quantisation.onnx_export import _graph, _move, check_export, cpu_session, export_encoder, random_batch  # noqa: E402

SIZES = {"vocab_size": 90, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
CONFIGS = {
    "bert": lambda: transformers.BertConfig(**SIZES),
    "mpnet": lambda: transformers.MPNetConfig(**SIZES),
}


class Bag(torch.nn.Module):
    """An encoder without transformers: its states are its embeddings, and half are dropped in training."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(40, 8)
        self.dropout = torch.nn.Dropout(0.5)

    def forward(self, input_ids: Any, attention_mask: Any) -> Any:
        return self.dropout(self.table(input_ids)) * attention_mask.unsqueeze(-1)


@pytest.mark.parametrize(("family", "pooling"), [("bert", "mean"), ("mpnet", "max")])
def test_every_family_gives_what_pytorch_gives(tmp_path: Path, family: str, pooling: Any) -> None:
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(CONFIGS[family]()).eval()
    reference = export_encoder(model, tmp_path / "m.onnx", pooling=pooling)
    batches = [random_batch(90, n, t, seed=n + t) for n, t in ((1, 1), (5, 40), (2, 9))]
    assert check_export(tmp_path / "m.onnx", reference, batches) < 1e-5
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("normalise", [True, False])
def test_bert_is_written_in_few_operations(tmp_path: Path, pooling: Any, normalise: bool) -> None:
    torch.manual_seed(1)
    model = transformers.AutoModel.from_config(transformers.BertConfig(**{**SIZES, "num_hidden_layers": 3})).eval()
    for weight in model.parameters():  # biases are zeros as they come
        weight.data = torch.randn_like(weight) * 0.3
    draw = np.random.default_rng(0)
    projection, head = (
        (draw.normal(size=shape).astype(np.float32), draw.normal(size=shape[1]).astype(np.float32))
        for shape in ((16, 12), (12, 5))
    )
    path = tmp_path / "m.onnx"
    reference = export_encoder(model, path, pooling=pooling, normalise=normalise, projection=projection, head=head)
    batches = [random_batch(90, n, t, seed=n + t) for n, t in ((1, 1), (5, 40), (2, 9))]
    assert check_export(path, reference, batches, tolerance=1e-3) < 1e-4
    nodes = pytest.importorskip("onnx").load(path).graph.node
    assert len(nodes) <= 18 * 3 + 24
    assert [node.op_type for node in nodes].count("MultiHeadAttention") == 3
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(path, tmp_path / "theirs.onnx")  # others' tools read the file, too


def test_names_axes_and_head(tmp_path: Path) -> None:
    head = (np.arange(24, dtype=np.float64).reshape(8, 3), np.array([1.0, 2.0, 3.0]))
    model = Bag().train()
    reference = export_encoder(model, tmp_path / "m.onnx", head=head)
    assert model.training  # as it was given
    session = cpu_session(tmp_path / "m.onnx")
    assert [given.name for given in session.get_inputs()] == ["input_ids", "attention_mask"]
    assert [output.name for output in session.get_outputs()] == ["sentence_embedding", "logits"]
    ids, mask = random_batch(40, 4, 10, seed=1)
    vectors, logits = session.run(None, {"input_ids": ids, "attention_mask": mask})
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert np.allclose(logits, vectors @ head[0] + head[1], atol=1e-4)
    for found, wanted in zip((vectors, logits), reference(ids, mask), strict=True):  # no dropout in the reference
        assert np.allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("pooling", "pooled"),
    [
        ("mean", lambda states, mask: (states * mask).sum(axis=1) / mask.sum(axis=1)),
        ("cls", lambda states, mask: states[:, 0]),
        ("max", lambda states, mask: np.where(mask > 0, states, -np.inf).max(axis=1)),
    ],
)
def test_poolings_without_unit_length(pooling: Any, pooled: Any) -> None:
    model = Bag().eval()
    ids, mask = random_batch(40, 3, 9, seed=2)
    (found,) = _graph(model, pooling, False, None)(torch.from_numpy(ids), torch.from_numpy(mask))
    states = model.table.weight.detach().numpy()[ids]
    assert np.allclose(found.detach().numpy(), pooled(states, mask[:, :, None]), atol=1e-5)


def test_a_file_that_differs_is_refused(tmp_path: Path) -> None:
    model = Bag().eval()
    reference = export_encoder(model, tmp_path / "m.onnx")
    with torch.no_grad():
        model.table.weight[7] += 0.5
    batch = (np.array([[7, 3]]), np.array([[1, 1]]))
    with pytest.raises(LearningError, match="differs from the model"):
        check_export(tmp_path / "m.onnx", reference, [batch])
    assert check_export(tmp_path / "m.onnx", reference, [batch], tolerance=2.0) > 1e-3


def test_what_cannot_be_exported_says_so(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="holds no encoder"):
        export_encoder(tmp_path / "nothing", tmp_path / "m.onnx")
    with pytest.raises(LearningError, match=r"no nn\.Embedding"):
        export_encoder(torch.nn.Linear(2, 2), tmp_path / "m.onnx")
    (tmp_path / "m.onnx").write_bytes(b"not a model")
    with pytest.raises(BundleError, match="cannot be run"):
        cpu_session(tmp_path / "m.onnx")


def test_weights_beside_the_file_move_with_it(tmp_path: Path) -> None:
    """Above 2 GB the exporter writes them into a second file, which the first names."""
    onnx = pytest.importorskip("onnx")
    export_encoder(Bag().eval(), tmp_path / "m.onnx")
    draft = tmp_path / ".draft-m.onnx"
    save = {"save_as_external_data": True, "location": ".draft-m.onnx.data", "size_threshold": 0}
    onnx.save(onnx.load(tmp_path / "m.onnx"), draft, **save)
    batch = random_batch(40, 2, 5, seed=0)
    given = {"input_ids": batch[0], "attention_mask": batch[1]}
    (wanted,) = cpu_session(tmp_path / "m.onnx").run(None, given)
    _move(draft, tmp_path / "large.onnx")
    draft.unlink(missing_ok=True)
    assert not (tmp_path / ".draft-m.onnx.data").exists()
    assert np.array_equal(cpu_session(tmp_path / "large.onnx").run(None, given)[0], wanted)
