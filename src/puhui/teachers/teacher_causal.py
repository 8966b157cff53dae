"""A causal language model in this process as a teacher.

The text goes through the tokenizer's chat template where there is one. Without labels the answer is what the model
says when it always takes the likeliest token. With labels each label is scored by the log-probability of its tokens and
of the end after them, given the prompt; the probabilities are a softmax of the scores, and the likeliest is the answer.
So the answer is always a label, and a label is not favoured for being the beginning of a longer one.
"""

from __future__ import annotations

import asyncio
import copy
import time
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from puhui.cascade.agreement import canonical
from puhui.core.errors import SettingsError, UpstreamRefused
from puhui.models.endpoint import TOP_LOGPROBS
from puhui.teachers.hub_model import Loaded
from puhui.teachers.teacher import FloatArray, TeacherOptions, Told, identity, likely, softmax

MOST_TOKENS = 64
MOST_WRITTEN = 512
LABELS_AT_ONCE = 64


class CausalTeacher:
    """Asks a causal model: generates greedily, or scores the labels where they are given."""

    deterministic: bool | None = True
    parallel = 1
    batch = 8

    def __init__(self, loaded: Loaded, options: TeacherOptions) -> None:
        """SettingsError for settings other than `max_tokens`: the likeliest answer is always taken."""
        unknown = sorted(set(options.settings) - {"max_tokens", "temperature"})
        if unknown or options.settings.get("temperature"):
            raise SettingsError(
                f"{loaded.name} runs here and takes the likeliest answer, so settings may hold max_tokens alone, "
                f"not {', '.join(unknown) or 'a temperature above 0'}"
            )
        self.name, self.digest = loaded.name, loaded.digest
        self.labels = tuple(canonical(label) for label in options.labels)
        self._loaded, self._model, self._tokenizer = loaded, loaded.model, loaded.tokenizer
        self._options = options
        self._endings = self._endings_of(self.labels)
        most = int(options.settings.get("max_tokens", MOST_TOKENS))
        self._room = max(map(len, self._endings), default=most)  # tokens that an answer may have
        self._reads = int(getattr(loaded.model.config, "max_position_embeddings", 1 << 30))

    async def ask_many(self, texts: Sequence[str]) -> list[Told]:
        """See `Teacher`. UpstreamRefused for a text that is longer than what the model reads."""
        return await asyncio.to_thread(lambda: [self._one(text) for text in texts])

    async def close(self) -> None:
        """Nothing to give back."""

    def writing(self, prompt: str) -> CausalTeacher:
        """See `CanWrite`: up to 512 tokens, and half of what the model reads. The model is not loaded again."""
        options = self._options.writing(prompt, max_tokens=min(MOST_WRITTEN, self._reads // 2))
        digest = identity("writing", self._loaded.digest, options)
        return CausalTeacher(msgspec.structs.replace(self._loaded, digest=digest), options)

    def _one(self, text: str) -> Told:
        import torch

        started = time.perf_counter()
        prompt = self._prompt(text)
        with torch.inference_mode():
            told = self._scored(prompt) if self.labels else self._said(prompt)
        return Told(
            answer=told.answer,
            probabilities=told.probabilities,
            vector=told.vector,
            alternatives=told.alternatives,
            seconds=time.perf_counter() - started,
            tokens_in=len(prompt),
            tokens_out=told.tokens_out,
        )

    def _prompt(self, text: str) -> list[int]:
        """The tokens that ask for `text`."""
        messages = self._options.messages(text)
        if self._tokenizer.chat_template is None:
            asked = "\n\n".join(message["content"] for message in messages)
            tokens: list[int] = self._tokenizer(asked)["input_ids"]
        else:
            tokens = self._tokenizer(self._chat(messages), add_special_tokens=False)["input_ids"]
        if not tokens:
            tokens = [self._tokenizer.bos_token_id or self._tokenizer.eos_token_id or 0]
        if len(tokens) + self._room > self._reads:
            raise UpstreamRefused(
                f"{self.name} reads {self._reads} tokens, but {text!r:.80} and the prompt are {len(tokens)}, and "
                f"{self._room} are kept for the answer",
                status=413,
                body=b"",
            )
        return tokens

    def _chat(self, messages: list[dict[str, str]]) -> str:
        from jinja2 import TemplateError  # comes with chat templates

        try:
            said: str = self._tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        except TemplateError:  # some templates know no system message
            whole = [{"role": "user", "content": "\n\n".join(message["content"] for message in messages)}]
            said = self._tokenizer.apply_chat_template(whole, add_generation_prompt=True, tokenize=False)
        return said

    def _said(self, prompt: Sequence[int]) -> Told:
        """What the model says by itself."""
        tokens = self._tensor([prompt])
        output = self._model.generate(
            tokens,
            attention_mask=tokens.new_ones(tokens.shape),
            max_new_tokens=self._room,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            pad_token_id=self._tokenizer.pad_token_id,
            return_dict_in_generate=True,
            output_logits=True,
            output_hidden_states=True,
        )
        written = output.sequences[0, len(prompt) :].tolist()
        first = output.logits[0][0].float().log_softmax(dim=-1).topk(min(TOP_LOGPROBS, output.logits[0].shape[-1]))
        return Told(
            answer=canonical(self._tokenizer.decode(written, skip_special_tokens=True)),
            alternatives=tuple(
                (self._tokenizer.decode([token]), logprob)
                for token, logprob in zip(first.indices.tolist(), first.values.tolist(), strict=True)
            ),
            vector=_last(output.hidden_states[0][-1]),
            tokens_out=len(written),
        )

    def _scored(self, prompt: Sequence[int]) -> Told:
        """The likeliest of the labels."""
        read = self._model(self._tensor([prompt]), use_cache=True, output_hidden_states=True)
        first = read.logits[0, -1].float().log_softmax(dim=-1)
        ends = self._endings
        scores: list[float] = []
        for start in range(0, len(ends), LABELS_AT_ONCE):
            scores += self._scores(read.past_key_values, first, ends[start : start + LABELS_AT_ONCE])
        shares = softmax(np.array([scores], np.float32))[0]
        return Told(
            answer=self.labels[int(shares.argmax())],
            probabilities=likely(shares, self.labels),
            vector=_last(read.hidden_states[-1]),
        )

    def _scores(self, cache: Any, first: Any, ends: Sequence[Sequence[int]]) -> list[float]:
        """Log-probabilities of token sequences after a prompt: its cache, and its next token's log-probabilities."""
        longest = max(map(len, ends))
        padded = self._tensor([[*end, *[0] * (longest - len(end))] for end in ends])
        past = copy.deepcopy(cache)
        past.batch_repeat_interleave(len(ends))
        logits = self._model(padded, past_key_values=past, use_cache=True).logits.float().log_softmax(dim=-1)
        return [
            float(first[end[0]]) + sum(float(logits[row, at, end[at + 1]]) for at in range(len(end) - 1))
            for row, end in enumerate(ends)
        ]

    def _endings_of(self, labels: Sequence[str]) -> list[list[int]]:
        """Tokens of each label and the end after it."""
        end = [] if self._tokenizer.eos_token_id is None else [self._tokenizer.eos_token_id]
        glue = (
            " "
            if self._tokenizer.chat_template is None and not (self._options.prompt or "").endswith(("\n", " "))
            else ""
        )
        return [[*self._tokenizer(glue + label, add_special_tokens=False)["input_ids"], *end] for label in labels]

    def _tensor(self, tokens: Sequence[Sequence[int]]) -> Any:
        import torch

        return torch.tensor([list(each) for each in tokens], device=self._model.device)


def _last(states: Any) -> FloatArray:
    """The last token's state [d] out of states [1, t, d]."""
    vector: FloatArray = states[0, -1].float().cpu().numpy()
    return vector
