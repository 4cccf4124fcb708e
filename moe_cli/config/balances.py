"""Settings of the balancing methods, alone and combined.

One method is its own class; several (`balance=switch+z`) are a CombinedBalance that holds one of each.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from moe_cli.config.settings import PluginSettings, Settings, setting
from moe_cli.errors import ConfigError


@dataclass(frozen=True)
class _Balance(Settings):
    group: ClassVar[str] = "balance"


@dataclass(frozen=True)
class SwitchBalance(_Balance):
    """The load-balancing loss, 1 when balanced; `scope`: the tokens over which load is counted."""

    name: Literal["switch"] = "switch"
    weight: float = setting(above=0)
    scope: Literal["batch", "sequence", "global"] = setting()


@dataclass(frozen=True)
class WeightedBalance(_Balance):
    """A loss that has nothing to set but its weight."""

    name: Literal["importance", "load", "z", "entropy", "mutual_information"] = field(kw_only=True)
    weight: float = setting(above=0)


@dataclass(frozen=True)
class LossFreeBalance(_Balance):
    name: Literal["loss_free"] = "loss_free"
    bias_update_rate: float = setting(above=0)


@dataclass(frozen=True)
class QuantileBalance(_Balance):
    name: Literal["quantile"] = "quantile"
    iterations: int = setting(above=0, at_most=10_000)


@dataclass(frozen=True)
class NoBalance(_Balance):
    name: Literal["none"] = "none"


@dataclass(frozen=True)
class PluginBalance(PluginSettings, _Balance):
    """Base of the settings of a balancing loss that a plug-in brings."""

    name: str = ""
    weight: float = setting(above=0)


LossMethod = SwitchBalance | WeightedBalance | PluginBalance
BiasMethod = LossFreeBalance | QuantileBalance
Method = LossMethod | BiasMethod


@dataclass(frozen=True)
class CombinedBalance:
    """Several methods at once. The name is theirs, joined by "+" in the order of the fields: switch+z is z+switch.

    Methods of plug-ins come last, in the order of their names.
    """

    name: str = "+"
    switch: SwitchBalance | None = None
    importance: WeightedBalance | None = None
    load: WeightedBalance | None = None
    z: WeightedBalance | None = None
    loss_free: LossFreeBalance | None = None
    quantile: QuantileBalance | None = None
    entropy: WeightedBalance | None = None
    mutual_information: WeightedBalance | None = None
    plugins: tuple[PluginBalance, ...] = ()

    def __post_init__(self) -> None:
        names = [method.name for method in self.methods]
        if len(names) < 2 or self.name != "+".join(names):
            raise ConfigError(
                f"balance={self.name} holds the settings of {' and '.join(names) or 'no method'}: it must hold those "
                "of each method of its name, two at least."
            )
        if self.loss_free and self.quantile:
            raise ConfigError(f"balance={self.name}: loss_free and quantile both set the bias of the choice. Use one.")

    @property
    def methods(self) -> tuple[Method, ...]:
        values = [getattr(self, name) for name in METHODS]
        return (*(value for value in values if value is not None), *self.plugins)

    def to_dict(self) -> dict[str, Any]:
        """Returns the name, and under each method's name its settings; the methods that are not used do not occur."""
        settings: dict[str, Any] = {method.name: dataclasses.asdict(method) for method in self.methods}
        for values in settings.values():
            del values["name"]
        return {"name": self.name, **settings}


BalanceConfig = Method | NoBalance | CombinedBalance
METHODS = tuple(field.name for field in dataclasses.fields(CombinedBalance) if field.name not in ("name", "plugins"))


def methods_of(balance: BalanceConfig | None) -> tuple[Method, ...]:
    """Returns the methods that a configuration combines; none for the control and for a dense model."""
    if balance is None or isinstance(balance, NoBalance):
        return ()
    return balance.methods if isinstance(balance, CombinedBalance) else (balance,)


def combine(methods: dict[str, Any]) -> dict[str, Any]:
    """Returns the dictionary of a CombinedBalance from the settings of its methods, by name and in any order.

    Raises:
        ConfigError: `none` is among them.
    """
    if "none" in methods:
        raise ConfigError("balance=none is the control without balancing: it cannot be combined.")
    ordered = sorted(methods, key=lambda name: (METHODS.index(name) if name in METHODS else len(METHODS), name))
    settings = {name: {key: value for key, value in methods[name].items() if key != "name"} for name in ordered}
    return {"name": "+".join(ordered), **settings}


def setting_key(balance: BalanceConfig | None, method: Method) -> str:
    """Returns the prefix of a method's settings: `balance.`, or `balance.switch.` in a combination."""
    return f"balance.{method.name}." if isinstance(balance, CombinedBalance) else "balance."


def replace_method(balance: BalanceConfig, method: Method) -> BalanceConfig:
    """Returns the balance with other settings of one of its methods."""
    if not isinstance(balance, CombinedBalance):
        return method
    methods = {other.name: other for other in methods_of(balance)} | {method.name: method}
    return _combined(list(methods.values()))


def without_method(balance: BalanceConfig, method: Method) -> BalanceConfig:
    """Returns the balance without one of its methods."""
    rest = [other for other in methods_of(balance) if other != method]
    if len(rest) < 2:
        return rest[0] if rest else NoBalance()
    return _combined(rest)


def _combined(methods: Sequence[Method]) -> CombinedBalance:
    """Returns the combination of several methods, in its order."""
    built_in: dict[str, Any] = {method.name: method for method in methods if method.name in METHODS}
    plugins = tuple(method for method in methods if isinstance(method, PluginBalance))
    return CombinedBalance("+".join(method.name for method in methods), **built_in, plugins=plugins)
