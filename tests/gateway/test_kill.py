"""The node killed in the middle of its work; `python -m bench.crash` does the same ten times with fifty clients."""

from __future__ import annotations

from pathlib import Path

from bench.crash import run


def test_no_acknowledged_request_is_lost(tmp_path: Path) -> None:
    result = run(tmp_path, rounds=2, clients=20)
    assert result["acknowledged"] > 50
    assert (result["missing"], result["unsound_stores"]) == (0, 0)
