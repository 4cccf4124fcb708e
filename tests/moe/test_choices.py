"""The further routers equal their formulas on dense T x E matrices. T tokens, E experts, K chosen, C capacity, D width."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from moe_cli.config.routers import (
    ExpertChoiceConfig,
    HashConfig,
    NoisyTopKConfig,
    ReluConfig,
    RouterConfig,
    SigmoidConfig,
    SinkhornConfig,
    SoftConfig,
    TopKConfig,
    check_router,
    gate_flops,
    gate_params,
)
from moe_cli.errors import ConfigError
from moe_cli.moe.experts import Experts
from moe_cli.moe.gates import CosineGate, MlpGate
from moe_cli.moe.layer import MoELayer
from moe_cli.moe.routers.hash_and_random import balanced_table
from moe_cli.moe.routers.registry import make_router
from moe_cli.moe.routers.sinkhorn import sinkhorn
from moe_cli.moe.routing import Routing, RoutingPolicy
from moe_cli.moe.routing_metrics import dropped_fraction
from moe_cli.moe.soft import SoftMoELayer
from tests.moe.formulas import dense, network

E, D = 8, 6


def tokens(num_tokens: int = 40, seed: int = 2) -> Tensor:
    return torch.randn(num_tokens, D, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def make(config: RouterConfig, top_k: int = 2, training: bool = False, **options: Any) -> Any:
    """A float64 router with weights of some strength."""
    torch.manual_seed(1)
    router = make_router(config, D, E, top_k, **options).double().train(training)
    for weight in router.parameters():
        torch.nn.init.normal_(weight)
    return router


def fresh(gate: Any) -> Any:
    gate.reset_parameters()
    return gate


def matrix(routing: Routing) -> Tensor:
    return dense(routing, routing.weights)


def largest(values: Tensor, k: int) -> Tensor:
    """T x E: whether a value is among its row's K largest."""
    return values >= values.sort(-1).values[:, -k, None]


@pytest.mark.parametrize("top_k", [2, 3, E])
def test_noisy_top_k_equals_its_formula(top_k: int) -> None:
    """softmax(KeepTopK(h)): in training h = x W_g + N(0, 1) softplus(x W_n), at evaluation without the noise."""
    router, x = make(NoisyTopKConfig(), top_k), tokens()
    clean = x @ router.gate.weight.T

    def formula(h: Tensor) -> Tensor:
        return torch.where(largest(h, top_k), h, -torch.inf).softmax(-1)

    assert torch.allclose(formula(clean), matrix(router(x)))
    assert router(x).clean_logits is None
    router.train()
    torch.manual_seed(5)
    routing = router(x)
    torch.manual_seed(5)
    std = torch.log1p(torch.exp(x @ router.noise_gate.weight.T))
    noisy = clean + torch.randn_like(clean) * std
    assert torch.allclose(formula(noisy), matrix(routing))
    for expected, actual in ((noisy, routing.logits), (clean, routing.clean_logits), (std, routing.noise_std)):
        assert torch.allclose(expected, actual)


def test_noise_has_its_learned_strength() -> None:
    """Over many draws the noise of an expert has mean zero and the standard deviation of the record."""
    router = make(NoisyTopKConfig(), training=True)
    routing = router(tokens(1).expand(20_000, D))
    noise = (routing.logits - routing.clean_logits) / routing.noise_std
    assert noise.mean().abs() < 0.02
    assert noise.std().item() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize(("renormalise", "scale"), [(True, 1.0), (True, 2.5), (False, 2.5)])
