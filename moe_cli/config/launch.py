"""How many processes train one model, and what each of them has."""

from dataclasses import dataclass
from typing import Literal

from moe_cli.config.ranges import at_least
from moe_cli.errors import ConfigError


@dataclass(frozen=True)
class LaunchConfig:
    """No part of what is learned: results are those of one process, to rounding.

    Attributes:
        procs: processes on this machine, each with its part of a batch; one per GPU where there are any.
        shard: `dp`, each process has the whole model; `fsdp`, a part of every parameter, gathered block by block.
        expert_parallel: so many processes share one set of experts.
        restarts: how often a job whose process died starts again by itself, from its last checkpoint.
    """

    procs: int = 1
    shard: Literal["dp", "fsdp"] = "dp"
    expert_parallel: int = 1
    restarts: int = 0

    def __post_init__(self) -> None:
        at_least("launch.procs", self.procs, 1)
        at_least("launch.expert_parallel", self.expert_parallel, 1)
        at_least("launch.restarts", self.restarts, 0)
        if self.procs % self.expert_parallel:
            raise ConfigError(
                f"launch.procs={self.procs} cannot be divided into groups of "
                f"launch.expert_parallel={self.expert_parallel}: choose a divisor."
            )


def check_launch(launch: LaunchConfig, batch_size: int, num_experts: int) -> None:
    """Raises ConfigError where a batch or the experts (1: dense) cannot be divided."""
    if batch_size % launch.procs:
        raise ConfigError(
            f"train.batch_size={batch_size} cannot be divided among launch.procs={launch.procs} processes: "
            "choose a multiple."
        )
    if num_experts > 1 and num_experts % launch.expert_parallel:
        raise ConfigError(
            f"expert={num_experts} cannot be divided among launch.expert_parallel={launch.expert_parallel} processes: "
            "choose a multiple."
        )
