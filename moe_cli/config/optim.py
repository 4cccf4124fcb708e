"""Settings of the optimizers."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from moe_cli.config.ranges import format_setting
from moe_cli.config.settings import Settings, setting
from moe_cli.errors import ConfigError


@dataclass(frozen=True)
class OptimConfig(Settings):
    """Settings of all optimizers: the schedule, in fractions of the training budget, and clipping.

    Attributes:
        skip_idle_experts: an expert without tokens in a step keeps its weights and its optimizer state.
        router_lr: peak learning rate of the gates; None means that of the other weights of their optimizer.
        ema_decay: decay of the running average of the weights that is evaluated; None means that the weights are
            evaluated.
    """

    group: ClassVar[str] = "optim"
    lr: float = setting(above=0)
    weight_decay: float = setting(at_least=0)
    schedule: Literal["cosine", "linear", "wsd", "constant"] = setting()
    warmup_fraction: float = setting(between=(0, 1))
    decay_fraction: float | None = setting(between=(0, 1))
    min_lr_ratio: float | None = setting(between=(0, 1))
    grad_clip: float | None = setting(above=0)
    skip_idle_experts: bool = setting()
    router_lr: float | None = setting(above=0)
    ema_decay: float | None = setting(fraction=True)

    def check(self) -> None:
        if self.warmup_fraction + (self.decay_fraction or 0) > 1:
            raise ConfigError(
                f"optim.warmup_fraction={format_setting(self.warmup_fraction)} and "
                f"optim.decay_fraction={format_setting(self.decay_fraction)} are shares of the budget: "
                "together at most 1."
            )


@dataclass(frozen=True)
class AdamConfig(OptimConfig):
    """Optimizers that train all or some parameters with AdamW."""

    beta1: float = setting(fraction=True)
    beta2: float = setting(fraction=True)


@dataclass(frozen=True)
class AdamWConfig(AdamConfig):
    name: Literal["adamw"] = "adamw"


@dataclass(frozen=True)
class SGDConfig(OptimConfig):
    """Gradient descent with momentum."""

    name: Literal["sgd"] = "sgd"
    momentum: float = setting(fraction=True)


@dataclass(frozen=True)
class MuonConfig(AdamConfig):
    """Muon for matrices and stacked experts (`lr`), AdamW for embedding, head, gates and norms (`adam_lr`).

    Attributes:
        expert_period: steps between two updates of the same experts; None means that the number of experts decides.
    """

    name: Literal["muon"] = "muon"
    adam_lr: float = setting(above=0)
    momentum: float = setting(fraction=True)
    expert_period: int | None = setting(at_least=1, at_most=1024)
