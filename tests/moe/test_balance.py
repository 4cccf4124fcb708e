"""Balancing losses and biases in closed form. T tokens, E experts, K chosen per token, f and P the shares of eq. 4."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from moe_cli.config import balances
from moe_cli.config.balances import (
    BalanceConfig,
    CombinedBalance,
    LossFreeBalance,
    NoBalance,
    QuantileBalance,
    SwitchBalance,
    WeightedBalance,
)
from moe_cli.config.build import names_of_variants
from moe_cli.config.routers import TopKConfig
from moe_cli.config.schema import RunConfig
from moe_cli.moe.balance import (
    LOSSES,
    auxiliary_losses,
    bias_method,
    entropy_loss,
    importance_loss,
    load_balancing_loss,
    load_loss,
    loss_free_bias,
    mutual_information_loss,
    quantile_bias,
    router_z_loss,
)
from moe_cli.moe.max_violation import max_violation
from moe_cli.moe.routers.registry import make_router
from moe_cli.moe.routers.router import top_indices
from moe_cli.moe.routing import Routing, drop_overflow, routing_from_top_k
from tests.moe.formulas import dense

E = 8
every_k = pytest.mark.parametrize("top_k", [1, 2, 3, E])


def routing_of(logits: Tensor, chosen: Tensor) -> Routing:
    probs = logits.softmax(-1)
    return routing_from_top_k(logits, probs, chosen, probs.gather(1, chosen))


def record_of(weights: Tensor) -> Routing:
    """Every token with every expert, with these weights."""
    token_ids, expert_ids = torch.ones_like(weights).nonzero().unbind(1)
    kept = torch.ones(len(token_ids), dtype=torch.bool)
    return Routing(weights, weights, token_ids, expert_ids, weights.flatten(), kept)


def squared_cv(values: Tensor) -> Tensor:
    return values.var(correction=0) / values.mean() ** 2


def random_logits(num_tokens: int, seed: int = 0) -> Tensor:
    return torch.randn(num_tokens, E, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def in_turn(top_k: int, num_tokens: int = 2 * E) -> Tensor:
    """Choices that use every expert equally: token t takes experts t, t + 1, ... in a circle."""
    return (torch.arange(num_tokens)[:, None] + torch.arange(top_k)) % E


@every_k
def test_balanced_loss_is_one_for_every_k(top_k: int) -> None:
    """Even choices cost exactly 1 whatever the probabilities, and even probabilities whatever the choices."""
    torch.manual_seed(0)
    logits = torch.randn(2 * E, E, dtype=torch.float64)
    even_choices = routing_of(logits, in_turn(top_k))
    even_probabilities = routing_of(torch.zeros_like(logits), top_indices(logits, top_k))
    assert load_balancing_loss(even_choices).item() == pytest.approx(1, abs=1e-12)
    assert load_balancing_loss(even_probabilities).item() == pytest.approx(1, abs=1e-12)


@every_k
def test_all_to_one_costs_experts_over_k(top_k: int) -> None:
    """When every token is sure of one expert, that expert has 1 / K of the assignments and the loss is E / K."""
    logits = torch.full((10, E), -1000.0, dtype=torch.float64)
    logits[:, 3] = 0
    assert load_balancing_loss(routing_of(logits, top_indices(logits, top_k))).item() == pytest.approx(E / top_k)


@given(st.integers(1, E), st.floats(0, 30), st.integers(0, 1000))
def test_no_routing_costs_more_than_all_to_one(top_k: int, strength: float, seed: int) -> None:
    """E / K is the most that any top-K routing costs."""
    logits = strength * torch.randn(12, E, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    loss = load_balancing_loss(routing_of(logits, top_indices(logits, top_k))).item()
    assert 0 < loss <= E / top_k + 1e-9


def test_balancing_loss_by_hand() -> None:
    """Three of four first choices on expert 0, mean probabilities (0.65, 0.35): 2 * (0.75 * 0.65 + 0.25 * 0.35)."""
    probs = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.6, 0.4], [0.3, 0.7]], dtype=torch.float64)
    routing = routing_of(probs.log(), probs.argmax(-1, keepdim=True))
    assert load_balancing_loss(routing).item() == pytest.approx(2 * (0.75 * 0.65 + 0.25 * 0.35))


@every_k
def test_balancing_loss_counts_before_drops(top_k: int) -> None:
    """The balancing loss counts assignments before drops."""
    torch.manual_seed(0)
    logits = torch.randn(20, E, dtype=torch.float64)
    routing = routing_of(logits, top_indices(logits, top_k))
    dropped = drop_overflow(routing, 1)
    assert not dropped.kept.all()
    assert load_balancing_loss(routing) == load_balancing_loss(dropped)


def test_balancing_loss_teaches_through_the_probabilities_alone() -> None:
    """d loss / d p_ti = (E / K) f_i / T: the counts are constants."""
    torch.manual_seed(0)
    logits = torch.randn(6, E, dtype=torch.float64)
    routing = routing_of(logits, top_indices(logits, 2))
    probs = routing.probs.clone().requires_grad_()
    load_balancing_loss(replace(routing, probs=probs)).backward()
    asked_per_token = routing.tokens_per_expert / 6
    assert torch.allclose((E / 2 * asked_per_token / 6).expand(6, E).double(), probs.grad, atol=1e-6)


@pytest.mark.parametrize("num_experts", [1, 2, 8, 64])
def test_z_loss_of_zero_logits(num_experts: int) -> None:
    """Zero logits cost (ln E)^2."""
    loss = router_z_loss(torch.zeros(5, num_experts, dtype=torch.float64))
    assert loss.item() == pytest.approx(math.log(num_experts) ** 2)


def test_z_loss_is_a_mean_of_squares() -> None:
    """Logits shifted by c_t cost the mean over tokens of (ln E + c_t)^2."""
    shift = torch.tensor([-3.0, 0.0, 2.0], dtype=torch.float64)
    loss = router_z_loss(torch.zeros(3, E, dtype=torch.float64) + shift[:, None])
    assert loss.item() == pytest.approx(((math.log(E) + shift) ** 2).mean().item())


def test_bias_update_by_hand() -> None:
    """The bias of an overloaded expert falls by the rate, of an idle one rises, of an average one stays."""
    bias = torch.tensor([0.5, 0.5, 0.5, 0.5])
    updated = loss_free_bias(bias, torch.tensor([7, 5, 5, 3]), 0.1)
    assert torch.allclose(torch.tensor([0.4, 0.5, 0.5, 0.6]), updated)
    assert torch.float32 == updated.dtype
    assert torch.equal(torch.full((4,), 0.5), bias)


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=16), st.floats(1e-4, 1))
def test_bias_moves_against_the_load(load: list[int], rate: float) -> None:
    """Every expert's bias moves by the rate, away from its deviation from the mean load, or not at all."""
    moved = loss_free_bias(torch.zeros(len(load), dtype=torch.float64), torch.tensor(load), rate)
    for count, step in zip(load, moved.tolist(), strict=True):
        deviation = count * len(load) - sum(load)
        assert step == (-rate if deviation > 0 else rate if deviation < 0 else 0)


