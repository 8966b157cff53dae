"""Finding the jobs that repeat. What kind of answers they have is seen in `compress.answer_shape`."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from puhui.evolve.traffic import BARE, Task, group_key

FEWEST_OF_A_TEMPLATE = 60
SHORTEST_TEMPLATE = 12


def task_of_group(group: str, model: str, context: str) -> Task:
    """The task that a whole group is."""
    first_line = next((line.strip() for line in context.splitlines() if line.strip()), group)
    name = re.sub(r"\s+", " ", first_line)[:60]
    return Task(id=f"task-{group.partition(':')[2]}", name=name, group=group, model=model)


def find_templates(group: str, model: str, inputs: Sequence[str]) -> list[Task]:
    """Tasks among requests that share no system prompt: those with one beginning and end in common.

    Inputs are grouped by their first words; a group of at least 60 different inputs whose common beginning
    and end together make up at least 12 characters is a template, and what lies between varies.

    >>> find_templates("bare:0", "m", [f"Classify this review: no. {n}, fine\\nLabel:" for n in range(99)])[0].suffix
    ', fine\\nLabel:'
    """
    by_start: dict[str, set[str]] = {}
    for text in inputs:
        by_start.setdefault(" ".join(text.split(maxsplit=3)[:3]), set()).add(text)
    found = []
    for start, texts in by_start.items():
        if len(texts) < FEWEST_OF_A_TEMPLATE:
            continue
        prefix = _whole_words(os.path.commonprefix(list(texts)))
        rest = [text[len(prefix) :] for text in texts]
        suffix = os.path.commonprefix([text[::-1] for text in rest])[::-1]
        if len(prefix) + len(suffix) >= SHORTEST_TEMPLATE:
            key = group_key(model, prefix, BARE, suffix).partition(":")[2]
            found.append(Task(f"task-{key}", start[:60], group, model, prefix, suffix))
    return found


def _whole_words(prefix: str) -> str:
    """The prefix up to its last word boundary: a word that happens to begin alike varies as a whole."""
    cut = re.search(r"\w+$", prefix)
    return prefix[: cut.start()] if cut else prefix
