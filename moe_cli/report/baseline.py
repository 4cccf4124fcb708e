"""The baseline of differences, and the command that trains the missing dense baseline of a configuration."""

import os
import shlex
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from moe_cli.config.baselines import parse_baseline
from moe_cli.config.build import did_you_mean
from moe_cli.config.ranges import format_setting
from moe_cli.config.schema import RunConfig
from moe_cli.config.tasks import is_built_in_task
from moe_cli.errors import ConfigError, MoeError
from moe_cli.formatting import listed, sanitise
from moe_cli.plugins import not_imported
from moe_cli.report.baseline_runs import find_baselines, shared_with_dense
from moe_cli.report.configuration import Configuration
from moe_cli.report.load import flat_settings, read_rows
from moe_cli.report.run_row import (
    DENSE,
    TOP_LEVEL,
    RunRow,
    Settings,
    Value,
    column_names,
    is_baseline,
    is_list,
    setting_applies,
    settings_of,
    varying_settings,
)
from moe_cli.report.sweep_record import read_record
from moe_cli.runs.folder import COMPLETED, Run
from moe_cli.runs.lookup import list_runs

if TYPE_CHECKING:
    from moe_cli.config.compose import Composer

# The settings that a command gives first, because the defaults of others depend on them.
CHOICES = ("expert", "k", "router", "balance")
# What a configuration records of its plug-ins, which is no setting.
PLUGIN_VERSIONS = ("plugins.",)


def declared_baselines(runs: Sequence[RunRow]) -> list[Settings]:
    """Returns the baseline of each sweep of these runs, by its sweep.json; the dense model if it names none."""
    folders = dict.fromkeys(os.path.dirname(run.path) for run in runs)
    named = [read_record(Path(folder)).get("baseline") or DENSE for folder in folders]
    return [baseline if isinstance(baseline, dict) else DENSE for baseline in named]


def sweep_baseline(runs: Sequence[RunRow]) -> Settings:
    """Returns the baseline on which all sweeps of these runs agree; else the dense model."""
    named = declared_baselines(runs)
    return named[0] if named and all(baseline == named[0] for baseline in named) else DENSE


def baseline_name(baseline: Settings) -> str:
    """Returns the baseline's name: dense, or balance=none."""
    return (
        "dense"
        if baseline == DENSE
        else sanitise(" ".join(f"{key}={format_setting(value)}" for key, value in baseline.items()))
    )


def extra_baseline_runs(
    outputs: Path, runs: Sequence[RunRow], baseline: Settings | None = None, also: Collection[str] = ()
) -> list[RunRow]:
    """Returns the complete runs of the outputs folder, or in the folders `also`, that may serve as baselines of `runs`.

    They are not among `runs`. They have the settings of `baseline`, of a baseline that a sweep of `runs` declares, or
    of the dense model.
    """
    seen = {os.path.realpath(run.path) for run in runs}
    candidates = [*(list_runs(outputs) if outputs.is_dir() else []), *(Run(Path(path)) for path in also)]
    found = {path: run for run in candidates if (path := os.path.realpath(run.path)) not in seen}
    wanted = [*([] if baseline is None else [baseline]), *declared_baselines(runs), DENSE]
    return [
        row
        for row in read_rows(list(found.values()))
        if row.status == COMPLETED and any(is_baseline(row, settings) for settings in wanted)
    ]


def find_baseline(
    text: str | None, outputs: Path, runs: Sequence[RunRow], also: Collection[str] = (), *, whole: bool
) -> tuple[Settings | None, list[RunRow]]:
    """Returns the baseline that `--baseline` names, None without the option, and other runs that may serve as it.

    Args:
        also: folders of runs that may serve too.
        whole: `runs` are all runs of the outputs folder.

    Raises:
        ConfigError: no configuration has these settings, or several have them.
    """
    named = None if text is None else parse_baseline(text)
    extra = [] if whole else extra_baseline_runs(outputs, runs, named, also)
    return None if text is None else resolve_baseline(text, runs, extra), extra