def test_the_bias_evens_out_a_skewed_gate() -> None:
    """Repeated updates bring a gate that prefers one expert to an almost even load."""
    torch.manual_seed(0)
    router = make_router(TopKConfig(), E, E, 2)
    x = torch.randn(512, E) + 1
    torch.nn.init.eye_(router.gate.weight)
    router.gate.weight.data[0] += 0.3
    before = max_violation(router(x).tokens_per_expert.tolist())
    for _ in range(300):
        router.expert_bias.copy_(loss_free_bias(router.expert_bias, router(x).tokens_per_expert, 0.005))
    assert before > 1
    assert max_violation(router(x).tokens_per_expert.tolist()) < 0.2


@pytest.mark.parametrize("num_sequences", [1, 2, 5, 20])
@every_k
def test_the_loss_by_sequence_is_the_mean_of_sequences_alone(top_k: int, num_sequences: int) -> None:
    """DeepSeek-V3's loss is that of every sequence by itself, averaged; drops in any order change nothing."""
    logits = 3 * random_logits(20)
    routing = routing_of(logits, top_indices(logits, top_k))
    parts = [routing_of(part, top_indices(part, top_k)) for part in logits.chunk(num_sequences)]
    expected = sum(load_balancing_loss(part).item() for part in parts) / num_sequences
    assert load_balancing_loss(routing, num_sequences=num_sequences).item() == pytest.approx(expected)
    reordered = drop_overflow(routing, 2, "probability")
    assert load_balancing_loss(reordered, num_sequences=num_sequences).item() == pytest.approx(expected)


