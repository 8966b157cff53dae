"""Signing keys: made once, read by their owner alone, and wrong ones refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from puhui.core.errors import BundleError, SettingsError
from puhui.trust.keys import load_or_create_key, verify

MAKE = """
import sys
from pathlib import Path
from puhui.trust.keys import load_or_create_key
print("ready", flush=True)
sys.stdin.readline()
print(load_or_create_key(Path(sys.argv[1])).public)
"""


def test_a_key_is_made_once_and_kept_to_oneself(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "node.key"
    key = load_or_create_key(path)
    assert load_or_create_key(path).public == key.public
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(path.parent.iterdir()) == [path]
    assert path.read_bytes().hex() not in repr(key)
    assert key.public in repr(key)
    assert load_or_create_key(tmp_path / "other.key").public != key.public


def test_processes_that_make_it_at_once_get_the_same(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "node.key"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", MAKE, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    keys = {process.communicate(timeout=20)[0] for process in processes}
    assert keys == {load_or_create_key(path).public + "\n"}
    assert list(path.parent.iterdir()) == [path]


def test_signatures(tmp_path: Path) -> None:
    key = load_or_create_key(tmp_path / "a.key")
    other = load_or_create_key(tmp_path / "b.key")
    signature = key.sign(b"message")
    assert len(signature) == 128
    verify(key.public, b"message", signature)
    flipped = ("0" if signature[0] != "0" else "1") + signature[1:]
    for public, message, signed in (
        (key.public, b"massage", signature),
        (other.public, b"message", signature),
        (key.public, b"message", flipped),
        (key.public, b"message", signature[:-2]),
        (key.public, b"message", ""),
        (key.public, b"message", "not hexadecimal"),
        (key.public[:-2], b"message", signature),
        ("", b"message", signature),
        ("ü", b"message", signature),
    ):
        with pytest.raises(BundleError, match="does not match"):
            verify(public, message, signed)


@pytest.mark.parametrize("content", [b"", b"x" * 31, b"x" * 33, b"-----BEGIN PRIVATE KEY-----"])
def test_a_file_that_is_no_key(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "node.key"
    path.write_bytes(content)
    with pytest.raises(SettingsError, match=f"holds {len(content)} bytes"):
        load_or_create_key(path)
    assert path.read_bytes() == content


def test_a_place_where_no_key_can_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "node.key", tmp_path, Path("/proc/puhui/node.key")):
        with pytest.raises(SettingsError, match="neither be read nor made"):
            load_or_create_key(path)
