"""An expert in a form that other tools read: ONNX, plain static weights, or a repository for Hugging Face's hub.

    onnx          model.onnx, tokenizer.json, encoder.json (labels, greatest number of tokens), README.md
    static        weights.safetensors, static.json, README.md
    huggingface   README.md, card.html, expert/ (the bundle as it is, signature and all)

Each is made from a bundle whose digests and signature hold, and is then read again and run on texts: where it does
not answer as the bundle does, there is an error and no export. A family without a form says so.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec
import numpy as np

from puhui.bundles.bundle import CARD_FILE, SIGNATURE_FILE, Card, Signed, open_bundle, read_card
from puhui.bundles.card_page import PAGE_FILE, render_card
from puhui.bundles.model_card import render_model_card
from puhui.bundles.probes import TEXTS
from puhui.core.errors import BundleError, MissingExtra, SettingsError
from puhui.models.family import ExpertModel, FloatArray
from puhui.models.onnx_encoder import CONFIG_FILE as ENCODER_FILE
from puhui.models.onnx_encoder import LOGITS, MODEL_FILE, TOKENIZER_FILE, EncoderModel, tokens_of
from puhui.models.static import CONFIG_FILE, WEIGHTS_FILE, StaticModel

Form = Literal["onnx", "static", "huggingface"]
FILES: dict[Form, tuple[str, ...]] = {
    "onnx": (MODEL_FILE, TOKENIZER_FILE, ENCODER_FILE),
    "static": (WEIGHTS_FILE, CONFIG_FILE),
}
FORMS: dict[str, Form] = {"encoder": "onnx", "static": "static"}
"""Family → its own form, beside `huggingface`, which every family has."""
TOLERANCE = 1e-4  # of logits and confidences: the same file on the same runtime, another session


class Exported(NamedTuple):
    """What was written: the folder, its files by name, and the texts on which it answers as the bundle does."""

    folder: Path
    files: tuple[str, ...]
    texts: int


def export_expert(
    bundle: Path, out: Path, form: Form, *, expert: str | None = None, texts: Sequence[str] = TEXTS
) -> Exported:
    """Writes the expert of a bundle's folder to `out` in another form, once that was run and compared on `texts`.

    `expert` is the id that the bundle must have. `out` must not exist, or be an empty folder; it appears whole or
    not at all. Raises BundleError where the bundle is not whole, its family has no such form, or the form answers
    otherwise; SettingsError where `out` holds something; MissingExtra without the form's runtime.
    """
    out = out.resolve()  # a name of its own, also for "."
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise SettingsError(f"{out} is there already and not an empty folder; give another -o, or move it away")
    signed = read_card(bundle, expert=expert)
    card, model = open_bundle(bundle, expert=signed.id)
    if form != "huggingface" and FORMS.get(card.family) != form:
        own = FORMS.get(card.family)
        others = f"{own} or huggingface" if own else "huggingface alone"
        raise BundleError(f"an expert of the family {card.family!r} has no form {form!r}; it has {others}")
    draft = out.with_name(f".{out.name}-{os.getpid()}-{time.monotonic_ns()}")
    try:
        draft.mkdir(parents=True)
        _write(bundle, draft, form, signed)
        _compare(draft, form, model, texts or TEXTS)
        draft.replace(out)
    except OSError as error:
        raise SettingsError(f"{out} cannot be written: {error.strerror or error}; give another -o") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    names = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    return Exported(out, tuple(names), len(texts or TEXTS))


def _write(bundle: Path, draft: Path, form: Form, signed: Signed) -> None:
    card, id, key = signed
    if form == "huggingface":
        for name in (CARD_FILE, SIGNATURE_FILE, *card.files):
            (draft / "expert" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(bundle / name, draft / "expert" / name)
        (draft / PAGE_FILE).write_text(render_card(card, key=key, id=id), encoding="utf-8")
    else:
        for name in FILES[form]:
            shutil.copyfile(bundle / name, draft / name)
    (draft / "README.md").write_text(render_model_card(card, key=key, id=id, use=_use(form, card)), encoding="utf-8")


def _compare(draft: Path, form: Form, model: ExpertModel, texts: Sequence[str]) -> None:
    """BundleError where what was written does not answer as the bundle does."""
    if isinstance(model, EncoderModel) and form == "onnx":
        labels, numbers = _run_onnx(draft, texts)
        expected, ours = model.predict_many(texts)[0], model.logits_many(texts)
    else:
        again: ExpertModel = open_bundle(draft / "expert")[1] if form == "huggingface" else StaticModel.load(draft)
        labels, numbers = again.predict_many(texts)
        expected, ours = model.predict_many(texts)
    away = float(np.abs(numbers - ours).max(initial=0.0))
    wrong = [text for text, label, other in zip(texts, labels, expected, strict=True) if label != other]
    if wrong or not away <= TOLERANCE:
        raise BundleError(
            f"the {form} form answers otherwise than the bundle on {len(wrong)} of {len(texts)} texts, its numbers are "
            f"{away:.2g} away (allowed: {TOLERANCE:g}); first: {(wrong or list(texts))[0][:80]!r}"
        )


def _run_onnx(folder: Path, texts: Sequence[str]) -> tuple[list[str], FloatArray]:
    """Labels [n] and logits [n, k] of the exported files alone, as any user of ONNX Runtime would get them."""
    try:
        import onnxruntime as ort
        from tokenizers import Tokenizer
    except ImportError as error:  # pragma: no cover
        raise MissingExtra("Checking an ONNX export", "encoder") from error
    config = msgspec.json.decode((folder / ENCODER_FILE).read_bytes())
    session = ort.InferenceSession((folder / MODEL_FILE).read_bytes(), providers=["CPUExecutionProvider"])
    tokenizer = Tokenizer.from_file(str(folder / TOKENIZER_FILE))
    tokenizer.no_padding()
    tokenizer.enable_truncation(config["max_tokens"])
    logits = np.empty((len(texts), len(config["labels"])), np.float32)
    for number, text in enumerate(texts):
        ids = np.array([tokens_of(tokenizer, text, config["max_tokens"])], np.int64)
        logits[number] = session.run([LOGITS], {"input_ids": ids, "attention_mask": np.ones_like(ids)})[0][0]
    return [config["labels"][best] for best in logits.argmax(axis=1)], logits


def _use(form: Form, card: Card) -> str:
    if form == "onnx":
        return (
            "`tokenizer.json` makes `input_ids` and `attention_mask` (int64, [n, t]), `model.onnx` makes `logits` "
            "(float32, [n, k]) of them, and the greatest is the answer, by the order of `labels` in `encoder.json`. "
            "Run each text by itself: in a batch, int8 activations share a scale and answers may change. Confidence "
            "and guarantee are the bundle's; these files have neither."
        )
    if form == "static":
        return (
            "`StaticModel.load(folder).predict_one(text)` of `puhui.models.static` gives answer and confidence. The "
            f"guarantee holds at a confidence of {card.calibration.get('threshold')} and more. These files are not "
            "signed; the bundle they came from is."
        )
    return """\
```python
from huggingface_hub import snapshot_download
import puhui

expert = puhui.open_expert(snapshot_download("OWNER/NAME") + "/expert")
said = expert.ask("one request")
print(said.label, said.confidence, said.sure)
```

Where it is not `sure`, ask the big model: the guarantee is about what it is sure of."""
