"""The demo's big model, served in a process of its own as an OpenAI-compatible endpoint.

    python -m puhui.demo.big --head FOLDER --port PORT

A sentence encoder with a classification head. It answers POST /v1/chat/completions like any other big model,
log-probabilities included, and reports its CPU time and energy as a Puhui node does. POST /demo/world changes
its answers from then on, to show what happens when the world changes.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from puhui.core.answer import Answer, Step, Usage
from puhui.core.errors import InvalidRequest, MissingExtra
from puhui.core.request import Request
from puhui.energy.power import estimate_joules
from puhui.gateway.app import build_app
from puhui.gateway.server import run_app
from puhui.models.encoder import EncoderClassifier, packaged_encoder

NAME = "minilm"
TOP = 20


def encoder_folder() -> Path:
    """The sentence encoder all-MiniLM-L6-v2, as its package has it."""
    found = packaged_encoder()
    if found is None:
        raise MissingExtra("the demo's big model", "demo")
    return found


class BigModel:
    """An answerer: the encoder on the last message. One thread, one answer at a time."""

    def __init__(self, classifier: EncoderClassifier) -> None:
        self._classifier = classifier
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="big")
        self.world: dict[str, str] = {}

    async def __call__(self, request: Request) -> Answer:
        """One label; with the likeliest others where the caller asked for log-probabilities."""
        text = request.messages[-1].text
        if text is None:
            raise InvalidRequest("this model reads text alone", param="messages")
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._answer, request, text)

    def _answer(self, request: Request, text: str) -> Answer:
        started, cpu = time.perf_counter(), time.thread_time()
        _, probabilities = self._classifier.predict_many([text])
        cpu = time.thread_time() - cpu
        order = probabilities[0].argsort()[::-1][:TOP]
        labels = [self._classifier.labels[number] for number in order]
        said = [self.world.get(label, label) for label in labels]
        alternatives: tuple[tuple[str, float], ...] = ()
        if msgspec.json.decode(request.body).get("logprobs") is True:
            logs = (math.log(max(float(probabilities[0][number]), 1e-12)) for number in order)
            alternatives = tuple(zip(said, logs, strict=True))
        usage = Usage(
            prompt_tokens=sum(len((message.text or "").split()) for message in request.messages),
            completion_tokens=1,
            seconds=time.perf_counter() - started,
            cpu_seconds=cpu,
            energy=estimate_joules(cpu),
        )
        name = f"big:{NAME}"
        return Answer(by=name, text=said[0], path=(Step(name, None, True),), usage=usage, alternatives=alternatives)


def main() -> None:
    """Serves until told to end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--head", type=Path, required=True, help="folder of the trained head")
    parser.add_argument("--port", type=int, required=True)
    given = parser.parse_args()

    import torch

    torch.set_num_threads(1)  # one request at a time: a second thread gains little and disturbs the rest
    big = BigModel(EncoderClassifier.load(encoder_folder(), given.head))

    async def change_world(http: HttpRequest) -> Response:
        big.world = {str(old): str(new) for old, new in (await http.json()).items()}
        return JSONResponse({"changed": len(big.world)})

    app = build_app(big, models=(NAME,))
    app.router.routes.append(Route("/demo/world", change_world, methods=["POST"]))
    run_app(app, "127.0.0.1", given.port)


if __name__ == "__main__":
    main()