@pytest.mark.parametrize("groups", [(1, 1), (4, 2), (2, 1)])
def test_sigmoid_equals_its_formula(groups: tuple[int, int], renormalise: bool, scale: float) -> None:
    """Chosen by sigmoid + bias within the groups of the two best, weighted by the sigmoid over their sum, scaled."""
    config = SigmoidConfig(groups=groups[0], top_groups=groups[1], renormalise=renormalise, scale=scale)
    router, x = make(config), tokens()
    router.expert_bias.copy_(torch.linspace(-0.3, 0.3, E))
    scores = 1 / (1 + torch.exp(-x @ router.gate.weight.T))
    biased = scores + router.expert_bias
    by_group = biased.view(len(x), groups[0], -1)
    strength = by_group.sort(-1).values[..., -2:].sum(-1)
    allowed = largest(strength, groups[1]).repeat_interleave(E // groups[0], 1)
    chosen = largest(torch.where(allowed, biased, -torch.inf), 2)
    expected = scores * chosen
    if renormalise:
        expected = expected / expected.sum(-1, keepdim=True)
    routing = router(x)
    assert torch.allclose(scale * expected, matrix(routing))
    assert torch.allclose(scores / scores.sum(-1, keepdim=True), routing.probs)


def test_sinkhorn_balances_rows_and_columns() -> None:
    """After the iterations columns sum to 1 / E exactly and rows to 1 / T nearly; equal logits stay uniform."""
    plan = sinkhorn(tokens() @ torch.randn(D, E, dtype=torch.float64), 60)
    assert torch.allclose(torch.full((E,), 1 / E, dtype=torch.float64), plan.sum(0))
    assert torch.allclose(torch.full((40,), 1 / 40, dtype=torch.float64), plan.sum(1), rtol=1e-3)
    assert torch.allclose(torch.full((40, E), 1 / (40 * E)), sinkhorn(torch.zeros(40, E), 3))


@pytest.mark.parametrize("top_k", [1, 2])
def test_sinkhorn_chooses_by_balance_in_training_alone(top_k: int) -> None:
    """In training a favoured expert gets about its share, at evaluation all it is wanted for; weights are the softmax."""
    router, x = make(SinkhornConfig(iterations=30), top_k, training=True), tokens(400)
    x = x + 3 * router.gate.weight[2] / router.gate.weight[2].norm()  # everybody likes expert 2
    training, evaluation = router(x), router.eval()(x)
    fair = 400 * top_k / E
    assert fair * 0.5 < (training.expert_ids == 2).sum() < fair * 1.5
    assert (evaluation.expert_ids == 2).sum() > 2 * fair
    for routing in (training, evaluation):
        chosen = dense(routing, torch.ones_like(routing.weights))
        assert [float(top_k)] * 400 == chosen.sum(-1).tolist()
        expected = routing.probs * chosen
        if top_k > 1:
            expected = expected / expected.sum(-1, keepdim=True)
        assert torch.allclose(expected, matrix(routing))


@pytest.mark.parametrize(("factor", "capacity"), [(1.0, 10), (0.5, 5), (1.3, 13), (99.0, 40)])
def test_expert_choice_equals_its_formula(factor: float, capacity: int) -> None:
    """Every expert takes the C tokens of highest probability for it, C = ceil(factor T K / E), weighted by that."""
    router, x = make(ExpertChoiceConfig()), tokens()
    probs = (x @ router.gate.weight.T).softmax(-1)
    expected = probs * largest(probs.T, capacity).T
    routing = router(x, policy=RoutingPolicy(capacity_factor=factor))
    assert torch.allclose(expected, matrix(routing))
    assert [capacity] * E == torch.bincount(routing.expert_ids, minlength=E).tolist()


@pytest.mark.parametrize("weights", ["learned", "constant"])
@pytest.mark.parametrize("top_k", [1, 2, E])
def test_hash_keeps_to_its_table(top_k: int, weights: Any) -> None:
    """Equal ids go to the same K different experts, whatever the token; weights are the softmax over them, or 1 / K."""
    router, x = make(HashConfig(weights=weights), top_k, vocab_size=20), tokens()
    ids = torch.arange(40) % 20
    routing = router(x, ids)
    chosen = dense(routing, torch.ones_like(routing.weights))
    assert torch.equal(chosen[:20], chosen[20:])
    assert (top_k, 1.0) == (int(chosen.count_nonzero(1).unique()), chosen.max().item())
    if top_k == 1:
        assert torch.equal(balanced_table(20, E)[ids], routing.expert_ids)
    if weights == "constant":
        assert torch.allclose(chosen / top_k, matrix(routing))
        assert [] == list(router.parameters())
    elif top_k == 1:
        assert torch.allclose(routing.probs * chosen, matrix(routing))
    else:
        kept = routing.probs * chosen
        assert torch.allclose(kept / kept.sum(-1, keepdim=True), matrix(routing))


@pytest.mark.parametrize("vocab_size", [1, 7, 8, 256, 257])
def test_the_table_is_balanced_and_always_the_same(vocab_size: int) -> None:
    """Every expert has V / E ids, one more or less; another call gives the same table."""
    table = balanced_table(vocab_size, E)
    counts = torch.bincount(table, minlength=E)
    assert (vocab_size, True) == (len(table), bool(counts.max() - counts.min() <= 1))
    assert torch.equal(table, balanced_table(vocab_size, E))


def test_relu_equals_its_formula() -> None:
    """Weights are ReLU(x W), an assignment wherever that is above zero, and the penalty is the load-weighted L1 norm."""
    router, x = make(ReluConfig(l1=0.25)), tokens()
    expected = (x @ router.gate.weight.T).clamp(min=0)
    routing = router(x)
    assert torch.allclose(expected, matrix(routing))
    assert (int((expected > 0).sum()), None) == (len(routing.weights), routing.router_loss)
    load = (expected > 0).double().mean(0) * E / 2
    assert torch.allclose(0.25 * (expected * load).sum() / (40 * E), router.train()(x).router_loss)


@pytest.mark.usefixtures("unchecked_shapes")
def test_relu_comes_to_the_sparsity_asked_for() -> None:
    """The coefficient rises while too many experts fire and falls when too few do, and training ends near K on average."""
    router, x = (
        make(ReluConfig(l1=0.5, l1_rate=1.02), training=True),
        tokens(200) + 2.0,
    )  # of a mean: w x > 0 can be unlearned
    before = router.l1.item()
    router.after_step(torch.full((E,), 200), 200)
    assert router.l1.item() == pytest.approx(1.02 * before)
    router.after_step(torch.full((E,), 10), 200)
    assert router.l1.item() == pytest.approx(before)
    router.after_step(torch.full((E,), 50), 200)
    assert router.l1.item() == pytest.approx(before)
    optimizer, fired = torch.optim.SGD(router.parameters(), lr=0.05), []
    for _ in range(600):
        optimizer.zero_grad()
        routing = router(x)
        # A task that likes every weight at 1, against which the penalty has to push.
        (routing.router_loss + (routing.logits - 1).square().mean()).backward()
        optimizer.step()
        router.after_step(torch.bincount(routing.expert_ids, minlength=E), 200)
        fired.append(len(routing.weights) / 200)
    assert fired[0] > 3
    assert sum(fired[-200:]) / 200 == pytest.approx(2, abs=0.3)


@pytest.mark.parametrize("slots", [1, 3])
def test_soft_equals_its_formula(slots: int) -> None:
    """Slots are mixtures over positions, experts answer slots, tokens mix answers: the paper's three lines."""
    torch.manual_seed(0)
    layer = SoftMoELayer(D, 4, 5, slots).double()
    x = torch.randn(3, 7, D, dtype=torch.float64)
    y, routing = layer(x)
    unit = layer.router.phi / layer.router.phi.norm(dim=1, keepdim=True)
    for sequence, answer in zip(x, y, strict=True):
        logits = sequence / sequence.norm(dim=1, keepdim=True) @ unit.T * layer.router.scale
        mixed = logits.softmax(0).T @ sequence
        answers = [
            network(
                mixed[slot, None], layer.experts.w_in[slot // slots], layer.experts.w_out[slot // slots], "glu", "silu"
            )
            for slot in range(4 * slots)
        ]
        assert torch.allclose(logits.softmax(1) @ torch.cat(answers), answer)
    assert torch.allclose(torch.ones(21, dtype=torch.float64), matrix(routing).sum(-1))
    assert [21] * 4 == torch.bincount(routing.expert_ids).tolist()
    assert torch.allclose(routing.logits.softmax(-1), routing.probs)


@pytest.mark.parametrize("score", ["cosine", "mlp", "activation"])
def test_scores_equal_their_formulas(score: Any) -> None:
    """The cosine over a temperature, two layers with a ReLU, and the norm of the expert's own first products."""
    torch.manual_seed(0)
    experts = Experts(E, D, 24, D).double()
    experts.reset_parameters()
    router, x = make(TopKConfig(score=score, temperature=0.5), experts=experts), tokens()
    gate = router.gate
    if score == "cosine":
        a, b = x @ gate.projection.T, gate.embedding
        cosine = (a @ b.T) / (a.norm(dim=1)[:, None] * b.norm(dim=1))
        expected = cosine * gate.log_scale.clamp(max=math.log(100)).exp()
    elif score == "mlp":
        expected = (x @ gate.hidden.T).clamp(min=0) @ gate.out.T
    else:
        expected = torch.stack([(x @ w_in[:16].T).square().sum(-1).sqrt() for w_in in experts.w_in], 1)
    assert torch.allclose(expected / 0.5, router(x).logits)
    params = sum(param.numel() for param in router.parameters())
    assert params == gate_params(TopKConfig(score=score), D, E)
    with FlopCounterMode(display=False) as counter:
        router(x)
    assert counter.get_total_flops() == len(x) * gate_flops(TopKConfig(score=score), D, E)


def test_fresh_gates_start_as_their_papers_say() -> None:
    """A cosine gate at temperature 0.5, an mlp gate that keeps its input's scale, noise of softplus(0) for every token."""
    torch.manual_seed(0)
    wide = 256
    assert abs(math.log(1 / 0.5) - fresh(CosineGate(wide, E)).log_scale) < 1e-6
    assert abs(fresh(MlpGate(wide, E)).hidden.std() * wide**0.5 - 1) < 0.05
    router = fresh(make_router(NoisyTopKConfig(), wide, E, 2))
    assert torch.allclose(torch.full((3, E), math.log(2)), router(torch.randn(3, wide)).noise_std)


def test_the_temperature_of_a_cosine_gate_stays_above_a_hundredth() -> None:
    """However far training pushes it: the scale of the cosine is at most 100 (X-MoE, arXiv:2204.09179, section 4.2)."""
    gate = fresh(CosineGate(D, E))
    torch.nn.init.constant_(gate.log_scale, 9.0)
    assert 100 >= gate(torch.randn(200, D)).abs().max() > 1


def test_an_expert_that_scores_itself_learns_only_if_chosen() -> None:
    """With score=activation, experts without tokens have a gradient of exactly zero."""
    torch.manual_seed(0)
    layer = MoELayer(D, E, 2, 24, router=TopKConfig(score="activation"))
    layer.router.expert_bias[3] = -1e9
    y, routing = layer(tokens().float())
    y.square().sum().backward()
    assert not layer.experts.w_in.grad[3].any()
    assert layer.experts.w_in.grad[int(routing.expert_ids[0])].any()


@pytest.mark.parametrize(
    "config",
    [
        NoisyTopKConfig(),
        SigmoidConfig(),
        SinkhornConfig(),
        ReluConfig(),
        HashConfig(),
        HashConfig(weights="constant"),
        ExpertChoiceConfig(),
        SigmoidConfig(score="cosine", null_experts=3),
        TopKConfig(score="mlp"),
    ],
)
def test_gates_have_as_many_parameters_as_they_are_said_to(config: RouterConfig) -> None:
    """gate_params, from the configuration alone, counts the router's parameters."""
    router = make_router(config, D, E, 2, vocab_size=9)
    assert sum(param.numel() for param in router.parameters()) == gate_params(config, D, E)


def test_null_experts_compute_nothing() -> None:
    """Choices past the last expert add nothing, are counted in the record, and take weight from the others."""
    torch.manual_seed(0)
    layer = MoELayer(D, 4, 2, 5, router=TopKConfig(null_experts=2)).double()
    torch.nn.init.normal_(layer.router.gate.weight)
    x = tokens()
    y, routing = layer(x)
    assert (6, 80) == (routing.num_experts, len(routing.expert_ids))
    assert (routing.expert_ids >= 4).any()
    logits = x @ layer.router.gate.weight.T
    weights = torch.where(largest(logits, 2), logits, -torch.inf).softmax(-1)
    answers = [network(x, layer.experts.w_in[e], layer.experts.w_out[e], "glu", "silu") for e in range(4)]
    expected = sum(weights[:, e, None] * answers[e] for e in range(4))
    assert torch.allclose(expected, y)


@pytest.mark.parametrize("drop", ["position", "probability", "random"])
@pytest.mark.parametrize("training", [True, False])
def test_null_experts_take_no_room_and_need_none(drop: str, training: bool) -> None:
    """C = ceil(1.0 * 64 * 2 / 8) = 16 with four null experts too, which keep all that asks for them."""
    layer = MoELayer(D, 8, 2, 5, router=TopKConfig(null_experts=4), capacity_factor=1.0, drop=drop).train(training)
    layer.router.expert_bias[torch.tensor([3, 10])] = 5.0
    _, routing = layer(torch.randn(64, D), policy=RoutingPolicy(capacity_factor=1.0))
    kept = routing.kept_per_expert
    assert [16 if expert == 3 else 64 if expert == 10 else 0 for expert in range(12)] == kept.tolist()
    assert dropped_fraction(routing).item() == pytest.approx(48 / 64)


def test_padding_takes_its_token_ids_along() -> None:
    """With a mask, router=hash looks up the ids of the tokens that are there."""
    torch.manual_seed(0)
    layer = MoELayer(D, 4, 1, 5, router=HashConfig(), vocab_size=9).double()
    ids, mask = torch.arange(8), torch.tensor([False, True] * 4)
    x = tokens(8)
    _, routing = layer(x, ids, mask)
    assert torch.equal(layer.router.table[ids[mask]], routing.expert_ids)


def test_a_layer_renormalises_after_drops_if_asked() -> None:
    """The kept weights of a token that lost a choice sum to what all its weights summed to."""
    torch.manual_seed(0)
    sums = {}
    for asked in (False, True):
        layer = MoELayer(D, 4, 2, 5, capacity_factor=0.5, renormalise_after_drop=asked).double()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            torch.nn.init.normal_(layer.router.gate.weight)
        routing = layer(tokens())[1]
        sums[asked] = dense(routing, routing.weights * routing.kept).sum(-1)
    one = torch.ones(40, dtype=torch.float64)
    assert torch.allclose(one.where(sums[False] > 0, 0 * one), sums[True])
    assert ((sums[False] > 0) & (sums[False] < 0.99)).any()


def test_padding_is_invisible() -> None:
    """Masked tokens get zero, appear in no record, take no room, and change nothing for the others."""
    torch.manual_seed(0)
    layer = MoELayer(D, 4, 2, 5, capacity_factor=0.5).double()
    torch.nn.init.normal_(layer.router.gate.weight)
    x = tokens(24).view(2, 12, D)
    mask = torch.ones(2, 12, dtype=torch.bool)
    mask[0, 5:] = False
    y, routing = layer(x, mask=mask)
    alone, expected = layer(x[mask])
    assert torch.equal(alone, y[mask])
    assert not y[~mask].any()
    assert torch.equal(expected.kept, routing.kept)
    assert (17, 34) == (routing.num_tokens, len(routing.kept))


@pytest.mark.parametrize("training", [True, False])
def test_temperature_divides_the_logits(training: bool) -> None:
    """A high temperature makes the choice nearly even in weight."""
    cold, hot = (make(TopKConfig(temperature=value), training=training)(tokens()) for value in (1.0, 100.0))
    assert torch.allclose(cold.logits / 100, hot.logits)
    assert torch.allclose(torch.full_like(hot.weights, 0.5), hot.weights, atol=0.05)


REFUSED: list[tuple[RouterConfig, int, str]] = [
    (ExpertChoiceConfig(), 2, "router=expert_choice looks at later tokens"),
    (SoftConfig(), 2, "router=soft looks at later tokens"),
    (TopKConfig(renormalise=True), 1, "k=1 with router.renormalise=true"),
    (SigmoidConfig(renormalise=True), 1, "k=1 with router.renormalise=true"),
    (NoisyTopKConfig(), 1, "k=1: router=noisy_topk takes the softmax over the chosen"),
    (SigmoidConfig(groups=3), 2, "router.groups=3 cannot divide expert=8"),
    (SigmoidConfig(groups=8), 2, "router.groups=8 cannot divide expert=8"),
    (SigmoidConfig(groups=4), 3, "k=3 is more than router.top_groups=1 groups of 2 experts hold"),
]


@pytest.mark.parametrize(("config", "top_k", "message"), REFUSED)
def test_what_a_router_cannot_do_is_refused(config: RouterConfig, top_k: int, message: str) -> None:
    """In a causal model, at this K and E, in words that begin with the setting."""
    with pytest.raises(ConfigError) as error:
        check_router(config, E, top_k, causal=True)
    assert str(error.value).startswith(message)
    if isinstance(config, ExpertChoiceConfig | SoftConfig):
        check_router(config, E, top_k, causal=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "router.temperature=0.0 must be "),
        ({"null_experts": -1}, "router.null_experts=-1 is too small"),
        ({"score": "activation", "null_experts": 1}, "router.null_experts=1 with router.score=activation"),
    ],
)
def test_options_have_their_ranges(options: dict[str, Any], message: str) -> None:
    """Options that all token-choice routers share are refused outside their ranges."""
    with pytest.raises(ConfigError) as error:
        TopKConfig(**options)
    assert str(error.value).startswith(message)
