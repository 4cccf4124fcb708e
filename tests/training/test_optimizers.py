"""Optimizers and schedules. R rows, C columns, N matrices."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from moe_cli.config.optim import AdamWConfig, MuonConfig, SGDConfig
from moe_cli.models.registry import make_model
from moe_cli.moe.layer import MoELayer
from moe_cli.training import optimizers as module
from moe_cli.training.optimizers import (
    ExpertAdamW,
    ExpertSGD,
    Muon,
    Optimizers,
    make_optimizers,
    orthogonalise,
)
from tests.tiny import tiny_config

SHAPES = [(6, 6), (4, 9), (9, 4), (1, 5), (5, 1)]


def matrices(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def stepped(start: dict[str, Tensor], config: Any, steps: int = 3) -> nn.Module:
    """A module with these parameters after some steps on gradients that depend on name and step alone."""
    module = nn.Module()
    for name, value in start.items():
        module.register_parameter(name, nn.Parameter(value.clone()))
    optimizers = make_optimizers(config, module)
    for step in range(steps):
        for number, param in enumerate(module.parameters()):
            param.grad = matrices(*param.shape, seed=10 * step + number)
        optimizers.step(0, 0.5)
    return module


@pytest.mark.parametrize("shape", SHAPES)
def test_singular_values_come_near_one(shape: tuple[int, int]) -> None:
    """Newton-Schulz brings singular values that are not tiny into the quintic's interval, for wide and for tall."""
    rows, columns = shape
    small = min(shape)
    u, v = (torch.linalg.qr(matrices(3, size, small)).Q for size in shape)
    values = torch.linspace(0.2, 1.0, small, dtype=torch.float64)
    x = orthogonalise(1e-3 * u @ torch.diag(values) @ v.mT)
    assert (3, rows, columns) == tuple(x.shape)
    found = torch.linalg.svdvals(x)
    assert ((found > 0.6) & (found < 1.3)).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_singular_vectors_stay(shape: tuple[int, int]) -> None:
    """U^T X V is diagonal and positive, so the direction is that of U V^T."""
    g = matrices(2, *shape)
    u, _, vt = torch.linalg.svd(g, full_matrices=False)
    core = u.mT @ orthogonalise(g) @ vt.mT
    diagonal = core.diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(core, torch.diag_embed(diagonal), rtol=0, atol=1e-4)
    assert (diagonal > 0).all()


