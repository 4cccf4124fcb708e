"""evaluate against a loop over the text; and what it must leave alone."""

import math
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from moe_cli.config.capacity import expert_capacity
from moe_cli.config.routers import RandomConfig, SwitchConfig, TopKConfig
from moe_cli.metrics import LAYER_METRICS
from moe_cli.models.registry import make_model
from moe_cli.models.transformer import Transformer
from moe_cli.moe.routing import Routing, RoutingPolicy
from moe_cli.moe.routing_metrics import specialisation
from moe_cli.moe.sparse_layer import moe_layers
from moe_cli.tasks.causal_lm import TextTask
from moe_cli.training import token_use
from moe_cli.training.evaluate import (
    LayerRoutingStats,
    evaluate,
    evaluation_mode,
    expert_lists,
    probe_routing,
    saturations,
)
from moe_cli.training.token_use import TokenExpertCounts
from tests.tiny import randomise, tiny_config, tiny_task


@pytest.fixture
def make(text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A function that makes a model with random weights, and its task."""
    cache = tmp_path_factory.mktemp("cache")

    def make(**changes: Any) -> tuple[Transformer, TextTask]:
        config = tiny_config(text_file, **changes)
        task = tiny_task(config, cache)
        return randomise(make_model(config, task.vocab_size)), task  # type: ignore[return-value]

    return make


@pytest.mark.parametrize("changes", [{}, {"expert": 1, "k": 1}, {"data": {"tokenizer": "chars"}}])
def test_the_loss_is_the_mean_over_every_token(make: Any, changes: dict[str, Any]) -> None:
    """Nats per token and bits per byte equal a direct loop over the windows of the split."""
    model, task = make(**changes)
    result = evaluate(model, task, 5)
    val = torch.tensor(task.dataset.val.tolist())
    nats = 0.0
    model.eval()
    for start in range(0, len(val) - 1, 16):
        inputs, targets = val[start : start + 16][: len(val) - 1 - start], val[start + 1 : start + 17]
        with torch.no_grad():
            nats += F.cross_entropy(model(inputs[None])[0][0], targets, reduction="sum").item()
    num_bytes = len(task.dataset.tokenizer.decode(val[1:].tolist()).encode())
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
    """Random state, mode, weights and expert bias are as before; asked again, the answer is equal."""
    model, task = make(router=RandomConfig(), model={"dropout": 0.3})
    model.train(training)
    sparse = make()[0]
    for evaluated in (model, sparse):
        state = {name: value.clone() for name, value in evaluated.state_dict().items()}
        modes = [module.training for module in evaluated.modules()]
        torch.manual_seed(7)
        random = torch.get_rng_state()
        results = [evaluate(evaluated, task, 8, policy=RoutingPolicy(1, 0.5)) for _ in range(2)]
        assert torch.equal(random, torch.get_rng_state())
        assert modes == [module.training for module in evaluated.modules()]
        assert all(torch.equal(value, state[name]) for name, value in evaluated.state_dict().items())
        torch.manual_seed(8)
        results.append(evaluate(evaluated, task, 8, policy=RoutingPolicy(1, 0.5)))
        assert results[0].loss == results[1].loss == results[2].loss


def test_a_failed_evaluation_restores_mode_and_random_state(make: Any) -> None:
    """An error inside `evaluation_mode` leaves the model in training mode."""
    model = make()[0].train()
    random = torch.get_rng_state()
    with pytest.raises(ValueError, match="cannot convert"), evaluation_mode(model, RoutingPolicy(), "auto"):
        int(torch.rand(1) * math.nan)
    assert model.training
    assert torch.equal(random, torch.get_rng_state())


def test_part_of_the_text_is_part_of_the_cost(make: Any) -> None:
    """max_tokens looks at no more than that."""
    model, task = make()
    assert 64 == evaluate(model, task, 8, max_tokens=64).num_tokens


@pytest.mark.parametrize("top_k", [None, 1, 3])
def test_every_assignment_is_counted(make: Any, top_k: int | None) -> None:
    """Each layer's counts sum to K * tokens, with training's K or evaluation's own."""
    model, task = make()
    result = evaluate(model, task, 8, policy=RoutingPolicy(top_k))
    assert 2 == len(result.layers)
    for number, record in enumerate(result.layer_records()):
        assert number == record["layer"]
        assert (top_k or 2) * result.num_tokens == sum(record["tokens_per_expert"])
        assert record["tokens_per_expert"] == record["kept_per_expert"]
        assert 0 == record["dropped_fraction"]


def test_evaluations_k_changes_the_answer(make: Any) -> None:
    """eval.k = training's k is the default; another k gives another loss."""
    model, task = make()
    losses = [evaluate(model, task, 8, policy=RoutingPolicy(k)).loss for k in (None, 2, 1)]
    assert losses[0] == losses[1] != losses[2]


def test_only_a_capacity_drops(make: Any) -> None:
    """Evaluation is dropless though training is not, unless asked; then no expert keeps more than its capacity."""
    model, task = make(capacity=0.5)
    assert 0 == evaluate(model, task, 8).routing_metrics()["dropped_fraction"]
    result = evaluate(model, task, 8, policy=RoutingPolicy(capacity_factor=0.5))
    passes = [batch.num_targets for batch in task.val_batches(8)]
    room = sum(expert_capacity(tokens, 4, 2, 0.5) for tokens in passes)
    for layer in result.layers:
        assert layer.kept.max() <= room
        assert 0.45 < 1 - layer.kept.sum() / layer.tokens_per_expert.sum() < 1
        assert 2 * result.num_tokens == layer.tokens_per_expert.sum()
    assert result.loss != evaluate(model, task, 8).loss


def test_measures_are_of_the_whole_split(make: Any) -> None:
    """MaxVio, entropy and dead experts over all batches equal those of all routings put together."""
    model, task = make(router=SwitchConfig(), k=1)
    result = evaluate(model, task, 8)
    model.eval()
    with torch.no_grad():
        batches = list(task.val_batches(8))
        routings = [task.loss(model, batch)[1] for batch in batches]
    read = torch.cat([batch.inputs.flatten() for batch in batches])

    def of_tokens(layer: int) -> float:
        """With K = 1, from -p ln p over the pairs (token, expert)."""
        chosen = torch.cat([routing[layer].expert_ids for routing in routings])
        pairs = Counter(zip(read.tolist(), chosen.tolist(), strict=True))
        h_token, h_expert, h_pair = (
            -sum(n / len(read) * math.log(n / len(read)) for n in counts.values())
            for counts in (Counter(read.tolist()), Counter(chosen.tolist()), pairs)
        )
        return (h_token + h_expert - h_pair) / min(h_token, h_expert)

    each = []
    for layer in range(2):
        probs = torch.cat([routing[layer].probs for routing in routings]).double()
        counts = torch.bincount(torch.cat([routing[layer].expert_ids for routing in routings]), minlength=4).double()
        each.append(
            {
                "max_violation": (counts.max() / counts.mean() - 1).item(),
                "load_cv": (counts.std(correction=0) / counts.mean()).item(),
                "routing_entropy": (-(probs * probs.log()).sum(1).mean() / math.log(4)).item(),
                "mean_routing_entropy": (-(probs.mean(0) * probs.mean(0).log()).sum() / math.log(4)).item(),
                "dropped_fraction": 0.0,
                "dead_experts": (counts < 0.01 * counts.mean()).double().mean().item(),
                "token_specialisation": of_tokens(layer),
            }
        )
    expected = {key: sum(layer[key] for layer in each) / 2 for key in each[0]}
    assert expected == pytest.approx(result.routing_metrics(), rel=1e-4, abs=1e-9)


@pytest.fixture
def three_domains(tmp_path: Path) -> Path:
    """A folder of three domains, each written in letters of its own."""
    for domain, letters in (("a", "xy"), ("b", "zw"), ("c", "€v")):
        (tmp_path / "texts" / domain).mkdir(parents=True)
        for number in range(12):
            text = "".join(random.Random(f"{domain}{number}").choices(letters, k=50 + number))
            (tmp_path / "texts" / domain / f"{number}.txt").write_text(text, encoding="utf-8")
    return tmp_path / "texts"


@pytest.mark.parametrize("tokenizer", ["bytes", "chars"])
def test_choices_are_counted_by_domain_token_and_pair(three_domains: Path, tmp_path: Path, tokenizer: Any) -> None:
    """The tables equal a loop over the tokens of the split, whose letters tell their domain."""
    config = tiny_config(three_domains, data={"tokenizer": tokenizer, "val_fraction": 0.4})
    task = tiny_task(config, tmp_path)
    model = randomise(make_model(config, task.vocab_size))
    result = evaluate(model, task, 8)
    home = {
        token: domain
        for domain, letters in (("a", "xy"), ("b", "zw"), ("c", "€v"))
        for token in task.dataset.tokenizer.encode(letters).tolist()
    }
    model.eval()
    with torch.no_grad():
        passes = [(batch.inputs.flatten().tolist(), task.loss(model, batch)[1]) for batch in task.val_batches(8)]
    for number, record in enumerate(result.layer_records(tables=True)):
        by_domain, pairs, domain = Counter(), Counter(), ""
        by_token = torch.zeros(task.vocab_size, 4, dtype=torch.int64)
        for tokens, routings in passes:
            for place, token in enumerate(tokens):
                domain = home.get(token, domain)  # a separator belongs to the text before it
                experts = routings[number].expert_ids[routings[number].token_ids == place].tolist()
                by_domain.update((domain, expert) for expert in experts)
                pairs.update((one, other) for one in experts for other in experts)
                by_token[token, experts] += 1
        expected = {name: [by_domain[name, expert] for expert in range(4)] for name in "abc"}
        assert expected == record["experts_by_domain"]
        assert [[pairs[one, other] for other in range(4)] for one in range(4)] == record["co_activation"]
        assert specialisation(torch.tensor(list(expected.values()))) == pytest.approx(record["domain_specialisation"])
        assert specialisation(by_token) == pytest.approx(record["token_specialisation"])
        assert record["token_specialisation"] > 0 < record["domain_specialisation"]
    first_window = evaluate(model, task, 8, max_tokens=16).layer_records(tables=True)[0]["experts_by_domain"]
    assert (
        {task.dataset.meta["domains"][place] for place in task.dataset.domain_ids_at(np.arange(16))}
        == set(first_window)
        != set("abc")
    )


def test_large_tables_and_a_single_domain_are_left_out(make: Any) -> None:
    """More than 64 experts have no table of pairs; one domain has no specialisation, but its counts."""
    model, task = make(expert=65)
    record = evaluate(model, task, 8, max_tokens=64).layer_records(tables=True)[0]
    assert not {"co_activation", "domain_specialisation"} & set(record)
    assert {"words.txt": record["tokens_per_expert"]} == record["experts_by_domain"]
    assert not {"co_activation", "experts_by_domain"} & set(evaluate(make()[0], task, 8).layer_records()[0])


def test_null_experts_are_in_no_measure_of_experts(make: Any) -> None:
    """Load, MaxVio, dead experts and drops are those of the experts that compute; what null experts take stands apart."""
    model, task = make(router=TopKConfig(null_experts=3), capacity=0.5)
    for layer in moe_layers(model):  # a third of all assignments are second choices of null experts
        torch.nn.init.zeros_(layer.router.gate.weight)
        layer.router.expert_bias.copy_(torch.tensor([3.0, 0, 0, 0, 2.0, 0, 0]))
    result = evaluate(model, task, 8, max_tokens=64, policy=RoutingPolicy(capacity_factor=0.5))
    for record in result.layer_records(tables=True):
        tokens_per_expert, kept = record["tokens_per_expert"], record["kept_per_expert"]
        assert (4, 4) == (len(tokens_per_expert), len(record["co_activation"]))
        assert [0, 0, 0] == tokens_per_expert[1:]
        assert 3.0 == record["max_violation"]
        assert 0.75 == record["dead_experts"]
        assert 0.5 == record["null_fraction"]
        # Half of a fair share of all assignments is 2 T K / 4 / 2, of T that ask: three quarters go.
        assert record["dropped_fraction"] == pytest.approx(1 - kept[0] / tokens_per_expert[0])
        assert record["dropped_fraction"] == pytest.approx(0.75, abs=0.02)


def test_layers_are_named_one_by_one(make: Any) -> None:
    """moe/layer_NN/measure for every sparse layer and measure; their means are the routing metrics."""
    model, task = make()
    result = evaluate(model, task, 8)
    named = result.layer_metrics()
    means = result.routing_metrics()
    assert set(LAYER_METRICS) - {"domain_specialisation", "null_fraction"} == set(means)
    assert {f"moe/layer_{layer}/{key}" for layer in ("01", "02") for key in means} == set(named)
    for key, value in means.items():
        assert value == pytest.approx((named[f"moe/layer_01/{key}"] + named[f"moe/layer_02/{key}"]) / 2)


@pytest.mark.parametrize("changes", [{}, {"data": {"val_fraction": 0.01}}, {"model": {"context_length": 512}}])
def test_the_probe_is_the_choice_of_the_same_tokens(make: Any, changes: dict[str, Any]) -> None:
    """About 256 tokens of windows spread over the split (all of a shorter one), each with its K experts, mode kept."""
    model, task = make(**changes)
    model.train()
    chosen = probe_routing(model, task)
    assert model.training
    assert all(torch.equal(one, other) for one, other in zip(chosen, probe_routing(model, task), strict=True))
    model.eval()
    with torch.no_grad():
        passes = [task.loss(model, batch)[1] for batch in task.val_batches(256, 256)]
    for number, layer in enumerate(chosen):
        expected = [
            sorted(routing[number].expert_ids[routing[number].token_ids == token].tolist())
            for routing in passes
            for token in range(routing[number].num_tokens)
        ]
        assert expected == expert_lists(layer)
        assert {2} == {len(experts) for experts in expected}
    assert {1} == {len(experts) for experts in expert_lists(probe_routing(model, task, top_k=1)[0])}


def test_saturation_is_given_layer_by_layer() -> None:
    """Recorded choices against the final ones, by layer and step; records without choices are passed over."""
    final = [
        torch.tensor([[True, True, False], [False, True, True]]),
        torch.tensor([[True, False, False], [False, True, False]]),
    ]
    records = [
        {"step": 2, "layer": 0, "choices": [[0, 1], [0, 1]]},
        {"step": 2, "layer": 1, "choices": [[1], [1]]},
        {"step": 3, "layer": 0},
        {"step": 4, "layer": 0, "choices": [[0, 1], [1, 2]]},
    ]
    assert [{2: 0.75, 4: 1.0}, {2: 0.5}] == saturations(records, final)
    assert [] == saturations([], [])


def test_a_dense_model_has_no_routing_metrics(make: Any) -> None:
    """There is nothing to measure without a router."""
    model, task = make(expert=1, k=1)
    result = evaluate(model, task, 8)
    assert (None, []) == (result.routing_metrics(), result.layer_records())


def counted(by_token: torch.Tensor, at_once: int = 3) -> TokenExpertCounts:
    """The same, from its assignments a few at a time."""
    use = TokenExpertCounts(*by_token.shape)
    tokens, experts = (torch.repeat_interleave(each, by_token.flatten()) for each in _cells(by_token))
    for ids, chosen in zip(tokens.split(at_once), experts.split(at_once), strict=True):
        empty = torch.zeros(len(ids), by_token.shape[1])
        places = torch.arange(len(ids))
        use.add(
            Routing(empty, empty, places, chosen, torch.ones(len(ids)), torch.ones(len(ids), dtype=torch.bool)), ids
        )
    return use


def _cells(table: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    places = torch.arange(table.numel())
    return places // table.shape[1], places % table.shape[1]


@pytest.mark.parametrize("direct", [0, 2**18], ids=["by sorting", "in a table"])
@given(
    table=st.lists(st.lists(st.integers(0, 5), min_size=3, max_size=3), min_size=1, max_size=9),
    buffered=st.integers(1, 40),
)
def test_use_by_tokens_is_that_of_the_whole_table(direct: int, table: list[list[int]], buffered: int) -> None:
    """Pairs that occur give the sums, the specialisation and the top tokens that all of the table gives."""
    by_token = torch.tensor(table)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_use, "MAX_DIRECT_SIZE", direct)
        patch.setattr(token_use, "BUFFER_SIZE", buffered)
        use = counted(by_token)
        assert by_token.sum(1).tolist() == use.per_token().tolist()
        use.count()
        assert int((by_token > 0).sum()) == len(use.keys)
        assert specialisation(by_token) == pytest.approx(use.specialisation())
        share = by_token.sum(0) / by_token.sum().clamp(min=1).double()
        above = by_token - by_token.sum(1, keepdim=True) * share
        order = [
            sorted(range(len(table)), key=lambda token: (-above[token, expert].item(), token)) for expert in range(3)
        ]
        expected = [
            [
                [token, table[token][expert], sum(table[token])]
                for token in order[expert][:2]
                if above[token, expert] > 0
            ]
            for expert in range(3)
        ]
        assert expected == use.top_tokens(share, 2)


@pytest.mark.parametrize("direct", [1, 4, 2**18])
def test_use_by_tokens_is_summed_over_processes(direct: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part of the table at a time: two processes that have seen the same have seen twice as much."""
    by_token = torch.tensor([[0, 3], [1, 0], [0, 0], [2, 7]])
    use = counted(by_token)
    monkeypatch.setattr(token_use, "MAX_DIRECT_SIZE", direct)
    monkeypatch.setattr(token_use.collectives, "world_size", lambda: 2)
    monkeypatch.setattr(token_use.collectives, "all_reduce_sum", lambda table: 2 * table)
    use.all_reduce()
    assert ([1, 2, 6, 7], [6, 2, 4, 14]) == (use.keys.tolist(), use.counts.tolist())


def test_use_by_tokens_is_as_large_as_what_was_seen() -> None:
    """Counts of 1,000 assignments over 50,257 tokens and 512 experts take thousands of bytes, not 206 million."""
    use = TokenExpertCounts(50257, 512)
    ids = torch.randint(50257, (1000,))
    empty = torch.zeros(1000, 1).expand(1000, 512)
    use.add(
        Routing(
            empty, empty, torch.arange(1000), torch.randint(512, (1000,)), torch.ones(1000), torch.ones(1000).bool()
        ),
        ids,
    )
    use.count()
    assert 1000 >= len(use.keys) > 990
    assert 8 * len(use.keys) == use.keys.nbytes + use.counts.nbytes


def test_top_tokens_are_those_most_above_chance() -> None:
    """Times it less what the expert's share of all assignments would give, largest first; none at or below chance."""
    by_token = torch.tensor([[6, 2], [0, 4], [2, 2], [0, 0]])
    use = LayerRoutingStats(by_token.sum(0), by_token.sum(0), torch.ones(2), None, counted(by_token), by_token)
    share = by_token.sum(0) / by_token.sum()
    above = by_token - by_token.sum(1, keepdim=True) * share
    expected = [
        [
            [token, int(by_token[token, expert]), int(by_token[token].sum())]
            for token in above[:, expert].argsort(descending=True).tolist()
            if above[token, expert] > 0
        ]
        for expert in range(2)
    ]
    assert [[[0, 6, 8]], [[1, 4, 4]]] == expected
    assert expected == use.top_tokens()
