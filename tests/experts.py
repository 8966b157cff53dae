"""A small real expert for tests: distilled, sealed and put in a store's tables as the learning loop would."""

from __future__ import annotations

import functools
import random
from pathlib import Path

from puhui.bundles.bundle import Card, seal
from puhui.cascade.guarantee import Calibration
from puhui.compress.static_training import StaticOptions, distill_static
from puhui.evolve.discovery import task_of_group
from puhui.evolve.gate import Verdict
from puhui.evolve.memory import Memory, Progress
from puhui.evolve.traffic import Task
from puhui.models.hashing import FeatureOptions
from puhui.models.static import StaticModel
from puhui.store.database import Store
from puhui.trust.keys import SigningKey

CLASSES = {
    "money": ("balance", "account", "transfer", "cash", "bank"),
    "travel": ("flight", "hotel", "train", "ticket", "luggage"),
    "food": ("pizza", "recipe", "dinner", "cook", "bread"),
}
SYSTEM = "Which subject is this about: money, travel or food? One word."


def subject_of(text: str) -> str:
    """What an ordinary big model says of a text."""
    return max(CLASSES, key=lambda label: sum(word in text for word in CLASSES[label]))


def questions(count: int, seed: int = 0) -> list[str]:
    """Texts that are clearly of one subject."""
    draw = random.Random(seed)
    found = []
    for number in range(count):
        words = draw.sample(CLASSES[draw.choice(list(CLASSES))], 3)
        found.append(f"about my {words[0]} and {words[1]} or the {words[2]} number {number}")
    return found


@functools.cache
def model() -> StaticModel:
    """The expert's model."""
    texts = questions(150, seed=1)
    options = StaticOptions(features=FeatureOptions(buckets=1 << 14))
    return distill_static(texts, [subject_of(text) for text in texts], options=options)


def card(task: Task, **more: object) -> Card:
    """A card for the model."""
    usual = {
        "task": task.id,
        "task_name": task.name,
        "family": "static",
        "labels": model().labels,
        "teacher": task.model,
        "recipe": {},
        "rows": 400,
        "data_digest": "0" * 64,
        "calibration": {"threshold": 0.5},
        "agreement": 1.0,
        "size_bytes": model().size_bytes,
        "answer_us": 50.0,
        "joules_low": 0.0001,
        "joules_high": 0.001,
    }
    return Card(**usual | more)  # type: ignore[arg-type]


def promote(
    store: Store, folder: Path, key: SigningKey, group: str, *, threshold: float = 0.5, epsilon: float = 0.05
) -> tuple[str, Path, Task]:
    """Puts the expert in place for the traffic `group`; gives its id, its bundle and its task."""
    memory = Memory(store)
    task = task_of_group(group, "m", SYSTEM)
    if task.id not in {known.id for known, _ in memory.tasks()}:
        memory.add_task(task)
    expert, place = seal(folder, card(task), model(), key)
    proven = Calibration(threshold, 0.9, 0, 0.0, 0.01, epsilon, 0.05, 500)
    memory.promote(task, Progress(attempts=1), expert, place, Verdict(True, proven, "proven"))
    return expert, place, task
