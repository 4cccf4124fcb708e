"""Repeats and hits of a cache against a loop over the stream, and against closed forms."""

from collections import OrderedDict

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from moe_cli.moe.locality import DISTANCES, ExpertLocality, TokenSample


def random_mask(num_tokens: int, num_experts: int, seed: int) -> Tensor:
    """Tokens with zero to E experts each."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(num_tokens, num_experts, generator=generator) < 0.35


def lru_hits(mask: Tensor, size: int) -> int:
    """The hits of a cache that looks up all experts of a token, and then moves them to its front one by one."""
    cache: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for row in mask:
        experts = row.nonzero().flatten().tolist()
        hits += sum(expert in cache for expert in experts)
        for expert in experts:
            cache[expert] = None
            cache.move_to_end(expert)
        while len(cache) > size:
            cache.popitem(last=False)
    return hits


@given(st.integers(1, 60), st.integers(1, 6), st.integers(0, 99), st.integers(1, 60))
def test_a_stream_in_parts_equals_a_loop(num_tokens: int, num_experts: int, seed: int, cut: int) -> None:
    """Repeats and hits, of every distance and cache, are those of a loop; the parts of the stream do not matter."""
    mask = random_mask(num_tokens, num_experts, seed)
    found = ExpertLocality(num_experts)
    for part in (mask[:cut], mask[cut:]):
        found.add(part)
    for index, distance in enumerate(DISTANCES):
        late = [(token, int(expert)) for token, expert in mask.nonzero().tolist() if token >= distance]
        repeats = sum(bool(mask[token - distance : token, expert].any()) for token, expert in late)
        assert (len(late), repeats) == (found.eligible[index], found.repeats[index])
    total = max(1, int(mask.sum()))
    assert [lru_hits(mask, size) / total for size in range(1, num_experts + 1)] == pytest.approx(found.hit_rates())


def test_a_cycle_of_experts_defeats_every_smaller_cache() -> None:
    """Experts in turn repeat after E tokens: a cache of E holds all of them but the first uses, a smaller one nothing."""
    found = ExpertLocality(4)
    found.add(torch.eye(4, dtype=torch.bool).repeat(25, 1))
    assert [0, 0, 0, 0.96] == found.hit_rates()
    assert [0, 1, 1, 1] == found.repeated()[:4]


def test_one_expert_always_repeats() -> None:
    """The same experts for every token repeat at distance 1, and a cache of K holds them."""
    found = ExpertLocality(5)
    found.add(torch.tensor([[True, False, True, False, False]]).repeat(50, 1))
    assert [1, 1, 1, None, None] == found.repeated()
    assert [0.49, 0.98, 0.98, 0.98, 0.98] == pytest.approx(found.hit_rates())


def test_independent_tokens_repeat_by_the_load_alone() -> None:
    """Independent draws repeat within n with sum p (1 - (1 - p)^n) / sum p."""
    probs = torch.tensor([0.02, 0.1, 0.3, 0.58])
    mask = torch.rand(200_000, 4, generator=torch.Generator().manual_seed(0)) < probs
    found = ExpertLocality(4)
    for part in mask.split(4096):
        found.add(part)
    expected = [float((probs * (1 - (1 - probs) ** n)).sum() / probs.sum()) for n in DISTANCES]
    assert expected == pytest.approx(found.repeated(), abs=0.004)


def test_a_sample_is_uniform_and_shuffled() -> None:
    """A sample of half the rows has each row once at most, early and late ones alike, in no order."""
    sample = TokenSample(500)
    for part in torch.arange(1000).split(64):
        sample.add(part)
    rows = sample.shuffled()
    assert 500 == len(rows) == len(rows.unique())
    assert 500 == pytest.approx(rows.double().mean().item(), abs=40)
    assert 0 == pytest.approx(torch.corrcoef(torch.stack([rows.double(), torch.arange(500.0)]))[0, 1].item(), abs=0.15)
