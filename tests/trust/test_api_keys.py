"""Keys: random, shown once, recognised by their digest, with rules that are checked."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from puhui.core.errors import NotAllowed, SettingsError
from puhui.core.request import Caller
from puhui.trust.api_keys import PREFIX, Rules, checked_name, digest_of, new_key, read_rules, same_digest


def test_a_key_has_256_random_bits_and_is_not_kept() -> None:
    made = [new_key("a", Rules()) for _ in range(200)]
    assert len({shown for shown, _ in made}) == len({key.id for _, key in made}) == 200
    for shown, key in made:
        assert shown.startswith(PREFIX)
        assert len(shown) - len(PREFIX) == 43  # 32 bytes in base64, without padding
        assert key.digest == digest_of(shown.encode())
        assert shown not in str(key)
        assert key.digest not in str(key)


def test_digests_are_those_of_sha_256() -> None:
    assert digest_of(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert same_digest(digest_of(b"abc"), digest_of(b"abc"))
    assert not same_digest(digest_of(b"abc"), digest_of(b"abd"))


def test_states() -> None:
    now = time.time()
    _, key = new_key("a", Rules(), expires=now + 100.0)
    assert (key.state(now), key.state(now + 101.0)) == ("active", "expired")
    with pytest.raises(SettingsError, match="in the past"):
        new_key("a", Rules(), expires=now - 1.0)


def test_whose_requests_are() -> None:
    _, alone = new_key("a", Rules(keep="nothing", models=("m",)))
    _, sharing = new_key("b", Rules(share=True))
    assert (alone.caller.key, alone.caller.pool, alone.caller.keep) == (alone.id, alone.id, "nothing")
    assert (sharing.caller.key, sharing.caller.pool, sharing.caller.keep) == (sharing.id, "shared", None)
    _, inheriting = new_key("c", Rules(inherit=True))
    assert (inheriting.caller.key, inheriting.caller.pool) == (inheriting.id, Caller().pool)
    sharing.caller.check_model("anything")
    alone.caller.check_model("m")
    with pytest.raises(NotAllowed, match="only for m"):
        alone.caller.check_model("another")


def test_scopes() -> None:
    assert Rules().allow("chat")
    assert not Rules().allow("read")
    assert not Rules().allow("admin")
    assert all(Rules(scopes=("admin",)).allow(scope) for scope in ("chat", "embeddings", "read", "admin"))


@pytest.mark.parametrize(
    "given",
    [
        {"scopes": []},
        {"scopes": ["everything"]},
        {"requests_per_minute": 0},
        {"requests_per_minute": 1.5},
        {"tokens_per_minute": -1},
        {"money_per_day": -0.01},
        {"money_per_day": float("inf")},
        {"kwh_per_month": float("nan")},
        {"kwh_per_month": "2"},
        {"keep": "all"},
        {"share": "yes"},
        {"share": True, "inherit": True},
        {"models": "gpt"},
        {"models": []},
        {"models": [""]},
        {"models": ["x" * 201]},
        {"request_per_minute": 3},
    ],
)
def test_rules_that_are_not_usable(given: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=r"rules|scopes"):
        read_rules(given)


LIMITS = st.none() | st.integers(1, 10**12)
BUDGETS = st.none() | st.floats(0.0, 1e12)


@given(
    st.builds(
        Rules,
        scopes=st.lists(st.sampled_from(["chat", "embeddings", "read", "admin"]), min_size=1).map(tuple),
        requests_per_minute=LIMITS,
        tokens_per_minute=LIMITS,
        money_per_day=BUDGETS,
        kwh_per_month=BUDGETS,
        models=st.lists(st.text(min_size=1, max_size=200)).map(tuple),
        share=st.booleans(),
        keep=st.sampled_from([None, "nothing", "redacted", "whole"]),
    )
)
def test_rules_are_stored_as_they_are(rules: Rules) -> None:
    assert read_rules(rules.as_dict()) == rules


def test_none_takes_a_rule_away() -> None:
    rules = Rules(requests_per_minute=5, share=True)
    assert read_rules(rules.as_dict() | {"requests_per_minute": None}) == Rules(share=True)


@pytest.mark.parametrize("name", ["", " ", "a\nb", "x" * 129, "a\x00", "\u202e"])
def test_names_that_a_key_cannot_have(name: str) -> None:
    with pytest.raises(SettingsError, match="1 to 128"):
        checked_name(name)
    assert checked_name("团队 A / Zürich") == "团队 A / Zürich"
