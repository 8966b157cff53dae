"""What people would use in place of our experts, for `bench.compress`: each learns from hard answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from puhui.models.encoder import packaged_encoder

Say = Callable[[str], None]
FloatArray = npt.NDArray[np.float32]
EPOCHS, RATE, BATCH = 2, 1e-4, 32
MOST_PAIRED = 1000


class Linear:
    """Features of texts and a scikit-learn classifier on them."""

    def __init__(self, features: Callable[[Sequence[str]], Any], classifier: Any, size_bytes: int) -> None:
        self._features, self._classifier, self.size_bytes = features, classifier, size_bytes

    def predict_many(self, texts: Sequence[str]) -> tuple[list[str], FloatArray]:
        """Answers and p1 / (p1 + p2)."""
        return _answers(self._classifier.classes_, self._classifier.predict_proba(self._features(texts)))


class Tuned:
    """A transformer, its layers cut, mean pooling and a linear head, fine-tuned with cross-entropy; eager PyTorch."""

    def __init__(self, tokenizer: Any, body: Any, head: Any, labels: Sequence[str]) -> None:
        self._tokenizer, self._body, self._head, self.labels = tokenizer, body, head, tuple(labels)
        self.size_bytes = 4 * sum(each.numel() for part in (body, head) for each in part.parameters())

    def forward(self, texts: Sequence[str]) -> tuple[Any, Any]:
        """Logits [n, k] and vectors [n, d]."""
        batch = self._tokenizer(list(texts), padding=True, truncation=True, max_length=64, return_tensors="pt")
        states = self._body(**batch).last_hidden_state
        mask = batch["attention_mask"].unsqueeze(-1)
        vectors = (states * mask).sum(1) / mask.sum(1)
        return self._head(vectors), vectors

    def probabilities(self, texts: Sequence[str]) -> tuple[FloatArray, FloatArray]:
        """Probabilities [n, k] and vectors [n, d], in the order of the texts."""
        import torch

        shares = np.zeros((len(texts), len(self.labels)), np.float32)
        vectors = np.zeros((len(texts), self._body.config.hidden_size), np.float32)
        order = np.argsort([len(text) for text in texts], kind="stable")
        with torch.inference_mode():
            for first in range(0, len(texts), 64):
                rows = order[first : first + 64]
                logits, found = self.forward([texts[row] for row in rows])
                shares[rows], vectors[rows] = logits.softmax(1).numpy(), found.numpy()
        return shares, vectors

    def predict_many(self, texts: Sequence[str]) -> tuple[list[str], FloatArray]:
        """Answers and p1 / (p1 + p2)."""
        return _answers(self.labels, self.probabilities(texts)[0])

    def save_body(self, folder: Path) -> None:
        """Its body as a Hugging Face folder, for experts that start from its layers."""
        self._body.save_pretrained(folder)
        self._tokenizer.save_pretrained(folder)


def fine_tuned(
    base: Path, texts: Sequence[str], answers: Sequence[str], folder: Path, *, layers: int | None, say: Say
) -> Tuned:
    """Fine-tunes the first `layers` (None: all) of the encoder in `base`; kept in `folder`."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    torch.manual_seed(0)
    labels = sorted(set(answers))
    body = AutoModel.from_pretrained(str(base), local_files_only=True, dtype=torch.float32)
    if layers is not None:
        body.encoder.layer = body.encoder.layer[:layers]
        body.config.num_hidden_layers = layers
    head = torch.nn.Linear(body.config.hidden_size, len(labels))
    made = Tuned(AutoTokenizer.from_pretrained(str(base), local_files_only=True), body, head, labels)
    kept = folder / "tuned.pt"
    if kept.exists():
        states = torch.load(kept, weights_only=True)
        body.load_state_dict(states["body"])
        head.load_state_dict(states["head"])
        return made
    _tune(made, body, head, texts, [labels.index(answer) for answer in answers], say)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"body": body.state_dict(), "head": head.state_dict()}, kept)
    return made


