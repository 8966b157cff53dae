"""Answers of every shape: `python -m bench.shapes --data FOLDER_OF_CLINC150 [--json] [--save]`.

One job for each shape that `compress.answer_shape` finds by itself, and what an expert for it reaches. No API was
asked: what stands in for the big model is named with each job. `labels` are people's annotations (CLINC150's
intents and domains; what botocore's authors put in <code>), `rule` is a rule of ours on facts that the text does
not hold (an operation's name and its required members), which a big model would be asked to estimate.

For each job: the shape found, and on test rows the expert's exact agreement and mean loss (by the rule that the
shape has), what it covers at a risk proven to be at most 2 % (δ = 5 %) by that loss and by exact agreement, and
the true risk there. Answers are on one thread; `answer_us` is CPU time. `variants` say what other designs reach on
the same answers: for sets TF-IDF with a logistic regression for each label (scikit-learn), the usual way; for records
that are labels, field by field; for records, the least confidence of the fields instead of their product.
"""

from __future__ import annotations

import argparse
import gzip
import html
import json
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from puhui.cascade.agreement import EXACT, Rule, agreements
from puhui.cascade.guarantee import calibrate_threshold
from puhui.compress.answer_shape import Fields, Label, LabelSet, Shape, find_fields, find_shape, read_items, rule_of
from puhui.compress.shape_training import train_shape
from puhui.models.fields import FieldsModel
from puhui.models.span_words import find_passage

EPSILON, DELTA = 0.02, 0.05
TRAIN, CALIBRATE, TEST = 4000, 2000, 2500
TIMED_ANSWERS = 300
FEWEST_OF_A_SERVICE, FEWEST_OF_AN_ACTION = 50, 40
REACH = {"List": 0, "Get": 0, "Describe": 0, "Search": 5, "Tag": 15, "Create": 30, "Put": 40, "Update": 50}
REACH |= {"Modify": 50, "Start": 35, "Stop": 60, "Disassociate": 65, "Cancel": 70, "Terminate": 95, "Delete": 90}
Row = dict[str, Any]
Predict = Callable[[Sequence[str]], tuple[list[str], npt.NDArray[Any]]]


class Job(NamedTuple):
    """Texts and the big model's answers, in a drawn order; the first are learned from, the next calibrate."""

    name: str
    answers_by: str
    texts: list[str]
    answers: list[str]

    def part(self, first: int, count: int) -> tuple[list[str], list[str]]:
        """Some of its rows."""
        return self.texts[first : first + count], self.answers[first : first + count]


def clinc_jobs(folder: Path, seed: int) -> list[Job]:
    """One question or two questions in one message: their intents, their domains, and a record of one."""
    splits = json.loads((folder / "data_full.json").read_text())
    domains = json.loads((folder / "domains.json").read_text())
    domain_of = {intent: domain for domain, intents in domains.items() for intent in intents}
    draw = random.Random(seed)
    messages: list[tuple[str, list[str]]] = []
    parts = ((splits["train"], TRAIN), (splits["val"], CALIBRATE), (splits["test"], TEST))
    for split, count in parts:
        for _ in range(count):
            asked = draw.sample(split, draw.choice((1, 2, 2)))
            messages.append((" and ".join(text for text, _ in asked), sorted({intent for _, intent in asked})))
    texts = [text for text, _ in messages]
    intents = [json.dumps(found) for _, found in messages]
    named = [", ".join(sorted({domain_of[intent] for intent in found})) for _, found in messages]
    single = [row for split, count in parts for row in draw.sample(split, count)]
    records = [json.dumps({"domain": domain_of[intent], "intent": intent}) for _, intent in single]
    return [
        Job("intents of a message", "labels", texts, intents),
        Job("domains of a message", "labels", texts, named),
        Job("domain and intent", "labels", [text for text, _ in single], records),
    ]


class Operation(NamedTuple):
    """An operation of a cloud service: its documentation, and what the documentation does not say."""

    text: str
    code: str | None
    service: str
    action: str
    required: int


def cloud_jobs(seed: int) -> list[Job]:
    """From botocore: the name in a text, how far an operation reaches, and both in a record with two labels."""
    found = list(operations())
    random.Random(seed).shuffle(found)
    services, actions = Counter(one.service for one in found), Counter(one.action for one in found)
    closed = [
        one
        for one in found
        if services[one.service] >= FEWEST_OF_A_SERVICE and actions[one.action] >= FEWEST_OF_AN_ACTION
    ]
    paragraphs = list(dict(named_or_not(seed)).items())
    random.Random(seed).shuffle(paragraphs)
    scored = [one for one in found if one.action in REACH]
    codes = [code or "none" for _, code in paragraphs]
    return [
        Job("name in code", "labels", [text for text, _ in paragraphs], codes),
        Job("reach of an operation", "rule", [one.text for one in scored], [str(reach(one)) for one in scored]),
        Job("record of an operation", "labels", [one.text for one in closed], [record_of(one) for one in closed]),
    ]


