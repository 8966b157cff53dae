"""The gateways of `bench.gateway`: how each is installed and started, as its makers ship it.

`bare` is none, but the least that Puhui's libraries (uvicorn, Starlette, aiohttp) can do: what they add is a floor.

Each stands in front of the same mock and asks for no key. LiteLLM and TensorZero are installed from PyPI, each into a
virtual environment of its own under the work folder. TensorZero's package holds its gateway, a server in Rust, and
starts it on a port of its choice; as its ledger (ClickHouse) is another server that no package has, it runs without,
which its makers allow and which is to its advantage. LiteLLM keeps no ledger without PostgreSQL either.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import psutil

from bench.gateway_load import HOST, SYSTEM, body_of
from puhui.bundles.bundle import Card, seal
from puhui.cascade.guarantee import Calibration
from puhui.compress.static_training import distill_static
from puhui.demo.processes import free_port
from puhui.evolve.discovery import task_of_group
from puhui.evolve.gate import Verdict
from puhui.evolve.memory import Memory, Progress
from puhui.evolve.traffic import group_key
from puhui.store.database import open_store, sqlite_url
from puhui.trust.keys import load_or_create_key

LITELLM, TENSORZERO = "litellm[proxy]==1.106.0", "tensorzero==2026.6.0"
START_WITHIN_S = 180.0

_LITELLM_CONFIG = """model_list:
  - model_name: mock
    litellm_params: {{model: openai/mock, api_base: "{upstream}", api_key: none}}
"""
_TENSORZERO_CONFIG = """[gateway]
observability.enabled = false
[models.mock]
routing = ["mock"]
[models.mock.providers.mock]
type = "openai"
model_name = "mock"
api_base = "{upstream}/"
api_key_location = "none"
"""
_TENSORZERO = """
import sys, time, tensorzero.tensorzero as package
gateway = package._start_http_gateway(
    config_file=sys.argv[1], clickhouse_url=None, postgres_url=None, valkey_url=None, async_setup=False)
print("listening at", gateway.base_url, flush=True)
time.sleep(1e9)
"""
_HELLO = """
import sys, uvicorn
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route
async def hello(request):
    await request.body()
    return Response(b'{"hello": "world"}', media_type="application/json")
app = Starlette(routes=[Route("/v1/chat/completions", hello, methods=["POST"])])
uvicorn.run(app, port=int(sys.argv[1]), log_level="warning", access_log=False)
"""
_BARE = """
import sys, aiohttp, uvicorn
from contextlib import asynccontextmanager
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route
@asynccontextmanager
async def lifespan(app):
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as app.state.session:
        yield
async def pass_on(request):
    headers = {"content-type": "application/json"}
    async with request.app.state.session.post(sys.argv[2], data=await request.body(), headers=headers) as reply:
        return Response(await reply.read(), status_code=reply.status, media_type="application/json")
app = Starlette(routes=[Route("/v1/chat/completions", pass_on, methods=["POST"])], lifespan=lifespan)
uvicorn.run(app, port=int(sys.argv[1]), log_level="warning", access_log=False)
"""


class Running(NamedTuple):
    """A server that answers: its process, its port, where it is asked, and the model's name there."""

    name: str
    process: subprocess.Popen[bytes]
    port: int
    path: str = "/v1/chat/completions"
    model: str = "mock"

    def cpu_s(self) -> float:
        """CPU seconds that the process (not what it started) has used."""
        spent = psutil.Process(self.process.pid).cpu_times()
        return float(spent.user + spent.system)

    def memory_mb(self) -> float:
        """Memory of the process and of what it started, in MiB: proportional set size, so that nothing counts twice."""
        family = [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]
        with contextlib.suppress(psutil.Error):
            return float(sum(each.memory_full_info().pss for each in family) / 2**20)
        return 0.0

    def own_mb(self) -> float:
        """Of that, the process that answers."""
        return float(psutil.Process(self.process.pid).memory_full_info().pss / 2**20)

    def stop(self) -> None:
        """Ends it."""
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(15.0)
            return
        self.process.kill()
        self.process.wait()


def start_mock(work: Path, core: int | None, *, latency_ms: float, says: str = "") -> Running:
    """The big model."""
    port = free_port()
    said = ["--says", says] if says else []
    command = [sys.executable, "-m", "bench.gateway_load", "--port", str(port), "--latency-ms", str(latency_ms), *said]
    return _start("mock", command, work, core, port)


def start_puhui(
    work: Path,
    core: int | None,
    upstream: str,
    *,
    name: str = "puhui",
    learn: bool = True,
    audits: float | None = None,
) -> Running:
    """`puhui serve`, ledger on. With `audits`, an expert is in place that answers everything, so often audited."""
    folder, port = work / name, free_port()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    more = [] if learn else ["--no-learn"]
    if audits is not None:
        put_expert(folder)
        config = folder / "puhui.toml"
        config.write_text(f"[audit_rate]\nprobation = {audits}\nsteady = {audits}\nprobation_requests = 0\n")
        more = ["--config", str(config), "--no-learn"]
    command = [sys.executable, "-m", "puhui.cli.main", "serve", "--upstream", upstream, "--port", str(port)]
    return _start(name, [*command, "--data-dir", str(folder), *more], work, core, port)


