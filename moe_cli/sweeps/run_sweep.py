"""Executes a sweep or a search, for the command line and for Python.

`prepare` checks devices, data, loggers and running runs, and changes nothing. `run_sweep` then connects to the
executor. Only after that does it move the runs that start again to the trash and create run folders.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from moe_cli.config.executors import Executor
from moe_cli.config.schema import RunConfig
from moe_cli.errors import ConfigError
from moe_cli.execution.data import vocab_size_reader
from moe_cli.execution.estimate import RunEstimate, estimate_runs, measure_flops
from moe_cli.execution.machine import check_devices
from moe_cli.execution.memory import check_config_memory, check_memory
from moe_cli.runs.corpora import record_corpora
from moe_cli.runs.folder import COMPLETED, FAILED, PRUNED, Run, make_sweep_folder
from moe_cli.runs.locks import sweep_lock
from moe_cli.runs.trash import check_idle
from moe_cli.sweeps.executors.make import make_pool, max_parallel
from moe_cli.sweeps.plan import SweepPlan, SweepPoint
from moe_cli.sweeps.rerun import discard, outdated, put_back
from moe_cli.sweeps.scheduler import FailurePolicy, ListFeed, Observer, Pool, RunFeed, pending_runs, run_all
from moe_cli.sweeps.search_space import SearchPlan

if TYPE_CHECKING:
    from moe_cli.sweeps.search import SearchFeed
    from moe_cli.sweeps.search_estimate import SearchEstimate


@dataclass(frozen=True)
class Execution:
    """Options of the execution of a sweep or a search.

    Attributes:
        jobs: the number of parallel runs; None means as many as this machine or the cluster can hold.
        retry_failed: start failed runs again from their last checkpoint.
        force, rerun_stale: start all runs again, or those of another code version. Their old folders go to the trash.
        force_memory: also start runs that need far more memory than this machine has.
    """

    executor: Executor
    jobs: int | None = None
    rules: FailurePolicy = field(default_factory=FailurePolicy)
    retry_failed: bool = False
    force: bool = False
    rerun_stale: bool = False
    force_memory: bool = False

    @property
    def checks_memory(self) -> bool:
        """Returns whether runs that need far more memory than available are refused. A cluster's memory is unknown."""
        return self.executor.name == "local" and not self.force_memory

    def check(self, is_search: bool) -> None:
        """Raises ConfigError for an option that has no effect."""
        other = "--rerun-stale" if self.rerun_stale else "--retry-failed"
        if is_search and (self.force or self.rerun_stale):
            option = "--force" if self.force else other
            raise ConfigError(f"{option} is for sweeps; a search keeps its trials. Start another search: --name NAME")
        if self.force and (self.rerun_stale or self.retry_failed):
            raise ConfigError(f"--force starts every run again: {other} has no effect. Leave it out.")


NEW = "new"


@dataclass(frozen=True)
class PlannedRun:
    """A run of a sweep before it starts.

    Attributes:
        label: the settings that vary: expert=16 k=2 seed=1.
        run: its folder, which may not exist yet.
        status: the status of its folder; `new` if there is no folder, or if the run starts again.
        restarts: whether the old folder goes to the trash and the run starts again.
        checkpoint_step: the step from which the run continues; 0 for a run without a checkpoint.
    """

    label: str
    config: RunConfig
    estimate: RunEstimate
    run: Run
    status: str
    restarts: bool = False
    checkpoint_step: int = 0

    @property
    def seconds_left(self) -> float:
        """Returns the expected time of the steps after the checkpoint."""
        return self.estimate.seconds_after(self.checkpoint_step)

    def is_pending(self, retry_failed: bool) -> bool:
        """Returns whether the run is to be executed now."""
        return self.status not in (COMPLETED, PRUNED) and (retry_failed or self.status != FAILED)


