"""Every router equals its formula on a dense T x E matrix. T tokens, E experts, K chosen per token, D width."""

from typing import get_args

import pytest
import torch
from torch import Tensor

from moe_cli.bench.timing import saved_bytes
from moe_cli.config.routers import (
    HashConfig,
    PluginRouter,
    RandomConfig,
    RouterConfig,
    SigmoidConfig,
    SoftConfig,
    SwitchConfig,
    TopKConfig,
    sums_to_one,
)
from moe_cli.moe.gates import GATE_STD, LinearGate
from moe_cli.moe.layer import MoELayer, make_sparse_layer
from moe_cli.moe.routers.registry import ROUTER_CONFIGS, ROUTERS, make_router
from moe_cli.moe.routers.router import gather_scores, top_indices
from moe_cli.moe.routers.token_choice import renormalises
from tests.moe.formulas import ROUTERS as CASES
from tests.moe.formulas import dense, top_k_weights

E, D = 8, 6


def router_and_tokens(config: RouterConfig, top_k: int, num_tokens: int = 9) -> tuple[torch.nn.Module, Tensor]:
    """A float64 router with a gate of some strength, at evaluation, and tokens."""
    torch.manual_seed(1)
    router = make_router(config, D, E, top_k).double().eval()
    for weight in router.parameters():
        torch.nn.init.normal_(weight)
    return router, torch.randn(num_tokens, D, dtype=torch.float64)


@pytest.mark.parametrize("num_tokens", [1, 9, 64])
@pytest.mark.parametrize("renormalise", [True, False])
@pytest.mark.parametrize("top_k", [2, 3, 5, E])
def test_top_k_equals_its_formula(top_k: int, renormalise: bool, num_tokens: int) -> None:
    """The record, scattered, is softmax(x W) masked to the row's K largest, and renormalised if asked."""
    router, x = router_and_tokens(TopKConfig(renormalise=renormalise), top_k, num_tokens)
    routing = router(x)
    expected = top_k_weights(x, router.gate.weight, top_k, renormalise)

    assert torch.allclose(expected, dense(routing, routing.weights), atol=1e-12)
    assert torch.allclose(x @ router.gate.weight.T, routing.logits)
    assert torch.allclose(routing.logits.softmax(-1), routing.probs)


