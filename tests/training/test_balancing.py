"""Balancing within the loop: what is added, what is counted and when, and that only training counts."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from moe_cli.config.balances import (
    BalanceConfig,
    CombinedBalance,
    LossFreeBalance,
    QuantileBalance,
    SwitchBalance,
    WeightedBalance,
)
from moe_cli.config.optim import MuonConfig
from moe_cli.moe.balance import quantile_bias
from moe_cli.moe.routing import Routing
from moe_cli.moe.sparse_layer import moe_layers
from moe_cli.report.load import load_runs
from moe_cli.training.evaluate import evaluate
from moe_cli.training.trainer import Trainer
from tests.tiny import finish, tiny_config
from tests.training.test_trainer import make_training, weights

PLAIN = MuonConfig(schedule="constant", warmup_fraction=0.0, grad_clip=None)
SWITCH_AND_Z = CombinedBalance("switch+z", switch=SwitchBalance(weight=0.3), z=WeightedBalance(name="z", weight=0.2))
THREE = CombinedBalance(
    "switch+z+entropy",
    switch=SwitchBalance(weight=2.0, scope="sequence"),
    z=WeightedBalance(name="z", weight=0.5),
    entropy=WeightedBalance(name="entropy", weight=1.5),
)


def written_out(routing: Routing, scope: str, asked: Tensor) -> dict[str, Tensor]:
    """The losses of one layer of 4 experts, 2 chosen, on 4 sequences of 16 tokens, formula by formula."""
    if scope == "sequence":
        switch = torch.zeros(())
        for sequence in range(4):
            tokens = torch.arange(16 * sequence, 16 * (sequence + 1))
            mine = routing.expert_ids[torch.isin(routing.token_ids, tokens)]
            share = torch.bincount(mine, minlength=4) / 16
            switch = switch + (4 / 2 * share * routing.probs[tokens].mean(0)).sum() / 4
    else:
        switch = 4 * (asked / asked.sum() * routing.probs.mean(0)).sum()
    mean = routing.probs.mean(0)
    return {
        "switch": switch,
        "z": routing.logits.exp().sum(1).log().square().mean(),
        "entropy": (mean * mean.log()).sum() / torch.tensor(4.0).log(),
    }


def gradient_step(training: Trainer, model: nn.Module, scope: str, coefficients: dict[str, float], parts: int) -> Any:
    """Weights after one step of gradient descent written out, and each loss averaged over the parts of the step."""
    asked = [torch.zeros(4), torch.zeros(4)]
    sums = dict.fromkeys(coefficients, 0.0)
    for part in range(parts):
        batch = training.task.train_batch(part, 4)
        logits, routings = model(batch.inputs)
        loss = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten())
        for layer, routing in enumerate(routings):
            counts = torch.bincount(routing.expert_ids, minlength=4)
            asked[layer] = asked[layer] + counts if scope == "global" else counts
            for name, value in written_out(routing, scope, asked[layer]).items():
                if name in coefficients:
                    loss = loss + coefficients[name] * value / 2
                    sums[name] += value.item() / 2 / parts
        (loss / parts).backward()
    return torch.cat([(param - 0.5 * param.grad).detach().flatten() for param in model.parameters()]), sums


@pytest.mark.parametrize(
    ("balance", "scope", "coefficients", "parts"),
    [
        (THREE, "sequence", {"switch": 2.0, "z": 0.5, "entropy": 1.5}, 1),
        (THREE, "sequence", {"switch": 2.0, "z": 0.5, "entropy": 1.5}, 3),
        (SwitchBalance(weight=3.0), "batch", {"switch": 3.0}, 3),
        (SwitchBalance(weight=3.0, scope="global"), "global", {"switch": 3.0}, 3),
        (SwitchBalance(weight=3.0, scope="global"), "batch", {"switch": 3.0}, 1),
    ],
)
def test_a_step_is_gradient_descent_on_all_losses(
    text_file: Path, tmp_path: Path, balance: BalanceConfig, scope: str, coefficients: dict[str, float], parts: int
) -> None:
    """Cross-entropy + weight * mean over layers of each loss; `global` counts the batches of the step so far."""
    config = tiny_config(text_file, balance=balance, optim=PLAIN, train={"grad_accumulation": parts})
    training = make_training(config, tmp_path, sgd=0.5)
    expected, sums = gradient_step(training, copy.deepcopy(training.model), scope, coefficients, parts)
    view = training.step()
    torch.testing.assert_close(expected, weights(training.model), rtol=1e-4, atol=1e-5)
    assert {name: pytest.approx(value, rel=1e-5) for name, value in sums.items()} == view.aux_losses


def test_global_counts_are_of_one_step(text_file: Path, tmp_path: Path) -> None:
    """The counts of a step do not reach the next: with the same weights and windows both measure the same loss."""
    config = tiny_config(text_file, balance=SwitchBalance(scope="global"), optim=PLAIN, train={"grad_accumulation": 2})
    training = make_training(config, tmp_path, sgd=0.0)
    batch = training.task.train_batch
    training.task.train_batch = lambda index, *size: batch(index % 2, *size)  # type: ignore[method-assign]
    assert training.step().aux_losses == training.step().aux_losses


@pytest.mark.parametrize("balance", [SWITCH_AND_Z, WeightedBalance(name="z")])
def test_each_loss_is_recorded(text_file: Path, tmp_path: Path, balance: BalanceConfig) -> None:
    """Under train/aux_loss when there is one, under train/aux_loss/NAME when there are several."""
    training = make_training(tiny_config(text_file, balance=balance), tmp_path)
    view = training.step()
    recorded = {key: value for key, value in training.recorder.run.metrics()[0].items() if "aux" in key}
    if balance == SWITCH_AND_Z:
        expected = {f"train/aux_loss/{name}": view.aux_losses[name] for name in ("switch", "z")}
    else:
        expected = {"train/aux_loss": view.aux_losses["z"]}
    assert expected == recorded


@pytest.mark.parametrize("parts", [1, 3])
def test_the_quantile_bias_is_set_once_a_step(text_file: Path, tmp_path: Path, parts: int) -> None:
    """From the probabilities of all batches of the step and the bias there was."""
    config = tiny_config(text_file, balance=QuantileBalance(iterations=2), train={"grad_accumulation": parts})
    training = make_training(config, tmp_path)
    seen: list[list[Tensor]] = [[], []]
    loss = training.task.loss

    def watch(model: nn.Module, batch: Any) -> Any:
        result = loss(model, batch)
        for layer, routing in enumerate(result[1]):
            seen[layer].append(routing.probs.detach().clone())
        return result

    training.task.loss = watch  # type: ignore[method-assign]
    for step in range(2):
        before = [layer.router.expert_bias.clone() for layer in training.layers]
        training.step()
        for layer, old, probs in zip(training.layers, before, seen, strict=True):
            assert (step + 1) * parts == len(probs)
            expected = quantile_bias(old, torch.cat(probs[step * parts :]), 2, 2)
            assert expected.any()
            assert torch.equal(expected, layer.router.expert_bias)


BIASES = pytest.mark.parametrize(
    "balance", [LossFreeBalance(bias_update_rate=0.01), QuantileBalance(), SwitchBalance(scope="global")]
)


def biases(model: nn.Module) -> Tensor:
    return torch.cat([layer.router.expert_bias for layer in moe_layers(model)]).clone()


@BIASES
def test_recomputation_is_not_counted_again(text_file: Path, tmp_path: Path, balance: BalanceConfig) -> None:
    """Blocks whose activations are computed again in the backward pass give the same load, losses, bias and weights."""
    ended = []
    for recompute in (False, True):
        config = tiny_config(text_file, balance=balance, train={"grad_accumulation": 2})
        training = make_training(config, tmp_path)
        calls = [0]
        for block in training.model.blocks if recompute else ():
            block.forward = again(block.forward, calls)
        views = [training.step() for _ in range(2)]
        assert recompute * 2 * 2 * 2 * 2 == calls[0]
        load = torch.stack([counts for view in views for counts in view.load])
        ended.append((load, [view.aux_losses for view in views], biases(training.model), weights(training.model)))
    (load, losses, bias, params), (other_load, other_losses, other_bias, other_params) = ended
    assert torch.equal(load, other_load)
    assert losses == other_losses
    assert torch.equal(bias, other_bias)
    assert torch.equal(params, other_params)


def again(forward: Any, calls: list[int]) -> Any:
    """The function, its inner values thrown away and computed again when the backward pass needs them."""

    def counted(*x: Tensor) -> Any:
        calls[0] += 1
        return forward(*x)

    return lambda *x: checkpoint(counted, *x, use_reentrant=False)


@BIASES
@pytest.mark.usefixtures("unchecked_shapes")
def test_evaluation_counts_nothing(text_file: Path, tmp_path: Path, balance: BalanceConfig) -> None:
    """A look at the validation text moves no bias, and a run with many looks is the run with none."""
    ended = []
    for every in (1, 99):
        config = tiny_config(text_file, balance=balance, train={"eval_every": every, "grad_accumulation": 2})
        training = make_training(config, tmp_path)
        training.run()
        before = biases(training.model)
        assert before.any() == (balance.name != "switch")
        evaluate(training.model, training.task, 4)
        assert torch.equal(before, biases(training.model))
        ended.append((before, weights(training.model)))
    assert torch.equal(ended[0][0], ended[1][0])
    assert torch.equal(ended[0][1], ended[1][1])


def test_a_combination_is_named_wherever_a_balance_is(text_file: Path, tmp_path: Path) -> None:
    """In the summary, in the report's frame, and its settings by method."""
    run = finish(tiny_config(text_file, balance=SWITCH_AND_Z), tmp_path)
    row = load_runs(tmp_path).iloc[0]
    assert "switch+z" == (run.summary() or {})["balance"] == row["balance"]
    assert (0.3, 0.2) == (row["balance.switch.weight"], row["balance.z.weight"])
    assert run.config().balance == SWITCH_AND_Z
