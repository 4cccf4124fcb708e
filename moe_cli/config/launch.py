"""How many processes train one model, and what each of them has."""

from dataclasses import dataclass
from typing import Literal

from moe_cli.config.ranges import at_least
from moe_cli.errors import ConfigError


@dataclass(frozen=True)
class LaunchConfig:
    """No part of what is learned: results are those of one process, to rounding.

    Attributes:
        num_processes: processes on this machine, each with its part of a batch; one per GPU where there are any.
        shard: `dp`, each process has the whole model; `fsdp`, a part of every parameter, gathered block by block.
        expert_parallel_size: so many processes share one set of experts.
        max_restarts: how often a job whose process died starts again by itself, from its last checkpoint.
    """

    num_processes: int = 1
    data_parallel: Literal["dp", "fsdp"] = "dp"
    expert_parallel_size: int = 1
    max_restarts: int = 0

    def __post_init__(self) -> None:
        at_least("launch.num_processes", self.num_processes, 1)
        at_least("launch.expert_parallel_size", self.expert_parallel_size, 1)
        at_least("launch.max_restarts", self.max_restarts, 0)
        if self.num_processes % self.expert_parallel_size:
            raise ConfigError(
                f"launch.num_processes={self.num_processes} cannot be divided into groups of "
                f"launch.expert_parallel_size={self.expert_parallel_size}: choose a divisor."
            )


def check_launch(launch: LaunchConfig, batch_size: int, num_experts: int) -> None:
    """Raises ConfigError where a batch or the experts (1: dense) cannot be divided."""
    if batch_size % launch.num_processes:
        raise ConfigError(
            f"train.batch_size={batch_size} cannot be divided among launch.num_processes={launch.num_processes} processes: "
            "choose a multiple."
        )
    if num_experts > 1 and num_experts % launch.expert_parallel_size:
        raise ConfigError(
            f"expert={num_experts} cannot be divided among launch.expert_parallel_size={launch.expert_parallel_size} processes: "
            "choose a multiple."
        )
