"""How does a trained model generate text? One sampled token at a time. V tokens in the vocabulary."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from moe_cli.models.decoding_cache import DecodingCache

# Number of tokens that can wait for the rest of a UTF-8 character, which has at most 4 bytes.
MAX_PENDING = 4
UNKNOWN = "\ufffd"


@dataclass(frozen=True)
class SamplingParams:
    """Parameters for sampling a token from a model's logits.

    Attributes:
        temperature: divisor of the logits; 0 selects the most probable token.
        top_k: number of most probable tokens to sample from; None means all.
        top_p: sample from the smallest set of most probable tokens with this total probability (nucleus sampling,
            arXiv:1904.09751, eq. 2 and 3).
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0

    def probs(self, logits: Float[Tensor, " V"]) -> Float[Tensor, " V"]:
        """Computes the probability of every token after temperature (above 0), `top_k` and `top_p`."""
        # The largest logit is subtracted first, in float64, so that a tiny temperature overflows to -inf only.
        probs, tokens = (
            ((logits.double() - logits.max()) / self.temperature).softmax(-1).sort(descending=True, stable=True)
        )
        if self.top_k is not None:
            probs[self.top_k :] = 0
            probs = probs / probs.sum()
        if self.top_p < 1:
            probs[probs.cumsum(-1) - probs >= self.top_p] = 0
        return torch.zeros_like(probs).scatter(0, tokens, probs / probs.sum())

    def sample_token(self, logits: Float[Tensor, " V"], generator: torch.Generator) -> int:
        if self.temperature == 0:
            return int(logits.argmax())
        return int(torch.multinomial(self.probs(logits), 1, generator=generator))


@torch.no_grad()
def sample(
    model: nn.Module,
    prompt: Sequence[int],
    num_tokens: int,
    context_length: int,
    sampling: SamplingParams,
    seed: int,
    vocab_size: int | None = None,
    cached: bool = True,
) -> Iterator[int]:
    """Yields `num_tokens` token ids that follow `prompt`.

    The model reads the last `context_length` tokens, whose positions start at 0. While the text is shorter, a cache
    stores the states of earlier tokens. After that the window slides, and all of its tokens are computed for each new
    token, because their positions change. No assignment is dropped, because a capacity would depend on the number of
    tokens that are computed together.

    Args:
        sampling: temperature, top_k and top_p.
        vocab_size: number of logits that are tokens, from the first on; None means all.
        cached: False computes all tokens of the window for each new token.
    """
    generator = torch.Generator().manual_seed(seed)
    device = next(model.parameters()).device
    ids = list(prompt)
    cache = DecodingCache() if cached else None
    for _ in range(num_tokens):
        if len(ids) > context_length:
            cache = None
        inputs = ids[cache.length :] if cache else ids[-context_length:]
        # Models of plug-ins may have no cache.
        logits = model(torch.tensor([inputs], device=device), **({"cache": cache} if cache else {}))[0]
        ids.append(sampling.sample_token(logits[0, -1, :vocab_size].float().cpu(), generator))
        yield ids[-1]


def decode_stream(ids: Iterable[int], decode: Callable[[Sequence[int]], str]) -> Iterator[str]:
    """Yields the text of tokens as they arrive. An incomplete UTF-8 character waits for its rest.

    Args:
        decode: maps token ids to text, with UNKNOWN for bytes that are no valid UTF-8.
    """
    pending: list[int] = []
    for token in ids:
        pending.append(token)
        text = decode(pending)
        if not text.endswith(UNKNOWN):
            yield text
            pending.clear()
        elif len(pending) == MAX_PENDING:
            yield decode([pending.pop(0)])
