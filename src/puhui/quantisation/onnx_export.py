"""A PyTorch sentence encoder as one ONNX file that gives its vectors, and, with a head, its logits.

    input_ids, attention_mask   int64 [n, t], any n and t from 1 on
    sentence_embedding          float32 [n, d]
    logits                      float32 [n, k], if there is a head

Method: BERT's graph is written directly (`bert_graph`), which is faster to run; any other's by `torch.onnx.export`'s
own exporter (no optimum, which holds transformers back). Pooling, unit length and the head are inside the file, so
that whoever runs it needs a tokenizer and ONNX Runtime and nothing of ours. A file is worth nothing until it was run:
each export is run in ONNX Runtime and compared before it appears. Outputs are never named `embedding`: the exporter
then writes a file that no runtime opens.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from puhui.core.errors import BundleError, LearningError, MissingExtra
from puhui.quantisation.bert_graph import Linear, bert_graph, is_bert

if TYPE_CHECKING:
    from torch import nn

FloatArray: TypeAlias = npt.NDArray[np.float32]
IntArray: TypeAlias = npt.NDArray[np.int64]
Batch: TypeAlias = tuple[IntArray, IntArray]
"""`input_ids` and `attention_mask`, both int64 [n, t]."""
Reference: TypeAlias = Callable[[IntArray, IntArray], tuple[FloatArray, ...]]
"""What a file must agree with: a batch to the outputs in the file's order."""
Pooling: TypeAlias = Literal["mean", "cls", "max"]

INPUTS = ("input_ids", "attention_mask")
VECTOR, LOGITS = "sentence_embedding", "logits"
TOLERANCE = 1e-4
"""Greatest difference allowed between a float32 file and PyTorch; 1e-6 to 1e-5 is usual."""
_SHAPES = ((1, 1), (1, 7), (3, 24))
"""Batches [n, t] on which every export is tried, other than the one it was traced with."""


def export_encoder(
    model: nn.Module | str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    pooling: Pooling = "mean",
    normalise: bool = True,
    projection: Linear | None = None,
    head: Linear | None = None,
    tolerance: float = TOLERANCE,
) -> Reference:
    """Writes the encoder to `path` and returns the PyTorch original as a reference for `check_export`.

    `model` is a Hugging Face folder, or a module that is called with `input_ids` and `attention_mask` and returns
    its states [n, t, d], alone or as `last_hidden_state`. It stays as it is. `projection` is a weight [d, e] and a
    bias [e]: a linear map of the pooled vector, before `normalise`. `head` is a weight [d or e, k] and a bias [k]; its
    logits are of the vector after all of that. Weights lie within the file up to 2 GB, beside it
    above. Raises BundleError for a folder without an encoder, LearningError where the file differs from the
    model by more than `tolerance`, MissingExtra without the packages.
    """
    try:
        import onnxscript  # noqa: F401  # the exporter needs it and would say so less kindly
        import torch  # noqa: F401
    except ImportError as error:
        raise MissingExtra("Exporting an encoder to ONNX", "workshop") from error
    body = _opened(model) if isinstance(model, str | os.PathLike) else model
    trained = body.training
    graph = _graph(body, pooling, normalise, head, projection).eval()
    vocabulary = _vocabulary(body)
    target = Path(path)
    draft = target.with_name(f".draft-{os.getpid()}-{target.name}")
    try:
        if is_bert(body) and pooling != "max":
            import onnx

            names = (*INPUTS, VECTOR, LOGITS)
            made = bert_graph(body, names=names, pooling=pooling, normalise=normalise, projection=projection, head=head)
            onnx.save(made, draft)
        else:
            _traced(graph, draft, vocabulary, [VECTOR] if head is None else [VECTOR, LOGITS])
        reference = _reference(graph, body)
        trials = [random_batch(vocabulary, n, t, seed=t) for n, t in _SHAPES]
        check_export(draft, reference, trials, tolerance=tolerance)
        _move(draft, target)
    finally:
        draft.unlink(missing_ok=True)
        body.train(trained)
    return reference


def _traced(graph: nn.Module, draft: Path, vocabulary: int, names: Sequence[str]) -> None:
    """Writes what PyTorch's exporter sees of the graph."""
    import torch

    with _quietly():
        program = torch.onnx.export(
            graph,
            tuple(torch.from_numpy(array) for array in random_batch(vocabulary, 2, 8, seed=0)),
            dynamo=True,
            input_names=list(INPUTS),
            output_names=list(names),
            dynamic_shapes={name: {0: "batch", 1: "tokens"} for name in INPUTS},
            verbose=False,
        )
        assert program is not None  # None comes of the old exporter only
        program.save(str(draft))


