"""Finding the jobs that repeat, and whether their answers form a closed set."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence

from puhui.cascade.agreement import canonical
from puhui.evolve.traffic import BARE, Task, group_key

MOST_LABELS = 1000
FEWEST_ANSWERS = 100
RARE = 0.05
FEWEST_OF_A_TEMPLATE = 60
SHORTEST_TEMPLATE = 12


def closed_set(answers: Sequence[str]) -> tuple[str, ...] | None:
    """The labels that the answers are drawn from, most frequent first; None when they form no closed set.

    Good and Turing (Good 1953): the chance that the next answer is one never seen is about the share of
    answers seen only once. The set counts as closed when that is at most 5 %, over at least 100 answers.
    Answers seen once are left out: an expert cannot learn them, and leaves them to the big model.

    >>> closed_set(["spam", "ham"] * 60)
    ('spam', 'ham')
    """
    if len(answers) < FEWEST_ANSWERS:
        return None
    counts = Counter(canonical(answer) for answer in answers)
    once = sum(count == 1 for count in counts.values())
    labels = tuple(label for label, count in counts.most_common() if count > 1)
    if once > RARE * len(answers) or not 2 <= len(labels) <= MOST_LABELS:
        return None
    return labels


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
