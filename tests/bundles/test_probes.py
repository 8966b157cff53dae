"""Probes: an expert answers on this machine as where it was made, or the bundle says that it does not."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

import experts as sample
from puhui.bundles.bundle import open_bundle, seal
from puhui.bundles.probes import PROBES_FILE, TEXTS, Probe, probe, probes_of
from puhui.cli.main import app
from puhui.core.errors import BundleError
from puhui.evolve.discovery import task_of_group
from puhui.trust.keys import load_or_create_key


def test_all_texts_and_labels_are_asked() -> None:
    model = sample.model()
    found = msgspec.json.decode(probes_of(model), type=list[Probe])
    assert {each.text for each in found} >= {*TEXTS, *(label.replace("_", " ") for label in model.labels[:16])}
    assert probe(model, probes_of(model), 0.5) == (len(found), len(found), 0.0)


def elsewhere(threshold_above: bool) -> tuple[bytes, float]:
    """Probes of a runtime that said something else of one text; and a threshold above what both said, or not."""
    probes = msgspec.json.decode(probes_of(sample.model()), type=list[Probe])
    first = probes[0]
    other = next(label for label in sample.model().labels if label != first.label)
    probes[0] = Probe(first.text, other, 0.6)
    most = max(first.confidence, 0.6)
    return msgspec.json.encode(probes), most + 0.01 if threshold_above else most


def test_another_answer_where_nobody_is_sure_is_counted() -> None:
    content, threshold = elsewhere(threshold_above=True)
    found = probe(sample.model(), content, threshold)
    assert found.same == found.texts - 1
    assert found.furthest > 0.0
    assert probe(sample.model(), content, None).same == found.same


def test_another_answer_where_either_is_sure_is_an_error() -> None:
    content, threshold = elsewhere(threshold_above=False)
    with pytest.raises(BundleError, match="does not hold here"):
        probe(sample.model(), content, threshold)


@pytest.mark.parametrize("content", [b"", b"{}", b'[{"text": 1}]', b"\xff"])
def test_what_is_no_list_of_probes_is_damaged(content: bytes) -> None:
    with pytest.raises(BundleError, match="damaged"):
        probe(sample.model(), content, 0.5)


def test_verify_asks_them(tmp_path: Path) -> None:
    model, key = sample.model(), load_or_create_key(tmp_path / "key")
    card = sample.card(task_of_group("context:0", "m", ""), labels=model.labels)
    _, place = seal(tmp_path, card, model, key, more={PROBES_FILE: probes_of(model)})
    assert PROBES_FILE in open_bundle(place)[0].files
    told = CliRunner().invoke(app, ["experts", "verify", str(place)])
    assert told.exit_code == 0, told.output
    count = len(TEXTS) + min(16, len(model.labels))
    assert f"answers {count} of {count} texts as where it was made" in told.output
