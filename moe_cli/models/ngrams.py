"""The embeddings of n-grams, which a model adds to those of its tokens: a look-up, so that layers need not learn them.

B sequences, L positions, P cached positions, D width, N longest n-gram.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from moe_cli.models.decoding_cache import DecodingCache

# The hash is a polynomial in this base, modulo this prime (Karp and Rabin, 1987).
_BASE = 1_000_003
_PRIME = 2**31 - 1


class NgramEmbedding(nn.Module):
    """Sums the embeddings of the n-grams, from 2 to N tokens, that end at each position.

    Each length has a table of its own, and n-grams with the same hash share a row: Byte Latent Transformer
    (arXiv:2412.09871, section 3.2.1), and without its gate the memory of Engram (arXiv:2601.07372, section 2.2). An
    n-gram that starts before the sequence, or before the document, is that of the tokens there are.

    Args:
        longest: N, at least 2.
        num_rows: rows of each table.

    Attributes:
        weight: [(N - 1) num_rows, D], the tables one below the other.
    """

    def __init__(self, longest: int, num_rows: int, d_model: int) -> None:
        super().__init__()
        self.longest, self.num_rows = longest, num_rows
        self.weight = nn.Parameter(torch.empty((longest - 1) * num_rows, d_model))

    def reset_parameters(self) -> None:
        """Sets all embeddings to zero: the model starts as one without them."""
        nn.init.zeros_(self.weight)

    def forward(
        self,
        tokens: Int[Tensor, "B L"],
        mask: Bool[Tensor, "B L"] | None = None,
        documents: Int[Tensor, "B L"] | None = None,
        cache: DecodingCache | None = None,
    ) -> Float[Tensor, "B L D"]:
        """Returns the sum of the embeddings of each position's n-grams.

        Args:
            mask: False for padding, which belongs to no n-gram.
            documents: document of each token; an n-gram has tokens of one document only.
            cache: the last tokens that were read, to which these are added; not with `mask` or `documents`.
        """
        length = tokens.shape[1]
        if cache is not None:
            tokens = cache.extend_tokens(tokens, self.longest - 1)
        rows = self.rows_of(tokens, mask, documents)[:, tokens.shape[1] - length :]
        return F.embedding(rows, self.weight).sum(-2)

    def rows_of(
        self, tokens: Int[Tensor, "B L"], mask: Bool[Tensor, "B L"] | None, documents: Int[Tensor, "B L"] | None
    ) -> Int[Tensor, "B L N1"]:
        """Returns the row of `weight` of the n-gram of each length, from 2 to N, that ends at each position."""
        digits = tokens.long() + 1  # 0 is no token
        if mask is not None:
            digits = digits * mask
        hashes, factor, rows = digits, 1, []
        for shift in range(1, self.longest):
            earlier = F.pad(digits, (shift, 0))[:, : tokens.shape[1]]
            if documents is not None:
                earlier = earlier * (F.pad(documents, (shift, 0))[:, : tokens.shape[1]] == documents)
            factor = factor * _BASE % _PRIME
            hashes = (hashes + earlier * factor) % _PRIME
            rows.append(hashes * _BASE % _PRIME % self.num_rows + (shift - 1) * self.num_rows)
        return torch.stack(rows, -1)