def _tune(made: Tuned, body: Any, head: Any, texts: Sequence[str], numbers: Sequence[int], say: Say) -> None:
    import torch

    groups = [{"params": body.parameters(), "lr": RATE}, {"params": head.parameters(), "lr": 1e-3}]
    optimiser = torch.optim.AdamW(groups, weight_decay=0.01)
    epochs = max(EPOCHS, math.ceil(60 * BATCH / len(texts) * EPOCHS))  # few texts are read more often
    steps = epochs * math.ceil(len(texts) / BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, [RATE, 1e-3], total_steps=steps)
    wanted, order = torch.tensor(numbers), np.random.default_rng(0)
    for module in (body, head):
        module.train()
    for epoch in range(epochs):
        say(f"   fine-tuning: epoch {epoch + 1} of {epochs}")
        mixed = order.permutation(len(texts))
        for first in range(0, len(texts), BATCH):
            rows = mixed[first : first + BATCH]
            logits, _ = made.forward([texts[row] for row in rows])
            loss = torch.nn.functional.cross_entropy(logits, wanted[torch.as_tensor(rows)])
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_([*body.parameters(), *head.parameters()], 1.0)
            optimiser.step()
            schedule.step()
    for module in (body, head):
        module.eval()


def tfidf(texts: Sequence[str], answers: Sequence[str], work: Path, say: Say) -> Linear:
    """TF-IDF of words and characters, logistic regression."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_union

    union = make_union(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True),
        TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True),
    )
    classifier = LogisticRegression(C=30.0, max_iter=300).fit(union.fit_transform(texts), list(answers))
    return Linear(union.transform, classifier, classifier.coef_.astype(np.float32).nbytes)


def model2vec(texts: Sequence[str], answers: Sequence[str], work: Path, say: Say) -> Linear:
    """model2vec's distillation of MiniLM, frozen, and a logistic regression."""
    from model2vec.distill import distill_from_model
    from sklearn.linear_model import LogisticRegression
    from transformers import AutoModel, AutoTokenizer

    base = str(packaged_encoder())
    tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True)
    table = distill_from_model(AutoModel.from_pretrained(base, local_files_only=True), tokenizer, pca_dims=256)
    classifier = LogisticRegression(C=30.0, max_iter=500).fit(table.encode(list(texts)), list(answers))
    size = table.embedding.astype(np.float32).nbytes + classifier.coef_.astype(np.float32).nbytes
    return Linear(lambda some: table.encode(list(some)), classifier, size)


def student(texts: Sequence[str], answers: Sequence[str], work: Path, say: Say) -> Tuned:
    """Three layers of MiniLM, fine-tuned on the hard answers."""
    base = packaged_encoder()
    assert base is not None
    return fine_tuned(base, texts, answers, work / f"student-{len(texts)}", layers=3, say=say)


class Distilled:
    """A SetFit model."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.size_bytes = 4 * sum(each.numel() for each in model.model_body.parameters())

    def predict_many(self, texts: Sequence[str]) -> tuple[list[str], FloatArray]:
        """Answers and p1 / (p1 + p2)."""
        shares = np.asarray(self._model.predict_proba(list(texts), as_numpy=True), np.float32)
        return _answers(self._model.model_head.classes_, shares)


def setfit(texts: Sequence[str], answers: Sequence[str], work: Path, say: Say) -> Distilled:
    """SetFit's distillation: MiniLM with a head teaches its own first three layers by the likeness of pairs."""
    if len(texts) > MOST_PAIRED:
        raise ValueError(f"not run: it compares {len(texts)}² pairs; up to {MOST_PAIRED} texts are tried")
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer
    from setfit import DistillationTrainer, SetFitModel, TrainingArguments
    from sklearn.linear_model import LogisticRegression

    base = str(packaged_encoder())
    bodies = [SentenceTransformer(base, device="cpu", local_files_only=True) for _ in range(2)]
    teacher, learner = (SetFitModel(model_body=body, model_head=LogisticRegression(max_iter=500)) for body in bodies)
    teacher.model_head.fit(bodies[0].encode(list(texts)), list(answers))
    inside = bodies[1][0].auto_model
    inside.encoder.layer = inside.encoder.layer[:3]
    inside.config.num_hidden_layers = 3
    options = TrainingArguments(output_dir=str(work / "setfit"), batch_size=BATCH, num_epochs=1, num_iterations=10)
    rows = Dataset.from_dict({"text": list(texts), "label": list(answers)})
    DistillationTrainer(teacher_model=teacher, student_model=learner, args=options, train_dataset=rows).train()
    return Distilled(learner)


def _answers(labels: Sequence[str], shares: FloatArray) -> tuple[list[str], FloatArray]:
    second, best = np.partition(shares, -2, axis=1)[:, -2:].T
    return [str(labels[i]) for i in shares.argmax(axis=1)], best / np.maximum(best + second, 1e-12)


PEERS: dict[str, Callable[[Sequence[str], Sequence[str], Path, Say], Any]] = {
    "TF-IDF + logistic regression": tfidf,
    "model2vec + logistic regression": model2vec,
    "three layers, fine-tuned": student,
    "SetFit's distillation": setfit,
}
