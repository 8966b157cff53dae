"""Puhui: a small expert in front of every big model.

The rooms, each of which imports only from floors below it:

- 9 `cli`: the command `puhui`
- 8 `demo`: the whole loop on real input · `dashboard`: a node's pages for people
- 7 `gateway`: any answerer over HTTP, as OpenAI's chat completions
- 6 `node`: an answerer in front of a big model
- 5 `evolve`: experts are found, learned, proven and replaced
- 4 `compress`: the workshop, from a big model to an expert for a device
- 3 `teachers`: the big model, asked · `bundles`: an expert on disk, and its card
- 2 `cascade`: who answers and what is promised of it · `quantisation`: encoders in eight bits · `upstreams`: big
  models that are one to the node
- 1 `models` · `sense` · `energy` · `trust` · `store`
- 0 `core`: requests, answers, errors, settings

On a device, an expert needs nothing else:

    import puhui

    expert = puhui.open_expert("experts/0f3a…")
    said = expert.ask("Deletes the specified queue.")
    print(said.label, said.confidence, said.sure)
"""

from puhui.bundles.bundle import Card, Expert, Said, open_expert
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
