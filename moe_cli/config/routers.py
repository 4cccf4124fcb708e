"""What can be set of each router. `k` is top_k."""

from dataclasses import dataclass
from typing import Literal

from moe_cli.config.parse import show
from moe_cli.errors import ConfigError


@dataclass(frozen=True)
class TopKConfig:
    name: Literal["topk"] = "topk"
    renormalise: bool | None = None


@dataclass(frozen=True)
class SwitchConfig:
    name: Literal["switch"] = "switch"
    jitter: float = 0.01

    def __post_init__(self) -> None:
        if not 0 <= self.jitter < 1:
            raise ConfigError(f"router.jitter={show(self.jitter)} must be at least 0 and below 1.")


@dataclass(frozen=True)
class RandomConfig:
    name: Literal["random"] = "random"


RouterConfig = TopKConfig | SwitchConfig | RandomConfig
