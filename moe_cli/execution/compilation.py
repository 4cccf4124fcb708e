"""Decision whether a run uses torch.compile. It depends on the configuration alone."""

import os
import shutil

from moe_cli.config.schema import RunConfig
from moe_cli.costs.model import estimate_cost, training_steps

# The smallest budgets at which torch.compile pays. It takes half a minute and gives about 1.09 times the steps per
# second. The FLOPs are about ten minutes of one core. The same number holds on all machines, so that all decide alike.
COMPILE_FLOPS, COMPILE_MINUTES = 2.4e13, 10.0


def compile_warning(config: RunConfig) -> str:
    if config.train.compile == "auto" and not has_compiler():
        return "this machine has no C++ compiler: training does not use torch.compile."
    return "torch.compile takes half a minute at the start. Without it: train.compile=off"


def should_compile(config: RunConfig, vocab_size: int, device: str) -> bool:
    """Returns whether training on a `cpu` or `cuda` device uses torch.compile.

    `auto` enables it for long trainings on a CPU.

    The decision depends on the configuration alone, because compiled code changes the last digits.
    """
    if config.train.compile != "auto":
        return config.train.compile == "on"
    if config.launch.num_processes > 1 or device != "cpu":
        return False
    steps = training_steps(config, vocab_size)
    if steps is None:
        return (config.train.minutes or 0) >= COMPILE_MINUTES
    return steps * estimate_cost(config, vocab_size).flops_per_step >= COMPILE_FLOPS


def has_compiler() -> bool:
    """Returns whether a C++ compiler is installed. torch.compile needs one on a CPU."""
    return any(shutil.which(name) for name in (os.environ.get("CXX", "c++"), "g++", "clang++"))
