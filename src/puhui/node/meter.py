"""What an answer cost, as far as its answerer could not know."""

from __future__ import annotations

from puhui.cascade.cascade import add_usage
from puhui.core.answer import Answer, Usage
from puhui.core.request import Request
from puhui.core.settings import Tariff
from puhui.energy.power import estimate_remote_joules
from puhui.energy.tariff import price_usage, tariff_at
from puhui.energy.token_estimate import CHARACTERS_PER_TOKEN, estimate_tokens


def meter_broken_off(request: Request, answer: Answer | None, events: int, tariff: Tariff) -> Usage:
    """What a stream has used whose client went away after `events`: about a token each, and the whole prompt."""
    if not events or (answer is not None and answer.expert is not None):
        return Usage()
    used = Usage(completion_tokens=events)
    if answer is None:
        return meter(request, Answer(by="", usage=used), tariff)
    earlier, prices, given_up = answer.earlier, answer.prices, answer.given_up
    begun = Answer(by="", usage=add_usage(earlier, used), earlier=earlier, prices=prices, given_up=given_up)
    return meter(request, begun, tariff)


def meter(request: Request, answer: Answer, tariff: Tariff) -> Usage:
    """The answer's usage with what its answerer could not know: remote energy, grams and money; and with what others
    used who were asked at the same time and given up, which is estimated from the prompt."""
    used = answer.usage if answer.expert or _says_its_energy(answer) else _estimated(request, answer)
    priced = price_usage(used, tariff_at(answer.prices, tariff))
    for prices in answer.given_up:
        read = used.prompt_tokens or estimate_tokens(request.body)
        lost = Usage(prompt_tokens=read, energy=estimate_remote_joules(read, 0))
        priced = add_usage(priced, price_usage(lost, tariff_at(prices, tariff)))
    return priced


def _says_its_energy(answer: Answer) -> bool:
    return bool(answer.usage.energy.high) and answer.usage.energy != answer.earlier.energy


def _estimated(request: Request, answer: Answer) -> Usage:
    """The usage with tokens and remote energy; that of earlier stages is in it already."""
    usage = answer.usage
    read = usage.prompt_tokens or estimate_tokens(request.body)
    written = usage.completion_tokens or len(answer.text or "") // CHARACTERS_PER_TOKEN
    return Usage(
        prompt_tokens=read,
        completion_tokens=written,
        seconds=usage.seconds,
        cpu_seconds=usage.cpu_seconds,
        energy=usage.energy + estimate_remote_joules(read, written),
    )
