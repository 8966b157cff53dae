"""Floor 3: from a big model's answers to an expert on disk.

- `static_training`: a static expert distilled from answers (extra `learn`); `logistic`: its fit
- `word_vectors`: public word vectors that it may start from
- `bundle`: the signed folder that an expert is
"""