@dataclass(frozen=True)
class PreparedSweep:
    """A sweep that can start."""

    plan: SweepPlan
    outputs: Path
    execution: Execution
    runs: Sequence[PlannedRun]

    @property
    def estimates(self) -> list[RunEstimate]:
        return [run.estimate for run in self.runs]

    @property
    def pending(self) -> list[PlannedRun]:
        """Returns the runs that are to be executed now."""
        return [run for run in self.runs if run.is_pending(self.execution.retry_failed)]

    @property
    def restarted(self) -> list[Run]:
        """Returns the folders of the runs that start again."""
        return [planned.run for planned in self.runs if planned.restarts]

    @property
    def max_parallel(self) -> int | None:
        """Returns the number of parallel runs; None means as many as the cluster can hold."""
        most = max_parallel(self.execution.executor, self.execution.jobs, self.estimates)
        return None if most is None else min(most, len(self.runs))

    @property
    def jobs(self) -> int | None:
        """Returns the number of parallel runs requested from the executor; None means as many as it can hold."""
        return self.max_parallel if self.execution.executor.name == "local" else self.execution.jobs

    def has_work(self) -> bool:
        return bool(self.pending)

    @contextmanager
    def begin(self, pool: Pool | None) -> Iterator[ListFeed]:
        """Moves the outdated runs to the trash and creates the run folders; on an error, moves the runs back."""
        removed = discard(self.restarted, self.outputs)
        try:
            if pool:
                record_data(
                    make_sweep_folder(self.outputs, self.plan.name), self.estimates, replace=self.execution.force
                )
            runs = self.plan.create_runs(self.outputs)
        except BaseException:
            put_back(removed, self.outputs)
            raise
        with sweep_lock(self.outputs / self.plan.name):
            yield ListFeed(pending_runs(runs, self.execution.retry_failed))


@dataclass(frozen=True)
class PreparedSearch:
    """A search that can start; `preview` is the estimate from some draws."""

    plan: SearchPlan
    outputs: Path
    execution: Execution
    preview: "SearchEstimate"

    @property
    def estimates(self) -> Sequence[RunEstimate]:
        return self.preview.estimates

    @property
    def jobs(self) -> int | None:
        return self.execution.jobs

    @property
    def max_runs(self) -> int:
        """Returns the largest number of runs."""
        return self.plan.trials * len(self.plan.seeds)

    def has_work(self) -> bool:
        from moe_cli.report.importance import load_study
        from moe_cli.sweeps.search import SearchFeed, check_identity

        study = load_study(self.outputs / self.plan.name)
        if study is None:
            return True
        check_identity(self.plan, study, self.outputs / self.plan.name)
        feed = SearchFeed(self.plan, study, self.outputs)
        failed = any(trial.state.name == "FAIL" for trial in feed.trials())
        return feed.waiting() > 0 or (self.execution.retry_failed and failed)

    @contextmanager
    def begin(self, pool: Pool | None) -> "Iterator[SearchFeed]":
        """Opens the study, or creates it."""
        from moe_cli.sweeps.search import SearchFeed, open_study

        study = open_study(self.plan, self.outputs, self.preview.evaluations)
        record_data(self.outputs / self.plan.name, self.estimates)

        def max_open_runs() -> int:
            return min(pool.workers, self.max_runs) if pool else 1

        vocab_size = vocab_size_reader(self.outputs)

        def check(config: RunConfig) -> None:
            if self.execution.checks_memory:
                check_config_memory(config, vocab_size(config))

        feed = SearchFeed(self.plan, study, self.outputs, max_open_runs, self.execution.retry_failed, check)
        with feed.at_work():
            yield feed


Prepared = PreparedSweep | PreparedSearch


class SupportsExecution(Protocol):
    """A sweep, a search or a decision that can start."""

    @property
    def execution(self) -> Execution: ...

    @property
    def outputs(self) -> Path: ...

    @property
    def estimates(self) -> Sequence[RunEstimate]: ...

    @property
    def jobs(self) -> int | None:
        """Returns the number of parallel runs requested from the executor; None means as many as it can hold."""

    def has_work(self) -> bool:
        """Returns whether runs are to be executed now."""

    def begin(self, pool: Pool | None) -> AbstractContextManager[RunFeed]:
        """Returns a context with the feed of the runs."""


