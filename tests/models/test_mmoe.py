"""Multi-gate mixture of experts: the paper's formula, a gate for each task, and a model that learns. B pairs, G tasks."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from moe_cli.config.balances import NoBalance
from moe_cli.config.compose import load_config
from moe_cli.config.data import MovieLensConfig, SyntheticRatingsConfig
from moe_cli.config.model import MMoEConfig
from moe_cli.config.optim import AdamWConfig
from moe_cli.config.routers import (
    ExpertChoiceConfig,
    NoisyTopKConfig,
    RandomConfig,
    ReluConfig,
    RouterConfig,
    SigmoidConfig,
    SinkhornConfig,
    SwitchConfig,
    TopKConfig,
)
from moe_cli.costs.model import estimate_cost
from moe_cli.data.ratings import Pairs, load_ratings, rmse
from moe_cli.models.mmoe import MMoE
from moe_cli.models.registry import make_model
from moe_cli.moe.gates import GATE_STD, LinearGate, PerTaskGate
from moe_cli.training.optimizers import make_optimizers
from tests.tiny import TINY, finish, randomise, tiny_config, tiny_task

V = 12
PAIRS = torch.tensor([[0, 7], [3, 9], [5, 11], [0, 8], [2, 7]])


def model_of(**changes: Any) -> MMoE:
    config = tiny_config(Path(), **{**TINY["mmoe"], "balance": NoBalance(), **changes})
    return randomise(make_model(config, V)).double().eval()  # type: ignore[return-value]


def biases(model: MMoE, pairs: Tensor) -> Tensor:
    table = model.bias_embedding.weight
    return model.bias + table[pairs[:, 0]] + table[pairs[:, 1]]


def products(model: MMoE, pairs: Tensor) -> Tensor:
    """p_u . q_i of each task, whose factors are side by side."""
    user, item = (model.factor_embedding.weight[pairs[:, side]].chunk(2, dim=1) for side in (0, 1))
    return torch.stack([(one * other).sum(1) for one, other in zip(user, item, strict=True)], dim=1)


def towers(model: MMoE, by_task: list[Tensor]) -> Tensor:
    """h_k of each task's row, written out."""
    answers = []
    for tower, x in zip(model.towers, by_task, strict=True):
        hidden = (x @ tower.hidden.weight.T + tower.hidden.bias).clamp(min=0)
        answers.append(hidden @ tower.head.weight[0])
    return torch.stack(answers, dim=1)


@pytest.mark.parametrize("factors", [16, 0])
def test_the_answer_is_the_papers_formula(factors: int) -> None:
    """With k = E: y_k = h_k(f_k(x)), f_k(x) = sum_i softmax(W_gk x)_i f_i(x), written without routing or a back end; and
    what matrix factorisation adds, unless it is left out.
    """
    model = model_of(k=4, model=replace(TINY["mmoe"]["model"], mf_dim=factors))
    x = torch.cat((model.embedding.weight[PAIRS[:, 0]], model.embedding.weight[PAIRS[:, 1]]), dim=1)
    layer = model.blocks[0]
    experts = [torch.nn.functional.silu(x @ layer.experts.w_in[i].T) @ layer.experts.w_out[i].T for i in range(4)]
    mixed = []
    for gate in layer.router.gate.gates:
        weights = (x @ gate.weight.T).softmax(-1)
        mixed.append(sum(weights[:, i : i + 1] * experts[i] for i in range(4)))
    expected = towers(model, mixed) + biases(model, PAIRS) + (products(model, PAIRS) if factors else 0)
    torch.testing.assert_close(model(PAIRS)[0], expected)


def test_a_dense_model_has_a_shared_bottom() -> None:
    """expert=1: one network under both towers."""
    model = model_of(expert=1, k=1)
    x = torch.cat((model.embedding.weight[PAIRS[:, 0]], model.embedding.weight[PAIRS[:, 1]]), dim=1)
    bottom = torch.nn.functional.silu(x @ model.blocks[0].w_in.T) @ model.blocks[0].w_out.T
    answers, routings, _ = model(PAIRS)
    torch.testing.assert_close(answers, towers(model, [bottom, bottom]) + biases(model, PAIRS) + products(model, PAIRS))
    assert [] == routings


def test_each_token_is_scored_by_its_tasks_gate() -> None:
    """Tokens come pair by pair; gates are drawn apart, so that tasks do not begin alike."""
    gates = PerTaskGate(LinearGate(3, 5), 2)
    gates.reset_parameters(torch.Generator().manual_seed(0))
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(1))
    scores = gates(x)
    for task, gate in enumerate(gates.gates):
        torch.testing.assert_close(scores[task::2], x[task::2] @ gate.weight.T)
    assert not torch.equal(gates.gates[0].weight, gates.gates[1].weight)
    assert all(GATE_STD / 2 < gate.weight.std() < 2 * GATE_STD for gate in gates.gates)


