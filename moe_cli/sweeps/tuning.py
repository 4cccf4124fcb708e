"""Tunes the learning rate of each configuration of a sweep before the comparison, with equal trials for each.

The trials are ordinary runs in a folder of their own, outputs/NAME-tune, with one seed that the comparison does not
have. So the choice of a rate does not make the compared losses look better, and `moe report NAME` does not mix them in.

The rounds are computed again from the results of the trials, so the same command continues after any stop, and two
processes come to the same rates.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from moe_cli.config.schema import RunConfig
from moe_cli.config.settings import replace_unchecked
from moe_cli.errors import ConfigError
from moe_cli.formatting import plural
from moe_cli.report.learning_rate import (
    MAX_EXTENSIONS,
    MULTIPLIERS,
    TrialLosses,
    best_multiplier,
    next_multiplier,
    steps_to_edge,
)
from moe_cli.report.load import read_rows
from moe_cli.report.tuning_record import TRIALS_OF, TUNING, TunedRate, make_tuning_record
from moe_cli.runs.folder import COMPLETED, FAILED, PRUNED, Run
from moe_cli.sweeps.plan import SweepPlan, SweepPoint, check_folder
from moe_cli.sweeps.run_sweep import Execution, View, prepare, run_sweep
from moe_cli.sweeps.search_space import SearchPlan

# Trials have the first seed from here on that the comparison does not have.
FIRST_TUNING_SEED = 1000
SUFFIX = "-tune"
ENDED = (COMPLETED, FAILED, PRUNED)


@dataclass(frozen=True)
class Trial:
    """A run at a multiple of the rate of a configuration; `place` is the index of the configuration."""

    place: int
    multiplier: float


class Tuning:
    """The rounds of trials of a sweep, and what they have found so far."""

    def __init__(self, plan: SweepPlan, outputs: Path) -> None:
        assert plan.tune == "optim.lr", plan.tune
        self.plan, self.outputs = plan, outputs
        self.name = check_folder(f"{plan.name}{SUFFIX}")
        self.points = plan.points[: plan.num_configurations]
        seeds = {point.config.seed for point in plan.points}
        self.seed = next(
            seed for seed in range(FIRST_TUNING_SEED, FIRST_TUNING_SEED + len(seeds) + 1) if seed not in seeds
        )
        self.tried = {place: list(MULTIPLIERS) for place in range(len(self.points))}

    def rounds(self) -> Iterator[list[Trial]]:
        """Yields the trials of each round. The results of a round are read when the next one is requested.

        Raises:
            ConfigError: every trial of a configuration has failed.
        """
        yield [Trial(place, multiplier) for place, tried in self.tried.items() for multiplier in tried]
        for _ in range(MAX_EXTENSIONS):
            losses = self.losses()
            if all(steps_to_edge(found) for found in losses.values()):
                return
            trials = [Trial(place, next_multiplier(found)) for place, found in losses.items()]
            for trial in trials:
                self.tried[trial.place].append(trial.multiplier)
            yield trials

    def losses(self) -> dict[int, TrialLosses]:
        """Returns the losses of the trials so far. Raises ConfigError if every trial of a configuration has failed."""
        trials = [Trial(place, multiplier) for place, tried in self.tried.items() for multiplier in tried]
        runs = [self._run(trial) for trial in trials]
        rows = {row.path: row for row in read_rows([run for run in runs if run.path.exists()])}
        losses: dict[int, dict[float, float | None]] = {place: {} for place in self.tried}
        for trial in trials:
            row = rows.get(str(self._run(trial).path))
            losses[trial.place][trial.multiplier] = row.primary_loss if row else None
        for place, found in losses.items():
            if best_multiplier(found) is None:
                rates = ", ".join(f"{self._rate(place, multiplier):g}" for multiplier in sorted(found))
                raise ConfigError(
                    f"no learning rate of {self._label(place) or 'the configuration'} gave a result (tried: {rates}).\n"
                    f"See the reasons: moe runs ls {self.name}\nStart from another rate: optim.lr=..."
                )
        return dict(losses)

    def stage(self, trials: list[Trial]) -> SweepPlan:
        """Returns the plan of a round."""
        number = len(trials) // len(self.points)
        trials_each = f"{number} trials each" if number > 1 else "1 more trial each, on from the edge"
        question = (
            f"Which {self.plan.tune} for each of {plural(len(self.points), 'configuration')} of {self.plan.name}? "
            f"{trials_each}"
        )
        points = tuple(
            SweepPoint(f"{self._label(trial.place)} lr={self._rate(trial.place, trial.multiplier):g}".strip(), config)
            for trial in trials
            for config in [self._config(trial)]
        )
        return replace(
            self.plan,
            name=self.name,
            question=question,
            points=points,
            left_out=(),
            notes=(),
            num_repeats=0,
            num_excluded=0,
            num_seeds=1,
            baseline=None,
            tune=None,
            record={TRIALS_OF: self.plan.name},
        )

    def comparison(self) -> SweepPlan:
        """Returns the plan of the comparison at the best rate of each configuration."""
        losses = self.losses()
        best = {place: self._rate(place, best_multiplier(found) or 1.0) for place, found in losses.items()}
        points = tuple(
            replace(point, config=_with_rate(point.config, best[index % len(self.points)]))
            for index, point in enumerate(self.plan.points)
        )
        rates = [
            TunedRate(
                self._label(place),
                best[place],
                tuple(sorted((self._rate(place, multiplier), loss) for multiplier, loss in found.items())),
                steps_to_edge(found),
            )
            for place, found in losses.items()
        ]
        starts = {point.config.optim.lr for point in self.points}
        start = starts.pop() if len(starts) == 1 else None
        record = make_tuning_record(str(self.plan.tune), self.name, self.seed, start, rates)
        return replace(self.plan, points=points, tune=None, record={TUNING: record})

    def _label(self, place: int) -> str:
        return self.points[place].label.rpartition("seed=")[0].strip()

    def _rate(self, place: int, multiplier: float) -> float:
        # Products such as 0.02 * 0.5 * sqrt(2) have many digits, which no id and no command should depend on.
        return float(f"{self.points[place].config.optim.lr * multiplier:.4g}")

    def _config(self, trial: Trial) -> RunConfig:
        rate = self._rate(trial.place, trial.multiplier)
        return replace_unchecked(_with_rate(self.points[trial.place].config, rate), seed=self.seed)

    def _run(self, trial: Trial) -> Run:
        return Run(self.outputs / self.name / self._config(trial).run_id)


def _with_rate(config: RunConfig, rate: float) -> RunConfig:
    return replace_unchecked(config, optim=replace_unchecked(config.optim, lr=rate))


def stages(plan: SweepPlan | SearchPlan, outputs: Path) -> Iterator[SweepPlan | SearchPlan]:
    """Yields the sweeps to run one after the other: the rounds of trials, then the comparison; or the plan alone.

    The results of a stage are read when the next one is requested.

    Raises:
        ConfigError: every trial of a configuration has failed.
    """
    if isinstance(plan, SearchPlan) or plan.tune is None:
        yield plan
        return
    tuning = Tuning(plan.with_upcycle_source(outputs), outputs)
    for trials in tuning.rounds():
        yield tuning.stage(trials)
    yield tuning.comparison()


def previews(plan: SweepPlan | SearchPlan, outputs: Path) -> list[SweepPlan | SearchPlan]:
    """Returns the sweeps for a dry run: the first round of trials, and the comparison at the rates before tuning."""
    if isinstance(plan, SearchPlan) or plan.tune is None:
        return [plan]
    tuning = Tuning(plan.with_upcycle_source(outputs), outputs)
    note = f"{plan.tune} is that before tuning; the best of the trials takes its place"
    return [tuning.stage(next(tuning.rounds())), replace(plan, tune=None, notes=(*plan.notes, note))]


def run_stages(plan: SweepPlan | SearchPlan, outputs: Path, execution: Execution, view: View) -> None:
    """Executes a sweep or a search, after the trials of its learning rates if it has some.

    A stage whose runs have all ended is not shown again. The comparison starts when no trial is left.

    Raises:
        MoeError: see `prepare` and `run_sweep`; or every trial of a configuration has failed.
    """
    for stage in stages(plan, outputs):
        prepared = prepare(stage, outputs, execution)
        if isinstance(stage, SearchPlan) or stage.name == plan.name:
            run_sweep(prepared, view)
        elif prepared.has_work():
            run_sweep(prepared, view)
            if any(run.status()["status"] not in ENDED for run in stage.runs(outputs)):
                return
