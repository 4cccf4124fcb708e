"""What can be set of each way of keeping the experts evenly used, and how several of them go together.

One method is its own class; several (`balance=switch+z`) are a CombinedBalance that holds one of each.
"""

import dataclasses
from dataclasses import dataclass, replace
from typing import Any, Literal

from moe_cli.config.ranges import above
from moe_cli.errors import ConfigError


@dataclass(frozen=True)
class SwitchBalance:
    """`scope` is over what load is counted."""

    name: Literal["switch"] = "switch"
    weight: float = 0.01
    scope: Literal["batch", "sequence", "global"] = "batch"


@dataclass(frozen=True)
class ImportanceBalance:
    name: Literal["importance"] = "importance"
    weight: float = 0.01


@dataclass(frozen=True)
class LoadBalance:
    name: Literal["load"] = "load"
    weight: float = 0.01


@dataclass(frozen=True)
class ZBalance:
    name: Literal["z"] = "z"
    weight: float = 0.001


@dataclass(frozen=True)
class LossFreeBalance:
    name: Literal["loss_free"] = "loss_free"
    bias_update_rate: float = 0.001


@dataclass(frozen=True)
class QuantileBalance:
    name: Literal["quantile"] = "quantile"
    iterations: int = 4


@dataclass(frozen=True)
class EntropyBalance:
    name: Literal["entropy"] = "entropy"
    weight: float = 0.01


@dataclass(frozen=True)
class MutualInformationBalance:
    name: Literal["mutual_information"] = "mutual_information"
    weight: float = 0.01


@dataclass(frozen=True)
class NoBalance:
    name: Literal["none"] = "none"


LossBalance = SwitchBalance | ImportanceBalance | LoadBalance | ZBalance | EntropyBalance | MutualInformationBalance
BiasBalance = LossFreeBalance | QuantileBalance
Method = LossBalance | BiasBalance


@dataclass(frozen=True)
class CombinedBalance:
    """Several methods at once. The name is theirs, joined by "+" in the order of the fields: switch+z is z+switch."""

    name: str = "+"
    switch: SwitchBalance | None = None
    importance: ImportanceBalance | None = None
    load: LoadBalance | None = None
    z: ZBalance | None = None
    loss_free: LossFreeBalance | None = None
    quantile: QuantileBalance | None = None
    entropy: EntropyBalance | None = None
    mutual_information: MutualInformationBalance | None = None

    def __post_init__(self) -> None:
        held = [method.name for method in self.methods]
        if len(held) < 2 or self.name != "+".join(held):
            raise ConfigError(
                f"balance={self.name} holds the settings of {' and '.join(held) or 'no method'}: it must hold those "
                "of each method of its name, two at least."
            )
        if self.loss_free and self.quantile:
            raise ConfigError(f"balance={self.name}: loss_free and quantile both set the bias of the choice. Use one.")

    @property
    def methods(self) -> tuple[Method, ...]:
        values = [getattr(self, name) for name in METHODS]
        return tuple(value for value in values if value is not None)

    def to_dict(self) -> dict[str, Any]:
        """The name, and under each method's name its settings; the methods that are not used do not occur."""
        settings: dict[str, Any] = {method.name: dataclasses.asdict(method) for method in self.methods}
        for values in settings.values():
            del values["name"]
        return {"name": self.name, **settings}


BalanceConfig = Method | NoBalance | CombinedBalance
METHODS = tuple(field.name for field in dataclasses.fields(CombinedBalance) if field.name != "name")


def methods_of(balance: BalanceConfig | None) -> tuple[Method, ...]:
    """The methods that a configuration combines; none for the control and for a dense model."""
    if balance is None or isinstance(balance, NoBalance):
        return ()
    return balance.methods if isinstance(balance, CombinedBalance) else (balance,)


def combine(methods: dict[str, Any]) -> dict[str, Any]:
    """The dictionary of a CombinedBalance from the settings of its methods, by name and in any order.

    Raises:
        ConfigError: `none` is among them.
    """
    if "none" in methods:
        raise ConfigError("balance=none is the control without balancing: it cannot be combined.")
    ordered = sorted(methods, key=lambda name: METHODS.index(name) if name in METHODS else len(METHODS))
    settings = {name: {key: value for key, value in methods[name].items() if key != "name"} for name in ordered}
    return {"name": "+".join(ordered), **settings}


def setting_key(balance: BalanceConfig | None, method: Method) -> str:
    """What users type before the name of a method's setting: `balance.`, or `balance.switch.` among several."""
    return f"balance.{method.name}." if isinstance(balance, CombinedBalance) else "balance."


def replace_method(balance: BalanceConfig, method: Method) -> BalanceConfig:
    """The balance with other settings of one of its methods."""
    held: dict[str, Any] = {method.name: method}
    return replace(balance, **held) if isinstance(balance, CombinedBalance) else method


def without_method(balance: BalanceConfig, method: Method) -> BalanceConfig:
    """The balance without one of its methods."""
    rest = [each for each in methods_of(balance) if each != method]
    if len(rest) < 2:
        return rest[0] if rest else NoBalance()
    kept: dict[str, Any] = {each.name: each for each in rest}
    return CombinedBalance("+".join(kept), **kept)


def check_ranges(balance: BalanceConfig | None) -> None:
    """Every number of a balance is above 0.

    Raises:
        ConfigError: one is not.
    """
    for method in methods_of(balance):
        for name in ("weight", "bias_update_rate", "iterations"):
            above(setting_key(balance, method) + name, getattr(method, name, None), 0)
