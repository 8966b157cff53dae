"""The network that an encoder expert is before it is a file: some layers of a pretrained encoder, and a head.

    logits = head(unit(projection(pooled states of the tokens)))

The projection leads into the space of a teacher's vectors (the big model's hidden states, or those of the whole
encoder that the layers were taken from), the head is a linear classifier there. So both have a closed or convex
fit before anything is tuned, and a head that was learned on the teacher's own vectors can be used as it is: the
classifier is reused (SimKD, Chen et al. 2022, arXiv:2203.14001). Everything here needs PyTorch and transformers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from puhui.compress.token_pruning import prune_tokens
from puhui.core.errors import BundleError, LearningError, MissingExtra
from puhui.models.encoder import load_body
from puhui.models.onnx_encoder import tokenizer_of, tokens_of
from puhui.quantisation.onnx_export import Pooling, Reference, export_encoder

FloatArray: TypeAlias = npt.NDArray[np.float32]
Rows: TypeAlias = Sequence[Sequence[int]]
"""Token numbers of texts."""
Progress: TypeAlias = Callable[[float], None]

BATCH = 64
_POOLING_FILE = "1_Pooling/config.json"


class Student:
    """A body with its tokenizer. `projection` and `head` are torch.nn.Linear, once they were fitted."""

    def __init__(self, body: Any, tokenizer: str, pooling: Pooling, max_tokens: int) -> None:
        self.body, self.tokenizer, self.pooling, self.max_tokens = body, tokenizer, pooling, max_tokens
        self.projection: Any = None
        self.head: Any = None

    @classmethod
    def open(cls, base: Path, max_tokens: int) -> Student:
        """A whole pretrained encoder. BundleError for a folder without one, MissingExtra without the packages."""
        try:
            import torch
            from transformers.utils.logging import disable_progress_bar
        except ImportError as error:
            raise MissingExtra("Training an encoder", "workshop") from error
        disable_progress_bar()
        try:
            body = load_body(base, local_files_only=True, dtype=torch.float32)
            tokenizer = (base / "tokenizer.json").read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise BundleError(
                f"{base} holds no encoder that can be read ({error}); name a Hugging Face folder"
            ) from error
        room = getattr(body.config, "max_position_embeddings", max_tokens)
        return cls(body, tokenizer, _pooling_of(base), min(max_tokens, room))

    @property
    def layers(self) -> Any:
        """The body's torch.nn.ModuleList of layers."""
        from torch import nn

        wanted = getattr(self.body.config, "num_hidden_layers", -1)
        lists = (part for part in self.body.modules() if isinstance(part, nn.ModuleList) and len(part) == wanted)
        found = next(lists, None)
        if found is None:
            raise LearningError(f"{type(self.body).__name__} has no list of layers to choose from; give another base")
        return found

    def keep_layers(self, layers: Sequence[int]) -> None:
        """Keeps only these layers, numbered from 0, in the order given. LearningError where one is not there."""
        there = list(self.layers)
        if not layers or not set(layers) <= set(range(len(there))):
            raise LearningError(f"layers are {tuple(layers)}; allowed are some of 0 to {len(there) - 1}")
        kept, held = [there[number] for number in layers], self.layers
        while len(held):
            held.pop(-1)
        held.extend(kept)
        self.body.config.num_hidden_layers = len(kept)

    def keep_inner(self, share: float, rows: Rows) -> None:
        """Keeps so large a share of each feed-forward network's neurons: those that say most of these texts.

        A neuron's say is the mean of its activation's size times the length of what it adds to a token's state
        (Molchanov et al. 2017 have the criterion by gradients; tuning comes after). Raises LearningError for a body
        that is not built as BERT is.
        """
        import torch

        for layer in self.layers:
            if not hasattr(getattr(layer, "intermediate", None), "dense"):
                raise LearningError(f"{type(self.body).__name__} has no feed-forward layers that can be narrowed")
        says = [torch.zeros(layer.intermediate.dense.out_features) for layer in self.layers]

        def listening(number: int) -> Callable[..., None]:
            def hear(module: Any, given: Any, states: Any) -> None:
                says[number] += states.abs().sum(dim=(0, 1))

            return hear

        hooks = [layer.intermediate.register_forward_hook(listening(i)) for i, layer in enumerate(self.layers)]
        try:
            self.pooled_many(rows)
        finally:
            for hook in hooks:
                hook.remove()
        for layer, said in zip(self.layers, says, strict=True):
            _narrow(layer, said, share)
        self.body.config.intermediate_size = self.layers[0].intermediate.dense.out_features

    def keep_tokens(self, texts: Sequence[str], common: int) -> None:
        """Keeps the tokens of these texts and others, as `prune_tokens` does."""
        from torch import nn

        table = self.body.get_input_embeddings()
        tokenizer, old = prune_tokens(self.tokenizer, {n for row in self.read(texts) for n in row}, common=common)
        padding = table.padding_idx
        if len(old) >= table.num_embeddings or (padding is not None and old[padding] != padding):
            return  # some bodies tell positions by the padding's number, which must not move
        kept = nn.Embedding(len(old), table.embedding_dim, padding_idx=padding)
        kept.weight = nn.Parameter(table.weight.detach()[old].clone())
        self.body.set_input_embeddings(kept)
        self.tokenizer = tokenizer

    def read(self, texts: Sequence[str]) -> list[list[int]]:
        """Token numbers of each text, read as the expert will read it."""
        tokenizer = tokenizer_of(self.tokenizer, self.max_tokens)
        return [tokens_of(tokenizer, text, self.max_tokens) for text in texts]

    def pooled(self, rows: Rows) -> Any:
        """Pooled states [n, d], a tensor with its gradient."""
        import torch

        longest = max(len(row) for row in rows)
        ids = torch.zeros((len(rows), longest), dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for number, row in enumerate(rows):
            ids[number, : len(row)] = torch.tensor(row)
            mask[number, : len(row)] = 1
        # Attention without a mask is quicker, and batches of one length are the rule.
        told = {} if bool(mask.all()) else {"attention_mask": mask}
        return pooled(self.body(input_ids=ids, **told).last_hidden_state, mask, self.pooling)

    def pooled_many(self, rows: Rows, progress: Progress = lambda share: None) -> FloatArray:
        """Pooled states [n, d] of any number of texts."""
        import torch

        states = np.empty((len(rows), self.body.config.hidden_size), np.float32)
        by_length = np.argsort([len(row) for row in rows], kind="stable")
        with torch.inference_mode():
            for first in range(0, len(rows), BATCH):
                picked = by_length[first : first + BATCH]
                states[picked] = self.pooled([rows[i] for i in picked]).numpy()
                progress((first + len(picked)) / len(rows))
        return states

    def unit_vectors(self, states: Any) -> Any:
        """Pooled states [n, d] to vectors [n, e] of length one in the teacher's space."""
        from torch.nn.functional import normalize

        return normalize(self.projection(states), dim=1)

    def logits_many(self, rows: Rows) -> FloatArray:
        """Logits [n, k] of any number of texts."""
        import torch

        with torch.inference_mode():
            logits: FloatArray = self.head(self.unit_vectors(torch.from_numpy(self.pooled_many(rows)))).numpy()
        return logits

    def export(self, path: Path) -> Reference:
        """Writes the ONNX file, as `export_encoder` does."""
        maps = ((part.weight.detach().numpy().T, part.bias.detach().numpy()) for part in (self.projection, self.head))
        projection, head = maps
        return export_encoder(self.body, path, pooling=self.pooling, projection=projection, head=head)


def _narrow(layer: Any, said: Any, share: float) -> None:
    """Leaves the neurons of one feed-forward network with the greatest `said` [n] times their length going out."""
    import torch
    from torch import nn

    up, down = layer.intermediate.dense, layer.output.dense
    count = max(1, round(share * up.out_features))
    kept = torch.topk(said * down.weight.norm(dim=0), count).indices.sort().values
    narrow_up, narrow_down = nn.Linear(up.in_features, count), nn.Linear(count, down.out_features)
    with torch.no_grad():
        narrow_up.weight.copy_(up.weight[kept])
        narrow_up.bias.copy_(up.bias[kept])
        narrow_down.weight.copy_(down.weight[:, kept])
        narrow_down.bias.copy_(down.bias)
    layer.intermediate.dense, layer.output.dense = narrow_up, narrow_down


def pooled(states: Any, mask: Any, pooling: Pooling) -> Any:
    """States [n, t, d] to pooled states [n, d], of which padding is no part."""
    if pooling == "cls":
        return states[:, 0]
    there = mask.unsqueeze(-1).to(states.dtype)
    return (states * there).sum(dim=1) / there.sum(dim=1)


def _pooling_of(base: Path) -> Pooling:
    """How a sentence encoder's folder says that its states are pooled; the mean where it says nothing we know."""
    try:
        told = json.loads((base / _POOLING_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "mean"
    return "cls" if isinstance(told, dict) and told.get("pooling_mode_cls_token") is True else "mean"
