"""An unchanged OpenAI client in front of a node: prints each answer and who gave it.

    puhui serve --upstream openai:gpt-4o-mini@https://api.openai.com/v1
    OPENAI_API_KEY=… python examples/openai_client.py

Questions with one system prompt become a task. When an expert is in place it answers those that it is sure of.
"""

from __future__ import annotations

import os

from openai import OpenAI

BASE_URL = os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1")
MODEL = os.environ.get("OPENAI_MODEL", "gpt-4o-mini")
SYSTEM = "Which desk is this for: billing, delivery or technical? Answer with one word."
QUESTIONS = (
    "I was charged twice in March.",
    "My parcel has been in the depot for a week.",
    "The app closes as soon as I open it.",
    "发票抬头写错了，怎么改？",
)


def main() -> None:
    """Asks every question once."""
    client = OpenAI(base_url=BASE_URL)
    for question in QUESTIONS:
        messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
        reply = client.chat.completions.create(model=MODEL, messages=messages)  # type: ignore[arg-type]
        report = (reply.model_extra or {}).get("puhui", {})
        print(f"{reply.choices[0].message.content}  <- {question}  (by {report.get('by', 'the big model itself')})")


if __name__ == "__main__":
    main()
