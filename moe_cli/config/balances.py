"""What can be set of each way of keeping the experts evenly used."""

from dataclasses import dataclass
from typing import Literal

from moe_cli.config.ranges import above


@dataclass(frozen=True)
class SwitchBalance:
    name: Literal["switch"] = "switch"
    weight: float = 0.01

    def __post_init__(self) -> None:
        above("balance.weight", self.weight, 0)


@dataclass(frozen=True)
class ZBalance:
    name: Literal["z"] = "z"
    weight: float = 0.001

    def __post_init__(self) -> None:
        above("balance.weight", self.weight, 0)


@dataclass(frozen=True)
class LossFreeBalance:
    name: Literal["loss_free"] = "loss_free"
    bias_update_rate: float = 0.001

    def __post_init__(self) -> None:
        above("balance.bias_update_rate", self.bias_update_rate, 0)


@dataclass(frozen=True)
class NoBalance:
    name: Literal["none"] = "none"


BalanceConfig = SwitchBalance | ZBalance | LossFreeBalance | NoBalance
