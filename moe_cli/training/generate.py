"""Text from a trained model, a token at a time. V tokens in the vocabulary."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from moe_cli.models.kv_cache import KVCache

# The most tokens that are held back until a UTF-8 character is whole: it takes at most 4 bytes.
MAX_PENDING = 4
UNKNOWN = "\ufffd"


@dataclass(frozen=True)
class SamplingParams:
    """Parameters for sampling a token from a model's logits.

    Attributes:
        temperature: divisor of the logits; at 0 the most probable token is taken.
        top_k: sample from this number of most probable tokens; None means all.
        top_p: sample from the smallest set of most probable tokens with this total probability (nucleus,
            arXiv:1904.09751, eq. 2 and 3).
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0

    def probs(self, logits: Float[Tensor, " V"]) -> Float[Tensor, " V"]:
        """Returns the probability of every token, at a temperature above 0.

        After `top_k` and `top_p` the rest is renormalised.
        """
        # From the largest down and in float64, so that the smallest temperature is still a division by something.
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
    drawing: SamplingParams,
    seed: int,
    vocab_size: int | None = None,
    cached: bool = True,
) -> Iterator[int]:
    """Yields token ids that follow `prompt`.

    The model sees the last `context_length` tokens, at positions from 0. Within the first context a cache keeps the
    states of earlier tokens. Afterwards the window slides, and all tokens are computed again for each new one, because
    their positions and their context in every layer change. No assignment is dropped, as always in evaluation mode,
    because a capacity would depend on the number of tokens computed together.

    Args:
        vocab_size: the number of logits, from the first, that are tokens; None means all.
        cached: False means that all tokens are computed again for each new one.
    """
    generator = torch.Generator().manual_seed(seed)
    device = next(model.parameters()).device
    ids = list(prompt)
    cache = KVCache() if cached else None
    for _ in range(num_tokens):
        if len(ids) > context_length:
            cache = None
        shown = ids[cache.length :] if cache else ids[-context_length:]
        logits = model(torch.tensor([shown], device=device), cache=cache)[0]
        ids.append(drawing.sample_token(logits[0, -1, :vocab_size].float().cpu(), generator))
        yield ids[-1]


def decode_stream(ids: Iterable[int], decode: Callable[[Sequence[int]], str]) -> Iterator[str]:
    """Yields the text of tokens as they arrive. An incomplete UTF-8 character is held back, and dropped at the end.

    Args:
        decode: returns UNKNOWN for bytes that are not text.
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
