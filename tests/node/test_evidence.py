"""The story of an expert's watch, read from the store as it grows, is the one that the watch itself had."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import insert, update

from puhui.cascade.monitor import RiskMonitor
from puhui.node.evidence import MOST_POINTS, Evidence, Terms
from puhui.store.database import Store, open_store, sqlite_url
from puhui.store.tables import experience

TERMS = Terms(0.05, 0.05)
KINDS = ("agree", "differ", "passed", "due", "given_up", "other")


def row(
    number: int, *, expert: str = "e", given: str | None = "a", answer: str | None = "a", **more: Any
) -> dict[str, Any]:
    """A sampled row of experience: what the expert gave (None: it passed), and what the big model says."""
    due = given is not None and answer is None
    return {
        "id": f"r{number}",
        "at": 1000.0 + number,
        "group": "g",
        "input": f"text {number}",
        "answer": answer,
        "alternatives": None,
        "coin": True,
        "expert": expert,
        "expert_answer": given,
        "body": "{}" if due else None,
        "task": "t",
        "key": "",
        "loss": None,
        **more,
    }


def write(store: Store, rows: list[dict[str, Any]]) -> None:
    with store.begin() as connection:
        connection.execute(insert(experience), rows)


@settings(max_examples=20)
@given(
    st.lists(st.sampled_from(KINDS), min_size=1, max_size=40),
    st.data(),
)
def test_as_the_docket_has_it(kinds: list[str], data: st.DataObject) -> None:
    """Losses in the order of the requests; none is told before an audit that is due, and none is told twice."""
    shapes: dict[str, dict[str, Any]] = {
        "agree": {},
        "differ": {"answer": "b"},
        "passed": {"given": None},
        "due": {"answer": None},
        "given_up": {"answer": None, "body": None},
        "other": {"expert": "f"},
    }
    with TemporaryDirectory() as folder:
        store = open_store(sqlite_url(Path(folder) / "puhui.db"))
        evidence = Evidence(store)
        cut = data.draw(st.integers(0, len(kinds)))
        rows = [row(number, **shapes[kind]) for number, kind in enumerate(kinds)]
        for part in (rows[:cut], rows[cut:]):
            if part:
                write(store, part)
            evidence.read({"e": TERMS})
        until = kinds.index("due") if "due" in kinds else len(kinds)
        losses = [float(kind == "differ") for kind in kinds[:until] if kind in ("agree", "differ", "passed")]
        assert_story(evidence, losses, due=kinds.count("due"))
        with store.begin() as connection:  # the audits are done
            done = update(experience).where(experience.c.answer.is_(None), experience.c.body.is_not(None))
            connection.execute(done.values(answer="b", body=None))
        losses = [float(kind in ("differ", "due")) for kind in kinds if kind in ("agree", "differ", "passed", "due")]
        assert_story(evidence, losses, due=0)
        assert_story(Evidence(store), losses, due=0)
        store.close()


def assert_story(evidence: Evidence, losses: list[float], *, due: int) -> None:
    story = evidence.read({"e": TERMS})["e"]
    watch = RiskMonitor(epsilon=TERMS.epsilon, delta=TERMS.delta)
    for loss in losses:
        watch.update(loss)
    assert (story.watch.observations, story.watch.losses) == (watch.observations, watch.losses)
    assert story.watch.evidence == watch.evidence
    assert story.due == due
    if losses:
        assert story.points[-1].evidence >= watch.evidence


BAD = range(700, 706)


def test_points_are_few_and_keep_the_heights(store: Store) -> None:
    write(store, [row(number, answer="b" if number in BAD else "a") for number in range(2500)])
    story = Evidence(store).read({"e": TERMS})["e"]
    assert MOST_POINTS / 2 <= len(story.points) <= MOST_POINTS
    watch, highest = RiskMonitor(epsilon=0.05, delta=0.05), 0.0
    for number in range(2500):
        watch.update(float(number in BAD))
        highest = max(highest, watch.evidence) if number >= 600 else highest
    assert max(point.evidence for point in story.points if point.observations > 600) == highest
    assert [point.observations for point in story.points] == sorted({point.observations for point in story.points})


def test_an_expert_that_comes_later_has_its_whole_story(store: Store) -> None:
    evidence = Evidence(store)
    write(store, [row(0), row(1, expert="f", answer="b"), row(2, expert="f")])
    assert evidence.read({"e": TERMS})["e"].watch.observations == 1
    stories = evidence.read({"e": TERMS, "f": TERMS})
    assert (stories["f"].watch.observations, stories["f"].watch.losses) == (2, 1.0)
    (found,) = evidence.disagreements("f")
    assert (found.input, found.expert, found.big, found.loss) == ("text 1", "a", "b", 1.0)


def test_whose_text_is_shown(store: Store) -> None:
    write(store, [row(0, answer="b", key="k1"), row(1, answer="b", key="k2"), row(2, answer="b", key="k1", input="")])
    evidence = Evidence(store)
    assert evidence.read({"e": TERMS})["e"].watch.losses == 3
    assert [one.key for one in evidence.disagreements("e")] == ["k2", "k1"]
    assert [one.key for one in evidence.disagreements("e", key="k1")] == ["k1"]
    assert len(evidence.disagreements("e", most=1)) == 1
    assert evidence.disagreements("none") == []


def test_a_loss_outlives_its_text(store: Store) -> None:
    write(store, [row(0, answer=None, given=None, body=None, loss=1.0, input=""), row(1)])
    story = Evidence(store).read({"e": TERMS})["e"]
    assert (story.watch.observations, story.watch.losses) == (2, 1.0)
