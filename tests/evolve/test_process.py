"""The learning process: it comes with its node, and does not outlive it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil

from serving import wait_until

NODE = """
import sys, time
from pathlib import Path
from puhui.evolve.process import LearnerProcess, LearnerSettings
from puhui.store.database import open_store, sqlite_url
folder = Path(sys.argv[1])
url = sqlite_url(folder / "puhui.db")
open_store(url).close()
with LearnerProcess(LearnerSettings(url, str(folder / "experts"), str(folder / "node.key"))):
    print("here", flush=True)
    sys.stdin.read()
"""


def begin(folder: Path) -> tuple[subprocess.Popen[bytes], psutil.Process]:
    """A process that has a learning process beside it, and that one once it is at work."""
    node = subprocess.Popen([sys.executable, "-c", NODE, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    wait_until(lambda: psutil.Process(node.pid).children())
    (learner,) = psutil.Process(node.pid).children()
    wait_until(lambda: (folder / "node.key").exists(), seconds=60.0)  # it makes one before its first look
    return node, learner


def test_it_ends_when_its_node_is_killed(tmp_path: Path) -> None:
    node, learner = begin(tmp_path)
    node.kill()
    node.wait()
    wait_until(lambda: not learner.is_running() or learner.status() == psutil.STATUS_ZOMBIE, seconds=30.0)


def test_it_ends_with_its_node_and_comes_again_if_it_dies(tmp_path: Path) -> None:
    node, learner = begin(tmp_path)
    learner.kill()
    wait_until(lambda: [child.pid for child in psutil.Process(node.pid).children()] not in ([], [learner.pid]))
    (again,) = psutil.Process(node.pid).children()
    node.communicate(b"")  # its input ends, and so does it
    assert node.returncode == 0
    assert not again.is_running()
