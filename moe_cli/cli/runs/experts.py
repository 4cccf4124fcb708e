"""moe runs experts: how a run used its experts, as heat maps."""

from dataclasses import asdict

from moe_cli.cli.console import print_fitted
from moe_cli.cli.echo import ascii_only
from moe_cli.cli.options import print_json
from moe_cli.errors import ConfigError
from moe_cli.report.expert_usage import read_expert_usage
from moe_cli.report.render.expert_usage import expert_usage_lines
from moe_cli.runs.folder import Run


def print_experts(run: Run, layer: int | None, as_json: bool) -> None:
    """Prints the expert usage of all layers and the tables of one, counted from 1.

    Raises ConfigError if no data exist.
    """
    found = read_expert_usage(run)
    if not found.layers:
        if run.config_dict().get("expert") == 1:
            raise ConfigError(f"{run.id} is a dense model: it has no experts to look at.")
        raise ConfigError(
            f"{run.id} has no record of its experts: it was not evaluated yet. See: moe runs show {run.id}"
        )
    if layer is not None and not 1 <= layer <= len(found.layers):
        raise ConfigError(f"--layer {layer}: {run.id} has sparse layers 1 to {len(found.layers)}.")
    if as_json:
        print_json(asdict(found))
    else:
        print_fitted(lambda width: expert_usage_lines(found, layer, width, ascii_only()))
