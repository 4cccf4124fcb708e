"""Text from a model: what it is shown, how a token is drawn, and how its text comes out. V tokens."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from moe_cli.data.tokenizers import ByteTokenizer
from moe_cli.models.decoding_cache import DecodingCache
from moe_cli.training.generate import SamplingParams, decode_stream, sample

V = 5
GREEDY = SamplingParams(temperature=0)


class Successor(nn.Module):
    """Likes the token after the last one best, and remembers what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.strength = nn.Parameter(torch.tensor(2.0))
        self.shown: list[list[int]] = []

    def forward(self, tokens: Tensor, cache: DecodingCache | None = None) -> tuple[Tensor, list[None]]:
        self.shown.append(tokens[0].tolist())
        if cache is not None:
            cache.length += tokens.shape[1]
        return self.strength * nn.functional.one_hot((tokens + 1) % V, V), []


def test_at_temperature_zero_the_likeliest_follows() -> None:
    """The model's favourite, token after token; nothing random."""
    for seed in (0, 1):
        assert [3, 4, 0, 1] == list(sample(Successor(), [1, 2], 4, 8, GREEDY, seed=seed))


def test_the_model_sees_the_last_tokens() -> None:
    """The window ends with the newest token and is never longer than a context."""
    model = Successor()
    list(sample(model, [0, 1, 2, 3], 3, 3, GREEDY, seed=0))
    assert [[1, 2, 3], [2, 3, 4], [3, 4, 0]] == model.shown


def test_with_a_cache_each_token_is_shown_once() -> None:
    """Until the context is full; then the window slides, and all of it is shown. Without a cache, always all."""
    for cached, first in ((True, [[0, 1], [2], [3]]), (False, [[0, 1], [0, 1, 2], [0, 1, 2, 3]])):
        model = Successor()
        assert [2, 3, 4, 0, 1] == list(sample(model, [0, 1], 5, 4, GREEDY, seed=0, cached=cached))
        assert [*first, [1, 2, 3, 4], [2, 3, 4, 0]] == model.shown


def test_the_seed_decides_the_text() -> None:
    """The same seed gives the same text whatever the global random state; another seed another; neither moves it."""
    texts = []
    for noise, seed in ((1, 0), (2, 0), (1, 3)):
        torch.manual_seed(noise)
        before = torch.get_rng_state()
        texts.append(list(sample(Successor(), [0], 40, 8, SamplingParams(), seed=seed)))
        assert torch.equal(before, torch.get_rng_state())
    assert texts[0] == texts[1] != texts[2]


def test_the_smallest_temperature_is_nearly_none() -> None:
    """A temperature that no float32 quotient can bear, down to the least there is, still takes the likeliest token."""
    for temperature in (1e-300, 5e-324):
        assert [3, 4, 0, 1] == list(sample(Successor(), [1, 2], 4, 8, SamplingParams(temperature), seed=0))


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize("temperature", [0.7, 2.0])
def test_tokens_are_drawn_with_their_probability(temperature: float) -> None:
    """The share of successors in a long text is softmax(logits / temperature), within five standard errors."""
    ids = [0, *sample(Successor(), [0], 3000, 1, SamplingParams(temperature), seed=0)]
    share = sum((a + 1) % V == b for a, b in pairwise(ids)) / 3000
    expected = torch.softmax(torch.tensor([2.0, 0, 0, 0, 0]) / temperature, 0)[0].item()
    assert abs(share - expected) < 5 * (expected * (1 - expected) / 3000) ** 0.5


LOGITS = st.lists(st.floats(-5, 5), min_size=V, max_size=V).map(torch.tensor)


@given(LOGITS, st.floats(0.1, 3), st.integers(1, V))
def test_top_k_draws_from_the_likeliest_alone(logits: Tensor, temperature: float, top_k: int) -> None:
    """top_k leaves that number of tokens, none less likely than an excluded one, in the proportions of the softmax."""
    probs = SamplingParams(temperature, top_k=top_k).probs(logits)
    plain = (logits.double() / temperature).softmax(-1)
    kept = probs > 0
    assert top_k == kept.sum()
    assert plain[kept].min() >= plain[~kept].max() - 1e-12 if top_k < V else True
    torch.testing.assert_close(probs, plain * kept / plain[kept].sum())


@given(LOGITS, st.floats(0.1, 3), st.floats(0.01, 1))
def test_top_p_draws_from_the_nucleus(logits: Tensor, temperature: float, top_p: float) -> None:
    """The likeliest tokens that have the probability together; without the last of them they would not."""
    probs = SamplingParams(temperature, top_p=top_p).probs(logits)
    plain = (logits.double() / temperature).softmax(-1)
    kept = probs > 0
    assert plain[kept].sum() >= top_p - 1e-9
    assert plain[kept].sum() - plain[kept].min() < top_p + 1e-9  # sums are rounded
    assert plain[kept].min() >= plain[~kept].max() - 1e-12 if not kept.all() else True
    torch.testing.assert_close(probs, plain * kept / plain[kept].sum())


def test_the_nucleus_is_of_what_top_k_leaves() -> None:
    """top_k=2 turns 0.4, 0.3, 0.2, 0.1 into 4/7 and 3/7, and the first alone reaches top_p=0.55."""
    logits = torch.tensor([0.1, 0.4, 0.2, 0.3]).log()
    assert [0, 1, 0, 0] == SamplingParams(top_k=2, top_p=0.55).probs(logits).tolist()
    assert 2 == (SamplingParams(top_p=0.55).probs(logits) > 0).sum()


@given(st.text(max_size=20))
def test_characters_come_out_whole(text: str) -> None:
    """Byte after byte, what has been written so far is a beginning of the text; at the end it is all of it."""
    ids = ByteTokenizer().encode(text).tolist()
    written = ""
    for part in decode_stream(ids, ByteTokenizer().decode):
        written += part
        assert text.startswith(written)
    assert text == written


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (b"a\xe2\x82", "a"),  # ends within a character
        (b"\xffa", "\ufffda"),  # a byte that is no text
        (b"\xff\xff\xff\xe2\x82\xac\xff!", "\ufffd\ufffd\ufffd\u20ac\ufffd!"),
    ],
)
def test_bytes_that_are_no_text(given: bytes, expected: str) -> None:
    """They are shown as such, and never swallow or split what follows; half a character at the end is left out."""
    assert expected == "".join(decode_stream(given, ByteTokenizer().decode))