def resolve_baseline(text: str, runs: Sequence[RunRow], extra_baselines: Sequence[RunRow]) -> Settings:
    """Returns the settings that `--baseline` names.

    Raises:
        ConfigError: it cannot be read, no complete run has these settings, or several or all configurations fit, or it
            compares with none.
    """
    baseline = parse_baseline(text)
    settings = settings_of(column_names(runs))
    known = [name.removesuffix(".name") for name in settings]
    for name in baseline:
        if name not in (*known, *settings):
            raise ConfigError(f"--baseline {text}: no setting '{name}'.{did_you_mean(name, known)}")
    baselines = find_baselines(runs, extra_baselines, baseline, settings)
    if baselines.ambiguous:
        raise ConfigError(f"--baseline {text} {ambiguity(baselines.ambiguous)}")
    if not baselines.runs:
        there = "; ".join(f"{name}={', '.join(values)}" for name in baseline if (values := _values(runs, name)))
        null = [name for name, value in baseline.items() if value is None]
        read = (
            f" ({null[0]} was read as null, which is no name; for a name write {null[0]}=none)"
            if null and there
            else ""
        )
        raise ConfigError(
            f"--baseline {text}: no complete run has these settings{read}. There are: {there or 'no complete runs'}"
        )
    done = [run for run in runs if run.status == COMPLETED]
    others = [run for run in done if not is_baseline(run, baseline)]
    if done and not others:
        raise ConfigError(f"--baseline {text} fits every configuration: name a setting that varies, or leave it out.")
    if others and not any(baselines.find(run) for run in others):
        raise ConfigError(
            f"--baseline {text}: no configuration differs from it in these settings alone, at equal data, "
            "budget and evaluation context. Add what else it brings along, or name another."
        )
    return baseline


def ambiguity(fitting: Sequence[RunRow]) -> str:
    """Names the configurations among which a baseline cannot be chosen."""
    names = varying_settings([run.settings for run in fitting], settings_of(column_names(fitting)))
    found = dict.fromkeys(" ".join(f"{name}={format_setting(run.get(name))}" for name in names) for run in fitting)
    return sanitise(
        f"fits several configurations where one is needed: {listed(list(found), 4, '; ')}. Add what tells them apart."
    )


def _values(runs: Collection[RunRow], name: str) -> list[str]:
    """Returns the values of a setting in complete runs; a choice of a group goes by its name."""
    found = [value for run in runs if run.status == COMPLETED for value in (run.get(name), run.get(f"{name}.name"))]
    return list(dict.fromkeys(sanitise(format_setting(value)) for value in found if value is not None))[:8]


def dense_baseline_command(config: RunConfig) -> str:
    """Returns the command for the baseline of a run: its dense twin, or for a dense run the default experts."""
    settings = flat_settings(config.to_dict())
    return _command(settings, [config.seed], {} if config.dense else DENSE)


def baseline_command(configuration: Configuration) -> str:
    """Returns `moe train expert=1` with every setting that differs from the defaults."""
    return _command({**configuration.settings, **configuration.execution}, configuration.seeds, DENSE)


def baseline_overrides(settings: Settings, choice: Settings = DENSE) -> dict[str, Value]:
    """Returns the overrides of the baseline of a configuration. Raises MoeError if a setting is invalid."""
    from moe_cli.config.compose import Composer

    shared = shared_with_dense([name for name in settings if "." in name])
    # A dense model starts from its initial weights, because upcycling applies only to experts.
    left_out = ("train.upcycle_", *PLUGIN_VERSIONS)
    wanted = {name: settings[name] for name in shared if not name.startswith(left_out)}
    return overrides_for(Composer(), {**choice}, wanted)


