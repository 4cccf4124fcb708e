"""The settings of router=sharp. This module imports no torch, so that commands on settings stay fast."""

from dataclasses import dataclass
from importlib.resources import files
from typing import ClassVar, Literal

from moe_cli.config.routers import PluginRouter, TokenChoiceConfig
from moe_cli.config.settings import setting
from moe_cli.plugins import Plugin


@dataclass(frozen=True)
class SharpConfig(PluginRouter, TokenChoiceConfig):
    bias_methods: ClassVar[tuple[str, ...]] = ("loss_free", "quantile")
    name: Literal["sharp"] = "sharp"
    sharpness: float = setting(above=0, at_most=100)

    def sums_to_one(self, top_k: int) -> bool:
        return True


plugin = Plugin(
    build="moe_router_example.router:SharpRouter", config=SharpConfig, conf=files(__package__) / "sharp.yaml"
)
