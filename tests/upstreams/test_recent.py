"""What is known of how long answers take."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from puhui.upstreams.recent import FRESH_S, KEPT, LEAST, SORT_EVERY, Recent


def test_little_says_nothing() -> None:
    recent = Recent()
    for _ in range(LEAST - 1):
        recent.add(1.0)
        assert recent.quantile(0.5) is None
    recent.add(1.0)
    assert recent.quantile(0.5) == 1.0


def test_what_is_old_says_nothing_any_more() -> None:
    now = [0.0]
    recent = Recent(clock=lambda: now[0])
    for _ in range(LEAST):
        recent.add(9.0)
    now[0] = FRESH_S
    assert recent.quantile(0.5) == 9.0
    now[0] = FRESH_S + 1.0
    assert recent.quantile(0.5) is None


def test_the_latest_count() -> None:
    recent = Recent()
    for _ in range(KEPT):
        recent.add(1.0)
    assert recent.quantile(0.5) == 1.0
    for _ in range(KEPT):
        recent.add(3.0)
    assert recent.quantile(0.01) == 3.0


@given(st.lists(st.floats(0.0, 1e6), min_size=LEAST, max_size=3 * KEPT), st.floats(0.0, 1.0))
def test_quantiles(durations: list[float], share: float) -> None:
    """Read after each, it never lags more than `SORT_EVERY` behind; read at the end alone, it is exact."""
    watched, recent = Recent(), Recent()
    for duration in durations:
        recent.add(duration)
        watched.add(duration)
        assert watched.quantile(share) is None or min(durations) <= (watched.quantile(share) or 0.0) <= max(durations)
    found, latest = recent.quantile(share), sorted(durations[-KEPT:])
    assert found in latest
    assert sum(duration <= (found or 0.0) for duration in latest) >= share * len(latest) - 1e-9
    assert SORT_EVERY < KEPT
