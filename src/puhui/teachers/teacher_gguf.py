"""A GGUF file as a teacher: llama.cpp in this process, by way of xllamacpp (extra `gguf`).

The chat template is the file's own. Speculative decoding stays off, because log-probabilities are wrong under it.
Where labels are given a grammar allows nothing else to be said; the log-probabilities are those before the grammar.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import psutil

from puhui.cascade.agreement import canonical
from puhui.core.errors import MissingExtra, SettingsError, UpstreamGarbled, UpstreamRefused
from puhui.models.endpoint import TOP_LOGPROBS
from puhui.models.wire import Completion
from puhui.teachers.teacher import TeacherOptions, Told, file_identity, identity

CONTEXT_TOKENS = 4096
MOST_TOKENS, MOST_WRITTEN = 64, 512


class GgufTeacher:
    """Asks a GGUF model, loaded when it is first asked; each of `options.parallel` slots holds 4,096 tokens."""

    deterministic: bool | None = None
    batch = 1

    def __init__(self, path: Path, options: TeacherOptions, server: _Server | None = None) -> None:
        """`server` where the file is loaded already.

        SettingsError for a file that is not there or not GGUF; MissingExtra without xllamacpp.
        """
        try:
            import xllamacpp  # noqa: F401  heavy: loaded with the model
        except ImportError as error:
            raise MissingExtra("A GGUF big model", "gguf") from error
        if not path.is_file():
            raise SettingsError(f"there is no file {path}: name the .gguf file of the big model")
        with path.open("rb") as file:
            if (magic := file.read(4)) != b"GGUF":
                raise SettingsError(f"{path} begins with {magic!r}, a GGUF file with b'GGUF': it is damaged or no GGUF")
        self.name = path.name
        self.labels = tuple(options.labels)
        self.parallel = options.parallel or 2
        self.digest = identity("gguf", path.name, options, {"files": file_identity(path)})
        self._path, self._options = path, options
        settings = {"temperature": 0, "max_tokens": MOST_TOKENS} | options.settings
        self._settings = {name: value for name, value in settings.items() if value is not None}
        if self.labels:
            self._settings["grammar"] = one_of(self.labels)
        self._server = server or _Server(path, self.parallel)

    async def ask_many(self, texts: Sequence[str]) -> list[Told]:
        """See `Teacher`."""
        return [await asyncio.to_thread(self._one, text) for text in texts]

    async def close(self) -> None:
        """Nothing to give back: the model stays loaded as long as the teacher lives."""

    def writing(self, prompt: str) -> GgufTeacher:
        """See `CanWrite`: up to 512 tokens. The model is not loaded again."""
        return GgufTeacher(self._path, self._options.writing(prompt, max_tokens=MOST_WRITTEN), self._server)

    def _one(self, text: str) -> Told:
        server = self._server.loaded()
        body = {"messages": self._options.messages(text), "logprobs": True, "top_logprobs": TOP_LOGPROBS}
        started = time.perf_counter()
        reply = server.handle_chat_completions(body | self._settings)
        seconds = time.perf_counter() - started
        if "error" in reply:
            why = reply["error"]
            raise UpstreamRefused(
                f"{self.name} refused {text!r:.80}: {why.get('message')}",
                status=int(why.get("code", 400)),
                body=msgspec.json.encode(reply),
            )
        completion = msgspec.convert(reply, Completion)
        said = completion.choices[0] if completion.choices else None
        if said is None or said.message.text is None:
            raise UpstreamGarbled(f"{self.name} answered {text!r:.80} with something that is no text")
        first = said.logprobs.content[0].top_logprobs if said.logprobs and said.logprobs.content else None
        usage = reply.get("usage", {})
        return Told(
            answer=canonical(said.message.text),
            alternatives=tuple((top.token, top.logprob) for top in first or ()),
            seconds=seconds,
            tokens_in=int(usage.get("prompt_tokens", 0)),
            tokens_out=int(usage.get("completion_tokens", 0)),
        )


class _Server:
    """llama.cpp with one model, loaded when it is first needed."""

    def __init__(self, path: Path, slots: int) -> None:
        self._path, self._slots = path, slots
        self._server: Any = None
        self._loading = threading.Lock()

    def loaded(self) -> Any:
        """The xllamacpp.Server."""
        with self._loading:
            if self._server is None:
                self._server = _serve(self._path, self._slots)
            return self._server


def _serve(path: Path, slots: int) -> Any:
    import xllamacpp

    wanted = xllamacpp.CommonParams()
    wanted.model.path = str(path)
    wanted.n_parallel, wanted.n_ctx = slots, slots * CONTEXT_TOKENS
    wanted.verbosity = -1
    wanted.cpuparams.n_threads = wanted.cpuparams_batch.n_threads = psutil.cpu_count(logical=False) or 1
    wanted.speculative.types = [xllamacpp.common_speculative_type.COMMON_SPECULATIVE_TYPE_NONE]
    try:
        return xllamacpp.Server(wanted)
    except RuntimeError as error:
        raise SettingsError(
            f"{path} cannot be loaded by llama.cpp ({error}): is the file whole, and its kind of model one that "
            "this xllamacpp knows? Upgrade it with pip install -U xllamacpp"
        ) from error


def one_of(labels: Sequence[str]) -> str:
    """A GBNF grammar that allows exactly one of the labels.

    >>> one_of(["yes", 'say "no"'])
    'root ::= "yes" | "say \\\\"no\\\\""'
    """
    return "root ::= " + " | ".join(_quoted(label) for label in labels)


def _quoted(label: str) -> str:
    escapes = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}
    return '"' + "".join(escapes.get(character, character) for character in label) + '"'
