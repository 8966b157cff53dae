"""What a quantised encoder was asked for, and the report of what became of each of its matrices."""

from __future__ import annotations

import msgspec

from puhui.quantisation.fidelity import Fidelity
from puhui.quantisation.int8_graph import Form, TableForm

TARGET_COSINE = 0.999
"""Where all-mpnet-base-v2 and all-MiniLM-L6-v2 keep the nearest neighbour of 96 % of 1,000 texts and more."""
_STORED = {"weights": "int8, computed in float32", "float16": "float16, computed in float32", "float32": "float32"}


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """What a quantised file must reach on texts on which nothing was chosen.

    `cosine`: least mean cosine to the original's vectors. `agreement`: least share of texts with the same likeliest
    label; None: not asked, or no head. `max_bytes` of the file; None: as it comes. `alone`: texts are run one by one,
    so that inputs may have one scale for a whole text, which is quicker, where it does no harm; else a text's vector
    is the same in any batch.
    """

    cosine: float = TARGET_COSINE
    agreement: float | None = None
    max_bytes: int | None = None
    alone: bool = False

    def met(self, found: Fidelity) -> bool:
        """Whether the file is near enough; its size is not looked at."""
        agrees = self.agreement is None or (found.agreement is not None and found.agreement >= self.agreement)
        return found.cosine >= self.cosine and agrees


class MatrixPrecision(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one matrix, or of one table that is looked up.

    `harm` is the mean of 1 - cosine of the vectors when what the matrix reads is int8 and all else is float32, as
    measured: of the matrices that read the same tensor together, and of all tables together. `harm_left` is what is
    foreseen of it in the form chosen. `outliers` is the number of input channels that stay float32, `bytes` what the
    numbers and their scales take on disk. `whole`: one scale for all that the matrix reads, not one for each token.
    """

    name: str
    shape: tuple[int, int]
    form: Form | TableForm
    harm: float
    harm_left: float
    bytes: int
    outliers: int = 0
    whole: bool = False
    smoothed: bool = False
    floor: bool = False

    @property
    def finer(self) -> bool:
        """Whether plain int8 was not good enough."""
        return self.form != "int8" or self.outliers > 0 or self.smoothed

    def __str__(self) -> str:
        ways = ["one scale for a text"] * self.whole + ["smoothed"] * self.smoothed
        ways += [f"{self.outliers} channels in float32"] * (self.outliers > 0)
        how = ", ".join(["int8", *ways]) if self.form == "int8" else f"stored as {_STORED[self.form]}"
        return (
            f"{self.name}: {how}; in plain int8 it would move the vectors by {self.harm:.1g}, so {self.harm_left:.1g}"
        )


class Precision(msgspec.Struct, frozen=True, kw_only=True):
    """The report of a quantised file, for an expert's card. `verified` is of texts on which nothing was chosen."""

    target: Target
    verified: Fidelity
    foreseen_cosine: float
    bytes: int
    bytes_before: int
    texts: int
    rounds: int
    seconds: float
    runtime: str
    matrices: tuple[MatrixPrecision, ...]

    def summary(self) -> str:
        """What was kept finer than int8, and why, for a person to read: the most harmful first."""
        finer = sorted((matrix for matrix in self.matrices if matrix.finer), key=lambda matrix: -matrix.harm)
        head = (
            f"{self.bytes / 1e6:.1f} MB of {self.bytes_before / 1e6:.1f}; mean cosine {self.verified.cosine:.4f} "
            f"(asked: {self.target.cosine}) on {self.verified.texts} texts in {self.runtime}; "
            f"{len(finer)} of {len(self.matrices)} matrices are finer than plain int8"
        )
        return "\n".join([head, *(f"  {matrix}" for matrix in finer)])
