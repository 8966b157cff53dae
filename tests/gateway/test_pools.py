"""Whose traffic teaches whom: each key alone, unless several agreed to share. Through the whole node."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

import experts as sample
from keyed import Keyed, bearer, keyed
from puhui.evolve.memory import Memory
from puhui.evolve.traffic import group_key
from puhui.store.tables import contexts, experience
from puhui.trust.keys import load_or_create_key
from serving import BigModel, wait_until


def ask(node: Keyed, key: str, question: str, **more: Any) -> str:
    """Asks, and says who answered."""
    messages = [{"role": "system", "content": sample.SYSTEM}, {"role": "user", "content": question}]
    response = node.http.post(
        "/v1/chat/completions", json={"model": "m", "messages": messages} | more, headers=bearer(key)
    )
    assert response.status_code == 200
    by: str = response.headers["x-puhui-by"]
    return by.partition(":")[0]


def groups(node: Keyed) -> dict[str, set[str]]:
    """The groups of traffic in the store, by the id of the key."""
    found: dict[str, set[str]] = {}
    with node.store.begin() as connection:
        for row in connection.execute(select(experience.c.key, experience.c.group)):
            found.setdefault(row.key, set()).add(row.group)
    return found


def ready(node: Keyed, key: str) -> None:
    wait_until(lambda: node.http.get("/v1/models", headers=bearer(key)).status_code != 401)


def answered_by_expert(node: Keyed, key: str, question: str, said: dict[str, Any]) -> None:
    wait_until(lambda: ask(node, key, question, **said) == "expert")


@pytest.mark.parametrize("more", [{}, {"metadata": {"task": "subjects"}}], ids=["by system prompt", "by name"])
def test_traffic_of_two_keys_is_two_groups_unless_both_share(
    tmp_path: Path, big: BigModel, more: dict[str, Any]
) -> None:
    big.rule = sample.subject_of
    with keyed(tmp_path, big.url, keys_required=True) as node:
        made = [node.key(name, share=share) for name, share in (("a", False), ("b", False), ("c", True), ("d", True))]
        ready(node, made[-1][0])
        for key, _ in made:
            for question in sample.questions(3):
                assert ask(node, key, question, **more) == "big"
        found = groups(node)
        alone, other, sharing, too = (found[id] for _, id in made)
        assert [len(found[id]) for _, id in made] == [1, 1, 1, 1]
        assert sharing == too
        assert len(alone | other | sharing) == 3
        counted = {group: answers for group, _, _, answers in Memory(node.store).groups()}
        assert [counted[group] for (group,) in (alone, other, sharing)] == [3, 3, 6]  # what each would learn from
        with node.store.begin() as connection:
            assert {row.group for row in connection.execute(select(contexts.c.group))} == alone | other | sharing


def test_an_expert_answers_those_whose_traffic_taught_it_and_nobody_else(tmp_path: Path, big: BigModel) -> None:
    big.rule = sample.subject_of
    with keyed(tmp_path, big.url, keys_required=True) as node:
        (a, a_id), (b, _), (c, _), (d, _) = (node.key(n, share=n in "cd") for n in "abcd")
        ready(node, d)
        signing = load_or_create_key(tmp_path / "keys" / "node.key")
        kind = ("named", "subjects"), ("context", sample.SYSTEM)
        more = {"metadata": {"task": "subjects"}}, {}
        for pool, friends, strangers in ((a_id, (a,), (b, c, d)), ("shared", (c, d), (b,))):
            for (sort, shared), said in zip(kind, more, strict=True):
                group = group_key("m", "", sort, shared, pool)
                sample.promote(node.store, tmp_path / "experts", signing, group)
                question = sample.questions(1)[0]
                for key in friends:
                    answered_by_expert(node, key, question, said)
                for key in strangers:
                    assert {ask(node, key, question, **said) for _ in range(4)} == {"big"}


def test_who_inherits_goes_on_with_what_was_learned_before_there_were_keys(tmp_path: Path, big: BigModel) -> None:
    big.rule = sample.subject_of
    question = sample.questions(1)[0]
    with keyed(tmp_path, big.url) as node:
        signing = load_or_create_key(tmp_path / "keys" / "node.key")
        sample.promote(node.store, tmp_path / "experts", signing, group_key("m", "", "context", sample.SYSTEM))
        wait_until(lambda: node.chat(messages=chat(question)).headers["x-puhui-by"].startswith("expert"))
        admin, _ = node.key("admin", scopes=["admin"])
        heir, _ = node.key("heir", inherit=True)
        late, late_id = node.key("late")
        wait_until(lambda: node.chat().status_code == 401)  # the node has seen the first
        ready(node, late)
        assert ask(node, heir, question) == "expert"
        assert {ask(node, key, question) for key in (admin, late)} == {"big"}
        change = {"rules": {"inherit": True}}
        url = f"/puhui/v1/keys/{late_id}"
        assert node.http.patch(url, json=change, headers=bearer(admin)).json()["rules"]["inherit"] is True
        assert ask(node, late, question) == "expert"
        refused = node.http.patch(url, json={"rules": {"share": True}}, headers=bearer(admin))
        assert (refused.status_code, "two pools" in refused.text) == (400, True)


def chat(question: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": sample.SYSTEM}, {"role": "user", "content": question}]