def reach(one: Operation) -> int:
    """The rule: from 0 (reads) to 100 (destroys), by the operation's name and the members it requires."""
    return min(100, REACH[one.action] + 2 * min(one.required, 5))


def record_of(one: Operation) -> str:
    """A record in a code fence, as big models like to write it."""
    values = {"service": one.service, "action": one.action, "mentions": one.code, "version": 1}
    return f"```json\n{json.dumps(values, indent=2)}\n```"


def operations() -> Iterator[Operation]:
    """Every operation with a paragraph of 20 to 400 characters that no other has."""
    seen = set()
    for service, model in service_models():
        for name, operation in model["operations"].items():
            text, code = first_paragraph(operation.get("documentation", ""))
            shape = model["shapes"].get(operation.get("input", {}).get("shape"), {})
            action = re.match(r"[A-Z]+[a-z]*", name)
            if 20 <= len(text) <= 400 and text not in seen and action:
                seen.add(text)
                yield Operation(text, code, service, action[0], len(shape.get("required", ())))


def named_or_not(seed: int) -> Iterator[tuple[str, str | None]]:
    """Paragraphs of all documentation with the first name in them that is set in code; about half have none."""
    draw = random.Random(seed)
    for _, model in service_models():
        for each in (*model["operations"].values(), *model["shapes"].values()):
            text, code = first_paragraph(each.get("documentation", ""))
            if 20 <= len(text) <= 400 and (code is not None or draw.random() < 0.1):
                yield text, code


def service_models() -> Iterator[tuple[str, dict[str, Any]]]:
    """Each service's name and model, as botocore carries them."""
    import botocore

    for path in sorted((Path(botocore.__file__).parent / "data").glob("*/*/service-2.json*")):
        raw = path.read_bytes()
        yield path.parts[-3], json.loads(gzip.decompress(raw) if path.suffix == ".gz" else raw)


def first_paragraph(documentation: str) -> tuple[str, str | None]:
    """The first paragraph without markup, and its first name in <code> that stands in it as whole words."""
    found = re.search(r"<p>(.*?)</p>", documentation, re.DOTALL)
    marked = found[1] if found else documentation
    text = plain(marked)
    codes = (plain(code) for code in re.findall(r"<code>([^<]+)</code>", marked))
    return text, next((code for code in codes if find_passage(text, code)), None)


def plain(marked: str) -> str:
    """Text without markup."""
    text = re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", marked))).strip()
    return re.sub(r" ([.,;:!?])", r"\1", text)


def measured(job: Job) -> Row:
    """One job: its shape, its expert, and what that reaches."""
    say(f"{job.name}: {len(job.texts)} rows")
    texts, answers = job.part(0, min(TRAIN, len(job.texts) - CALIBRATE - TEST))
    start = time.process_time()
    shape = find_shape(texts, answers)
    if shape is None:
        raise SystemExit(f"{job.name}: no shape was found")
    found_s, start = time.process_time() - start, time.process_time()
    model = train_shape(shape, texts, answers)
    row: Row = {
        "job": job.name,
        "answers_by": job.answers_by,
        "shape": described(shape),
        "rows": [len(texts), CALIBRATE, TEST],
        "find_s": found_s,
        "training_s": time.process_time() - start,
        "bytes": model.size_bytes,
    }
    row |= judged(job, model.predict_many, rule_of(shape))
    start = time.thread_time()
    asked = job.part(len(texts) + CALIBRATE, TIMED_ANSWERS)[0]
    for text in asked:
        model.predict_one(text)
    row["answer_us"] = (time.thread_time() - start) / len(asked) * 1e6
    row["variants"] = variants(job, shape, model)
    return row


def judged(job: Job, predict: Predict, rule: Rule) -> Row:
    """Agreement and loss on the test rows, and what is covered there at thresholds proven on the rows before."""
    learned = min(TRAIN, len(job.texts) - CALIBRATE - TEST)
    sure, by_rule, by_word = [], [], []
    for first, count in ((learned, CALIBRATE), (learned + CALIBRATE, TEST)):
        texts, answers = job.part(first, count)
        said, confidence = predict(texts)
        sure.append(confidence)
        by_rule.append(agreements(said, answers, rule))
        by_word.append(agreements(said, answers, EXACT))
    row: Row = {"agreement": float(by_word[1].mean()), "loss": float(1.0 - by_rule[1].mean())}
    for name, agrees in (("rule", by_rule), ("exact", by_word)):
        proven = calibrate_threshold(sure[0], agrees[0], epsilon=EPSILON, delta=DELTA)
        taken = sure[1] >= (np.inf if proven.threshold is None else proven.threshold)
        row[f"coverage_{name}"] = float(taken.mean())
        row[f"risk_{name}"] = float((taken * (1.0 - agrees[1])).mean())
    return row