def test_tasks_choose_for_themselves() -> None:
    """Both tokens of a pair are the same vector, but the routing of one task is not that of the other."""
    routing = model_of(k=1).forward(PAIRS)[1][0]
    assert 2 * len(PAIRS) == routing.num_tokens
    assert not torch.allclose(routing.probs[0::2], routing.probs[1::2])


ROUTERS: list[RouterConfig] = [
    TopKConfig(),
    TopKConfig(score="mlp"),
    TopKConfig(score="cosine"),
    TopKConfig(null_experts=1),
    NoisyTopKConfig(),
    SigmoidConfig(),
    SinkhornConfig(),
    ReluConfig(),
    RandomConfig(),
    ExpertChoiceConfig(),
]


@pytest.mark.parametrize("router", ROUTERS, ids=lambda router: f"{router.name} {getattr(router, 'score', '')}")
def test_every_other_router_has_a_gate_for_each_task(router: RouterConfig) -> None:
    """The model answers and learns, in training too; what the gates cost is counted to the last number."""
    config = tiny_config(Path(), **{**TINY["mmoe"], "router": router, "balance": NoBalance()})
    model = make_model(config, V)
    assert sum(param.numel() for param in model.parameters()) == estimate_cost(config, V).num_params
    assert not any(param.any() for name, param in model.named_parameters() if ".noise_gate." in name)
    for tower in model.towers:
        torch.nn.init.normal_(tower.head.weight)
    answers, _, _ = model.train()(PAIRS)
    answers.square().sum().backward()
    assert (len(PAIRS), 2) == tuple(answers.shape)
    for name, param in model.named_parameters():
        assert param.grad is None or param.grad.isfinite().all(), name
    gates = [param for name, param in model.named_parameters() if ".gate.gates." in name]
    assert all(gate.grad is not None and gate.grad.any() for gate in gates)
    assert len(gates) % 2 == 0


@pytest.mark.parametrize(("factors", "deviation"), [(0, 0), (16, 0.15)])
def test_a_new_model_guesses_the_mean(factors: int, deviation: float) -> None:
    """Whatever the pair: no deviation from the mean rating, and either click as likely; with factors nearly so."""
    config = tiny_config(Path(), **{**TINY["mmoe"], "model": replace(TINY["mmoe"]["model"], mf_dim=factors)})
    assert make_model(config, V)(PAIRS)[0].abs().max() <= deviation


def test_the_squares_are_of_all_that_was_looked_up() -> None:
    """The squares are summed over both embeddings of a pair, and over its biases and factors, before dropout."""
    model = model_of(model=replace(TINY["mmoe"]["model"], dropout=0.5)).train()
    for column, tables in enumerate([(model.embedding,), (model.bias_embedding, model.factor_embedding)]):
        expected = [sum(table.weight[row].square().sum() for table in tables for row in pair) for pair in PAIRS]
        torch.testing.assert_close(model(PAIRS)[2][:, column], torch.stack(expected))


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize("sparse", [{}, {"router": SwitchConfig(), "k": 1}])
def test_a_batch_is_learned_by_heart(tmp_path: Path, sparse: dict[str, Any]) -> None:
    """A few dozen steps on one batch leave little of its loss."""
    config = tiny_config(Path(), **{**TINY["mmoe"], "balance": NoBalance(), **sparse})
    task = tiny_task(config, tmp_path)
    model = make_model(config, task.vocab_size)
    optimizers = make_optimizers(config.optim, model)
    batch = task.train_batch(0, 32)
    first = task.loss(model, batch)[0].item()
    for _ in range(150):
        loss, _ = task.loss(model, batch)
        loss.backward()
        optimizers.step(0, 0.5)
        optimizers.zero_grad()
    assert loss.item() < first / 20


@pytest.mark.slow
def test_planted_clusters_are_found(tmp_path: Path) -> None:
    """A short training beats the user and item means, and comes half the way from them to the rule behind the data."""
    data = replace(TINY["mmoe"]["data"], users=60, items=40, num_pairs=2000, clusters=3, noise=0.3)
    train = {"steps": 350, "batch_size": 64, "log_every": 50}
    config = tiny_config(Path(), **{**TINY["mmoe"], "data": data}, train=train)
    summary = finish(config, tmp_path).summary() or {}
    assert summary["best_rmse"] < summary["val_rmse"] < (summary["best_rmse"] + summary["biases_rmse"]) / 2
    assert 0.5 + (summary["best_auc"] - 0.5) / 2 < summary["val_auc"]
    assert summary["biases_rmse"] < summary["mean_rmse"]


