"""What a model remembers of the tokens it has read, so that the next token costs one position and not all of them."""

from collections import defaultdict
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class LayerCache:
    """Of one layer: what attention needs of earlier positions, each [..., L, W], or an LSTM's two states. Empty at first."""

    tensors: tuple[Tensor, ...] = ()

    @property
    def length(self) -> int:
        """Positions there are of an attention."""
        return self.tensors[0].shape[-2] if self.tensors else 0

    def append(self, *new: Tensor) -> tuple[Tensor, ...]:
        """What there is followed by what is new, along positions; kept for the next time."""
        self.tensors = (
            tuple(torch.cat(pair, dim=-2) for pair in zip(self.tensors, new, strict=True)) if self.tensors else new
        )
        return self.tensors


@dataclass
class KVCache:
    """Of a model: how many tokens of each sequence it has read, and what every layer keeps of them."""

    length: int = 0
    layers: defaultdict[int, LayerCache] = field(default_factory=lambda: defaultdict(LayerCache))
