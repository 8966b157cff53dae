"""`README.md`: the card as the model card that Hugging Face's hub and tools read.

A head of YAML that `huggingface_hub.ModelCard` reads back, its results as the `model-index` of `EvalResult`, then
the same statements as on `card.html` in Markdown. The head is written as JSON, which YAML is a superset of, but for
the letters that YAML does not allow or takes for a break; those are escaped. So nothing is needed to write it, and no
label or name can become anything else in it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from puhui.bundles import card_words as words
from puhui.bundles.card import Card
from puhui.bundles.card_words import duration, energy, percent, shown, size

NOT_PLAIN = re.compile("[^\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")
TABLE_ROWS = 25
TASKS = {"span": "token-classification", "number": "other", "fields": "other"}
"""The hub's names of what a family does, where it is not text classification; it has none for numbers and records."""


def render_model_card(card: Card, *, key: str | None = None, id: str | None = None, use: str | None = None) -> str:
    """The whole README.

    `key` is the public key that signs the expert, `id` its id, where they are known; `use` says in Markdown how to
    use the files beside it, where they are not a bundle.
    """
    parts = (
        f"# {_line(shown(card.task_name))}",
        _line(words.sentence(card).en),
        "## The guarantee",
        *(_line(each.en) for each in words.guarantee(card)),
        "What it does not say:",
        "\n".join(f"- {_line(each.en)}" for each in words.limits(card)),
        "## Agreement",
        _line(words.agreement(card).en),
        *([_line(ceiling.en)] if (ceiling := words.ceiling(card)) is not None else []),
        "## Use",
        use or BUNDLE_USE,
        *_tables(card),
        "## Where it came from",
        _origin(card, key, id),
        *_commands(card),
    )
    return f"---\n{_head(card)}---\n\n" + "\n\n".join(parts) + "\n"


BUNDLE_USE = """\
```python
import puhui

expert = puhui.open_expert("path/to/expert")
said = expert.ask("one request")
print(said.label, said.confidence, said.sure)
```

Where it is not `sure`, ask the big model: the guarantee is about what it is sure of."""


def _head(card: Card) -> str:
    """The YAML between the dashes: one key a line, its value in JSON."""
    head: dict[str, Any] = {"library_name": "puhui"}
    if _task(card) != "other":
        head["pipeline_tag"] = _task(card)
    known = re.fullmatch(r"[A-Za-z0-9.+-]+", card.licence) is not None
    head["license"] = card.licence.lower() if known else "other"
    if not known:
        head["license_name"] = card.licence
    head["tags"] = ["puhui", "distillation", "guarantee", card.family]
    head["model-index"] = [{"name": card.task_name or "expert", "results": [_result(card)]}]
    return "".join(f"{name}: {_json(value)}\n" for name, value in head.items())


def _task(card: Card) -> str:
    return TASKS.get(card.family, "text-classification")


def _result(card: Card) -> dict[str, Any]:
    source = card.data.source if card.data is not None and card.data.source else "the big model's own traffic"
    dataset: dict[str, Any] = {"name": source, "type": "private"}
    if card.data is not None and card.data.digest:
        dataset["args"] = {"sha256": card.data.digest}
    metrics = [{"type": "agreement", "name": "agreement with the big model", "value": card.agreement}]
    proven, epsilon = card.calibration, card.calibration.get("epsilon")
    if words.threshold_of(card) is not None and epsilon and proven.get("coverage") is not None:
        at = f"coverage at a proven risk of {percent(epsilon)}"
        metrics.append({"type": "coverage", "name": at, "value": proven["coverage"]})
    if words.threshold_of(card) is not None and proven.get("risk_bound") is not None:
        metrics.append({"type": "risk_bound", "name": "proven bound of the risk", "value": proven["risk_bound"]})
    return {"task": {"type": _task(card), "name": card.task_name or "expert"}, "dataset": dataset, "metrics": metrics}


def _tables(card: Card) -> list[str]:
    parts = []
    if card.devices:
        rows = [
            (name, duration(each.latency_ms), size(each.size_bytes), "measured" if each.measured else "scaled")
            for name, each in list(card.devices.items())[:TABLE_ROWS]
        ]
        parts += ["## Sizes and speeds", _table(("device", "time of an answer", "on disk", "how known"), rows)]
    if card.trade_offs:
        ranked = sorted(card.trade_offs, key=lambda each: (not each.chosen, -(each.coverage or 0.0)))
        candidates = [
            (
                each.name,
                size(each.size_bytes) if each.size_bytes else "–",
                "–" if each.latency_ms is None else duration(each.latency_ms),
                "–" if each.agreement is None else percent(each.agreement),
                "–" if each.coverage is None else percent(each.coverage),
                "chosen" if each.chosen else each.why_not or "–",
            )
            for each in ranked[:TABLE_ROWS]
        ]
        head = ("candidate", "size", "time", "agreement", words.coverage_head(card).en, "")
        parts += ["## Trade-offs", _table(head, candidates)]
    if card.confusions:
        pairs = [
            (each.big, each.expert, f"{each.count:,}", percent(each.share)) for each in card.confusions[:TABLE_ROWS]
        ]
        head_of_pairs = ("the big model says", "the expert says", "rows", "of all disagreements")
        parts += ["## The worst confusions", _table(head_of_pairs, pairs)]
    return parts


def _origin(card: Card, key: str | None, id: str | None) -> str:
    facts = [
        ("big model", card.teacher),
        ("answers learned from", f"{card.rows:,}"),
        ("their digest", card.data_digest),
        ("energy of an answer, estimated", f"{energy(card.joules_low)} – {energy(card.joules_high)}"),
        ("licence", card.licence),
    ]
    if card.data is not None:
        facts.insert(1, ("data", " · ".join(filter(None, (words.data(card.data).en, card.data.source)))))
    facts += [(each.role, f"{each.name} {each.licence} {each.digest}".strip()) for each in card.lineage[:TABLE_ROWS]]
    facts += [(name, value) for name, value in (("id", id), ("signed by", key)) if value]
    return "\n".join(f"- {_line(shown(name))}: {_line(shown(value))}" for name, value in facts)


def _commands(card: Card) -> list[str]:
    if not card.commands:
        return []
    lines = "\n".join(f"    {shown(command, 300)}  # {part}" for part, command in card.commands.items())
    return ["## Every number can be made again", lines]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *([_line(shown(cell)) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _line(text: str) -> str:
    """Text on one line in which no letter is Markdown or HTML, also within a table."""
    return re.sub(r"([\\`*_{}\[\]<>|#~])", r"\\\1", text).replace("&", "&amp;")


def _json(value: Any) -> str:
    """The value as JSON that YAML 1.1 reads as the same value."""
    # A lone surrogate is no character: json leaves it, and no file could hold it.
    text = json.dumps(value, ensure_ascii=False).encode("utf-8", "replace").decode()
    return NOT_PLAIN.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
