"""The two controls of specialisation: shuffled labels of documents, and balanced random maps of hidden states."""

import pytest
import torch

from moe_cli.moe.routing_metrics import specialisation
from moe_cli.moe.specialisation_controls import (
    RandomRouters,
    balancing_bias,
    permutation_p_value,
    shuffled_specialisations,
)


def test_planted_domains_are_above_all_shuffles() -> None:
    """Documents of two domains with experts of their own: 1 measured, the smallest possible p, and little by chance."""
    domains = torch.tensor([0, 1]).repeat(20)
    counts = torch.eye(2, dtype=torch.int64)[domains] * 50
    shuffled = shuffled_specialisations(counts, domains, 2)
    measured = specialisation(torch.zeros(2, 2, dtype=torch.int64).index_add_(0, domains, counts))
    assert 1 == pytest.approx(measured)
    assert 1 / 200 == permutation_p_value(measured, shuffled)
    assert max(shuffled) < 0.4


def test_documents_with_habits_of_their_own_are_no_domains() -> None:
    """Documents that each use one expert, whatever the domain: p values are uniform, where single tokens would say 0.005."""
    generator = torch.Generator().manual_seed(0)
    values = []
    for _ in range(10):
        domains = torch.arange(24) % 2
        counts = torch.eye(4, dtype=torch.int64)[torch.randint(4, (24,), generator=generator)] * 100
        table = torch.zeros(2, 4, dtype=torch.int64).index_add_(0, domains, counts)
        values.append(permutation_p_value(specialisation(table), shuffled_specialisations(counts, domains, 2)))
    assert 0.5 == pytest.approx(sum(values) / 10, abs=0.3)
    assert sum(value <= 0.05 for value in values) <= 3


@pytest.mark.parametrize("load", [[0.5, 0.5, 0.5, 0.5], [1.0, 0.6, 0.3, 0.1], [0.9, 0.9, 0.2, 0.0]])
def test_biases_give_the_load(load: list[float]) -> None:
    """Scores with means far apart get any load of sum K, one without a token included."""
    scores = torch.randn(2000, 4, generator=torch.Generator().manual_seed(0)) + torch.tensor([3.0, 0, 0, -2])
    tables = torch.stack([scores, -scores])
    chosen = (tables + balancing_bias(tables, torch.tensor(load), 2)[:, None]).topk(2).indices
    for experts in chosen:
        assert load == pytest.approx((torch.bincount(experts.flatten(), minlength=4) / 2000).tolist(), abs=0.02)


def test_random_maps_separate_distant_states() -> None:
    """Hidden states of two distant domains are separated by maps that learned nothing; equal ones are not."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1000, 16, generator=generator)
    domains = torch.arange(1000) % 2
    shift = torch.randn(16, generator=generator)
    found = []
    for size in (0.0, 4.0):
        tokens = noise + size * domains[:, None] * shift
        routers = RandomRouters(16, 8, 2, seed=0)
        routers.balance(tokens, torch.full((8,), 0.25))
        experts = routers.choose(tokens)
        assert (5, 1000, 2) == experts.shape
        assert bool((experts[..., 0] != experts[..., 1]).all())
        tables = [torch.bincount((domains[:, None] * 8 + one).flatten(), minlength=16).view(2, 8) for one in experts]
        assert 0.25 == pytest.approx((tables[0].sum(0) / 1000).max().item(), abs=0.03)
        found.append(sum(map(specialisation, tables)) / 5)
    assert found[0] < 0.03 < 0.2 < found[1]


def test_random_maps_choose_alike_in_every_precision() -> None:
    """Under autocast to bfloat16 the scores of random routers stay float32."""
    routers = RandomRouters(16, 8, 2, seed=0)
    tokens = torch.randn(500, 16, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        found = routers.choose(tokens)
    assert torch.equal(routers.choose(tokens), found)