@pytest.mark.parametrize("num_tokens", [1, 9, 64])
def test_switch_equals_its_formula(num_tokens: int) -> None:
    """Switch at evaluation is the largest softmax probability, and nothing else."""
    router, x = router_and_tokens(SwitchConfig(jitter=0.1), 1, num_tokens)
    routing = router(x)
    expected = top_k_weights(x, router.gate.weight, 1, renormalise=False)
    assert torch.allclose(expected, dense(routing, routing.weights), atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_choices_of_a_token_are_distinct_and_counted(name: str) -> None:
    """Each token asks for exactly K different experts."""
    config, top_k = CASES[name]
    router, x = router_and_tokens(config, top_k)
    routing = router(x)
    asked = dense(routing, torch.ones_like(routing.weights))
    assert {0.0, 1.0} >= set(asked.flatten().tolist())
    assert [float(top_k)] * len(x) == asked.sum(-1).tolist()


@pytest.mark.parametrize("name", ["top2", "top5", "random"])
def test_weights_of_a_token_sum_to_one(name: str) -> None:
    """Renormalised weights, and the constant ones of the random router, sum to 1 for each token."""
    config, top_k = CASES[name]
    router, x = router_and_tokens(config, top_k)
    routing = router(x)
    assert torch.allclose(torch.ones(len(x), dtype=torch.float64), dense(routing, routing.weights).sum(-1))


@pytest.mark.parametrize("top_k", [2, 5])
def test_first_choice_is_the_best(top_k: int) -> None:
    """A token's choices come in falling order of probability, which is the order in which room is given out."""
    router, x = router_and_tokens(TopKConfig(), top_k)
    weights = router(x).weights.view(top_k, len(x))
    assert (weights.diff(dim=0) <= 0).all()


@pytest.mark.parametrize("name", ["top1", "switch"])
def test_a_single_choice_still_teaches_the_gate(name: str) -> None:
    """With K = 1 the weight is the probability itself, so that the gate has a gradient."""
    config, top_k = CASES[name]
    router, x = router_and_tokens(config, top_k)
    routing = router(x)
    assert torch.equal(routing.probs.amax(-1), routing.weights)
    routing.weights.sum().backward()
    assert router.gate.weight.grad.abs().max() > 1e-3


@pytest.mark.parametrize(("top_k", "expected"), [(1, False), (2, True)])
def test_renormalisation_is_decided_by_k_when_left_open(top_k: int, expected: bool) -> None:
    """renormalise=null means: unless K is 1."""
    assert expected == renormalises(make_router(TopKConfig(), D, E, top_k))


@pytest.mark.parametrize("name", ["top1", "top2", "top5", "switch"])
def test_expert_bias_moves_the_choice_and_not_the_weight(name: str) -> None:
    """The K largest of probability + bias are chosen; their weights are made of probabilities alone."""
    config, top_k = CASES[name]
    router, x = router_and_tokens(config, top_k, 64)
    unbiased = router(x).expert_ids
    router.expert_bias.copy_(torch.linspace(-0.5, 0.5, E))
    routing = router(x)

    wanted = routing.probs + router.expert_bias
    chosen = wanted >= wanted.sort(-1).values[:, -top_k, None]
    expected = routing.probs * chosen
    if name in ("top2", "top5"):
        expected = expected / expected.sum(-1, keepdim=True)
    assert torch.allclose(expected, dense(routing, routing.weights))
    assert not torch.equal(unbiased, routing.expert_ids)


def test_expert_bias_is_state_and_no_parameter() -> None:
    """No optimizer sees the bias, and a checkpoint holds it."""
    router = make_router(TopKConfig(), D, E, 2)
    assert ["gate.weight"] == [name for name, _ in router.named_parameters()]
    assert {"gate.weight", "expert_bias"} == set(router.state_dict())


def test_switch_jitter_is_uniform_about_one_in_training() -> None:
    """With one input of 1 and a gate of 1 the logit is the jitter: within 1 +- eps, and spread over it."""
    torch.manual_seed(0)
    router = make_router(SwitchConfig(jitter=0.25), 1, 1, 1).train()
    torch.nn.init.ones_(router.gate.weight)
    logits = router(torch.ones(4000, 1)).logits
    assert 0.75 <= logits.min() < 0.76
    assert 1.24 < logits.max() <= 1.25
    assert logits.mean().item() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("name", ["top2", "switch"])
def test_no_noise_at_evaluation(name: str) -> None:
    """At evaluation two passes over the same tokens give the same record."""
    config, top_k = CASES[name]
    router, x = router_and_tokens(config, top_k)
    first, second = router(x), router(x)
    assert torch.equal(first.logits, second.logits)
    assert torch.equal(first.logits, x @ router.gate.weight.T)


def test_no_jitter_when_it_is_zero() -> None:
    """jitter=0 leaves the training input alone and draws no random numbers."""
    router, x = router_and_tokens(SwitchConfig(jitter=0.0), 1)
    router.train()
    before = torch.get_rng_state()
    assert torch.equal(x @ router.gate.weight.T, router(x).logits)
    assert torch.equal(before, torch.get_rng_state())


def test_random_router_is_uniform_and_constant() -> None:
    """Each expert is asked for with probability K / E (six sigma), with weight 1 / K and no parameter to learn."""
    torch.manual_seed(0)
    tokens, top_k = 8000, 2
    router = make_router(RandomConfig(), D, E, top_k)
    routing = router(torch.randn(tokens, D))

    share = torch.bincount(routing.expert_ids, minlength=E) / tokens
    sigma = (top_k / E * (1 - top_k / E) / tokens) ** 0.5
    assert (share - top_k / E).abs().max() < 6 * sigma
    assert set(routing.weights.tolist()) == {1 / top_k}
    assert torch.equal(torch.full((tokens, E), 1 / E), routing.probs)
    assert torch.equal(torch.zeros(tokens, E), routing.logits)
    assert [] == list(router.parameters())


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scores_are_float32_under_autocast(name: str, dtype: torch.dtype) -> None:
    """The gate computes in float32 where the rest is bfloat16, whatever the precision of its input."""
    config, top_k = CASES[name]
    router, x = router_and_tokens(config, top_k)
    router.float()
    x = x.to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        routing = router(x)
    for scores in (routing.logits, routing.probs, routing.weights):
        assert torch.float32 == scores.dtype
    if hasattr(router, "gate"):
        assert torch.allclose(x.float() @ router.gate.weight.T, routing.logits, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_no_tokens_no_assignments(name: str) -> None:
    """An empty batch gives an empty record of the right width."""
    config, top_k = CASES[name]
    router, x = router_and_tokens(config, top_k, 0)
    routing = router.train()(x)
    assert (0, E) == tuple(routing.probs.shape)
    assert 0 == len(routing.token_ids) == len(routing.expert_ids) == len(routing.weights) == len(routing.kept)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("top_k", range(1, 13))
def test_top_indices_sorts_and_prefers_the_earlier_expert(top_k: int, dtype: torch.dtype) -> None:
    """The K largest come largest first, and the earlier first among equals, for every K and precision."""
    torch.manual_seed(0)
    scores = torch.randint(0, 4, (50, 12)).to(dtype)
    expected = [sorted(range(12), key=lambda i: (-row[i], i))[:top_k] for row in scores.tolist()]
    before = scores.clone()
    assert expected == top_indices(scores, top_k).tolist()
    assert torch.equal(before, scores)


FIRST = {name: (config(), name) for name, config in ROUTER_CONFIGS.items()} | {
    f"{name}-{score}": (ROUTER_CONFIGS[name](score=score), name)
    for name in ("topk", "switch", "noisy_topk", "sigmoid", "sinkhorn")
    for score in ("cosine", "mlp", "activation")
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", FIRST)
def test_a_fresh_gate_sends_tokens_to_all_experts(name: str, training: bool) -> None:
    """Before the first step no expert is asked for more than three fair shares of random tokens, and every one for some.

    If all scores were equal, the K experts of the lowest index would get everything, 8 or 16 fair shares each.
    """
    config, router_name = FIRST[name]
    for seed in range(3):
        torch.manual_seed(seed)
        layer = MoELayer(32, 16, 1 if router_name == "switch" else 2, 24, router=config, vocab_size=1024)
        routing = layer.train(training).route(torch.randn(1024, 32), torch.arange(1024))
        load = torch.bincount(routing.expert_ids, minlength=16).double()
        assert load.min() > 0
        assert load.max() < 3 * load.mean()
        if router_name != "random":
            assert (routing.logits.amax(-1) > routing.logits.amin(-1)).all()


@pytest.mark.parametrize("name", ["topk", "switch", "sigmoid"])
def test_equal_scores_go_to_the_lowest_index(name: str) -> None:
    """A token of zeros has the same score for every expert: it is sent to the first K."""
    top_k = 1 if name == "switch" else 3
    routing = MoELayer(D, E, top_k, 4, router=name).eval().route(torch.zeros(5, D))
    assert [expert for expert in range(top_k) for _ in range(5)] == routing.expert_ids.tolist()


SUMS: list[tuple[RouterConfig, int]] = [
    *((config(), top_k) for config in ROUTER_CONFIGS.values() for top_k in (1, 2)),
    *((config(renormalise=value), 2) for config in (TopKConfig, SigmoidConfig) for value in (True, False)),
    (TopKConfig(null_experts=2), 2),
    (SigmoidConfig(scale=2.5), 2),
    (HashConfig(weights="constant"), 1),
]


@pytest.mark.parametrize(("config", "top_k"), SUMS)
def test_whose_weights_sum_to_one(config: RouterConfig, top_k: int) -> None:
    """sums_to_one, from the configuration alone, says whether equal experts answer as one of them."""
    torch.manual_seed(0)
    layer = MoELayer(D, E, 1, 4, vocab_size=50).double().eval()
    for weight in layer.experts.parameters():
        weight.data.copy_(torch.randn(weight.shape[1:]))
    layer.router = make_router(config, D, E, top_k, layer.experts, 50).double().eval()
    for weight in layer.router.parameters():
        torch.nn.init.normal_(weight, std=2.0)
    x = torch.randn(2, 20, D, dtype=torch.float64)
    y, _ = layer(x, torch.arange(40).view(2, 20))
    assert sums_to_one(config, top_k) == torch.allclose(layer.experts.forward_one(0, x.view(-1, D)), y.view(-1, D))


def test_the_gate_starts_small_and_from_its_generator() -> None:
    """Initial gate weights have standard deviation 0.02 and depend on the generator alone."""
    router = make_router(TopKConfig(), 400, 50, 2)
    router.reset_parameters(torch.Generator().manual_seed(3))
    first = router.gate.weight.detach().clone()
    router.reset_parameters(torch.Generator().manual_seed(3))
    assert torch.equal(first, router.gate.weight)
    assert first.std().item() == pytest.approx(GATE_STD, rel=0.05)


@pytest.mark.parametrize("score", ["linear", "cosine", "mlp"])
def test_init_scale_multiplies_the_first_scores(score: str) -> None:
    """Whatever the gate: from the same draws, the scores of every token are 3 times as large."""
    x, scores = torch.randn(5, 8), []
    for scale in (1.0, 3.0):
        router = make_router(TopKConfig(score=score, init_scale=scale), 8, 4, 2)
        router.reset_parameters(torch.Generator().manual_seed(0))
        scores.append(router.gate(x))
    torch.testing.assert_close(3 * scores[0], scores[1])


def test_init_scale_of_the_soft_router_multiplies_the_first_scores() -> None:
    """The factor of the cosine starts there."""
    x, scores = torch.randn(2, 5, 8), []
    for scale in (1.0, 3.0):
        layer = make_sparse_layer(8, 4, 4, 6, router=SoftConfig(init_scale=scale))
        layer.reset_parameters(torch.Generator().manual_seed(0))
        scores.append(layer.router(x))
    torch.testing.assert_close(3 * scores[0], scores[1])


def test_every_router_of_the_schema_can_be_made() -> None:
    """The schema's variants, ROUTERS and the names that users type agree."""
    assert {SoftConfig, PluginRouter, *ROUTERS} == set(get_args(RouterConfig))
    assert set(ROUTERS) == set(ROUTER_CONFIGS.values())
    for name, config in ROUTER_CONFIGS.items():
        assert name == config.name
        assert isinstance(make_router(config(), D, E, 2, vocab_size=9), ROUTERS[config])


@pytest.mark.parametrize("top_k", [1, 3, E])
def test_gathered_scores_have_the_gradient_of_gather(top_k: int) -> None:
    """The gradient is that of torch's gather, and no score is saved."""
    scores = torch.randn(9, E, dtype=torch.float64, requires_grad=True)
    expert_ids = top_indices(scores.detach(), top_k)
    grad = torch.randn(9, top_k, dtype=torch.float64)
    expected = torch.autograd.grad(scores.gather(1, expert_ids), scores, grad)[0]
    torch.testing.assert_close(torch.autograd.grad(gather_scores(scores, expert_ids), scores, grad)[0], expected)
    assert expert_ids.nbytes == saved_bytes(lambda: gather_scores(scores * 2, expert_ids))


def test_a_gate_saves_narrow_tokens_as_they_are() -> None:
    """Scores of bfloat16 tokens are float32, with the gradients of the operations one by one; no copy is saved."""
    torch.manual_seed(1)
    gate = LinearGate(D, E).bfloat16()
    gate.reset_parameters()
    x = torch.randn(9, D, dtype=torch.bfloat16, requires_grad=True)
    expected = torch.nn.functional.linear(x.float(), gate.weight.float())
    scores, grad = gate(x, torch.float32), torch.randn(9, E)
    torch.testing.assert_close(scores, expected, rtol=0, atol=0)
    for ours, theirs in zip(*(torch.autograd.grad(y, (x, gate.weight), grad) for y in (scores, expected)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert 0 == saved_bytes(lambda: gate(x, torch.float32), x, gate.weight)
