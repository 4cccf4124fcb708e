"""Settings of the processes that train one model."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from moe_cli.config.bounds import PROCESSES
from moe_cli.config.ranges import check_divisible
from moe_cli.config.settings import Settings, setting
from moe_cli.errors import ConfigError


@dataclass(frozen=True)
class LaunchConfig(Settings):
    """Settings that do not affect the trained model: results equal those of one process, except for rounding.

    Attributes:
        num_processes: processes on this machine, each with its part of a batch; one per GPU if GPUs are present.
        data_parallel: `dp`: each process has the whole model; `fsdp`: each has a part of every parameter, gathered
            block by block.
        expert_parallel_size: number of processes that share one set of experts.
        max_restarts: the number of automatic restarts from the last checkpoint after a process has died.
    """

    group: ClassVar[str] = "launch"
    num_processes: int = setting(at_least=1, at_most=PROCESSES)
    data_parallel: Literal["dp", "fsdp"] = setting()
    expert_parallel_size: int = setting(at_least=1, at_most=PROCESSES)
    max_restarts: int = setting(at_least=0, at_most=10_000)

    def check(self) -> None:
        if self.num_processes % self.expert_parallel_size:
            raise ConfigError(
                f"launch.num_processes={self.num_processes} cannot be divided into groups of "
                f"launch.expert_parallel_size={self.expert_parallel_size}: choose a divisor."
            )


def check_launch(launch: LaunchConfig, batch_size: int, num_experts: int) -> None:
    """Raises ConfigError where a batch or the experts (1: dense) cannot be divided."""
    check_divisible("train.batch_size", batch_size, "launch.num_processes", launch.num_processes)
    if num_experts > 1:
        check_divisible("expert", num_experts, "launch.expert_parallel_size", launch.expert_parallel_size)
