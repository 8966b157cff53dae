"""Floor 3: what an expert is on disk, and what people are shown of it.

- `bundle`: the signed folder; `card`: what an expert is, where it came from and what was proven of it
- `card_page`, `model_card`: the card as a page and as Hugging Face reads it; `expert_export`: other tools' forms
"""