def test_even_over_the_batch_is_not_even_over_each_sequence() -> None:
    """Sequences that each stay with one expert are balanced as a batch and collapsed one by one."""
    logits = torch.full((E, E), -1000.0, dtype=torch.float64).fill_diagonal_(0).repeat_interleave(3, 0)
    routing = routing_of(logits, top_indices(logits, 1))
    assert load_balancing_loss(routing).item() == pytest.approx(1)
    assert load_balancing_loss(routing, num_sequences=E).item() == pytest.approx(E)


@every_k
def test_counts_of_a_whole_step_give_the_global_loss(top_k: int) -> None:
    """Over equal micro-batches, the mean of losses with the step's counts is the loss of the step as one batch."""
    logits = 3 * random_logits(24)
    whole = routing_of(logits, top_indices(logits, top_k))
    parts = [routing_of(part, top_indices(part, top_k)) for part in logits.chunk(4)]
    assigned_counts = whole.tokens_per_expert
    losses = [load_balancing_loss(part, assigned_counts=assigned_counts).item() for part in parts]
    assert sum(losses) / 4 == pytest.approx(load_balancing_loss(whole).item())
    assert load_balancing_loss(whole, assigned_counts=assigned_counts) == load_balancing_loss(whole)


def test_importance_by_hand() -> None:
    """Sums of weights 3 and 1: variance 1 over mean 2 squared."""
    weights = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.5], [0.0, 0.5]], dtype=torch.float64)
    assert importance_loss(record_of(weights)).item() == pytest.approx(1 / 4)


@every_k
def test_importance_of_k_equal_experts(top_k: int) -> None:
    """Even weights cost 0; K of E that share all weight alike cost E / K - 1."""
    weights = torch.zeros(5, E, dtype=torch.float64)
    weights[:, :top_k] = 0.3
    assert importance_loss(record_of(weights)).item() == pytest.approx(E / top_k - 1, abs=1e-12)
    assert importance_loss(record_of(torch.full_like(weights, 0.7))).item() == pytest.approx(0, abs=1e-12)


@every_k
def test_importance_of_a_routing_is_that_of_its_weights_laid_out(top_k: int) -> None:
    """The loss of the configuration is Shazeer's on the T x E matrix of all weights asked for, and teaches them."""
    logits = random_logits(20).requires_grad_()
    routing = drop_overflow(routing_of(logits, top_indices(logits.detach(), top_k)), 1)
    loss = only_loss(balances.WeightedBalance(name="importance"), [routing])
    assert loss.item() == pytest.approx(squared_cv(dense(routing, routing.weights).sum(0)).item())
    loss.backward()
    assert logits.grad is not None
    assert logits.grad.abs().sum() > 0


def noisy(num_tokens: int = 12) -> tuple[Tensor, Tensor, Tensor]:
    """Clean logits, noisy ones, and the standard deviation of the noise."""
    clean, noise = random_logits(num_tokens), random_logits(num_tokens, seed=1)
    std = torch.nn.functional.softplus(random_logits(num_tokens, seed=2))
    return clean, clean + std * noise, std


@pytest.mark.parametrize("top_k", [1, 2, 3, E - 1])
def test_load_is_the_chance_to_be_chosen_again(top_k: int) -> None:
    """Against the appendix of Shazeer word for word: the K-th best of the others, expert by expert."""
    clean, noisy_logits, std = noisy()
    load = torch.zeros(E, dtype=torch.float64)
    normal = torch.distributions.Normal(0, 1)
    for token in range(12):
        for expert in range(E):
            others = [noisy_logits[token, other].item() for other in range(E) if other != expert]
            threshold = sorted(others, reverse=True)[top_k - 1]
            load[expert] += normal.cdf((clean[token, expert] - threshold) / std[token, expert])
    expected = ((load - load.mean()) ** 2).mean() / load.mean() ** 2
    assert load_loss(clean, noisy_logits, std, top_k).item() == pytest.approx(expected.item())


