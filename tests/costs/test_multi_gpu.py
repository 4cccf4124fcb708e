"""Estimates for many GPUs equal closed forms."""

from pathlib import Path

import pytest

from moe_cli.config.launch import LaunchConfig
from moe_cli.config.layer_costs import rows_per_expert
from moe_cli.config.optim import AdamWConfig
from moe_cli.costs.model import estimate_cost
from moe_cli.costs.multi_gpu import GPU_MODELS, per_gpu_costs, seconds_on
from tests.tiny import tiny_config

V = 13


def test_one_gpu_holds_everything() -> None:
    """Nothing is divided, nothing travels."""
    config = tiny_config(Path("text"))
    costs = estimate_cost(config, V)
    (share,) = per_gpu_costs(config, costs, 1)
    assert ("dp", 1, costs.state_bytes, 0.0, 0.0) == (
        share.shard,
        share.members,
        share.state_bytes,
        share.gathered_bytes,
        share.all_to_all_bytes,
    )
    assert costs.state_bytes + costs.activation_bytes == share.memory_bytes


@pytest.mark.parametrize(("processes", "shared", "fraction"), [(1, 1, 1), (4, 1, 1 / 4), (4, 4, 1), (4, 2, 1 / 2)])
def test_rows_of_an_expert(processes: int, shared: int, fraction: float) -> None:
    """T K / E of the tokens of the processes that share the expert."""
    launch = LaunchConfig(num_processes=processes, expert_parallel_size=shared)
    config = tiny_config(Path("text"), expert=4, launch=launch)
    tokens = config.train.batch_size * config.model.context_length
    assert tokens * 2 / 4 * fraction == rows_per_expert(config)


def test_ways_to_divide() -> None:
    """Every way holds its part: all of it, an N-th, the experts' M-th; four copies of each parameter with AdamW."""
    config = tiny_config(Path("text"), optim=AdamWConfig(), expert=4)
    costs = estimate_cost(config, V)
    experts, rest = 16 * costs.num_expert_params, 16 * (costs.num_params - costs.num_expert_params)
    by_way = {(share.shard, share.members): share for share in per_gpu_costs(config, costs, 8)}
    assert {
        ("dp", 1): rest + experts,
        ("fsdp", 1): (rest + experts) / 8,
        ("dp", 4): rest + experts / 4,
        ("fsdp", 4): rest / 8 + experts / 4,
    } == {way: share.state_bytes for way, share in by_way.items()}
    assert {costs.activation_bytes / 8} == {share.activation_bytes for share in by_way.values()}
    # Two layers, T tokens of the GPU, K = 2 of D = 16 values: rows, answers and both gradients, 3 of 4 of them leave.
    tokens = config.tokens_per_step / 8
    assert 4 * 2 * tokens * 2 * 16 * 4 * 3 / 4 == by_way["dp", 4].all_to_all_bytes
    assert 0 == by_way["dp", 1].gathered_bytes
    assert 3 * 4 * costs.num_params / 2 == by_way["fsdp", 1].gathered_bytes
    assert 3 * rest / 16 * 4 / 2 == by_way["fsdp", 4].gathered_bytes


def test_experts_that_cannot_be_divided_stay() -> None:
    """Three experts on eight GPUs: dp and fsdp alone."""
    config = tiny_config(Path("text"), expert=3)
    assert [("dp", 1), ("fsdp", 1)] == [
        (share.shard, share.members) for share in per_gpu_costs(config, estimate_cost(config, V), 8)
    ]


@pytest.mark.parametrize("name", GPU_MODELS)
def test_time_is_work_over_rate(name: str) -> None:
    """Half the efficiency or half the GPUs take twice as long."""
    device = GPU_MODELS[name]
    assert 1.0 == pytest.approx(seconds_on(device, 8 * device.flops, 8, 1.0))
    assert 4.0 == pytest.approx(seconds_on(device, 8 * device.flops, 4, 0.5))
