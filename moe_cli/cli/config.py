"""moe config."""

from typing import Annotated

import typer

from moe_cli.cli.options import AsJson, ConfigDir, Outputs, Overrides, print_json, print_notes
from moe_cli.cli.terminal import echo


def config(
    overrides: Overrides = None,
    groups: Annotated[bool, typer.Option("--groups", help="List every choice of every group.")] = False,
    diff: Annotated[bool, typer.Option("--diff", help="Print only what differs from the defaults.")] = False,
    outputs: Outputs = None,
    config_dir: ConfigDir = None,
    as_json: AsJson = False,
) -> None:
    """Print the resolved configuration and the id of its run.

    Examples:
        moe config expert=8
        moe config experiment=published/mixtral_8x7b --diff
    """
    from moe_cli.config.build import flatten_dict
    from moe_cli.config.compose import Composer, load_config
    from moe_cli.config.folders import GROUPS
    from moe_cli.config.sweep_file import list_sweeps
    from moe_cli.errors import ConfigError
    from moe_cli.runs.folder import outputs_folder

    if groups:
        if overrides or diff:
            raise ConfigError("--groups lists every choice. Leave settings and --diff out.")
        composer = Composer(config_dir)
        listed = {
            group: {name: composer.describe(group, name) for name in composer.choices(group)}
            for group in (*GROUPS, "executor")
        }
        listed["sweep"] = {name: composer.describe("sweep", name) for name in list_sweeps(composer)}
        if as_json:
            print_json(listed)
            return
        for group, choices in listed.items():
            for name, line in choices.items():
                usage = f"moe sweep {name}" if group == "sweep" else f"{group}={name}"
                echo(f"{usage:<24} {line}")
        return
    resolved = load_config(overrides or [], "config", config_dir)
    print_notes(resolved.notes)
    tree = resolved.config.to_dict()
    if diff:
        default = flatten_dict(load_config([], "config", config_dir).config.to_dict())
        tree = {key: value for key, value in flatten_dict(tree).items() if key not in default or default[key] != value}
        if not tree and not as_json:
            echo("nothing differs from the defaults.")
            return
    if as_json:
        print_json(tree)
    else:
        import yaml

        echo(f"# moe train would make {outputs_folder(outputs) / 'runs' / resolved.config.run_id}")
        echo(yaml.safe_dump(tree, sort_keys=False), nl=False)
