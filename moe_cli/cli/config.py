"""moe config."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moe_cli.cli.echo import echo, echo_definitions
from moe_cli.cli.options import AsJson, ConfigDir, Outputs, Overrides, PluginFiles, print_json, print_notes

if TYPE_CHECKING:
    from moe_cli.config.compose import Composer
    from moe_cli.config.reference import Explanation


def config(
    overrides: Overrides = None,
    groups: Annotated[bool, typer.Option("--groups", help="List every choice of every group.")] = False,
    diff: Annotated[bool, typer.Option("--diff", help="Print only what differs from the defaults.")] = False,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON schema of the configuration, for editors and programs.")
    ] = False,
    outputs: Outputs = None,
    config_dir: ConfigDir = None,
    plugin: PluginFiles = None,
    as_json: AsJson = False,
) -> None:
    """Print a resolved configuration, or explain a setting.

    Examples:
        moe config expert=8
        moe config experiment=published/mixtral_8x7b --diff
        moe config optim.lr
    """
    from moe_cli.errors import ConfigError

    if schema:
        from moe_cli.config.reference import json_schema

        if overrides or groups or diff:
            raise ConfigError(
                "--schema prints one schema for all configurations. Leave settings and other options out."
            )
        return print_json(json_schema())
    if groups:
        if overrides or diff:
            raise ConfigError("--groups lists every choice. Leave settings and --diff out.")
        return _print_groups(config_dir, as_json)
    keys, settings = _split_keys(overrides or [])
    if keys:
        if diff:
            raise ConfigError(f"--diff compares a whole configuration. Leave {' and '.join(keys)} out, or --diff.")
        return _explain(keys, settings, config_dir, as_json)
    _print_config(settings, diff, outputs, config_dir, as_json)


def _print_config(
    settings: list[str], diff: bool, outputs: Path | None, config_dir: Path | None, as_json: bool
) -> None:
    from moe_cli.config.compose import load_config, non_default_settings
    from moe_cli.runs.folder import outputs_folder

    resolved = load_config(settings, "config", config_dir)
    print_notes(resolved.notes)
    tree = resolved.config.to_dict()
    if diff:
        tree = non_default_settings(tree, config_dir)
        if not tree and not as_json:
            echo("nothing differs from the defaults.")
            return
    if as_json:
        print_json(tree)
    else:
        from moe_cli.config.yaml_file import format_yaml

        echo(f"# moe train would make {outputs_folder(outputs) / 'runs' / resolved.config.run_id}")
        echo(format_yaml(tree), nl=False)


def _print_groups(config_dir: Path | None, as_json: bool) -> None:
    from moe_cli.config.compose import Composer
    from moe_cli.config.folders import GROUPS
    from moe_cli.config.sweep_file import CLAIM, SPACE, SWEEP, list_sweeps
    from moe_cli.plugins import describe, names

    composer = Composer(config_dir)
    listed = {
        group: {name: composer.describe(group, name) for name in composer.choices_with_plugins(group)}
        for group in (*GROUPS, "executor")
    }
    for group in ("log", "metric"):
        if found := names(group):
            listed[group] = {name: describe(group, name) for name in found}
    commands = {SWEEP.folder: "sweep", SPACE.folder: "decide", CLAIM.folder: "reproduce"}
    for kind in (SWEEP, SPACE, CLAIM):
        listed[kind.folder] = {name: composer.describe(kind.folder, name) for name in list_sweeps(composer, kind)}
    if as_json:
        print_json(listed)
        return
    for number, (group, choices) in enumerate(listed.items()):
        if number:
            echo()
        echo(group)
        echo_definitions(
            {
                (f"moe {commands[group]} {name}" if group in commands else f"{group}={name}"): line
                for name, line in choices.items()
            }
        )


def _split_keys(settings: list[str]) -> tuple[list[str], list[str]]:
    """Splits arguments into settings or groups to explain, and overrides."""
    from moe_cli.config.build import names_of
    from moe_cli.config.folders import GROUPS
    from moe_cli.config.schema import RunConfig

    known = {*names_of(RunConfig), *GROUPS}
    plain = [word for word in settings if "=" not in word and word[:1] not in "~+-"]
    keys = [word for word in plain if word in known or not Path(word).exists()]
    return keys, [word for word in settings if word not in keys]


def _explain(keys: list[str], settings: list[str], config_dir: Path | None, as_json: bool) -> None:
    from dataclasses import asdict

    from moe_cli.config.axes import single_values
    from moe_cli.config.compose import Composer
    from moe_cli.config.folders import GROUPS
    from moe_cli.config.overrides import parse_overrides
    from moe_cli.config.reference import explain_setting

    composer, values = Composer(config_dir), single_values(parse_overrides(settings), "config")
    if as_json:
        print_json([asdict(explain_setting(composer, key, values)) for key in keys])
        return
    for number, key in enumerate(keys):
        if number:
            echo("")
        if key in GROUPS:
            _print_choices(composer, key, values)
        else:
            _print_explanation(explain_setting(composer, key, values))


def _print_choices(composer: "Composer", group: str, values: dict[str, Any]) -> None:
    tree = composer.tree(values)
    choice = tree[group].get("name") if isinstance(tree.get(group), dict) else values.get(group)
    echo(f"{group}={choice}" if choice else group)
    echo_definitions(
        {f"{group}={name}": composer.describe(group, name) for name in composer.choices_with_plugins(group)}
    )


def _print_explanation(explained: "Explanation") -> None:
    from moe_cli.config.ranges import format_setting

    defaults = [f"{value} ({choice})" if choice else value for choice, value in explained.defaults.items()]
    echo(f"{explained.key}={format_setting(explained.value)}")
    for title, text in (
        ("meaning", explained.meaning),
        ("values", explained.values),
        ("default", ", ".join(defaults)),
        ("source", explained.source),
    ):
        for number, line in enumerate(text.split("\n")):
            echo(f"  {'' if number else title:<8} {line}")
