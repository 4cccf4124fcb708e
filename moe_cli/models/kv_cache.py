"""The cache of a model that generates: the next token costs one position instead of all of them."""

from collections import defaultdict
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class LayerCache:
    """One layer's cache: keys and values of earlier positions, each [..., L, W], or an LSTM's two states. Empty at first."""

    tensors: tuple[Tensor, ...] = ()

    @property
    def length(self) -> int:
        """Returns the number of cached positions of an attention."""
        return self.tensors[0].shape[-2] if self.tensors else 0

    def append(self, *new: Tensor) -> tuple[Tensor, ...]:
        """Appends new tensors along positions and returns all."""
        self.tensors = (
            tuple(torch.cat(pair, dim=-2) for pair in zip(self.tensors, new, strict=True)) if self.tensors else new
        )
        return self.tensors


@dataclass
class KVCache:
    """A model's cache: number of tokens read of each sequence, and the cache of every layer."""

    length: int = 0
    layers: defaultdict[int, LayerCache] = field(default_factory=lambda: defaultdict(LayerCache))
