"""Devices, what fits them, and what an expert takes here."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import experts
from puhui.compress.profiles import LIMITS, PROFILES, Footprint, Miss, Profile, load_profile, measure_here
from puhui.core.errors import LearningError, SettingsError
from puhui.models.static import StaticModel

SMALL = Footprint(bytes=1000, wire_bytes=500, memory_bytes=2000, latency_ms=1.0, cpu_s=0.001, joules=0.006)


def test_built_in_profiles() -> None:
    assert list(PROFILES) == ["this", "browser", "phone", "edge"]
    for name, profile in PROFILES.items():
        assert load_profile(name) is profile
        assert profile.name == name
        assert profile.speed >= 1.0
        assert profile.allows("static")
        assert profile.misses(SMALL.scaled(profile)) == []


def test_a_profile_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "watch.toml"
    path.write_text('speed = 12\nbytes = 2_000_000\nlatency_ms = 3.5\nfamilies = ["static"]\n')
    profile = load_profile(str(path))
    assert profile == Profile(name="watch", speed=12.0, bytes=2_000_000, latency_ms=3.5, families=("static",))
    assert not profile.allows("encoder")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("byts = 3", "unknown field `byts`.*allowed are the keys name, speed, bytes, wire_bytes"),
        ('bytes = "3 MB"', r"Expected `int \| null`, got `str` - at `\$.bytes`"),
        ("bytes = -1", "bytes is -1, but must be 0 or more"),
        ("latency_ms = nan", "latency_ms is nan"),
        ("speed = 0", "speed is 0.0, but must be above 0"),
        ('families = ["statik"]', "families names statik; known are static"),
        ("families = 3", r"got `int` - at `\$.families`"),
        ("= 3", "Invalid"),
    ],
)
def test_files_that_are_no_profile(tmp_path: Path, content: str, why: str) -> None:
    path = tmp_path / "x.toml"
    path.write_text(content)
    with pytest.raises(SettingsError, match=why) as caught:
        load_profile(str(path))
    assert str(path) in str(caught.value)


def test_no_profile() -> None:
    with pytest.raises(SettingsError, match="'toaster' is no target: name one of this, browser, phone, edge"):
        load_profile("toaster")


def test_misses_are_named_worst_first() -> None:
    profile = Profile(speed=20.0, bytes=900, latency_ms=10.0, joules=0.0, memory_bytes=2000)
    misses = profile.misses(SMALL.scaled(profile))
    assert [miss.what for miss in misses] == ["joules", "latency_ms", "bytes"]
    assert misses[1] == Miss("latency_ms", 20.0, 10.0)
    assert misses[1].ratio == 2.0
    assert str(misses[1]) == "latency_ms is 20, allowed are 10"
    unmeasured = Footprint(bytes=1, wire_bytes=1, memory_bytes=None, latency_ms=1.0, cpu_s=0.0, joules=0.0)
    assert Profile(memory_bytes=0).misses(unmeasured) == []


@given(st.floats(0.1, 100.0), st.fixed_dictionaries({name: st.none() | st.integers(0, 5000) for name in LIMITS}))
def test_what_fits_and_what_misses(speed: float, limits: dict[str, int | None]) -> None:
    profile = Profile(speed=speed, **limits)  # type: ignore[arg-type]
    there = SMALL.scaled(profile)
    missed = {miss.what for miss in profile.misses(there)}
    for name, limit in limits.items():
        assert (name in missed) == (limit is not None and getattr(there, name) > limit)
    assert there.latency_ms == SMALL.latency_ms * speed
    assert (there.bytes, there.joules) == (SMALL.bytes, SMALL.joules)


def test_an_expert_is_measured(tmp_path: Path) -> None:
    model = experts.model()
    texts = experts.questions(300)
    found = measure_here(model, texts)
    model.save(tmp_path)
    files = list(tmp_path.iterdir())
    assert found.bytes == sum(file.stat().st_size for file in files)
    assert 0 < found.wire_bytes < found.bytes
    assert found.memory_bytes is not None
    assert 0 < found.memory_bytes < 100_000_000
    assert 0.0 < found.latency_ms < 50.0
    assert 0.0 < found.cpu_s < 0.05
    assert found.joules == pytest.approx(6.0 * found.cpu_s)


def test_memory_grows_with_the_model() -> None:
    import numpy as np

    class Heavy(StaticModel):
        pass

    small = experts.model()
    found = measure_here(small, ["x"], memory=False)
    assert found.memory_bytes is None
    other = Heavy.__new__(Heavy)
    other.__dict__.update(small.__dict__)
    assert measure_here(other, ["x"]).memory_bytes is None  # of no family: a fresh process could not load it
    assert np.isfinite(found.latency_ms)


def test_an_expert_is_measured_on_texts() -> None:
    with pytest.raises(LearningError, match="measured on texts"):
        measure_here(experts.model(), [])
