"""Floor 6: one node, an answerer in front of a big model.

- `node`: finds the task, asks the expert or the big model, meters, and writes it down
- `roster`: the experts in place; `expert`: one of them
- `audit`: the big model is asked about experts' answers afterwards
- `meter`: what an answer cost; `bill`: what all of them cost; `running_sums`: the same without reading it all again
- `evidence`: what each expert's watch has seen; `by_hand`: an expert taken out or put back by somebody
- `privacy`: what is kept of a request's words
"""