@pytest.mark.parametrize("top_k", [1, 3])
def test_load_with_little_noise_is_the_load(top_k: int) -> None:
    """As the noise vanishes the estimate becomes the counts, and the loss their squared variation."""
    clean, _, std = noisy(40)
    counts = routing_of(clean, top_indices(clean, top_k)).tokens_per_expert.double()
    expected = counts.var(correction=0) / counts.mean() ** 2
    assert load_loss(clean, clean, 1e-9 * std, top_k).item() == pytest.approx(expected.item())


def test_load_of_all_experts_is_even() -> None:
    """With K = E nothing is left to balance: 0."""
    assert 0 == load_loss(*noisy(), E).item()


@pytest.mark.parametrize("name", LOSSES)
@every_k
def test_a_process_with_an_empty_batch_calls_the_same_collectives(
    monkeypatch: pytest.MonkeyPatch, name: str, top_k: int
) -> None:
    """Each loss calls all_reduce_mean equally often, with equal sizes, with 12 tokens and with none."""
    sizes: list[list[torch.Size]] = []
    for num_tokens in (12, 0):
        calls: list[torch.Size] = []
        monkeypatch.setattr(
            "moe_cli.moe.balance.all_reduce_mean", lambda values, calls=calls: calls.append(values.shape) or values
        )
        clean, noisy_logits, std = noisy(num_tokens)
        routing = routing_of(noisy_logits, top_indices(noisy_logits, top_k))
        only_loss(WeightedBalance(name=name), [replace(routing, clean_logits=clean, noise_std=std)])  # type: ignore[arg-type]
        sizes.append(calls)
    assert sizes[0] == sizes[1]


def test_load_teaches_gate_and_noise() -> None:
    """The loss has a gradient to clean logits and to the noise's deviation, finite everywhere."""
    clean, _, std = (each.detach().requires_grad_() for each in noisy())
    load_loss(clean, clean + std * random_logits(12, seed=1), std, 2).backward()
    for leaf in (clean, std):
        assert leaf.grad is not None
        assert torch.isfinite(leaf.grad).all()
        assert leaf.grad.abs().sum() > 0


@every_k
def test_load_of_a_routing_is_that_of_its_noise(top_k: int) -> None:
    """The loss of the configuration reads clean and noisy logits, deviation and K from the Routing."""
    clean, noisy_logits, std = noisy()
    routing = routing_of(noisy_logits, top_indices(noisy_logits, top_k))
    routing = replace(routing, clean_logits=clean, noise_std=std)
    expected = load_loss(clean, noisy_logits, std, top_k)
    assert expected.item() == only_loss(balances.WeightedBalance(name="load"), [routing]).item()


@pytest.mark.parametrize("wanted", [1, 2, 4, E])
def test_entropy_of_even_probabilities(wanted: int) -> None:
    """Mean probabilities even over n experts cost -ln n / ln E: -1 over all, 0 on one."""
    probs = torch.eye(wanted, E, dtype=torch.float64)
    assert entropy_loss(probs).item() == pytest.approx(-math.log(wanted) / math.log(E), abs=1e-12)


@pytest.mark.parametrize("wanted", [1, 2, 4, E])
def test_mutual_information_of_sure_tokens(wanted: int) -> None:
    """Tokens that are sure and spread over n experts cost -ln n / ln E; tokens that are all alike cost 0."""
    sure = torch.eye(wanted, E, dtype=torch.float64)
    alike = random_logits(1).softmax(-1).expand(6, E)
    assert mutual_information_loss(sure).item() == pytest.approx(-math.log(wanted) / math.log(E), abs=1e-12)
    assert mutual_information_loss(alike).item() == pytest.approx(0, abs=1e-12)