def check_export(
    path: str | os.PathLike[str], reference: Reference, batches: Sequence[Batch], *, tolerance: float = TOLERANCE
) -> float:
    """Greatest difference between the file, run in ONNX Runtime on this machine, and the reference.

    Raises LearningError where it is above `tolerance` or not a number, BundleError for a file that cannot be run.
    """
    session = cpu_session(path)
    worst = 0.0
    for ids, mask in batches:
        got = session.run(None, dict(zip(INPUTS, (ids, mask), strict=True)))
        wanted = reference(ids, mask)
        for found, expected in zip(got, wanted, strict=True):
            worst = max(worst, float(np.max(np.abs(found - expected)))) if np.isfinite(found).all() else float("nan")
        if not worst <= tolerance:
            raise LearningError(
                f"{os.fspath(path)} differs from the model that it was made of by {worst:.3g}; at most {tolerance:.3g} "
                "is allowed. Do not use it: another version of torch or onnxscript may export this model"
            )
    return worst


def cpu_session(path: str | os.PathLike[str], *, threads: int = 1, optimise: bool = True) -> Any:
    """The file in ONNX Runtime on the CPU, with threads that do not spin and so do not disturb others.

    Raises BundleError for a file that is missing or that the runtime refuses, MissingExtra without the runtime.
    """
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise MissingExtra("Running an ONNX file", "encoder") from error
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3  # errors; warnings of the runtime's own optimiser are nothing to act on
    if not optimise:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return ort.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime's own tree of errors has no public root
        raise BundleError(f"{os.fspath(path)} cannot be run by ONNX Runtime ({error})") from error


def random_batch(vocabulary: int, rows: int, tokens: int, *, seed: int) -> Batch:
    """A batch of random tokens in which every row but the first ends in padding, if there is room."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, vocabulary, (rows, tokens), dtype=np.int64)
    lengths = np.maximum(1, tokens - 3 * np.arange(rows))
    mask = (np.arange(tokens) < lengths[:, None]).astype(np.int64)
    return ids, mask


def _opened(folder: str | os.PathLike[str]) -> nn.Module:
    try:
        import torch
        from transformers import AutoModel
        from transformers.utils.logging import disable_progress_bar
    except ImportError as error:
        raise MissingExtra("Reading a Hugging Face folder", "workshop") from error
    disable_progress_bar()
    try:
        model: nn.Module = AutoModel.from_pretrained(os.fspath(folder), local_files_only=True, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise BundleError(f"{os.fspath(folder)} holds no encoder that can be read ({error})") from error
    return model.eval()


def _graph(
    body: nn.Module,
    pooling: Pooling,
    normalise: bool,
    head: Linear | None,
    projection: Linear | None = None,
) -> nn.Module:
    """The module that is exported: body, pooling, projection, unit length, head."""
    import torch
    from torch import Tensor, nn

    class Graph(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = body
            for name, linear in (("projection", projection), ("head", head)):
                for part, array in zip(("weight", "bias"), linear or (), strict=False):
                    self.register_buffer(f"{name}_{part}", torch.from_numpy(np.array(array, np.float32)))

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
            given = self.body(input_ids=input_ids, attention_mask=attention_mask)
            states = getattr(given, "last_hidden_state", given)
            vector = _pooled(states, attention_mask, pooling)
            if projection is not None:
                vector = vector @ self.projection_weight + self.projection_bias
            if normalise:
                vector = nn.functional.normalize(vector, dim=1)
            return (vector,) if head is None else (vector, vector @ self.head_weight + self.head_bias)

    return Graph()


def _pooled(states: Any, attention_mask: Any, pooling: Pooling) -> Any:
    """States [n, t, d] to vectors [n, d]."""
    if pooling == "cls":
        return states[:, 0]
    mask = attention_mask.unsqueeze(-1).to(states.dtype)
    if pooling == "mean":
        return (states * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1.0)
    if pooling == "max":
        return (states + (mask - 1.0) * 1e9).amax(dim=1)
    raise LearningError(f"pooling is {pooling!r}; allowed are mean, cls and max")


def _reference(graph: nn.Module, body: nn.Module) -> Reference:
    import torch

    def outputs(ids: IntArray, mask: IntArray) -> tuple[FloatArray, ...]:
        trained = body.training
        graph.eval()  # without dropout, even in the middle of a training
        try:
            with torch.inference_mode():
                return tuple(tensor.numpy() for tensor in graph(torch.from_numpy(ids), torch.from_numpy(mask)))
        finally:
            body.train(trained)

    return outputs


def _vocabulary(body: nn.Module) -> int:
    """Rows of the token table: its first embedding."""
    from torch import nn

    found = next((part for part in body.modules() if isinstance(part, nn.Embedding)), None)
    if found is None:
        raise LearningError(f"{type(body).__name__} has no nn.Embedding and is no encoder of tokens")
    return found.num_embeddings


def _move(draft: Path, target: Path) -> None:
    """Puts the file in place; above 2 GB its weights are a file beside it that it names, and must be written anew."""
    beside = draft.with_name(f"{draft.name}.data")
    if not beside.exists():
        draft.replace(target)
        return
    import onnx

    model = onnx.load(draft)
    onnx.save(model, target, save_as_external_data=True, location=f"{target.name}.data")
    beside.unlink()


@contextmanager
def _quietly() -> Iterator[None]:
    """The exporter warns of packages that it does not need and of its own parts that it will change."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    loggers.append(logging.getLogger("torch.onnx._internal.exporter._registration"))  # has a level of its own
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
