"""Floor 1: what answers.

- `endpoint`: a big model behind any OpenAI-compatible endpoint
- `wire`: the parts of OpenAI's JSON and of server-sent events that are read
- `encoder`: a sentence encoder with a classification head, the demo's big model (extra `demo`)
- `static`: the static expert; `tower`, `hashing`: what it is made of (NumPy alone)
"""
