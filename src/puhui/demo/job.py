"""The demo's job: requests with their true answers, and the chat messages that carry them."""

from __future__ import annotations

import gzip
import html
import json
import random
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from puhui.core.errors import LearningError, MissingExtra

FEWEST_OPERATIONS = 100
HEAD_SHARE = 0.25


class Item(msgspec.Struct, frozen=True):
    """One request: its text, and the true answer where it is known."""

    text: str
    truth: str | None = None


class Job(msgspec.Struct, frozen=True):
    """A job: a system prompt, the labelled texts that teach the demo's big model, and the traffic."""

    name: str
    system: str
    lessons: tuple[Item, ...]
    traffic: tuple[Item, ...]

    def messages(self, item: Item) -> list[dict[str, str]]:
        """The chat messages of one request."""
        return [{"role": "system", "content": self.system}, {"role": "user", "content": item.text}]


def cloud_services(seed: int) -> Job:
    """Which cloud service does this request belong to? From the operations' descriptions in botocore.

    Read from the installed package: the first sentence of each documented operation, markup removed, duplicates
    dropped, services with at least 100 operations. A quarter teaches the big model's head, the rest is traffic,
    each text once, in an order drawn with `seed`.
    """
    by_service: dict[str, dict[str, None]] = defaultdict(dict)
    seen: set[str] = set()
    for service, description in _operations():
        sentence = first_sentence(description)
        if sentence and sentence not in seen:
            seen.add(sentence)
            by_service[service][sentence] = None
    kept = {service: texts for service, texts in by_service.items() if len(texts) >= FEWEST_OPERATIONS}
    items = [Item(text, service) for service, texts in sorted(kept.items()) for text in texts]
    random.Random(seed).shuffle(items)
    cut = round(len(items) * HEAD_SHARE)
    system = (
        "Which cloud service does this request belong to? Answer with the name of one service and nothing else. "
        f"The services: {', '.join(sorted(kept))}."
    )
    return Job("cloud services", system, tuple(items[:cut]), tuple(items[cut:]))


def own_requests(path: Path, system: str) -> Job:
    """The user's own requests: a JSON Lines file with `text` and, where it is known, the true `label`."""
    items = []
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    items.append(_own_item(line, f"{path}, line {number}"))
    except (OSError, UnicodeDecodeError) as error:
        raise LearningError(f"{path} cannot be read: {error}") from error
    if not items:
        raise LearningError(f'{path} has no requests; each line is an object such as {{"text": "…", "label": "…"}}')
    labelled = [item for item in items if item.truth is not None]
    cut = round(len(labelled) * HEAD_SHARE)
    taught = set(labelled[:cut])
    labels = sorted({item.truth for item in labelled if item.truth is not None})
    prompt = system or f"Answer with one of these and nothing else: {', '.join(labels)}."
    return Job(path.stem, prompt, tuple(labelled[:cut]), tuple(item for item in items if item not in taught))


def first_sentence(description: str) -> str:
    """The first sentence of an operation's description, without markup.

    >>> first_sentence("<p>Deletes a <code>Queue</code>. It is gone.</p>")
    'Deletes a Queue.'
    """
    text = re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", description))).strip()
    text = re.sub(r" ([.,;:!?])", r"\1", text)
    return re.split(r"(?<=[.!?])\s", text, maxsplit=1)[0]


def _operations() -> Iterator[tuple[str, str]]:
    """Service and description of every documented operation in botocore, in a fixed order."""
    try:
        import botocore
    except ImportError as error:
        raise MissingExtra("the demo's job", "demo") from error
    for path in sorted((Path(botocore.__file__).parent / "data").glob("*/*/service-2.json*")):
        raw = path.read_bytes()
        model: dict[str, Any] = json.loads(gzip.decompress(raw) if path.suffix == ".gz" else raw)
        for operation in model["operations"].values():
            if operation.get("documentation"):
                yield path.parts[-3], operation["documentation"]


def _own_item(line: str, where: str) -> Item:
    try:
        fields = json.loads(line)
    except ValueError as error:
        raise LearningError(f"{where} is not JSON: {error}") from error
    text = fields.get("text") if isinstance(fields, dict) else None
    label = fields.get("label") if isinstance(fields, dict) else None
    if not isinstance(text, str) or not isinstance(label, str | None):
        raise LearningError(f'{where} must be an object with a "text" and, if known, a "label", both strings')
    return Item(text, label)


def labels_of(items: Sequence[Item]) -> list[str]:
    """The different true answers, sorted."""
    return sorted({item.truth for item in items if item.truth is not None})