def test_mutual_information_by_its_definition() -> None:
    """sum over tokens and experts of p(t, i) ln(p(t, i) / p(t) p(i)), with p(t) = 1 / T."""
    probs = random_logits(7).softmax(-1)
    information = (probs / 7 * (probs / probs.mean(0)).log()).sum() / math.log(E)
    assert mutual_information_loss(probs).item() == pytest.approx(-information.item())


@pytest.mark.parametrize("loss", [entropy_loss, mutual_information_loss])
def test_entropies_have_a_gradient_where_a_probability_is_zero(loss: Any) -> None:
    """A gate that is sure to the last bit gives a finite gradient."""
    logits = torch.tensor([[0.0, -200.0], [0.0, -1.0]], requires_grad=True)
    loss(logits.softmax(-1)).backward()
    assert torch.isfinite(logits.grad).all()


def load_with(probs: Tensor, bias: Tensor, top_k: int) -> Tensor:
    return torch.bincount(top_indices(probs + bias, top_k).flatten(), minlength=probs.shape[1])


@pytest.mark.parametrize(("num_experts", "top_k"), [(4, 1), (8, 1), (8, 2), (16, 4), (8, 7)])
@pytest.mark.parametrize("favour", [0.0, 2.0, 6.0])
def test_the_quantile_bias_evens_out_the_batch_it_was_set_on(num_experts: int, top_k: int, favour: float) -> None:
    """From no bias and a gate that favours one expert, the load of the same tokens becomes nearly even."""
    logits = torch.randn(1024, num_experts, generator=torch.Generator().manual_seed(0))
    logits[:, 0] += favour
    probs = logits.softmax(-1)
    bias = quantile_bias(torch.zeros(num_experts), probs, top_k, iterations=8)
    assert max_violation(load_with(probs, bias, top_k).tolist()) < 0.05
    assert bias.mean().item() == pytest.approx(0, abs=1e-6)


def test_two_experts_are_divided_at_the_median() -> None:
    """With E = 2 and K = 1 one turn is exact: expert 0 gets the half of the tokens that prefer it most."""
    probs = random_logits(100)[:, :2].softmax(-1)
    bias = quantile_bias(torch.zeros(2, dtype=torch.float64), probs, 1, iterations=1)
    preference = probs[:, 0] - probs[:, 1]
    chosen = top_indices(probs + bias, 1).flatten()
    assert torch.equal(preference > preference.median(), chosen == 0)


def test_an_even_batch_needs_no_bias() -> None:
    """Where every token is sure of its own share of the experts, the choice stays what it was."""
    probs = (10 * torch.eye(E, dtype=torch.float64).repeat(4, 1)).softmax(-1)
    bias = quantile_bias(torch.zeros(E, dtype=torch.float64), probs, 1, iterations=4)
    assert torch.allclose(torch.zeros(E, dtype=torch.float64), bias)


@pytest.mark.parametrize(("num_tokens", "top_k"), [(6, E), (1, 2), (3, 1)])
def test_the_quantile_bias_of_little_is_finite(num_tokens: int, top_k: int) -> None:
    """All experts chosen, one token, fewer tokens than experts: no error, and a bias that is a number."""
    bias = quantile_bias(torch.zeros(E), random_logits(num_tokens).softmax(-1).float(), top_k, iterations=3)
    assert torch.isfinite(bias).all()


def collapsed(expert: int) -> Routing:
    logits = torch.full((10, E), -1000.0, dtype=torch.float64)
    logits[:, expert] = 0
    return routing_of(logits, top_indices(logits, 1))


def only_loss(balance: BalanceConfig, routings: list[Routing], **context: Any) -> Tensor:
    """The loss of a configuration that has one."""
    (loss,) = auxiliary_losses(balance, routings, **context).values()
    return loss


@pytest.mark.parametrize("scope", ["batch", "sequence", "global"])
def test_opposite_collapses_of_two_layers_do_not_cancel(scope: Any) -> None:
    """The loss is averaged over layers, never pooled: two collapsed layers cost as much as one."""
    loss = only_loss(SwitchBalance(scope=scope), [collapsed(0), collapsed(1)], num_sequences=2)
    assert loss.item() == pytest.approx(E)