def start_litellm(work: Path, core: int | None, upstream: str) -> Running:
    """LiteLLM's proxy with one worker, its default."""
    binaries, port = _installed(work, "litellm", LITELLM), free_port()
    config = work / "litellm.yaml"
    config.write_text(_LITELLM_CONFIG.format(upstream=upstream))
    env = {"LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    command = [str(binaries / "litellm"), "--config", str(config), "--host", HOST, "--port", str(port)]
    return _start("litellm", command, work, core, port, env=env)


def start_tensorzero(work: Path, core: int | None, upstream: str) -> Running:
    """TensorZero's HTTP gateway."""
    binaries = _installed(work, "tensorzero", TENSORZERO)
    config = work / "tensorzero.toml"
    config.write_text(_TENSORZERO_CONFIG.format(upstream=upstream))
    command = [str(binaries / "python"), "-c", _TENSORZERO, str(config)]
    path, model = "/openai/v1/chat/completions", "tensorzero::model_name::mock"
    return _start("tensorzero", command, work, core, None, path=path, model=model)


def start_hello(work: Path, core: int | None) -> Running:
    """The least that uvicorn and Starlette can do."""
    port = free_port()
    return _start("hello", [sys.executable, "-c", _HELLO, str(port)], work, core, port)


def start_bare(work: Path, core: int | None, upstream: str) -> Running:
    """What the libraries under Puhui take for themselves: bytes are passed on, nothing is read, kept or counted."""
    port = free_port()
    command = [sys.executable, "-c", _BARE, str(port), f"{upstream}/chat/completions"]
    return _start("bare", command, work, core, port)


PEERS: dict[str, Callable[[Path, int | None, str], Running]] = {
    "puhui": start_puhui,
    "litellm": start_litellm,
    "tensorzero": start_tensorzero,
    "bare": start_bare,
}


def put_expert(folder: Path) -> None:
    """A static expert for the load's questions: learned, sealed and in place as the learning loop would put it."""
    words = {"money": "account bank cash balance transfer", "travel": "flight hotel train ticket luggage"}
    texts, labels = [], []
    for label, known in words.items():
        for number in range(100):
            first, second = known.split()[number % 5], known.split()[(number + 1 + number // 5 % 4) % 5]
            texts.append(f"about my {first} and the {second}, number {number}")
            labels.append(label)
    model = distill_static(texts, labels)
    store = open_store(sqlite_url(folder / "puhui.db"))
    key = load_or_create_key(folder / "keys" / "node.key")
    task = task_of_group(group_key("mock", "", "context", SYSTEM), "mock", SYSTEM)
    card = Card(
        task=task.id,
        task_name=task.name,
        family="static",
        labels=model.labels,
        teacher=task.model,
        recipe={},
        rows=len(texts),
        data_digest="0" * 64,
        calibration={"threshold": 0.0},
        agreement=1.0,
        size_bytes=model.size_bytes,
        answer_us=50.0,
        joules_low=0.0001,
        joules_high=0.001,
    )
    memory = Memory(store)
    memory.add_task(task)
    expert, place = seal(folder / "experts", card, model, key)
    proven = Calibration(0.0, 1.0, 0, 0.0, 0.01, 0.02, 0.05, 1000)
    memory.promote(task, Progress(attempts=1), expert, place, Verdict(True, proven, "for the benchmark"))
    store.close()


def _installed(work: Path, name: str, requirement: str) -> Path:
    """The `bin` of an environment with the requirement, made on first use."""
    place = work / "peers" / name
    stamp = place / "installed"
    if not stamp.exists() or stamp.read_text() != requirement:
        shutil.rmtree(place, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
        pip = [str(place / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, requirement], check=True, stderr=subprocess.DEVNULL)
        stamp.write_text(requirement)
    return place / "bin"


def _start(
    name: str,
    command: Sequence[str],
    work: Path,
    core: int | None,
    port: int | None,
    *,
    env: dict[str, str] | None = None,
    path: str = "/v1/chat/completions",
    model: str = "mock",
) -> Running:
    """Starts it on one core (None: on any) and waits until it has answered a request."""
    log = work / f"{name}.log"
    pinned = ["taskset", "-c", str(core), *command] if core is not None and shutil.which("taskset") else list(command)
    with log.open("wb") as output:
        process = subprocess.Popen(pinned, stdout=output, stderr=subprocess.STDOUT, env=os.environ | (env or {}))
    until = time.monotonic() + START_WITHIN_S
    while time.monotonic() < until and process.poll() is None:
        if port is None:
            found = re.search(r"listening at http://[^:]+:(\d+)", log.read_text(errors="replace"))
            port = int(found[1]) if found else None
        elif _answers(port, path, model):
            return Running(name, process, port, path, model)
        time.sleep(0.2)
    process.kill()
    last = log.read_text(errors="replace").strip().splitlines()[-3:]
    raise RuntimeError(f"{name} did not start: {' | '.join(last) or 'no output'}; its log is {log}")


def _answers(port: int, path: str, model: str) -> bool:
    connection = http.client.HTTPConnection(HOST, port, timeout=10.0)
    with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
        connection.request("POST", path, body_of(0, model=model), {"content-type": "application/json"})
        return connection.getresponse().status == 200
    return False
