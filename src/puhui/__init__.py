"""Puhui: a small expert in front of every big model.

The rooms, each of which imports only from floors below it:

- 8 `cli`: the command `puhui`
- 7 `demo`: the whole loop on real input
- 6 `gateway`: any answerer over HTTP, as OpenAI's chat completions
- 5 `node`: an answerer in front of a big model
- 4 `evolve`: experts are found, learned, proven and replaced
- 3 `compress`: the workshop, from a big model to an expert on disk
- 2 `cascade`: who answers and what is promised of it
- 1 `models` · `sense` · `energy` · `trust` · `store`
- 0 `core`: requests, answers, errors, settings

On a device, an expert needs nothing else:

    import puhui

    expert = puhui.open_expert("experts/0f3a…")
    said = expert.ask("Deletes the specified queue.")
    print(said.label, said.confidence, said.sure)
"""

from puhui.compress.bundle import Card, Expert, Said, open_expert
from puhui.core import Answer, Answerer, Energy, Message, Needs, Promise, Request, Usage

__all__ = [
    "Answer",
    "Answerer",
    "Card",
    "Energy",
    "Expert",
    "Message",
    "Needs",
    "Promise",
    "Request",
    "Said",
    "Usage",
    "open_expert",
]
