"""Plans an ablation: a configuration, and for each of its settings the same one with this setting at its default."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from moe_cli.config.axes import Axis
from moe_cli.config.compose import Composer
from moe_cli.config.overrides import parse_overrides
from moe_cli.config.ranges import format_setting
from moe_cli.config.schema import RunConfig
from moe_cli.config.settings import replace_unchecked
from moe_cli.config.start_config import apply_changes, fewest_settings
from moe_cli.config.sweep_file import Block, SweepFile, check_tuned_setting, discrete
from moe_cli.errors import ConfigError
from moe_cli.report.load import flat_settings
from moe_cli.report.run_row import is_setting
from moe_cli.runs.lookup import find_run
from moe_cli.sweeps.plan import (
    SkippedPoint,
    SweepPlan,
    SweepPoint,
    check_folder,
    compose_run,
    seeds_of,
)

ABLATE = "ablate"
# Groups and settings whose defaults are tried. Task, data, contexts and budget stay: losses compare only at equal ones.
ABLATED_GROUPS = ("model", "router", "balance", "optim")
KEPT_SETTINGS = ("model", "model.context_length")
ABLATED_SETTINGS = ("expert", "k", "capacity", "drop", "renormalise_after_drop", "match")


def is_ablation(overrides: Sequence[str], source: str | None) -> bool:
    """Returns whether `moe sweep` asks for an ablation. Raises ConfigError if its word or its source is missing."""
    named = list(overrides[:1]) == [ABLATE]
    if source is not None and not named:
        raise ConfigError(f"--from {source} says what to ablate. Write: moe sweep ablate --from {source}")
    if named and source is None:
        raise ConfigError(
            "moe sweep ablate needs a configuration: --from RUN, or --from EXPERIMENT of conf/experiment."
        )
    return named


def plan_ablation(
    overrides: Sequence[str],
    source: str,
    outputs: Path,
    *,
    seeds: int | None = None,
    name: str | None = None,
    tune: str | None = None,
    config_dir: Path | None = None,
) -> SweepPlan:
    """Returns the plan of `moe sweep ablate --from SOURCE SETTINGS`.

    The first configuration has all settings of the source. Each other one is without one setting in which the source
    differs from the defaults. A choice of a group goes with the settings of the group. Settings that are given stay in
    every configuration. A source that is no experiment is a run, which is looked up in `outputs`.

    Raises:
        ConfigError: a word is wrong, or the source has no setting to leave out.
        RunNotFound: the source is neither an experiment nor a run.
    """
    composer = Composer(config_dir)
    axes = {axis.key: discrete(composer, axis) for axis in parse_overrides(overrides[1:])}
    file = SweepFile(ABLATE, f"What does each setting of {source} contribute?", (Block(),), 1, None)
    run_seeds = seeds_of(axes.pop("seed", None), seeds, file)
    fixed = _one_value_each(axes)
    settings = _settings(composer, source, outputs, fixed)
    left_out = [key for key in settings if _is_ablated(key) and key not in fixed]
    if not left_out:
        raise ConfigError(
            f"{source} has no setting of model, router, balance or optimizer that differs from the defaults: "
            "nothing can be left out."
        )
    everything = compose_run(composer, {**settings, "seed": run_seeds[0]})
    configs: dict[str, tuple[RunConfig, str]] = {everything.config.run_id: (everything.config, "all")}
    skipped, notes, repeats = [], dict.fromkeys(everything.notes), 0
    for key in left_out:
        label = f"all - {key}={format_setting(settings[key])}"
        fewer = {other: value for other, value in settings.items() if other != key and not other.startswith(f"{key}.")}
        try:
            resolved = compose_run(composer, {**fewer, **fixed, "seed": run_seeds[0]})
        except ConfigError as error:
            skipped.append(SkippedPoint(label, str(error)))
            continue
        repeats += resolved.config.run_id in configs
        configs.setdefault(resolved.config.run_id, (resolved.config, label))
    points = [
        SweepPoint(f"{label} seed={seed}", replace_unchecked(config, seed=seed))
        for seed in run_seeds
        for config, label in configs.values()
    ]
    return SweepPlan(
        check_folder(name or ABLATE),
        file.question,
        tuple(points),
        tuple(skipped),
        repeats * len(run_seeds),
        len(run_seeds),
        tuple(notes),
        overrides=(*overrides, f"--from={source}"),
        baseline=_baseline([config for config, _ in configs.values()]),
        conf_notes=composer.notes,
        tune=None if tune is None else check_tuned_setting("--tune", tune),
    )


def _one_value_each(axes: Mapping[str, Axis]) -> dict[str, Any]:
    for axis in axes.values():
        if len(axis.values) > 1:
            raise ConfigError(f"'{axis}' has several values: an ablation has one of each setting, and its default.")
    return {key: axis.values[0] for key, axis in axes.items()}


def _settings(composer: Composer, source: str, outputs: Path, fixed: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings of the source that differ from the defaults, with the given ones."""
    if source in composer.choices_with_plugins("experiment"):
        config = composer.point({"experiment": source, **fixed}).config
        return {**fewest_settings(composer, config), **fixed}
    return apply_changes(composer, find_run(outputs, source).config(), fixed)


def _is_ablated(key: str) -> bool:
    return key not in KEPT_SETTINGS and (key in ABLATED_SETTINGS or key.partition(".")[0] in ABLATED_GROUPS)


def _baseline(configs: Sequence[RunConfig]) -> dict[str, Any]:
    """Returns the settings of the first configuration that some other one does not have."""
    flat = [
        {key: value for key, value in flat_settings(config.to_dict()).items() if is_setting(key) and key != "seed"}
        for config in configs
    ]
    first, others = flat[0], flat[1:]
    names = dict.fromkeys(key for values in flat for key in values)
    return {key: first.get(key) for key in names if any(values.get(key) != first.get(key) for values in others)}
