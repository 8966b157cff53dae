"""Floor 4: the workshop, from a big model to an expert for a device.

- `workshop`: all of it in one call; `search`: which recipe, on which device; `recipes`: what can be built
- `profiles`: what a device can hold, and what an expert takes
- `answer_shape`: what kind of answers a task has; `shape_training`: an expert for each; `span_training`: passages
- `static_training`: a static expert distilled from answers (extra `learn`); `word_vectors` that it may start from
- `encoder_training`: an encoder expert (extra `workshop`); `cascade_training`: experts in a row
"""
