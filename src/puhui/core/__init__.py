"""Floor 0: the words every other room uses.

- `request`: what is asked (`Request`, `Message`, `Needs`)
- `answer`: what comes back and what it cost (`Answer`, `Usage`, `Energy`), and the one callable `Answerer`
- `errors`: everything that Puhui raises on purpose
- `settings`: values that rooms are given (`Promise`, `Tariff`, `AuditRate`)
"""

from puhui.core.answer import Answer, Answerer, Energy, Step, Usage
from puhui.core.request import Caller, Keep, Message, Needs, Privacy, Request
from puhui.core.settings import AuditRate, Promise, Tariff

__all__ = [
    "Answer",
    "Answerer",
    "AuditRate",
    "Caller",
    "Energy",
    "Keep",
    "Message",
    "Needs",
    "Privacy",
    "Promise",
    "Request",
    "Step",
    "Tariff",
    "Usage",
]
