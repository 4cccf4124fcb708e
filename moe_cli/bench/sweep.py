"""How many small runs does a sweep complete in an hour, and how much time of a worker does a run take besides training?

A round is a whole sweep in a folder of its own: plan, estimates, start of the workers, and every run with its
evaluations and files. The data are built before the first round.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from moe_cli.bench.spread import Spread, spread
from moe_cli.config.executors import split_executor
from moe_cli.errors import ConfigError, MoeError
from moe_cli.runs.folder import COMPLETED
from moe_cli.sweeps.plan import SweepPlan
from moe_cli.sweeps.run_sweep import Execution, PreparedSweep, prepare, run_sweep
from moe_cli.sweeps.search_space import SearchOptions, plan_sweep_or_search

# A small model and a small validation split, so that a run is short and its overhead shows.
DEFAULT_OVERRIDES = ("train=smoke", "expert=8", "model.num_layers=2", "model.d_model=48", "data.val_fraction=0.01")
DEFAULT_SEEDS = 16


@dataclass(frozen=True)
class SweepRound:
    """The times of one sweep, in seconds.

    Attributes:
        wall: from the words of the command to the end of the last run.
        training: the training steps of all runs.
        runs: all runs from the start of each process's work to its results, training included.
    """

    wall: float
    training: float
    runs: float


@dataclass(frozen=True)
class SweepBenchmark:
    """The rounds of one sweep.

    Attributes:
        settings: the overrides of the sweep.
        runs: the number of runs of a round.
        jobs: the number of parallel runs.
    """

    settings: Sequence[str]
    runs: int
    jobs: int
    rounds: Sequence[SweepRound]

    @property
    def runs_per_hour(self) -> Spread:
        return spread([3600 * self.runs / measurement.wall for measurement in self.rounds])

    @property
    def worker_seconds(self) -> Spread:
        """Returns the time of a worker for each run."""
        return self._per_run(lambda measurement: self.jobs * measurement.wall)

    @property
    def training_seconds(self) -> Spread:
        """Returns the time of the training steps of a run."""
        return self._per_run(lambda measurement: measurement.training)

    @property
    def evaluation_seconds(self) -> Spread:
        """Returns the other time within a run: data, model, evaluations and files."""
        return self._per_run(lambda measurement: measurement.runs - measurement.training)

    @property
    def sweep_seconds(self) -> Spread:
        """Returns the time of a worker outside runs: plan, start of processes, waiting."""
        return self._per_run(lambda measurement: self.jobs * measurement.wall - measurement.runs)

    @property
    def overhead_seconds(self) -> Spread:
        """Returns the time of a worker for each run besides the training steps."""
        return self._per_run(lambda measurement: self.jobs * measurement.wall - measurement.training)

    def _per_run(self, seconds: Callable[[SweepRound], float]) -> Spread:
        return spread([seconds(measurement) / self.runs for measurement in self.rounds])

    def to_dict(self) -> dict[str, object]:
        """Returns the result as a JSON object."""
        record: dict[str, object] = {
            "settings": list(self.settings),
            "runs": self.runs,
            "jobs": self.jobs,
            "rounds": len(self.rounds),
        }
        names = ("runs_per_hour", "worker_seconds", "training_seconds", "evaluation_seconds", "sweep_seconds")
        spreads: dict[str, Spread] = {name: getattr(self, name) for name in (*names, "overhead_seconds")}
        for name, value_spread in spreads.items():
            record |= value_spread.to_dict(name)
        return record


def run_sweep_benchmark(
    overrides: Sequence[str],
    *,
    seeds: int = DEFAULT_SEEDS,
    jobs: int | None = None,
    rounds: int = 3,
    config_dir: Path | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> SweepBenchmark:
    """Runs the sweep of these overrides `rounds` times.

    Args:
        seeds: the number of seeds of each configuration.
        jobs: the number of parallel runs; None means as many as this machine can hold.

    Raises:
        MoeError: a word is wrong, or a run fails.
    """
    executor, overrides = split_executor([*(overrides or DEFAULT_OVERRIDES)], None, config_dir)
    if executor.name != "local":
        raise ConfigError(f"executor={executor.name}: the benchmark measures this machine. Leave it out.")
    with TemporaryDirectory(prefix="moe-bench-") as folder:

        def make(name: str) -> PreparedSweep:
            plan = plan_sweep_or_search(overrides, SearchOptions(), seeds=seeds, name=name, config_dir=config_dir)
            if not isinstance(plan, SweepPlan):
                raise ConfigError(
                    f"{overrides[0]} is a search, whose runs depend on their results. Name settings instead."
                )
            prepared = prepare(plan, Path(folder), Execution(executor, jobs))
            assert isinstance(prepared, PreparedSweep)
            return prepared

        first = make("round-0")  # builds the data
        measured = [_measure(partial(make, f"round-{number}"), clock) for number in range(1, rounds + 1)]
    return SweepBenchmark(overrides, len(first.runs), first.max_parallel or 1, measured)


def _measure(make: Callable[[], PreparedSweep], clock: Callable[[], float]) -> SweepRound:
    """Prepares and runs a sweep. Raises MoeError if a run fails."""
    started = clock()
    prepared = make()
    run_sweep(prepared)
    wall = clock() - started
    training = inside = 0.0
    for planned in prepared.runs:
        status, summary = planned.run.status(), planned.run.summary()
        if status["status"] != COMPLETED or summary is None:
            reason = status.get("reason") or "the reason is unknown"
            raise MoeError(f"the run {planned.label} is {status['status']}: {reason}")
        training += summary["seconds"]
        inside += status["heartbeat"] - status["started"]
    return SweepRound(wall, training, inside)
