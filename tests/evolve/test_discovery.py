"""Which requests form a template."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from puhui.evolve.discovery import find_templates, task_of_group


@given(
    st.text("ab \n.:(", min_size=0, max_size=20),
    st.text("ab \n.:(", max_size=20),
    st.sets(st.text("abcxyz 世", min_size=1, max_size=8), min_size=60, max_size=80),
)
def test_a_template_covers_every_text_it_was_found_in(prefix: str, suffix: str, middles: set[str]) -> None:
    texts = [f"Sort this letter now: {prefix}{middle}{suffix}" for middle in middles]
    found = find_templates("bare:0", "m", texts)
    assert len(found) == 1
    inputs = [found[0].input_of(text) for text in texts]
    assert None not in inputs
    assert len(set(inputs)) == len(set(texts))
    again = find_templates("bare:0", "m", texts[::-1])
    assert again == found


def test_two_templates_are_told_apart_and_others_left() -> None:
    texts = [f"Translate the word w{n} into French" for n in range(80)]
    texts += [f"Classify the following review: r{n}\nLabel:" for n in range(80)]
    texts += [f"{n} something else entirely" for n in range(200)]
    found = find_templates("bare:0", "m", texts)
    assert {(task.prefix, task.suffix) for task in found} == {
        ("Translate the word ", " into French"),
        ("Classify the following review: ", "\nLabel:"),
    }
    assert len({task.id for task in found}) == 2


@pytest.mark.parametrize("texts", [[], [""], ["same text here"] * 100, [f"a b c{n}" for n in range(100)]])
def test_what_is_no_template(texts: list[str]) -> None:
    assert find_templates("bare:0", "m", texts) == []


def test_a_task_is_named_after_its_first_line() -> None:
    task = task_of_group("context:abc", "m", "\n\n  You   sort\tmail.  \nAnd more.")
    assert (task.id, task.name) == ("task-abc", "You sort mail.")
    assert task_of_group("named:abc", "m", "").name == "named:abc"
