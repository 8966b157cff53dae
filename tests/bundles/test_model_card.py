"""`README.md`: what Hugging Face's tools read back, whatever the names and labels are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import experts
from cards_made import HOSTILE, full_card
from puhui.bundles.card_words import FAMILIES_ZH
from puhui.bundles.model_card import render_model_card
from puhui.evolve.traffic import Task
from puhui.models.family import FAMILIES

hub = pytest.importorskip("huggingface_hub", reason="the workshop extra is not installed")


def test_it_is_a_model_card(tmp_path: Path) -> None:
    card = full_card(licence="Apache-2.0")
    (tmp_path / "README.md").write_text(render_model_card(card, key="5e" * 32, id="1d" * 32), encoding="utf-8")
    read = hub.ModelCard.load(tmp_path / "README.md")
    assert read.data.library_name == "puhui"
    assert read.data.pipeline_tag == "text-classification"
    assert read.data.license == "apache-2.0"
    assert read.data.model_name == card.task_name
    results = {each.metric_type: each for each in read.data.eval_results}
    assert results["agreement"].metric_value == card.agreement
    assert results["coverage"].metric_value == card.calibration["coverage"]
    assert results["coverage"].metric_name == "coverage at a proven risk of 2%"
    assert results["risk_bound"].metric_value == card.calibration["risk_bound"]
    assert card.data is not None
    assert {each.dataset_name for each in results.values()} == {card.data.source}
    for told in ("Of all requests of this task, at most 2%", "Not truth", "5e" * 32, "1d" * 32):
        assert told in read.text
    assert "puhui.open_expert(" in read.text


@pytest.mark.parametrize(
    ("family", "tag", "task"),
    [("span", "token-classification", "token-classification"), ("number", None, "other"), ("fields", None, "other")],
)
def test_what_a_family_does_by_the_hubs_names(family: str, tag: str | None, task: str) -> None:
    card = full_card(family=family)
    read = hub.ModelCard(render_model_card(card))
    assert read.data.pipeline_tag == tag
    assert {each.task_type for each in read.data.eval_results} == {task}


def test_every_family_has_a_name_in_chinese() -> None:
    assert FAMILIES_ZH.keys() == FAMILIES.keys()


def test_a_licence_that_is_a_sentence_and_nothing_known() -> None:
    read = hub.ModelCard(render_model_card(experts.card(Task("t", "a task", "context:1", "m"))))
    assert (read.data.license, read.data.license_name) == ("other", "as the big model's answers")
    assert [each.metric_type for each in read.data.eval_results] == ["agreement"]
    assert "The card does not say what was proven" in read.text


def test_words_from_data_are_neither_markup_nor_cells() -> None:
    text = hub.ModelCard(render_model_card(full_card())).text
    prose = re.sub(r"^    .*$|```.*?```", "", text, flags=re.MULTILINE | re.DOTALL)
    assert not re.search(r"(?<!\\)<(?!-)", prose)
    assert not re.search(r"(?<!\\)\]\(", prose)
    tables = re.findall(r"(?:^\|.*\|\n?)+", prose, re.MULTILINE)
    assert len(tables) == 3
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.strip().splitlines()}) == 1


@settings(max_examples=60)
@given(st.text(st.characters(exclude_categories=())), st.sampled_from(HOSTILE))
def test_any_name_is_read_back(name: str, licence: str) -> None:
    card = experts.card(Task("t", name, "context:1", name), licence=licence)
    read = hub.ModelCard(render_model_card(card))
    assert read.data.model_name == (name.encode("utf-8", "replace").decode() or "expert")
    assert read.data.license_name == licence
    assert read.data.eval_results[0].metric_value == 1.0