class View:
    """Receives the events of a sweep. This class ignores them."""

    def begin(self, prepared: Any, feed: Any, pool: Pool | None) -> None:
        """Handles the start of the sweep, before its first run. `pool` is None if no run is to be executed."""

    def watch(self, prepared: Any, feed: Any) -> AbstractContextManager[Observer]:
        """Returns a context with the observer for `run_all`."""
        return nullcontext(lambda progress: None)

    def stop(self) -> None:
        """Handles a stop; the runs have been asked to save."""

    def end(self, prepared: Any, feed: Any) -> None:
        """Handles the end of the sweep."""


SILENT = View()


def prepare(plan: SweepPlan | SearchPlan, outputs: Path, execution: Execution, *, build: bool = True) -> Prepared:
    """Checks everything that can fail before the executor starts. Changes no run.

    Args:
        build: False, for a dry run, trains no tokenizer.

    Raises:
        MoeError: a device, a library or data are missing, or a process executes a run that is to start again.
    """
    execution.check(isinstance(plan, SearchPlan))
    check = device_check(execution)
    if isinstance(plan, SearchPlan):
        from moe_cli.sweeps.search_estimate import estimate_search

        checks_memory = build and execution.checks_memory
        search = PreparedSearch(plan, outputs, execution, estimate_search(plan, outputs, checks_memory))
        check([estimate.config for estimate in search.estimates])
        return search
    plan = plan.with_upcycle_source(outputs)
    configs, runs = [point.config for point in plan.points], plan.runs(outputs)
    check(configs)
    estimates = estimate_runs(configs, outputs, measure_flops(), build=build)
    if build and execution.checks_memory:
        check_memory(estimates)
    again = set(outdated(runs, force=execution.force, code=execution.rerun_stale))
    for run in again if build else ():
        check_idle(run)
    points = zip(plan.points, estimates, runs, strict=True)
    planned = [_planned_run(point, estimate, run, run in again) for point, estimate, run in points]
    return PreparedSweep(plan, outputs, execution, planned)


def _planned_run(point: SweepPoint, estimate: RunEstimate, run: Run, restarts: bool) -> PlannedRun:
    if restarts or not run.path.exists():
        return PlannedRun(point.label, point.config, estimate, run, NEW, restarts)
    status = str(run.status()["status"])
    return PlannedRun(point.label, point.config, estimate, run, status, False, run.checkpoint_step() or 0)


def record_data(folder: Path, estimates: Sequence[RunEstimate], replace: bool = False) -> None:
    """Records the data of the runs in the sweep's folder. Raises DataError if they differ from those recorded."""
    record_corpora(folder, [(estimate.config.data, estimate.corpus.meta) for estimate in estimates], replace)


def device_check(execution: Execution) -> Callable[[Sequence[RunConfig]], None]:
    """Returns the check of devices; it accepts all on a cluster, whose devices are unknown here."""
    return check_devices if execution.executor.name == "local" else lambda configs: None


def run_sweep(prepared: SupportsExecution, view: View = SILENT) -> None:
    """Executes a prepared sweep, search or decision.

    Raises:
        MoeError: the executor cannot be reached, so that nothing has changed; or the disk is full.
    """
    execution, pool = prepared.execution, None
    if prepared.has_work():
        pool = make_pool(execution.executor, prepared.outputs, prepared.jobs, prepared.estimates)
    with ExitStack() as stack:
        if pool:
            stack.callback(pool.close)
        feed = stack.enter_context(prepared.begin(pool))
        view.begin(prepared, feed, pool)
        if pool:
            with view.watch(prepared, feed) as observer:
                run_all(feed, pool, observer, execution.rules, view.stop)
    view.end(prepared, feed)
