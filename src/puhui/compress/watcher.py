"""Who watches the workshop at its work."""

from __future__ import annotations

from puhui.compress.recipes import Recipe
from puhui.compress.search import Candidate
from puhui.teachers.asking import AskProgress
from puhui.teachers.probing import Estimate, SelfAgreement


class Watcher:
    """Is told how the work goes on. Every method does nothing here: override what should be shown."""

    def estimated(self, found: Estimate) -> None:
        """Before each round of asking the big model. Raising here ends the work before it has cost anything more."""

    def asked(self, progress: AskProgress) -> None:
        """As answers come."""

    def contradicts(self, found: SelfAgreement) -> None:
        """A big model that may answer differently each time was asked twice."""

    def building(self, recipe: Recipe, share: float) -> None:
        """A candidate is being built, `share` of it is done."""

    def judged(self, candidate: Candidate) -> None:
        """A candidate was judged."""

    def note(self, text: str) -> None:
        """Something that people should know."""
