"""The cache of a model that generates text: the states of earlier tokens, so that only the new token is computed."""

from collections import defaultdict
from dataclasses import dataclass, field

import torch
from jaxtyping import Int
from torch import Tensor


@dataclass
class LayerCache:
    """The cache of one layer: keys and values of earlier positions, or the two states of an LSTM.

    Attributes:
        tensors: keys and values [..., L, W], or the states; empty before the first token.
    """

    tensors: tuple[Tensor, ...] = ()

    @property
    def length(self) -> int:
        """Returns L, the number of cached positions of an attention layer."""
        return self.tensors[0].shape[-2] if self.tensors else 0

    def append(self, *new: Tensor) -> tuple[Tensor, ...]:
        """Appends new positions and returns all of them."""
        self.tensors = (
            tuple(torch.cat(pair, dim=-2) for pair in zip(self.tensors, new, strict=True)) if self.tensors else new
        )
        return self.tensors


@dataclass
class DecodingCache:
    """The cache of a model.

    Attributes:
        length: tokens read of each sequence.
        layers: cache of each layer, by its index.
        last_tokens: the last tokens read, of a model that looks up n-grams; None before the first.
    """

    length: int = 0
    layers: defaultdict[int, LayerCache] = field(default_factory=lambda: defaultdict(LayerCache))
    last_tokens: Int[Tensor, "B L"] | None = None

    def extend_tokens(self, tokens: Int[Tensor, "B L"], num_kept: int) -> Int[Tensor, "B PL"]:
        """Returns the last tokens read followed by new ones, and stores the last `num_kept` of both."""
        if self.last_tokens is not None:
            tokens = torch.cat((self.last_tokens, tokens), dim=1)
        self.last_tokens = tokens[:, -num_kept:]
        return tokens