EXPECTED = {
    "switch": load_balancing_loss,
    "importance": lambda routing: squared_cv(dense(routing, routing.weights).sum(0)),
    "load": lambda routing: load_loss(routing.clean_logits, routing.logits, routing.noise_std, 2),
    "z": lambda routing: router_z_loss(routing.logits),
    "entropy": lambda routing: entropy_loss(routing.probs),
    "mutual_information": lambda routing: mutual_information_loss(routing.probs),
}


def three_layers() -> list[Routing]:
    routings = []
    for seed in range(3):
        logits = random_logits(2 * E, seed)
        std = torch.ones_like(logits)
        routings.append(replace(routing_of(logits, in_turn(2)), clean_logits=logits - 0.1, noise_std=std))
    return routings


def balance_of(name: str) -> Any:
    """The configuration of a loss by its name."""
    return SwitchBalance() if name == "switch" else WeightedBalance(name=name)


@pytest.mark.parametrize("name", LOSSES)
def test_auxiliary_loss_is_the_mean_over_layers(name: str) -> None:
    """Each layer is measured by the loss that the config names, before its weight."""
    layers = three_layers()
    expected = sum(EXPECTED[name](routing).item() for routing in layers) / 3
    assert only_loss(balance_of(name), layers).item() == pytest.approx(expected)


def test_every_loss_of_a_combination_is_measured_by_itself() -> None:
    """switch+z+loss_free gives the losses of switch and of z, and the bias method."""
    balance = CombinedBalance(
        "switch+z+loss_free", switch=SwitchBalance(), z=WeightedBalance(name="z"), loss_free=LossFreeBalance()
    )
    layers = three_layers()
    losses = auxiliary_losses(balance, layers)
    assert {
        SwitchBalance(): only_loss(SwitchBalance(), layers),
        WeightedBalance(name="z"): only_loss(WeightedBalance(name="z"), layers),
    } == losses
    assert LossFreeBalance() == bias_method(balance)


def test_scopes_take_their_share_of_the_step() -> None:
    """`sequence` looks at each sequence of the batch, `global` at the counts it is given, `batch` at neither."""
    layers = [collapsed(0)]
    even = [torch.full((E,), 10)]
    context: dict[str, Any] = {"step_counts": even, "num_sequences": 2}
    expected = {"batch": E, "sequence": E, "global": 1}
    for scope, loss in expected.items():
        balance = SwitchBalance(scope=scope)  # type: ignore[arg-type]
        assert only_loss(balance, layers, **context).item() == pytest.approx(loss)
    apart = torch.full((2, E), -1000.0, dtype=torch.float64)
    apart[0, 0] = apart[1, 1] = 0
    layers = [routing_of(apart, top_indices(apart, 1))]
    expected = {"batch": E / 2, "sequence": E, "global": 1}
    for scope, loss in expected.items():
        balance = SwitchBalance(scope=scope)  # type: ignore[arg-type]
        assert only_loss(balance, layers, **context).item() == pytest.approx(loss)


@pytest.mark.parametrize("balance", [None, NoBalance(), LossFreeBalance(), QuantileBalance()])
def test_nothing_to_add_is_empty(balance: BalanceConfig | None) -> None:
    """Without a loss to add there is none, so that the loop adds nothing."""
    assert {} == auxiliary_losses(balance, [collapsed(0)])


def test_a_dense_model_has_no_auxiliary_loss() -> None:
    """A model without expert layers has no routings and no loss."""
    assert {} == auxiliary_losses(SwitchBalance(), [])


def test_every_balance_is_a_loss_a_bias_or_none() -> None:
    """Each method of the schema has a loss, or sets the bias, or is known to do nothing."""
    assert {*LOSSES, "switch", "loss_free", "quantile", "none"} == names_of_variants(RunConfig, "balance") - {"+"}
    for kind in (LossFreeBalance, QuantileBalance):
        assert kind() == bias_method(kind())
    assert {None} == {bias_method(each) for each in (*map(balance_of, LOSSES), SwitchBalance(), NoBalance(), None)}