def variants(job: Job, shape: Shape, model: Any) -> list[Row]:
    """What other designs reach on the same rows."""
    texts, answers = job.part(0, TRAIN)
    if isinstance(shape, LabelSet):
        return [peer(job, shape)]
    if isinstance(shape, Label) and answers[0].startswith("{"):
        fields = find_fields(texts, answers)
        if fields is None:
            return []
        by_field = train_shape(fields, texts, answers)
        return [{"variant": "field by field", **judged(job, by_field.predict_many, rule_of(fields))}]
    if isinstance(shape, Fields) and isinstance(model, FieldsModel):

        def least(texts: Sequence[str]) -> tuple[list[str], npt.NDArray[Any]]:
            said = model.predict_many(texts)[0]
            return said, np.min([part.predict_many(texts)[1] for _, part in model.parts], axis=0)

        return [{"variant": "least confidence of the fields", **judged(job, least, rule_of(shape))}]
    return []


def peer(job: Job, shape: LabelSet) -> Row:
    """A logistic regression for each label on TF-IDF features; confidence is the product over the labels."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.pipeline import make_union
    from sklearn.preprocessing import MultiLabelBinarizer

    say(f"{job.name}: a regression for each label")
    texts, answers = job.part(0, TRAIN)
    named = [[answer[start:end] for start, end in read_items(answer, shape.separator) or ()] for answer in answers]
    start = time.process_time()
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    features = make_union(words, TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True))
    sets = MultiLabelBinarizer()
    heads = OneVsRestClassifier(LogisticRegression(C=30, solver="liblinear"))
    heads.fit(features.fit_transform(texts), sets.fit_transform(named))
    training_s = time.process_time() - start

    def predict(texts: Sequence[str]) -> tuple[list[str], npt.NDArray[Any]]:
        chances = heads.predict_proba(features.transform(texts))
        said = [shape.form.written(sets.classes_[row].tolist()) for row in chances > 0.5]
        return said, np.prod(np.maximum(chances, 1.0 - chances), axis=1)

    name = "TF-IDF and a regression for each label"
    return {"variant": name, "training_s": training_s, **judged(job, predict, rule_of(shape))}


def described(shape: Shape) -> str:
    """A shape in a few words."""
    if isinstance(shape, Fields):
        return "record: " + ", ".join(f"{path} {described(field.shape)}" for path, field in shape.fields.items())
    kind = type(shape).__name__.lower()
    labels = getattr(shape, "labels", None)
    return f"{kind} of {len(labels)}" if labels else kind


def say(message: str) -> None:
    """Progress, on stderr."""
    print(message, file=sys.stderr, flush=True)


def show(result: Row) -> None:
    """The rows as a table on stdout."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Experts by the shape of their answers; coverage at a proven 2 %")
    for name in (
        "job",
        "shape or variant",
        "agreement",
        "loss",
        "coverage, risk",
        "exact coverage, risk",
        "µs",
        "MB",
        "s",
    ):
        table.add_column(name, justify="left" if name in ("job", "shape or variant") else "right")
    for row in result["rows"]:
        for each in (row, *row.get("variants", ())):
            table.add_row(
                row["job"],
                each.get("shape") or each["variant"],
                f"{each['agreement']:.3f}",
                f"{each['loss']:.4f}",
                *(f"{each[f'coverage_{name}']:.3f}, {each[f'risk_{name}']:.4f}" for name in ("rule", "exact")),
                f"{each['answer_us']:.0f}" if "answer_us" in each else "",
                f"{each['bytes'] / 1e6:.1f}" if "bytes" in each else "",
                f"{each['training_s']:.1f}" if "training_s" in each else "",
            )
    Console(width=170).print(table)


def main() -> None:
    """Command line; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, required=True, help="folder with CLINC150's data_full.json and domains.json"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--save", action="store_true", help="also write bench/results/shapes.json")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    with threadpool_limits(1):
        jobs = [*clinc_jobs(chosen.data, chosen.seed), *cloud_jobs(chosen.seed)]
        rows = [measured(job) for job in jobs]
    result = {"epsilon": EPSILON, "delta": DELTA, "seed": chosen.seed, "rows": rows}
    text = json.dumps(result, indent=2)
    if chosen.save:
        target = Path(__file__).parent / "results" / "shapes.json"
        target.write_text(text + "\n")
    if chosen.json:
        print(text)
    else:
        show(result)


if __name__ == "__main__":
    main()
