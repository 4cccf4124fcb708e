"""Plans a claim: its sweep, checked before the first run, and the values of the runs that exist."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from moe_cli.claims.claim_file import load_claim
from moe_cli.claims.measurements import RunMeasurements
from moe_cli.claims.power import Power, analyse
from moe_cli.claims.records import Claim
from moe_cli.config.compose import Composer
from moe_cli.config.overrides import parse_overrides
from moe_cli.config.ranges import format_setting
from moe_cli.config.sweep_file import CLAIM, DEFAULT_PRESET
from moe_cli.errors import ConfigError
from moe_cli.report.load import make_row, read_rows
from moe_cli.report.looks import error_rate_at
from moe_cli.report.run_row import RunRow
from moe_cli.report.sweep_record import entries, read_record
from moe_cli.runs.folder import Run
from moe_cli.runs.lookup import sweep_folder
from moe_cli.sweeps.plan import SweepPlan, SweepPoint, is_named, plan_sweep
from moe_cli.sweeps.run_sweep import NEW
from moe_cli.sweeps.tuning import stages

MIN_SEEDS = 2


@dataclass(frozen=True)
class ClaimPlan:
    """A claim with the sweep that tries it.

    Attributes:
        overrides: the arguments of the command: the name of the claim, then settings and the preset.
    """

    claim: Claim
    sweep: SweepPlan
    overrides: tuple[str, ...]

    @property
    def command(self) -> str:
        """Returns the command that makes this plan."""
        has_own = len(self.seeds) == self.claim.seeds or any(word.startswith("seed=") for word in self.overrides)
        return self.command_with([] if has_own else ["--seeds", str(len(self.seeds))])

    def command_with(self, options: Sequence[str]) -> str:
        """Returns the command of this claim in this folder with further options; --seeds replaces seed=."""
        is_default = self.sweep.name == default_folder(self.claim.name)
        name = [] if is_default else ["--name", self.sweep.name]
        overrides = without_seeds(self.overrides) if "--seeds" in options else self.overrides
        return shlex.join(["moe", "reproduce", *overrides, *name, *options])

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(dict.fromkeys(point.config.seed for point in self.sweep.points))

    def compared(self, outputs: Path) -> SweepPlan | None:
        """Returns the sweep whose runs are compared: with tuned learning rates, once their trials have results."""
        if self.sweep.tune is None:
            return self.sweep.with_upcycle_source(outputs)
        try:
            *_, last = stages(self.sweep, outputs)
        except ConfigError:  # no trial of a configuration has a result yet
            return None
        assert isinstance(last, SweepPlan)
        return last

    def rows(self, outputs: Path) -> list[RunRow]:
        """Returns a row for each planned run; without results unless it is complete."""
        sweep = self.compared(outputs) or self.sweep
        runs = sweep.runs(outputs)
        known = {row.path: row for row in read_rows([run for run in runs if run.path.exists()])}
        return [
            known.get(str(run.path)) or _planned_row(run, point) for run, point in zip(runs, sweep.points, strict=True)
        ]

    def look(self, outputs: Path) -> int:
        """Returns how many times this claim has been tried with other seeds, this one included; at least 1."""
        commands = entries(read_record(outputs / self.sweep.name), "commands")
        own = without_seeds(self.overrides)
        same = [entry for entry in commands if without_seeds(entry.get("words")) == own]
        seeds = [tuple(entry.get("seeds") or ()) for entry in same]
        distinct = list(dict.fromkeys([*seeds, self.seeds]))
        return distinct.index(self.seeds) + 1

    def next_error_rate(self, outputs: Path) -> float:
        """Returns the error rate of a look with further seeds."""
        return error_rate_at(self.look(outputs) + 1)

    def error_rate(self, outputs: Path) -> float:
        """Returns the error rate of this look: it falls, so that adding seeds until a verdict stays honest."""
        return error_rate_at(self.look(outputs))

    def power(self, outputs: Path) -> list[Power]:
        """Returns what the seeds of the plan can decide, by the noise of the runs that exist."""
        measured = RunMeasurements(self.rows(outputs))
        return analyse(self.claim.predicates, measured, len(self.seeds), self.error_rate(outputs))


def plan_claim(
    overrides: Sequence[str],
    *,
    seeds: int | None = None,
    name: str | None = None,
    config_dir: Path | None = None,
) -> ClaimPlan:
    """Returns the plan of `moe reproduce WORDS`: the name of a claim, then settings, and `preset` among them.

    Args:
        seeds: the number of seeds; None means that of the file.
        name: the folder under outputs/; None means claim-NAME.

    Raises:
        ConfigError: a word or a part of the file is wrong, or the sweep has not the configurations of the predicate.
    """
    if not is_named(overrides):
        raise ConfigError(f"name a claim before {overrides[0]}. To list them: moe reproduce")
    axes = {axis.key: axis for axis in parse_overrides(overrides[1:])}
    preset = format_setting(axes["preset"].values[0]) if "preset" in axes else DEFAULT_PRESET
    claim = load_claim(Composer(config_dir), overrides[0], preset)
    sweep = plan_sweep(
        overrides,
        seeds=seeds,
        name=default_folder(claim.name) if name is None else name,
        config_dir=config_dir,
        kind=CLAIM,
    )
    if sweep.num_seeds < MIN_SEEDS:
        raise ConfigError(f"one seed has no interval: give at least {MIN_SEEDS}, as in: --seeds {claim.seeds}")
    plan = ClaimPlan(claim, sweep, tuple(overrides))
    points = sweep.points[: sweep.num_configurations]
    planned = RunMeasurements([_planned_row(*pair) for pair in zip(sweep.runs(Path()), points, strict=False)])
    try:
        for predicate in claim.predicates:
            predicate.find(planned)
            predicate.demand(planned)
    except ConfigError as error:
        reasons = [f"{point.label}: {point.reason.splitlines()[0]}" for point in sweep.left_out][:1]
        raise ConfigError("\n".join([f"claim {claim.name}: {error}", *reasons])) from None
    return plan


def without_seeds(overrides: object) -> list[str]:
    """Returns the words of a command that do not name its seeds; none for other contents of a file."""
    found = overrides if isinstance(overrides, list | tuple) else []
    return [word for word in map(str, found) if not word.startswith("seed=")]


def default_folder(claim: str) -> str:
    """Returns the name of the folder of a claim's runs under outputs/."""
    return f"claim-{sweep_folder(claim)}"


def _planned_row(run: Run, point: SweepPoint) -> RunRow:
    return make_row(run, point.config.to_dict(), {}, {"status": NEW})


def recorded_plan(name: str, outputs: Path, config_dir: Path | None = None) -> ClaimPlan | None:
    """Returns the plan of the last command of a claim; None if it was not tried, or if its file has changed since."""
    commands = entries(read_record(outputs / default_folder(name)), "commands")
    overrides = commands[-1].get("words") if commands else None
    if not isinstance(overrides, list) or not overrides or not all(isinstance(word, str) for word in overrides):
        return None
    seeds = commands[-1].get("seeds")
    count = len(seeds) if isinstance(seeds, list) and not any(word.startswith("seed=") for word in overrides) else None
    try:
        return plan_claim(overrides, seeds=count, config_dir=config_dir)
    except ConfigError:
        return None
