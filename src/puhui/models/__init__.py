"""Floor 1: what answers.

- `endpoint`: a big model behind any OpenAI-compatible endpoint
- `wire`: the parts of OpenAI's JSON and of server-sent events that are read
- `encoder`: a sentence encoder with a classification head, the demo's big model (extra `demo`)
- `static`: the static expert; `tower`, `hashing`: what it is made of (NumPy alone)
- `number`, `label_set`, `fields`: experts for more than one label, made of others
- `span`: passages copied from the input; `span_words`: the words that they are made of
- `onnx_encoder`: the encoder expert (extra `encoder`); `expert_cascade`: experts in a row
"""
