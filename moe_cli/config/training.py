"""Settings of the training: its budget, batch, evaluations and checkpoints; and those of the evaluation."""

import math
import re
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from moe_cli.config.bounds import THREADS
from moe_cli.config.capacity import Drop
from moe_cli.config.loggers import LOG_KEYS
from moe_cli.config.ranges import format_setting
from moe_cli.config.settings import Settings, read_choice, setting
from moe_cli.errors import ConfigError

DEFAULT_STEPS = 1500
BUDGETS = ("steps", "tokens", "flops", "model_flops", "minutes")
BUDGET_KEYS = tuple(f"train.{name}" for name in BUDGETS)
# Prefix of train.upcycle_from before the folder of a model of transformers.
FOREIGN_MODEL = "hf:"
# With train.eval_every=null. The last evaluation is at the end.
EVALUATIONS_PER_RUN = 10
# Settings of train= for execution and logging, which do not affect the trained model and are not part of its identity.
EXECUTION_KEYS = (
    "threads",
    "device",
    "compile",
    "log_every",
    "eval_every",
    "eval_tokens",
    "checkpoint_every",
    "keep_checkpoints",
    "keep_best",
)


def is_execution(key: str) -> bool:
    """Returns whether a dotted setting only affects execution or logging."""
    group, _, name = key.partition(".")
    return group in ("launch", *LOG_KEYS) or (group == "train" and name in EXECUTION_KEYS)


@dataclass(frozen=True)
class TrainConfig(Settings):
    """The budget (one of `BUDGETS`), the batch, and the intervals of evaluations and checkpoints."""

    group: ClassVar[str] = "train"
    steps: int | None = setting(at_least=1, at_most=10**12)
    tokens: int | None = setting(at_least=1, at_most=10**18)
    flops: float | None = setting(above=0, at_most=1e29)
    model_flops: float | None = setting(above=0, at_most=1e29)
    minutes: float | None = setting(above=0, at_most=1e7)
    batch_size: int = setting(at_least=1, at_most=2**24)
    grad_accumulation: int = setting(at_least=1, at_most=2**20)
    eval_every: int | None = setting(at_least=1)
    eval_tokens: int = setting(at_least=1)
    checkpoint_every: int | None = setting(at_least=1)
    log_every: int = setting(at_least=1)
    threads: int | None = setting(at_least=1, at_most=THREADS)
    device: str = setting()
    compile: Literal["auto", "on", "off"] = setting()
    precision: Literal["auto", "float32", "bfloat16"] = setting()
    upcycle_from: str | None = setting()
    upcycle_noise: float = setting(between=(0, 1000))
    upcycle_drop: float = setting(between=(0, 1))
    on_nan: Literal["stop", "skip", "rewind"] = setting()
    keep_checkpoints: int = setting(at_least=1)
    keep_best: bool = setting()

    @classmethod
    def from_conf(cls, name: str) -> dict[str, Any]:
        return read_choice("train", "default")

    def check(self) -> None:
        if self.upcycle_from == "latest":
            raise ConfigError("train.upcycle_from=latest changes with every run. Give a run id: see moe report --runs")
        if self.upcycle_from is not None and self.upcycle_from.startswith(FOREIGN_MODEL):
            raise ConfigError(
                f"train.upcycle_from={self.upcycle_from} is read from the words of moe train and moe sweep alone. "
                "Elsewhere name a run: moe import FOLDER --no-eval"
            )
        budgets = [name for name in BUDGETS if getattr(self, name) is not None]
        if len(budgets) > 1:
            raise ConfigError(
                f"{' and '.join(f'train.{name}={format_setting(getattr(self, name))}' for name in budgets)} are "
                f"{len(budgets)} budgets: give one, and null to the others."
            )
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            raise ConfigError(f"train.device={self.device} is not one of: auto, cpu, cuda, cuda:N.")

    @property
    def budget(self) -> tuple[str, float]:
        """Returns the budget of a resolved configuration, such as ("steps", 600)."""
        return next((name, amount) for name in BUDGETS if (amount := getattr(self, name)) is not None)

    def num_evaluations(self, steps: float | None) -> int:
        """Returns the number of evaluations before the end of a run; steps are unknown with a budget of time."""
        if steps is None:
            return EVALUATIONS_PER_RUN - 1
        count = math.ceil(steps / (self.eval_every or 1)) - 1
        return max(0, count if self.eval_every else min(EVALUATIONS_PER_RUN - 1, count))


@dataclass(frozen=True)
class EvalConfig(Settings):
    """Routing and context at evaluation; null means as many experts as in training, and no drops.

    Attributes:
        drop: null means `causal` for a model that must not see later tokens, else as in training.
        context_length: tokens of a validation window; null means that of the model.
        stride: tokens from one validation window to the next; a window scores its last `stride` tokens; null means
            windows without overlap.
    """

    group: ClassVar[str] = "eval"
    k: int | None = setting(at_least=1, at_most=2**20)
    capacity: float | None = setting(above=0, at_most=1e6)
    drop: Drop | None = setting()
    context_length: int | None = setting(at_least=1)
    stride: int | None = setting(at_least=1)
