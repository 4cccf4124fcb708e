"""How much memory, traffic and time does a training need on many GPUs? Estimated from the configuration alone."""

from dataclasses import dataclass
from math import gcd

from moe_cli.config.schema import RunConfig
from moe_cli.costs.model import BYTES_PER_PARAM, Cost, all_to_all_bytes_per_step


@dataclass(frozen=True)
class Gpu:
    """A GPU.

    Attributes:
        name: the name in `--gpu`.
        flops: peak FLOPs per second of dense bfloat16 matrix products, as the manufacturer states.
        memory_bytes: memory of one GPU.
    """

    name: str
    flops: float
    memory_bytes: float


GPU_MODELS = {
    gpu.name: gpu
    for gpu in (
        Gpu("h100", 989e12, 80e9),
        Gpu("h200", 989e12, 141e9),
        Gpu("b200", 2250e12, 180e9),
        Gpu("mi300x", 1307e12, 192e9),
        Gpu("a100", 312e12, 80e9),
        Gpu("l4", 121e12, 24e9),
        Gpu("rtx4090", 165e12, 24e9),
    )
}


@dataclass(frozen=True)
class PerGpuCost:
    """Memory and traffic of one of several GPUs.

    Attributes:
        shard: `dp` or `fsdp`, as launch.data_parallel.
        members: GPUs that share one set of experts, as launch.expert_parallel_size.
        state_bytes: its part of weights, gradients and optimizer state.
        gathered_bytes: with fsdp, the full weights and gradients of the current block and the weights of the next one.
        activation_bytes: activations of its part of the batch.
        all_to_all_bytes: bytes of expert rows and their gradients that it sends in an optimizer step.
    """

    shard: str
    members: int
    state_bytes: float
    gathered_bytes: float
    activation_bytes: float
    all_to_all_bytes: float

    @property
    def memory_bytes(self) -> float:
        return self.state_bytes + self.gathered_bytes + self.activation_bytes


def per_gpu_costs(config: RunConfig, costs: Cost, gpus: int) -> list[PerGpuCost]:
    """Returns the costs of dp and fsdp, and of both with expert parallelism if E and `gpus` have a common divisor."""
    members = gcd(config.expert, gpus)
    strategies = [("dp", 1), ("fsdp", 1)] if gpus > 1 else [("dp", 1)]
    strategies += [(shard, members) for shard, _ in strategies] if members > 1 else []
    return [_per_gpu_cost(config, costs, gpus, *strategy) for strategy in strategies]


def _per_gpu_cost(config: RunConfig, costs: Cost, gpus: int, shard: str, members: int) -> PerGpuCost:
    experts, others = costs.expert_state_bytes, costs.state_bytes - costs.expert_state_bytes
    num_shards = gpus if shard == "fsdp" else 1
    # Experts that are divided among members are not sharded as well.
    state = others / num_shards + experts / (members if members > 1 else num_shards)
    in_blocks = costs.num_params - (costs.num_expert_params if members > 1 else 0)
    block = BYTES_PER_PARAM * in_blocks / config.model.num_layers
    sent = all_to_all_bytes_per_step(config, members) / gpus if members > 1 else 0.0
    return PerGpuCost(shard, members, state, 3 * block if shard == "fsdp" else 0.0, costs.activation_bytes / gpus, sent)


def seconds_on(gpu: Gpu, flops: float, gpus: int, efficiency: float) -> float:
    """Computes the seconds for `flops`; the efficiency includes the time in which GPUs wait for each other."""
    return flops / (gpus * gpu.flops * efficiency)