def factorised(train: Pairs, rows: NDArray[np.int64], rank: int, penalty: float) -> NDArray[np.float64]:
    """Ratings by biased matrix factorisation (Koren, Bell and Volinsky, 2009), by alternating least squares: an
    independent implementation of what is published for MovieLens as SVD.
    """
    size = int(max(train.rows.max(), rows.max())) + 1
    factors = 0.1 * np.random.default_rng(0).standard_normal((size, rank))
    bias, mean = np.zeros(size), train.ratings.mean()
    for _ in range(12):
        for own, other in ((0, 1), (1, 0)):
            order = np.argsort(train.rows[:, own], kind="stable")
            for places in np.split(order, np.flatnonzero(np.diff(train.rows[order, own])) + 1):
                others = train.rows[places, other]
                known = np.column_stack((factors[others], np.ones(len(places))))
                rest = train.ratings[places] - mean - bias[others]
                squares = known.T @ known + penalty * np.diag([len(places)] * rank + [1])
                solved = np.linalg.solve(squares, known.T @ rest)
                factors[train.rows[places[0], own]], bias[train.rows[places[0], own]] = solved[:-1], solved[-1]
    return mean + bias[rows].sum(1) + (factors[rows[:, 0]] * factors[rows[:, 1]]).sum(1)


@pytest.mark.slow
@pytest.mark.parametrize("sparse", [{}, {"expert": 1, "k": 1}])
def test_planted_ratings_are_guessed_nearly_as_well_as_by_factorisation(tmp_path: Path, sparse: dict[str, Any]) -> None:
    """RMSE within 5 % of the best of six biased matrix factorisations, chosen with the answers in sight."""
    data = SyntheticRatingsConfig(users=400, items=300, clusters=4, num_pairs=20_000)
    train, val = (getattr(load_ratings(data, tmp_path), split) for split in ("train", "val"))
    errors = [
        rmse(factorised(train, val.rows, rank, penalty) - val.ratings)
        for rank in (2, 4)
        for penalty in (0.05, 0.1, 0.2)
    ]
    changes = {**TINY["mmoe"], "model": MMoEConfig(d_model=32, d_ff=128), "data": data, "match": "active", **sparse}
    steps = {"steps": 800, "batch_size": 128, "log_every": 50}
    summary = finish(tiny_config(Path(), **changes, optim=AdamWConfig(lr=0.008), train=steps), tmp_path).summary() or {}
    assert summary["best_rmse"] < min(errors) < summary["biases_rmse"]
    assert summary["val_rmse"] < 1.05 * min(errors)


def write_stars(folder: Path) -> None:
    """Writes u.data like MovieLens 100K: 943 users, 1,682 items, 100,000 stars; few users and items have many. A star
    is rounded from a mean, what the user and the item add, the product of six hidden tastes, and noise.
    """
    draw = np.random.default_rng(0)
    users, items, pairs, tastes = 943, 1682, 100_000, 6
    busy, popular = 0.9 * draw.standard_normal((users, 1)), 1.6 * draw.standard_normal(items)
    # The largest sums with Gumbel noise: pairs drawn one after the other, without putting back.
    chosen = np.argsort(-(busy + popular + draw.gumbel(size=(users, items))), axis=None)[:pairs]
    user, item = np.divmod(draw.permutation(chosen), items)
    of_users, of_items = (draw.standard_normal((number, tastes)) for number in (users, items))
    expected = 3.55 + 0.42 * draw.standard_normal(users)[user] + 0.45 * draw.standard_normal(items)[item]
    expected += 0.45 * (of_users[user] * of_items[item]).sum(1) / tastes**0.5
    stars = (expected + 0.84 * draw.standard_normal(pairs)).round().clip(1, 5).astype(int)
    lines = (f"{u}\t{i}\t{star}\t0\n" for u, i, star in zip(user, item, stars, strict=True))
    (folder / "u.data").write_text("".join(lines))


@pytest.mark.results
def test_stars_as_of_movielens_are_guessed_as_well_as_by_factorisation(tmp_path: Path) -> None:
    """At its defaults RMSE within 3 % of the best of nine biased matrix factorisations, chosen with the answers in sight,
    on as many ratings as MovieLens 100K has.
    """
    write_stars(tmp_path)
    config = load_config(["data=movielens", f"data.path={tmp_path}", "train.device=cpu", "train.threads=1"]).config
    assert isinstance(config.data, MovieLensConfig)
    train, val = (getattr(load_ratings(config.data, tmp_path), split) for split in ("train", "val"))
    errors = [
        rmse(factorised(train, val.rows, rank, penalty) - val.ratings)
        for rank in (4, 6, 10)
        for penalty in (0.08, 0.11, 0.15)
    ]
    summary = finish(config, tmp_path).summary() or {}
    assert min(errors) < 0.97 * summary["biases_rmse"]
    assert summary["val_rmse"] < 1.03 * min(errors)
