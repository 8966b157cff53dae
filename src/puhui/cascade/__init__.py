"""Floor 2: who answers, and what may be promised of it.

- `cascade`: answerers in order, the first that is sure enough answers
- `agreement`: when two answers are the same answer, and how far apart they are; `json_text`: JSON within answers
- `guarantee`: the lowest threshold at which the risk is proven
- `monitor`: the watch over a promise, for as long as it runs
"""
