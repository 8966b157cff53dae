"""A model behind an OpenAI-compatible endpoint as a teacher.

Answers are asked for at temperature 0 with log-probabilities of the first tokens. A model that refuses either is asked
without: many reasoning models do.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence

import msgspec

from puhui.cascade.agreement import canonical
from puhui.core.errors import SettingsError, UpstreamGarbled, UpstreamRefused
from puhui.core.request import Message, Request
from puhui.energy.tariff import token_prices
from puhui.models.endpoint import open_reference
from puhui.teachers.teacher import TeacherOptions, Told, identity

AT_ONCE = 16


class EndpointTeacher:
    """Asks an endpoint, one text a request and 16 requests at once unless `options.parallel` says otherwise."""

    deterministic: bool | None = None
    batch = 1

    def __init__(self, reference: str, options: TeacherOptions, key: str | None) -> None:
        """`reference` as `open_reference` reads it; it must name the model. `key` is the bearer token."""
        self._reference, self._key = reference, key
        self._endpoint = open_reference(reference, key=key)
        if self._endpoint.model is None:
            raise SettingsError(f"{reference!r} names no model; write openai:MODEL@{reference}")
        self._model = self._endpoint.model
        self.name = self._model
        self.labels = tuple(options.labels)
        self.parallel = options.parallel or AT_ONCE
        options = _with_labels_said(options)
        self.digest = identity("endpoint", f"{self._model}@{self._endpoint.url}", options)
        self._options = options
        self._likely = True
        settings = {"temperature": 0} | options.settings
        self._settings = {name: value for name, value in settings.items() if value is not None}
        self.prices = options.prices or token_prices(self._model)

    async def ask_many(self, texts: Sequence[str]) -> list[Told]:
        """See `Teacher`."""
        return [await self._one(text) for text in texts]

    async def close(self) -> None:
        """Closes its connections; the next question opens new ones."""
        await self._endpoint.close()

    def writing(self, prompt: str) -> EndpointTeacher:
        """See `CanWrite`. It is not asked how likely each token was."""
        writer = EndpointTeacher(self._reference, self._options.writing(prompt), self._key)
        writer._likely = False
        return writer

    async def _one(self, text: str) -> Told:
        try:
            answer = await self._endpoint(self._request(text))
        except UpstreamRefused as error:
            if error.status != 400 or "temperature" not in self._settings or b"temperature" not in error.body:
                raise
            del self._settings["temperature"]
            answer = await self._endpoint(self._request(text))
        if answer.text is None:
            raise UpstreamGarbled(f"{self.name} answered {text!r:.80} with something that is no text")
        used = answer.usage
        cost = None
        if self.prices is not None:
            cost = (used.prompt_tokens * self.prices[0] + used.completion_tokens * self.prices[1]) / 1_000_000
        return Told(
            answer=canonical(answer.text),
            alternatives=answer.alternatives,
            seconds=used.seconds,
            tokens_in=used.prompt_tokens,
            tokens_out=used.completion_tokens,
            cost=cost,
        )

    def _request(self, text: str) -> Request:
        messages = self._options.messages(text)
        return Request(
            id=uuid.uuid4().hex,
            model=self._model,
            messages=tuple(Message(each["role"], each["content"]) for each in messages),
            body=msgspec.json.encode({"model": self._model, "messages": messages, **self._settings}),
            alternatives=self._likely,
        )


def _with_labels_said(options: TeacherOptions) -> TeacherOptions:
    """The options with a system message that names the labels, where there is no prompt that may do so."""
    if options.prompt is not None or not options.labels:
        return options
    lines = ["Answer with one of these and nothing else: " + ", ".join(options.labels)]
    if isinstance(options.labels, dict):
        lines += [f"{label}: {meaning}" for label, meaning in options.labels.items()]
    return msgspec.structs.replace(options, prompt="\n".join(lines))
