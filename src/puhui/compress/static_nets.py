"""Training of a static expert's towers with PyTorch: the same arithmetic as `models.tower`, in float32.

Method: cross-entropy against the big model's answers (Hinton et al. 2015 where its probabilities are known),
Adam with a linear decay to zero, dropout of features before they are pooled and of the pooled vector. Which
choices pay was measured: `bench/static_log.md`.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import numpy as np
import numpy.typing as npt

from puhui.core.errors import MissingExtra

try:
    import torch
    from torch.nn import functional
except ImportError as error:  # pragma: no cover
    raise MissingExtra("Learning a static expert", "learn") from error

FloatArray = npt.NDArray[np.float32]
Progress = Callable[[float], None]


class Bags(msgspec.Struct, frozen=True, eq=False):
    """Features of n texts, one after the other: `rows` int64 [m], `weights` float32 [m], `bounds` [n + 1].

    The weights of a text are divided by their Euclidean norm.
    """

    rows: npt.NDArray[np.int64]
    weights: FloatArray
    bounds: npt.NDArray[np.int64]

    def batch(self, picked: npt.NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Rows, offsets and weights of the picked texts, as `embedding_bag` takes them."""
        lengths = self.bounds[picked + 1] - self.bounds[picked]
        ends = np.cumsum(lengths)
        at = np.arange(ends[-1]) + np.repeat(self.bounds[picked] - ends + lengths, lengths)
        arrays = self.rows[at], ends - lengths, self.weights[at]
        return torch.from_numpy(arrays[0]), torch.from_numpy(arrays[1]), torch.from_numpy(arrays[2])


class TowerOptions(msgspec.Struct, frozen=True):
    """How one tower is trained. `hidden` 0 is none; dropouts are shares in [0, 1); `batch` counts texts."""

    hidden: int = 0
    train_table: bool = True
    feature_dropout: float = 0.5
    dropout: float = 0.3
    learning_rate: float = 0.01
    epochs: int = 12
    batch: int = 512
    min_steps: int = 400


class TowerNet(torch.nn.Module):
    """A tower as PyTorch sees it. `table` [r, d] is a parameter or, where it is not trained, a constant."""

    def __init__(
        self, table: FloatArray, labels: int, options: TowerOptions, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.options = options
        self.generator = generator
        self.table = torch.nn.Parameter(torch.from_numpy(table), requires_grad=options.train_table)
        dim = table.shape[1]
        self.hidden = self._layer(dim, options.hidden) if options.hidden else None
        self.head = self._layer(options.hidden or dim, labels)

    def _layer(self, inputs: int, outputs: int) -> torch.nn.Linear:
        layer = torch.nn.Linear(inputs, outputs, device="meta").to_empty(device="cpu")
        with torch.no_grad():
            layer.weight.uniform_(-(inputs**-0.5), inputs**-0.5, generator=self.generator)
            layer.bias.zero_()
        return layer

    def forward(self, rows: torch.Tensor, offsets: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        weights = self._drop(weights, self.options.feature_dropout)
        pooled = functional.embedding_bag(rows, self.table, offsets, mode="sum", per_sample_weights=weights)
        pooled = self._drop(pooled, self.options.dropout)
        if self.hidden is not None:
            pooled = self._drop(self.hidden(pooled).relu(), 0.3)
        logits: torch.Tensor = self.head(pooled)
        return logits

    def _drop(self, values: torch.Tensor, share: float) -> torch.Tensor:
        """Dropout with a generator of its own, so that a seed repeats whatever else draws numbers."""
        if not share:
            return values
        kept = torch.rand(values.shape, generator=self.generator) >= share
        return values * kept / (1.0 - share)


def train(net: TowerNet, bags: Bags, targets: npt.NDArray[np.int64] | FloatArray, progress: Progress) -> None:
    """Fit the net in place to class numbers int64 [n] or probabilities float32 [n, k]."""
    options = net.options
    wanted = torch.from_numpy(targets)
    count = len(targets)
    batch = int(np.clip(count // 30, 8, options.batch))
    per_epoch = -(-count // batch)
    epochs = max(options.epochs, -(-options.min_steps // per_epoch))
    trained = [p for p in net.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=options.learning_rate, fused=True)
    for step in range(total := epochs * per_epoch):
        if step % per_epoch == 0:
            order = torch.randperm(count, generator=net.generator).numpy()
        start = step % per_epoch * batch
        picked = order[start : start + batch]
        for group in optimizer.param_groups:
            group["lr"] = options.learning_rate * min(1.0, (step + 1) / 30) * (1.0 - step / total)
        loss = functional.cross_entropy(net(*bags.batch(picked)), wanted[torch.from_numpy(picked)])
        optimizer.zero_grad(set_to_none=False)  # the table's gradient is large: keep its memory
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        progress((step + 1) / total)
