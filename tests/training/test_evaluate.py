"""evaluate against a loop over the text; and what it must leave alone."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from moe_cli.config.routers import RandomConfig, SwitchConfig
from moe_cli.models.gpt import GPT, make_model
from moe_cli.moe.layer import moe_layers
from moe_cli.moe.routing import expert_capacity
from moe_cli.tasks.text import TextTask
from moe_cli.training.evaluate import evaluate
from tests.tiny import randomise, tiny_config, tiny_task


@pytest.fixture
def make(text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A function that makes a model with random weights, and its task."""
    cache = tmp_path_factory.mktemp("cache")

    def make(**changes: Any) -> tuple[GPT, TextTask]:
        config = tiny_config(text_file, **changes)
        task = tiny_task(config, cache)
        return randomise(make_model(config, task.vocab_size)), task  # type: ignore[return-value]

    return make


@pytest.mark.parametrize("changes", [{}, {"expert": 1, "k": 1}, {"data": {"tokenizer": "chars"}}])
def test_the_loss_is_the_mean_over_every_token(make: Any, changes: dict[str, Any]) -> None:
    """Nats per token and bits per byte equal a direct loop over the windows of the split."""
    model, task = make(**changes)
    result = evaluate(model, task, 5)
    val = torch.tensor(task.corpus.val.tolist())
    nats = 0.0
    model.eval()
    for start in range(0, len(val) - 1, 16):
        inputs, targets = val[start : start + 16][: len(val) - 1 - start], val[start + 1 : start + 17]
        with torch.no_grad():
            nats += F.cross_entropy(model(inputs[None])[0][0], targets, reduction="sum").item()
    num_bytes = len(task.corpus.tokenizer.decode(val[1:].tolist()).encode())
    assert nats / (len(val) - 1) == pytest.approx(result.loss, rel=1e-5)
    assert nats / math.log(2) / num_bytes == pytest.approx(result.bits_per_byte, rel=1e-5)
    assert math.exp(result.loss) == result.perplexity
    assert (len(val) - 1, num_bytes) == (result.num_tokens, result.num_bytes)


@pytest.mark.parametrize("tokenizer", ["bytes", "chars"])
def test_a_uniform_guess_costs_log2_v_bits_a_token(tmp_path: Path, tokenizer: Any) -> None:
    """A new model's bits per byte are log2 V * tokens / bytes, whatever a token is."""
    (tmp_path / "text").write_text("añb€c𝄞 " * 300, encoding="utf-8")
    config = tiny_config(tmp_path / "text", data={"tokenizer": tokenizer})
    task = tiny_task(config, tmp_path)
    result = evaluate(make_model(config, task.vocab_size), task, 4)
    expected = math.log2(task.vocab_size) * result.num_tokens / result.num_bytes
    assert expected == pytest.approx(result.bits_per_byte, rel=1e-5)
    assert (result.num_bytes == result.num_tokens) == (tokenizer == "bytes")


@pytest.mark.parametrize("training", [True, False])
def test_an_evaluation_leaves_no_trace(make: Any, training: bool) -> None:
    """Random state, mode, weights, expert bias and routing policy are as before; asked again, the answer is equal."""
    model, task = make(router=RandomConfig(), model={"dropout": 0.3})
    model.train(training)
    sparse = make()[0]
    for evaluated in (model, sparse):
        state = {name: value.clone() for name, value in evaluated.state_dict().items()}
        modes = [module.training for module in evaluated.modules()]
        torch.manual_seed(7)
        random = torch.get_rng_state()
        results = [evaluate(evaluated, task, 8, top_k=1, capacity_factor=0.5) for _ in range(2)]
        assert torch.equal(random, torch.get_rng_state())
        assert modes == [module.training for module in evaluated.modules()]
        assert all(torch.equal(value, state[name]) for name, value in evaluated.state_dict().items())
        assert all((2, None) == (layer.router.top_k, layer.eval_capacity_factor) for layer in moe_layers(evaluated))
        torch.manual_seed(8)
        results.append(evaluate(evaluated, task, 8, top_k=1, capacity_factor=0.5))
        assert results[0].loss == results[1].loss == results[2].loss


def test_part_of_the_text_is_part_of_the_cost(make: Any) -> None:
    """max_tokens looks at no more than that."""
    model, task = make()
    assert 64 == evaluate(model, task, 8, max_tokens=64).num_tokens


@pytest.mark.parametrize("top_k", [None, 1, 3])
def test_every_assignment_is_counted(make: Any, top_k: int | None) -> None:
    """Each layer's counts sum to K * tokens, with training's K or evaluation's own."""
    model, task = make()
    result = evaluate(model, task, 8, top_k=top_k)
    assert 2 == len(result.layers)
    for number, record in enumerate(result.layer_records()):
        assert number == record["layer"]
        assert (top_k or 2) * result.num_tokens == sum(record["tokens_per_expert"])
        assert record["tokens_per_expert"] == record["kept_per_expert"]
        assert 0 == record["dropped_fraction"]


def test_evaluations_k_changes_the_answer(make: Any) -> None:
    """eval.k = training's k is the default; another k gives another loss."""
    model, task = make()
    losses = [evaluate(model, task, 8, top_k=k).loss for k in (None, 2, 1)]
    assert losses[0] == losses[1] != losses[2]


def test_only_a_capacity_drops(make: Any) -> None:
    """Evaluation is dropless though training is not, unless asked; then no expert keeps more than its capacity."""
    model, task = make(capacity=0.5)
    assert 0 == evaluate(model, task, 8).routing_metrics()["dropped_fraction"]
    result = evaluate(model, task, 8, capacity_factor=0.5)
    passes = [batch.num_tokens for batch in task.val_batches(8)]
    room = sum(expert_capacity(tokens, 4, 2, 0.5) for tokens in passes)
    for layer in result.layers:
        assert layer.kept.max() <= room
        assert 0.45 < 1 - layer.kept.sum() / layer.asked.sum() < 1
        assert 2 * result.num_tokens == layer.asked.sum()
    assert result.loss != evaluate(model, task, 8).loss


def test_measures_are_of_the_whole_split(make: Any) -> None:
    """MaxVio, entropy and dead experts over all batches equal those of all routings put together."""
    model, task = make(router=SwitchConfig(), k=1)
    result = evaluate(model, task, 8)
    model.eval()
    with torch.no_grad():
        routings = [task.loss(model, batch)[1] for batch in task.val_batches(8)]
    each = []
    for layer in range(2):
        probs = torch.cat([routing[layer].probs for routing in routings]).double()
        counts = torch.bincount(torch.cat([routing[layer].expert_ids for routing in routings]), minlength=4).double()
        each.append({
            "max_violation": (counts.max() / counts.mean() - 1).item(),
            "routing_entropy": (-(probs * probs.log()).sum(1).mean() / math.log(4)).item(),
            "mean_routing_entropy": (-(probs.mean(0) * probs.mean(0).log()).sum() / math.log(4)).item(),
            "dropped_fraction": 0.0,
            "dead_experts": (counts < 0.01 * counts.mean()).double().mean().item(),
        })  # fmt: skip
    expected = {key: sum(layer[key] for layer in each) / 2 for key in each[0]}
    assert expected == pytest.approx(result.routing_metrics(), rel=1e-4, abs=1e-9)


def test_a_dense_model_has_no_routing_metrics(make: Any) -> None:
    """There is nothing to measure without a router."""
    model, task = make(expert=1, k=1)
    result = evaluate(model, task, 8)
    assert (None, []) == (result.routing_metrics(), result.layer_records())
