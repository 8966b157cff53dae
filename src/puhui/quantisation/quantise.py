"""An encoder's ONNX file made small and fast, as near to the original as asked for and no slower than that takes.

Method: every matrix starts as int8 (`int8_graph.py`). What that would do to the vectors is measured group by group
on real text (`sensitivity.py`). While the harm foreseen is above what the target allows, the group whose finer form
takes away the most harm for its cost gets it. Then the file is run and compared on texts on which nothing was
chosen; where it falls short, less harm is allowed and the choosing goes on. What was chosen, and why, is in the
report (`precision.py`).
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from puhui.core.errors import BundleError, LearningError, MissingExtra
from puhui.quantisation.fidelity import Fidelity, distances, fidelity, outputs_of
from puhui.quantisation.int8_graph import Group, Matrix, Recipe, TableForm, groups_of, rewritten, tables_of, weights_of
from puhui.quantisation.onnx_export import VECTOR, Batch
from puhui.quantisation.precision import MatrixPrecision, Precision, Target
from puhui.quantisation.sensitivity import Candidate, candidates, input_error, measured_harm, sampled_inputs

Watch: TypeAlias = Callable[[str, int, int], None]
"""Told what is being done, and how much of how much of it is done."""

FEWEST_BATCHES = 3
_HARM_TEXTS = 24
"""As many are put through the encoder once for each group. It is the longest part, and the plan is verified anyway."""
_TIGHTER = 0.6
_ROUNDS = 12
_TABLES_SHARE = 0.2
"""Of the harm allowed: tables that in int8 do more of it are float16, which costs bytes and no time."""
_BYTES = {"int8": 1, "weights": 1, "float16": 2, "float32": 4}


def quantise(
    path_in: str | os.PathLike[str],
    path_out: str | os.PathLike[str],
    *,
    batches: Sequence[Batch],
    target: Target | None = None,
    work: Path | None = None,
    watch: Watch | None = None,
) -> Precision:
    """Writes the quantised file and says what was done.

    `path_in` is what `export_encoder` wrote; `batches` are real texts (`token_batches`; 100 to 300 short ones do):
    two of three are measured on, every third is kept to verify. What is measured is kept in the folder `work`, so
    that the same call goes on where it was interrupted. LearningError where the target cannot be reached
    (and what comes nearest) or the batches are too few; BundleError for a file that cannot be read; MissingExtra
    without the packages.
    """
    start = time.monotonic()
    source, place, wish = Path(path_in), Path(path_out), target or Target()
    if len(batches) < FEWEST_BATCHES:
        raise LearningError(f"{len(batches)} batches of text; allowed are {FEWEST_BATCHES} and more, with 100 texts")
    held, measured = batches[::3], [batch for i, batch in enumerate(batches) if i % 3]
    search = Search(source, measured, half=wish.max_bytes is None, alone=wish.alone, work=work, watch=watch)
    draft = place.with_name(f".draft-{os.getpid()}-{place.name}")
    try:
        rounds, verified = _searched(search, draft, held, wish)
        size = draft.stat().st_size
        draft.replace(place)
    finally:
        draft.unlink(missing_ok=True)
    return Precision(
        target=wish,
        verified=verified,
        foreseen_cosine=1 - search.harm_left(),
        bytes=size,
        bytes_before=source.stat().st_size,
        texts=sum(len(ids) for ids, _ in batches),
        rounds=rounds,
        seconds=time.monotonic() - start,
        runtime=_runtime(),
        matrices=search.lines(),
    )


def _searched(search: Search, draft: Path, held: Sequence[Batch], wish: Target) -> tuple[int, Fidelity]:
    """Rounds it took to write a draft that meets the target, and what was verified of it."""
    wanted = outputs_of(search.source, held)
    allowed = 1 - wish.cosine
    for number in range(1, _ROUNDS + 1):
        exhausted = search.refine(allowed)
        search.write(draft)
        size, verified = draft.stat().st_size, fidelity(outputs_of(draft, held), wanted)
        if wish.max_bytes is not None and size > wish.max_bytes:
            raise LearningError(f"max_bytes is {wish.max_bytes:,}; the nearest file has {size:,}: allow as many")
        if wish.met(verified):
            return number, verified
        if exhausted:
            break
        # Errors are a little worse together than one by one: as much less is allowed as was foreseen too little.
        short = (1 - wish.cosine) / max(1 - verified.cosine, 1e-9)
        allowed = search.harm_left() * (0.95 * short if short < 1 else _TIGHTER)
    raise LearningError(
        f"the finest form that was tried reaches cosine {verified.cosine:.5f} and agreement {verified.agreement}; "
        f"asked were {wish.cosine} and {wish.agreement}: ask for less, or keep the file in float32"
    )


class Search:
    """The groups of a file, what is known of them, and the recipe that each has now."""

    def __init__(
        self,
        source: Path,
        batches: Sequence[Batch],
        *,
        half: bool = True,
        alone: bool = False,
        work: Path | None = None,
        watch: Watch | None = None,
    ) -> None:
        """Measures on the batches. `half`: recipes of twice the bytes are allowed. `alone`: as of `Target`. Raises as
        `quantise` does."""
        say = watch or _silent
        self.source, self._model, self._half = source, _loaded(source), half
        self.groups, self._tables = groups_of(self._model, VECTOR), tables_of(self._model)
        if not self.groups:
            raise LearningError(f"{source} has no matrices to quantise on the way to {VECTOR!r}")
        sampled = sampled_inputs(source, self.groups, batches)
        few = _first(batches, _HARM_TEXTS)
        self._harm = measured_harm(source, self.groups, few, work=work, progress=lambda done, of: say("harm", done, of))
        self._tables_harm = self._measured_tables(few)
        self._tables_form: TableForm = "int8"
        self._choices: dict[str, list[Candidate]] = {}
        self._unit: dict[str, float] = {}
        """Harm for each unit of error."""
        for number, group in enumerate(self.groups, 1):
            arrays = weights_of(self._model, group.matrices)
            weights, sample = [arrays[matrix.weight] for matrix in group.matrices], sampled[group.input]
            self._unit[group.input] = self._harm[group.input] / max(input_error(sample.rows, weights), 1e-12)
            self._choices[group.input] = candidates(sample, weights, half=half, whole=alone)
            say("recipes", number, len(self.groups))
        self._at = dict.fromkeys(self._choices, 0)

    def plan(self) -> dict[str, Recipe]:
        """The recipe of each group, by its input's name."""
        return {name: self._choices[name][at].recipe for name, at in self._at.items()}

    def harm_left(self) -> float:
        """1 - cosine foreseen of the recipes chosen and the tables."""
        return self._tables_left() + sum(self._left(name, at) for name, at in self._at.items())

    def refine(self, allowed: float) -> bool:
        """Takes the best steps until no more harm than allowed is foreseen. True where no step is left."""
        if self._half and self._tables_harm > _TABLES_SHARE * allowed:
            self._tables_form = "float16"
        while steps := list(self._steps()):
            if self.harm_left() <= allowed:
                return False
            _, name, finer = max(steps)
            self._at[name] = finer
        return True

    def write(self, path: Path) -> None:
        """The file of the recipes chosen."""
        _save(rewritten(self._model, self.plan(), tables=self._tables_form), path)

    def lines(self) -> tuple[MatrixPrecision, ...]:
        """What becomes of every table and matrix."""
        tables = (
            MatrixPrecision(
                name=table.name,
                shape=table.shape,
                form=self._tables_form,
                harm=self._tables_harm,
                harm_left=self._tables_left(),
                bytes=_BYTES[self._tables_form] * table.shape[0] * table.shape[1]
                + 4 * table.shape[0] * (self._tables_form == "int8"),
            )
            for table in self._tables
        )
        return (*tables, *(self._line(group, matrix) for group in self.groups for matrix in group.matrices))

    def _line(self, group: Group, matrix: Matrix) -> MatrixPrecision:
        at = self._at[group.input]
        recipe = self._choices[group.input][at].recipe
        inputs, outputs = matrix.shape
        scales = 0 if recipe.form == "float16" else 4 * outputs
        return MatrixPrecision(
            name=matrix.name,
            shape=matrix.shape,
            form=recipe.form,
            harm=self._harm[group.input],
            harm_left=self._left(group.input, at),
            bytes=_BYTES[recipe.form] * inputs * outputs + scales + 4 * len(recipe.outliers) * outputs,
            outliers=len(recipe.outliers),
            whole=recipe.whole,
            smoothed=recipe.smoothing is not None,
            floor=recipe.floor > 0,
        )

    def _tables_left(self) -> float:
        return self._tables_harm if self._tables_form == "int8" else 0.0

    def _left(self, name: str, at: int) -> float:
        """Harm foreseen of a group with one of its recipes."""
        return self._unit[name] * self._choices[name][at].error

    def _steps(self) -> Iterator[tuple[float, str, int]]:
        """Harm taken away for each unit of cost, group and recipe, of every step to a finer recipe."""
        for name, at in self._at.items():
            choices = self._choices[name]
            for finer in range(at + 1, len(choices)):
                gained = self._left(name, at) - self._left(name, finer)
                yield gained / (choices[finer].cost - choices[at].cost), name, finer

    def _measured_tables(self, batches: Sequence[Batch]) -> float:
        """Mean of 1 - cosine when the tables alone are int8."""
        if not self._tables:
            return 0.0
        with tempfile.TemporaryDirectory() as folder:
            draft = Path(folder) / "tables.onnx"
            _save(rewritten(self._model, {}), draft)
            found, wanted = outputs_of(draft, batches), outputs_of(self.source, batches)
        return float(distances(found.vectors, wanted.vectors).mean())


def _first(batches: Sequence[Batch], texts: int) -> Sequence[Batch]:
    """The first batches that hold so many texts, or all."""
    held = 0
    for number, (ids, _) in enumerate(batches, 1):
        held += len(ids)
        if held >= texts:
            return batches[:number]
    return batches


def _silent(doing: str, done: int, of: int) -> None:
    """For those who do not watch."""


def _loaded(path: Path) -> Any:
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError as error:
        raise MissingExtra("Quantising an ONNX file", "workshop") from error
    try:
        return onnx.load(path)
    except (OSError, DecodeError) as error:
        raise BundleError(f"{path} cannot be read as an ONNX file ({error})") from error


def _save(model: Any, path: Path) -> None:
    import onnx

    onnx.save(model, path)


def _runtime() -> str:
    import onnxruntime

    return f"ONNX Runtime {onnxruntime.__version__} on the CPU"
