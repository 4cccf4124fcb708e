"""Reads the configuration that a run folder's config.json holds."""

from typing import Any

from moe_cli.config.build import build
from moe_cli.config.schema import RunConfig
from moe_cli.errors import ConfigError
from moe_cli.formatting import sanitise
from moe_cli.plugins import Origin, origin_of


def from_dict(values: dict[str, Any]) -> RunConfig:
    """Returns the configuration stored in a run folder's config.json.

    Raises:
        ConfigError: a key or value this version does not know.
    """
    values = dict(values)
    recorded = values.pop("plugins", {})
    check_plugins(recorded)
    config: RunConfig = build(RunConfig, values)
    for group, found in config.plugins().items():
        if left_out := sorted(found.keys() - recorded.get(group, {}).keys()):
            raise ConfigError(f"{group}={left_out[0]} is a plug-in, and `plugins` does not record its version.")
    return config


def check_plugins(recorded: Any) -> None:
    """Raises ConfigError where a recorded plug-in is not installed, or is another version. Imports none.

    Args:
        recorded: the `plugins` of a config.json.
    """
    if not isinstance(recorded, dict) or not all(isinstance(found, dict) for found in recorded.values()):
        raise ConfigError("plugins must be names of plug-ins with their distributions, by group.")
    for group, found in recorded.items():
        for name, origin in found.items():
            here = origin_of(group, name)
            if here is None or str(here) != origin:
                raise ConfigError(_missing_plugin(f"{group}={name}", origin, here))


def _missing_plugin(choice: str, recorded: Any, here: Origin | None) -> str:
    source, _, version = sanitise(str(recorded)).rpartition(" ")
    found = "which is not here" if here is None else f"and here is {here}"
    return f"{choice} came from {source} {version}, {found}. {Origin(source, version).how_to_get}"
