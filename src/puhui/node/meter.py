"""What an answer cost, as far as its answerer could not know."""

from __future__ import annotations

import msgspec

from puhui.core.answer import Answer, Usage
from puhui.core.request import Request
from puhui.core.settings import Tariff
from puhui.energy.power import estimate_remote_joules
from puhui.energy.tariff import price_usage
from puhui.energy.token_estimate import CHARACTERS_PER_TOKEN, estimate_tokens


def meter_broken_off(request: Request, answer: Answer | None, events: int, tariff: Tariff) -> Usage:
    """What a stream has used whose client went away after `events`: about a token each, and the whole prompt."""
    if not events or (answer is not None and answer.expert is not None):
        return Usage()
    prices = answer.prices if answer is not None else None
    return meter(request, Answer(by="", usage=Usage(completion_tokens=events), prices=prices), tariff)


def meter(request: Request, answer: Answer, tariff: Tariff) -> Usage:
    """The answer's usage with what its answerer could not know: remote energy, grams and money."""
    usage = answer.usage
    if answer.prices is not None and answer.prices != (tariff.price_in, tariff.price_out):
        tariff = msgspec.structs.replace(tariff, price_in=answer.prices[0], price_out=answer.prices[1])
    if usage.energy.high or answer.expert:
        return price_usage(usage, tariff)
    read = usage.prompt_tokens or estimate_tokens(request.body)
    written = usage.completion_tokens or len(answer.text or "") // CHARACTERS_PER_TOKEN
    remote = Usage(
        prompt_tokens=read,
        completion_tokens=written,
        seconds=usage.seconds,
        cpu_seconds=usage.cpu_seconds,
        energy=estimate_remote_joules(read, written),
    )
    return price_usage(remote, tariff)
