"""Text from a trained model, a token at a time. V tokens in the vocabulary."""

from collections.abc import Iterator, Sequence

import torch
from torch import nn


@torch.no_grad()
def sample(
    model: nn.Module,
    prompt: Sequence[int],
    num_tokens: int,
    context_length: int,
    temperature: float,
    seed: int,
    vocab_size: int | None = None,
) -> Iterator[int]:
    """Token ids that follow `prompt`, drawn from softmax(logits / temperature); the likeliest at temperature 0.

    The model sees the last `context_length` tokens. Of its logits the first `vocab_size` stand for tokens; None: all.
    """
    generator = torch.Generator().manual_seed(seed)
    device = next(model.parameters()).device
    ids = list(prompt)
    for _ in range(num_tokens):
        window = torch.tensor([ids[-context_length:]], device=device)
        logits = model(window)[0][0, -1, :vocab_size].float().cpu()
        if temperature == 0:
            token = int(logits.argmax())
        else:
            # From the largest down and in float64, so that the smallest temperature is still a division by something.
            scaled = (logits.double() - logits.max()) / temperature
            token = int(torch.multinomial(scaled.softmax(-1), 1, generator=generator))
        ids.append(token)
        yield token