def _command(settings: Settings, seeds: Sequence[int], choice: Settings) -> str:
    try:
        overrides = baseline_overrides(settings, choice)
    except MoeError:
        overrides = {**choice}
    seeds = seeds or [0]
    if seeds[0] != 0:
        overrides["seed"] = seeds[0]
    if len(seeds) == 1:
        return f"moe train {_written(overrides)}".rstrip()
    return "moe sweep " + _written({**overrides, "seed": ",".join(map(str, seeds))})


def overrides_of(settings: Settings, without: Collection[str] = ()) -> dict[str, Value]:
    """Returns the overrides that lead to these settings, without the seed. Raises MoeError if a setting is invalid."""
    from moe_cli.config.compose import Composer

    wanted = {name: value for name, value in settings_without_choices(settings).items() if name not in without}
    choices = {
        name: settings[name]
        for name in CHOICES
        if settings.get(name) is not None and setting_applies(name, settings) and name not in without
    }
    if is_list(choices.get("k")):  # which fits only together with the layers that have experts
        wanted["k"] = choices.pop("k")
    return overrides_for(Composer(), choices, wanted)


def settings_without_choices(settings: Settings) -> dict[str, Value]:
    """Returns the settings that have an effect, without the seed and `CHOICES`."""
    return {
        name: value
        for name, value in settings.items()
        if ("." in name or (name in TOP_LEVEL and name not in CHOICES))
        and setting_applies(name, settings)
        and not name.startswith(PLUGIN_VERSIONS)
    }


@not_imported()
def overrides_for(composer: "Composer", overrides: dict[str, Value], wanted: Settings) -> dict[str, Value]:
    """Adds to `overrides` those that lead to the wanted settings, without derived ones.

    The wanted settings are those of a saved run, perhaps of another version and without some names. They are compared
    as flat settings, and the choices in `overrides` stay. `config.start_config.fewest_settings` instead reduces a
    complete configuration of this version, and finds its choices.

    Raises:
        MoeError: a setting is invalid.
    """
    default = resolved_settings(composer, overrides)
    for group in ("model", "data", "optim"):
        if wanted.get(f"{group}.name") not in (None, default.get(f"{group}.name")):
            overrides[group] = wanted[f"{group}.name"]
    if (task := wanted.get("task.name")) and not is_built_in_task(str(task)):  # the model selects all others
        overrides["task"] = task
    # The configuration cannot be resolved without these.
    overrides.update((name, wanted[name]) for name in ("data.path", "data.vocab_size") if wanted.get(name))
    kept = set(overrides)
    overrides.update(settings_still_differing(resolved_settings(composer, overrides), wanted, with_null=False))
    overrides.update(settings_still_differing(resolved_settings(composer, overrides), wanted, with_null=True))
    return _without_derived(composer, overrides, kept, wanted)


def _without_derived(
    composer: "Composer", overrides: dict[str, Value], kept: Collection[str], wanted: Settings
) -> dict[str, Value]:
    """Returns the overrides without those that follow from others, such as the number of heads from the width."""
    for name in [name for name in overrides if name not in kept]:
        fewer = {other: value for other, value in overrides.items() if other != name}
        with suppress(MoeError):
            if not settings_still_differing(resolved_settings(composer, fewer), wanted, with_null=True):
                overrides = fewer
    return overrides


def _written(overrides: Settings) -> str:
    return " ".join(shlex.quote(f"{key}={format_setting(value)}") for key, value in overrides.items())


@not_imported()
def resolved_settings(composer: "Composer", overrides: dict[str, Value]) -> dict[str, Value]:
    return flat_settings(composer.point(overrides).config.to_dict())


def settings_still_differing(default: Settings, wanted: Settings, with_null: bool) -> dict[str, Value]:
    """Returns the settings that still differ. Null values come last: most follow from a setting that has a value."""
    return {
        name: value
        for name, value in wanted.items()
        if not name.endswith(".name")
        and default.get(name) != value
        and (value is not None or (with_null and name in default))
    }
