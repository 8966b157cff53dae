"""Exports: each form answers as the bundle does, or there is none. Every family is tried in `test_families`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

import experts
from puhui.bundles import expert_export
from puhui.bundles.bundle import seal
from puhui.bundles.expert_export import export_expert
from puhui.bundles.probes import TEXTS
from puhui.core.errors import BundleError, SettingsError
from puhui.evolve.traffic import Task
from puhui.models.static import StaticModel
from puhui.trust.keys import load_or_create_key


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    card = experts.card(Task("task-1", "a task", "context:1", "m"))
    return seal(tmp_path / "experts", card, experts.model(), load_or_create_key(tmp_path / "key"))[1]


@pytest.fixture
def encoder_bundle(tmp_path: Path) -> Path:
    import encoders

    model = encoders.table_encoder()
    card = experts.card(Task("task-1", "a task", "context:1", "m"), family="encoder", labels=model.labels)
    return seal(tmp_path / "experts", card, model, load_or_create_key(tmp_path / "key"))[1]


def test_static(bundle: Path, tmp_path: Path) -> None:
    done = export_expert(bundle, tmp_path / "deep" / "out", "static")
    assert done.files == ("README.md", "static.json", "weights.safetensors")
    again = StaticModel.load(done.folder)
    assert [again.predict_one(text) for text in TEXTS] == [experts.model().predict_one(text) for text in TEXTS]
    assert "These files are not signed" in (done.folder / "README.md").read_text()


def test_into_the_folder_where_one_stands(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError, match="not an empty folder; give another -o"):
        export_expert(bundle, Path(), "static")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    assert export_expert(bundle, Path(), "static").folder == tmp_path / "empty"


def test_huggingface_is_a_repository_with_the_bundle_whole(bundle: Path, tmp_path: Path) -> None:
    done = export_expert(bundle, tmp_path / "out", "huggingface", texts=["my bank"])
    assert set(done.files) >= {"README.md", "card.html", "expert/expert.json", "expert/signature.json"}
    assert '+ "/expert")' in (done.folder / "README.md").read_text()
    for path in bundle.iterdir():
        assert (done.folder / "expert" / path.name).read_bytes() == path.read_bytes()


RUN = """
import json, sys
import numpy as np, onnxruntime, tokenizers
folder, texts = sys.argv[1], json.loads(sys.argv[2])
labels = json.load(open(f"{folder}/encoder.json"))["labels"]
tokenizer = tokenizers.Tokenizer.from_file(f"{folder}/tokenizer.json")
session = onnxruntime.InferenceSession(f"{folder}/model.onnx")
said = []
for text in texts:
    ids = np.array([tokenizer.encode(text).ids])
    (logits,) = session.run(["logits"], {"input_ids": ids, "attention_mask": np.ones_like(ids)})
    said.append(labels[logits[0].argmax()])
assert "puhui" not in sys.modules
print(json.dumps(said))
"""


def test_onnx_runs_without_puhui(encoder_bundle: Path, tmp_path: Path) -> None:
    import encoders

    done = export_expert(encoder_bundle, tmp_path / "out", "onnx")
    assert done.files == ("README.md", "encoder.json", "model.onnx", "tokenizer.json")
    texts = ["my balance", "查询 account", "余额 transfer 7", "zzz"]
    words = [sys.executable, "-c", RUN, str(done.folder), msgspec.json.encode(texts).decode()]
    ran = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True)
    assert msgspec.json.decode(ran.stdout) == encoders.table_encoder().predict_many(texts)[0]


def test_a_form_that_answers_otherwise_is_no_export(
    encoder_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = expert_export._run_onnx

    def away(folder: Path, texts: list[str]) -> tuple[list[str], np.ndarray]:
        labels, logits = honest(folder, texts)
        return labels, logits + np.float32(2e-4)

    monkeypatch.setattr(expert_export, "_run_onnx", away)
    with pytest.raises(BundleError, match=r"answers otherwise .* on 0 of 16 texts, its numbers are 0\.0002 away"):
        export_expert(encoder_bundle, tmp_path / "out", "onnx")
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out-*"))


def test_where_it_cannot_be_written(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep")
    for out in (tmp_path / "full", tmp_path / "key", Path("/proc/nowhere/out")):
        with pytest.raises(SettingsError, match="give another -o"):
            export_expert(bundle, out, "static")
    assert (tmp_path / "full" / "mine.txt").read_text() == "keep"
    (tmp_path / "empty").mkdir()
    assert export_expert(bundle, tmp_path / "empty", "static").folder == tmp_path / "empty"


def test_a_damaged_bundle_or_another_is_not_exported(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"expert\.json was changed"):
        export_expert(bundle, tmp_path / "out", "static", expert="0" * 64)
    data = (bundle / "weights.safetensors").read_bytes()
    (bundle / "weights.safetensors").write_bytes(data[:-1] + b"!")
    with pytest.raises(BundleError, match=r"weights\.safetensors was changed"):
        export_expert(bundle, tmp_path / "out", "static")
    assert not (tmp_path / "out").exists()