def test_a_batch_is_its_matrices_one_by_one() -> None:
    """Each matrix of a stack is treated alone, a zero stays zero, and the scale does not matter."""
    g = matrices(4, 5, 7)
    g[1] = 0
    g[2] *= 1000
    together = orthogonalise(g)
    torch.testing.assert_close(torch.cat([orthogonalise(one[None]) for one in g]), together)
    assert not together[1].any()
    torch.testing.assert_close(together[2:3], orthogonalise(g[2:3] / 1000), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_coarser_product_gives_the_same_direction(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """float32 matrices may be multiplied in bfloat16: the answer is float32 and points the same way within 1 %."""
    exact = orthogonalise(matrices(4, 24, 16))
    monkeypatch.setattr(module, "_product_dtype", lambda x: dtype)
    found = orthogonalise(matrices(4, 24, 16).float())
    assert torch.float32 == found.dtype
    apart = (found - exact).norm() / exact.norm()
    assert (apart < 1e-5) == (dtype == torch.float32)
    assert apart < 0.02


@pytest.mark.parametrize("shape", SHAPES)
def test_stacked_experts_learn_as_each_alone(shape: tuple[int, int]) -> None:
    """Muon over a stack [E, R, C] is Muon over E separate matrices, with momentum, decay and a second stack."""
    stack, gradients = matrices(3, *shape), matrices(4, 3, *shape, seed=1)
    together, alone = nn.Parameter(stack.clone()), [nn.Parameter(one.clone()) for one in stack]
    for params, parts in (([together], False), (alone, True)):
        other = nn.Parameter(matrices(2, *shape, seed=2))
        other.grad = matrices(2, *shape, seed=3)
        muon = Muon([other, *params], lr=0.1, momentum=0.9, weight_decay=0.1)
        for gradient in gradients:
            for number, param in enumerate(params):
                param.grad = gradient[number].clone() if parts else gradient.clone()
            muon.step()
    torch.testing.assert_close(torch.stack(list(alone)), together)


def test_muons_step_is_the_formula() -> None:
    """W <- (1 - lr wd) W - lr sqrt(max(1, R / C)) NS(Nesterov momentum), written out for three steps."""
    for shape in SHAPES:
        weight, average = matrices(*shape), torch.zeros(shape, dtype=torch.float64)
        param = nn.Parameter(weight.clone())
        muon = Muon([param], lr=0.1, momentum=0.8, weight_decay=0.5)
        for step in range(3):
            gradient = matrices(*shape, seed=step + 1)
            average = 0.8 * average + 0.2 * gradient
            direction = orthogonalise((0.2 * gradient + 0.8 * average)[None])[0]
            weight = 0.95 * weight - 0.1 * math.sqrt(max(1, shape[0] / shape[1])) * direction
            param.grad = gradient
            muon.step()
        torch.testing.assert_close(weight, param.detach(), rtol=1e-4, atol=1e-5)


def test_adamw_is_torchs() -> None:
    """AdamW for everything is torch.optim.AdamW with no decay on vectors, at the schedule's rate."""
    start = {"a": matrices(3, 4), "b": matrices(5), "c": matrices(2, 3, 4)}
    config = AdamWConfig(
        lr=0.1, weight_decay=0.3, beta1=0.8, beta2=0.9, schedule="cosine", warmup_fraction=0.0, min_lr_ratio=0.0
    )
    ours = stepped(start, config)
    for name, value in start.items():
        param = nn.Parameter(value.clone())
        # Halfway down a cosine the rate is half its peak.
        peer = torch.optim.AdamW([param], lr=0.05, betas=(0.8, 0.9), weight_decay=0.0 if name == "b" else 0.3)
        for step in range(3):
            param.grad = matrices(*param.shape, seed=10 * step + list(start).index(name))
            peer.step()
        torch.testing.assert_close(param, ours.get_parameter(name))


SPARSE = [
    AdamWConfig(lr=0.1, weight_decay=0.5, skip_idle_experts=True),
    MuonConfig(weight_decay=0.5, skip_idle_experts=True),
]
PATTERN = [[0, 1, 2], [0, 2], [2], [], [0, 1], [1, 2]]


def moe_layer(config: Any) -> tuple[MoELayer, Optimizers]:
    """A layer of 5 experts with random weights, and its optimizers."""
    layer = MoELayer(6, 5, 2, 4)
    layer.reset_parameters(torch.Generator().manual_seed(0))
    return layer, make_optimizers(config, layer)


def learn(layer: MoELayer, optimizers: Optimizers, chosen: list[int], seed: int) -> None:
    """One step on random gradients; those of experts that are not chosen are zero."""
    for number, param in enumerate(layer.parameters()):
        param.grad = matrices(*param.shape, seed=100 * seed + number).float()
    idle = [expert for expert in range(5) if expert not in chosen]
    for param in layer.experts.parameters():
        assert param.grad is not None
        param.grad[idle] = 0
    optimizers.step(0, 0.5, [torch.tensor([7 if expert in chosen else 0 for expert in range(5)])])


def of_each_expert(layer: MoELayer, optimizers: Optimizers) -> list[dict[str, Tensor]]:
    """All that belongs to an expert, parameters and optimizer state, expert by expert."""
    state = {key: value for key, value in optimizers.state_tensors().items() if value.ndim in (1, 3)}
    tensors = {**dict(layer.experts.named_parameters()), **state}
    assert {5} == {len(tensor) for tensor in tensors.values()}
    return [{name: tensor[expert].detach().clone() for name, tensor in tensors.items()} for expert in range(5)]


@pytest.mark.parametrize("config", SPARSE)
def test_an_expert_without_tokens_is_left_as_it_is(config: Any) -> None:
    """Bit for bit, parameters and state, in spite of momentum and decay; the others move, and without the option all do."""
    for sparse in (True, False):
        layer, optimizers = moe_layer(replace(config, skip_idle_experts=sparse))
        learn(layer, optimizers, [0, 1, 2, 3, 4], seed=1)
        before = of_each_expert(layer, optimizers)
        learn(layer, optimizers, [1, 4], seed=2)
        for number, (old, new) in enumerate(zip(before, of_each_expert(layer, optimizers), strict=True)):
            same = {name for name in old if torch.equal(old[name], new[name])}
            assert (set(old) if sparse and number not in (1, 4) else set()) == same


@pytest.mark.parametrize("config", SPARSE)
def test_with_every_expert_chosen_the_option_changes_nothing(config: Any) -> None:
    """The step over all experts is the plain optimizer's."""
    (one, plain), (other, sparse) = moe_layer(replace(config, skip_idle_experts=False)), moe_layer(config)
    for seed in range(4):
        learn(one, plain, [0, 1, 2, 3, 4], seed)
        learn(other, sparse, [0, 1, 2, 3, 4], seed)
    for name, param in one.named_parameters():
        torch.testing.assert_close(param, other.get_parameter(name), rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_an_expert_learns_as_if_it_were_alone(name: str, shape: tuple[int, int]) -> None:
    """Whatever the order in which experts are chosen, each moves as a parameter of its own that saw those steps only."""
    stack = nn.Parameter(matrices(3, *shape))
    alone = [nn.Parameter(one.detach().clone()) for one in stack]
    sparse: Any
    peer: torch.optim.Optimizer
    if name == "muon":
        sparse, peer = (Muon(params, 0.1, 0.9, 0.3) for params in ([stack], alone))
    else:
        sparse = ExpertAdamW([stack], 0.1, (0.8, 0.9), 0.3)
        peer = torch.optim.AdamW(alone, 0.1, (0.8, 0.9), weight_decay=0.3)
    for seed, chosen in enumerate(PATTERN):
        stack.grad = matrices(*stack.shape, seed=seed)
        for number, param in enumerate(alone):
            param.grad = stack.grad[number].clone() if number in chosen else None
        sparse.step(active={stack: chosen})
        peer.step()
    torch.testing.assert_close(torch.stack(list(alone)), stack, rtol=1e-6, atol=1e-6)


def two_layers() -> list[nn.Parameter]:
    """The stacked experts of two layers, and a matrix of no expert."""
    return [nn.Parameter(matrices(*shape, seed=9)) for shape in ((3, 6, 4), (3, 6, 4), (6, 4))]


def test_experts_of_layers_are_updated_in_turn() -> None:
    """In step s the experts of layer s mod period move, and every other matrix."""
    params = two_layers()
    muon = Muon(params, 0.1, 0.9, 0.3, [params[:1], params[1:2]], expert_period=2)
    for number in range(5):
        before = [param.detach().clone() for param in params]
        for param in params:
            param.grad = torch.ones_like(param)
        muon.step(number=number)
        moved = [not torch.equal(old, new) for old, new in zip(before, params, strict=True)]
        assert [number % 2 == 0, number % 2 == 1, True] == moved


@pytest.mark.parametrize("period", [2, 4])
def test_a_step_of_experts_in_turn_is_longer_by_the_root_of_the_period(period: int) -> None:
    """The momentum is that of every step; the step is sqrt(period) times as long, the decay period times."""
    lr, momentum, decay = 0.1, 0.9, 0.3
    stack = nn.Parameter(matrices(3, 6, 4, seed=9))
    muon = Muon([stack], lr, momentum, decay, [[stack]], period)
    average, weights = torch.zeros_like(stack), stack.detach().clone()
    for number in range(2 * period + 1):
        stack.grad = matrices(3, 6, 4, seed=number)
        average = average.lerp(stack.grad, 1 - momentum)
        if number % period == 0:
            direction = orthogonalise(stack.grad.lerp(average, momentum))
            weights = weights * (1 - lr * decay * period) - lr * math.sqrt(period * 6 / 4) * direction
        muon.step(number=number)
    torch.testing.assert_close(weights, stack.detach(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("config", SPARSE)
def test_a_chosen_expert_learns_though_its_gradient_is_zero(config: Any) -> None:
    """Momentum and decay of a chosen expert go on when its gradient is zero."""
    layer, optimizers = moe_layer(config)
    learn(layer, optimizers, [0, 1, 2, 3, 4], seed=1)
    before = of_each_expert(layer, optimizers)[3]
    for param in layer.parameters():
        param.grad = torch.zeros_like(param)
    optimizers.step(0, 0.5, [torch.tensor([0, 0, 0, 1, 0])])
    after = of_each_expert(layer, optimizers)[3]
    assert not [name for name in before if torch.equal(before[name], after[name])]


@pytest.mark.parametrize("config", SPARSE)
def test_idle_experts_cost_nothing(config: Any) -> None:
    """Only the matrices of chosen experts enter the products; nothing at all happens when none is chosen."""
    layer, optimizers = moe_layer(config)
    flops = []
    for chosen in ([0, 1, 2, 3, 4], [2], [0, 3], []):
        with FlopCounterMode(display=False) as counter:
            learn(layer, optimizers, chosen, seed=1)
        flops.append(counter.get_total_flops())
    assert [0, flops[1], 2 * flops[1], 5 * flops[1]] == [flops[3], flops[1], flops[2], flops[0]]
    assert (flops[1] > 0) == isinstance(config, MuonConfig)


@pytest.mark.parametrize("tie", [True, False])
def test_muon_takes_the_maps_between_hidden_spaces(tie: bool) -> None:
    """Attention and experts go to Muon; embedding, head, gates and norms to AdamW; no parameter is lost or doubled."""
    model = make_model(tiny_config(Path("text"), model={"shared_experts": 1, "tie_embeddings": tie}), 11)
    names = {id(param): name for name, param in model.named_parameters()}
    muon, adam = (
        {names[id(param)] for group in part.param_groups for param in group["params"]}
        for part in make_optimizers(MuonConfig(), model).optimizers
    )
    per_block = (
        "attention.qkv.weight",
        "attention.out.weight",
        "ffn.experts.w_in",
        "ffn.experts.w_out",
        "ffn.shared_experts.w_in",
        "ffn.shared_experts.w_out",
    )
    assert {f"blocks.{block}.{name}" for block in range(2) for name in per_block} == muon
    assert set(names.values()) - muon == adam
    assert {"embedding.weight", "norm.weight", "blocks.0.ffn.router.gate.weight"} <= adam
    assert ("head.weight" in adam) != tie


@pytest.mark.parametrize("sparse", [True, False])
def test_every_parameter_is_in_adamw_once(sparse: bool) -> None:
    """optim=adamw leaves nothing out, and stacked experts are apart where only the chosen learn."""
    model = make_model(tiny_config(Path("text")), 11)
    parts = make_optimizers(AdamWConfig(skip_idle_experts=sparse), model).optimizers
    given_params = [id(param) for part in parts for group in part.param_groups for param in group["params"]]
    assert [torch.optim.AdamW, ExpertAdamW][: 1 + sparse] == [type(part) for part in parts]
    assert sorted(map(id, model.parameters())) == sorted(given_params)


@pytest.mark.parametrize("config", [AdamWConfig(weight_decay=0.5), MuonConfig(weight_decay=0.5)])
def test_vectors_are_never_decayed(config: Any) -> None:
    """With a gradient of zero, decay shrinks matrices, and vectors stay as they are."""
    module = nn.Module()
    module.register_parameter("matrix", nn.Parameter(matrices(3, 4)))
    module.register_parameter("vector", nn.Parameter(matrices(4)))
    for param in module.parameters():
        param.grad = torch.zeros_like(param)
    before = {name: param.detach().clone() for name, param in module.named_parameters()}
    make_optimizers(config, module).step(0, 0.5)
    torch.testing.assert_close((1 - 0.5 * config.lr) * before["matrix"], module.get_parameter("matrix").detach())
    assert torch.equal(before["vector"], module.get_parameter("vector"))


def test_both_parts_follow_one_schedule() -> None:
    """Muon at lr and AdamW at adam_lr are scaled by the same factor, from their peaks, at every step."""
    config = MuonConfig(lr=0.4, adam_lr=0.2, schedule="linear", warmup_fraction=0.0, min_lr_ratio=0.0)
    optimizers = make_optimizers(config, make_model(tiny_config(Path("text")), 11))
    for progress in (0.25, 0.75, 0.5):
        assert 1 - progress == pytest.approx(optimizers.step(0, progress))
        rates = [group["lr"] for part in optimizers.optimizers for group in part.param_groups]
        assert [0.4 * (1 - progress)] + 2 * [0.2 * (1 - progress)] == pytest.approx(rates)


@pytest.mark.parametrize("config", [AdamWConfig(), MuonConfig(), *SPARSE])
def test_state_comes_back_from_tensors(config: Any) -> None:
    """An optimizer loaded with the state of another goes on exactly as that one."""
    models = [make_model(tiny_config(Path("text")), 11) for _ in range(2)]
    first, second = (make_optimizers(config, model) for model in models)

    def step(optimizers: Optimizers, model: nn.Module, seed: int) -> None:
        for number, param in enumerate(model.parameters()):
            param.grad = matrices(*param.shape, seed=100 * seed + number).to(param.dtype)
        optimizers.step(0, 0.5, 2 * [torch.tensor([3, 0, seed - 1, 0])])

    step(first, models[0], 1)
    tensors = {name: value.clone() for name, value in first.state_tensors().items()}
    second.load_state_tensors(tensors)
    models[1].load_state_dict(models[0].state_dict())
    for optimizers, model in zip((first, second), models, strict=True):
        step(optimizers, model, 2)
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(one, other)
    assert tensors.keys() == second.state_tensors().keys()
    assert all(torch.equal(value, second.state_tensors()[name]) for name, value in first.state_tensors().items())


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_over_experts_is_sgd_of_each_expert(momentum: float) -> None:
    """A chosen expert moves as torch.optim.SGD moves it alone; one that is not chosen keeps weights and momentum."""
    stack = nn.Parameter(torch.randn(3, 4, 2))
    alone = [nn.Parameter(expert.detach().clone()) for expert in stack]
    ours = ExpertSGD([stack], 0.1, momentum, 0.01)
    theirs = [torch.optim.SGD([expert], lr=0.1, momentum=momentum, weight_decay=0.01) for expert in alone]
    for chosen in ([0, 2], [1], [0, 1, 2], [2]):
        stack.grad = torch.randn_like(stack)
        ours.step(active={stack: chosen})
        for expert in chosen:
            alone[expert].grad = stack.grad[expert].clone()
            theirs[expert].step()
        for expert in range(3):
            torch.testing.assert_close(stack[expert], alone[expert], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("config", [MuonConfig(adam_lr=0.01), AdamWConfig(lr=0.01), SGDConfig(lr=0.01)])
def test_gates_have_a_rate_of_their_own(config: Any) -> None:
    """A tenth of the rate moves the gates by a tenth; no other weight changes."""
    moves = []
    for rate in (None, 0.001):
        layer = MoELayer(6, 4, 2, 4).double()
        model = nn.ModuleDict({"ffn": layer, "head": nn.Linear(6, 3, dtype=torch.float64)})
        before = {}
        for number, (name, param) in enumerate(model.named_parameters()):
            param.data = matrices(*param.shape, seed=number)
            param.grad = matrices(*param.shape, seed=50 + number)
            before[name] = param.detach().clone()
        make_optimizers(replace(config, router_lr=rate), model).step(0, 0.5)
        moves.append({name: param.detach() - before[name] for name, param in model.named_parameters()})
    plain, own = moves
    torch.testing.assert_close(plain["ffn.router.gate.weight"] / 10, own["ffn.router.gate.weight"])
    assert all(torch.equal(plain[name], own[name]) for name in plain if ".router." not in name)
    assert plain["ffn.router.gate.weight"].abs().min() > 0


@pytest.mark.parametrize("config", [MuonConfig(), AdamWConfig(), SGDConfig()])
def test_all_blocks_of_an_expert_without_tokens_stay(config: Any) -> None:
    """Of experts of widths 4, 8 and 4 the second has no tokens: its two blocks keep their weights, the others move."""
    layer = MoELayer(6, 3, 1, (4, 8, 4), router="switch")
    for param in layer.parameters():
        param.grad = torch.randn_like(param)
    before = {name: param.detach().clone() for name, param in layer.experts.named_parameters()}
    optimizers = make_optimizers(replace(config, skip_idle_experts=True, weight_decay=0.1), layer)
    optimizers.step(0, 0.5, load=[torch.tensor([3, 0, 2])])
    for name, param in layer.experts.named_parameters():
        moved = [not torch.equal(old, new) for old, new in zip(before[name], param, strict=True)]
        assert [True, False, False, True] == moved
