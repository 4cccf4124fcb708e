"""Text from a model: what it is shown, and how a token is drawn. V tokens."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from moe_cli.training.sample import sample

V = 5


class Successor(nn.Module):
    """Likes the token after the last one best, and remembers what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.strength = nn.Parameter(torch.tensor(2.0))
        self.shown: list[list[int]] = []

    def forward(self, tokens: Tensor) -> tuple[Tensor, list[None]]:
        self.shown.append(tokens[0].tolist())
        return self.strength * nn.functional.one_hot((tokens + 1) % V, V), []


def test_at_temperature_zero_the_likeliest_follows() -> None:
    """The model's favourite, token after token; nothing random."""
    for seed in (0, 1):
        assert [3, 4, 0, 1] == list(sample(Successor(), [1, 2], 4, 8, temperature=0, seed=seed))


def test_the_model_sees_the_last_tokens() -> None:
    """The window ends with the newest token and is never longer than a context."""
    model = Successor()
    list(sample(model, [0, 1, 2, 3], 3, 3, temperature=0, seed=0))
    assert [[1, 2, 3], [2, 3, 4], [3, 4, 0]] == model.shown


def test_the_seed_decides_the_text() -> None:
    """The same seed gives the same text whatever the global random state; another seed another; neither moves it."""
    texts = []
    for noise, seed in ((1, 0), (2, 0), (1, 3)):
        torch.manual_seed(noise)
        before = torch.get_rng_state()
        texts.append(list(sample(Successor(), [0], 40, 8, temperature=1.0, seed=seed)))
        assert torch.equal(before, torch.get_rng_state())
    assert texts[0] == texts[1] != texts[2]


def test_the_smallest_temperature_is_nearly_none() -> None:
    """A temperature that no float32 quotient can bear, down to the least there is, still takes the likeliest token."""
    for temperature in (1e-300, 5e-324):
        assert [3, 4, 0, 1] == list(sample(Successor(), [1, 2], 4, 8, temperature=temperature, seed=0))


@pytest.mark.parametrize("temperature", [0.7, 2.0])
def test_tokens_are_drawn_with_their_probability(temperature: float) -> None:
    """The share of successors in a long text is softmax(logits / temperature), within five standard errors."""
    ids = [0, *sample(Successor(), [0], 3000, 1, temperature=temperature, seed=0)]
    share = sum((a + 1) % V == b for a, b in pairwise(ids)) / 3000
    expected = torch.softmax(torch.tensor([2.0, 0, 0, 0, 0]) / temperature, 0)[0].item()
    assert abs(share - expected) < 5 * (expected * (1 - expected) / 3000) ** 0.5
