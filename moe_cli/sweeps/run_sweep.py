"""run_sweep(prepared): carries a sweep or a search out. The command and Python share this one order of steps.

`prepare` does everything that can fail and changes nothing: devices, data, loggers, runs at work. Then `run_sweep` connects
the executor. Only then are the runs that start again moved to the trash, and run folders made.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from moe_cli.sweeps.plan import SweepPlan
from moe_cli.sweeps.rerun import discard, outdated, put_back
from moe_cli.sweeps.scheduler import FailurePolicy, Observer, RunList, RunSource, pending_runs, run_all
from moe_cli.sweeps.search_space import SearchPlan

if TYPE_CHECKING:
    from moe_cli.sweeps.search import SearchFeed
    from moe_cli.sweeps.search_estimate import SearchEstimate


@dataclass(frozen=True)
class Execution:
    """Options of a sweep's or a search's execution.

    Attributes:
        jobs: the number of parallel runs; None means as many as this machine or the cluster can hold.
        retry_failed: runs that failed are run again, from their last checkpoint.
        force, rerun_stale: all runs start again, or those of another code version. Their old folders go to the trash.
        force_memory: runs that need far more memory than this machine has are started nevertheless.
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
            raise ConfigError(f"{option} is for sweeps; a search keeps what it has found. Start another: --name NAME")
        if self.force and (self.rerun_stale or self.retry_failed):
            raise ConfigError(f"--force starts every run again: {other} has no effect. Leave it out.")


NEW = "new"


@dataclass(frozen=True)
class PlannedRun:
    """One run of a sweep before it starts.

    Attributes:
        label: the settings that vary: expert=16 k=2 seed=1.
        run: its folder, which may not exist yet.
        status: the status of its folder; `new` if there is no folder, or if the run starts again.
        restarts: whether the old folder goes to the trash and the run starts again.
    """

    label: str
    config: RunConfig
    estimate: RunEstimate
    run: Run
    status: str
    restarts: bool = False

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
        return [each.estimate for each in self.runs]

    @property
    def pending(self) -> list[PlannedRun]:
        """Returns the runs that are to be carried out now."""
        return [each for each in self.runs if each.is_pending(self.execution.retry_failed)]

    @property
    def restarted(self) -> list[Run]:
        """Returns the runs that start again."""
        return [each.run for each in self.runs if each.restarts]

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
    def begin(self, pool: Any) -> Iterator[RunList]:
        """Moves the outdated runs to the trash and makes the folders; if that fails, all lies where it lay."""
        removed = discard(self.restarted, self.outputs)
        try:
            if pool:
                _record_data(
                    make_sweep_folder(self.outputs, self.plan.name), self.estimates, replace=self.execution.force
                )
            runs = self.plan.create_runs(self.outputs)
        except BaseException:
            put_back(removed, self.outputs)
            raise
        with sweep_lock(self.outputs / self.plan.name):
            yield RunList(pending_runs(runs, self.execution.retry_failed))


@dataclass(frozen=True)
class PreparedSearch:
    """A search that can start; `preview` holds some of its draws."""

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
    def most(self) -> int:
        """Returns the largest number of its runs."""
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
    def begin(self, pool: Any) -> "Iterator[SearchFeed]":
        """Opens the study, or begins it."""
        from moe_cli.sweeps.search import SearchFeed, open_study

        study = open_study(self.plan, self.outputs, self.preview.evaluations)
        _record_data(self.outputs / self.plan.name, self.estimates)

        def at_a_time() -> int:
            return min(pool.workers, self.most) if pool else 1

        vocab_size = vocab_size_reader(self.outputs)

        def check(config: RunConfig) -> None:
            if self.execution.checks_memory:
                check_config_memory(config, vocab_size(config))

        feed = SearchFeed(self.plan, study, self.outputs, at_a_time, self.execution.retry_failed, check)
        with feed.at_work():
            yield feed


Prepared = PreparedSweep | PreparedSearch


class View:
    """Shows how a sweep goes. This one shows nothing."""

    def begin(self, prepared: Any, feed: Any, pool: Any) -> None:
        """Handles the start of the sweep, before its first run. `pool` is None if no run is to be executed."""

    def watch(self, prepared: Any, feed: Any) -> AbstractContextManager[Observer]:
        """Gives the observer of `drive`, for as long as runs are at work."""
        return nullcontext(lambda progress: None)

    def stop(self) -> None:
        """Handles a stop, after the runs were asked to save and stop."""

    def end(self, prepared: Any, feed: Any) -> None:
        """Handles the end of the sweep."""


SILENT = View()


def prepare(plan: SweepPlan | SearchPlan, outputs: Path, execution: Execution, *, build: bool = True) -> Prepared:
    """Checks everything that can fail before an executor is started. Changes no run.

    Args:
        build: False means that nothing will be trained, so that no tokenizer is trained either.

    Raises:
        MoeError: a device, a library or the data are missing, or a run that is to start again is being executed.
    """
    execution.check(isinstance(plan, SearchPlan))
    check = check_devices if execution.executor.name == "local" else _check_nothing
    if isinstance(plan, SearchPlan):
        from moe_cli.sweeps.search_estimate import estimate_search

        checks_memory = build and execution.checks_memory
        search = PreparedSearch(plan, outputs, execution, estimate_search(plan, outputs, checks_memory))
        check([each.config for each in search.estimates])
        return search
    plan = plan.with_upcycle_source(outputs)
    configs, runs = [point.config for point in plan.points], plan.run_dirs(outputs)
    check(configs)
    estimates = estimate_runs(configs, outputs, measure_flops(), build=build)
    if build and execution.checks_memory:
        check_memory(estimates)
    again = set(outdated(runs, force=execution.force, code=execution.rerun_stale))
    for run in again if build else ():
        check_idle(run)
    planned = [
        PlannedRun(point.label, point.config, estimate, run, _status(run, run in again), run in again)
        for point, estimate, run in zip(plan.points, estimates, runs, strict=True)
    ]
    return PreparedSweep(plan, outputs, execution, planned)


def _status(run: Run, restarts: bool) -> str:
    return NEW if restarts or not run.path.exists() else str(run.status()["status"])


def _record_data(folder: Path, estimates: Sequence[RunEstimate], replace: bool = False) -> None:
    """Records in a sweep's folder the data that its runs learn from. Raises DataError: other data than before."""
    record_corpora(folder, [(each.config.data, each.corpus.meta) for each in estimates], replace)


def _check_nothing(configs: object) -> None:
    """Does nothing, because the devices of a cluster are not known here."""


def run_sweep(prepared: Prepared, view: View = SILENT) -> None:
    """Carries it out.

    Raises:
        MoeError: the executor cannot be reached, and nothing has changed; or the disk is full.
    """
    execution, pool = prepared.execution, None
    if prepared.has_work():
        pool = make_pool(execution.executor, prepared.outputs, prepared.jobs, prepared.estimates)
    with ExitStack() as stack:
        if pool:
            stack.callback(pool.close)
        begun: AbstractContextManager[RunSource] = prepared.begin(pool)
        feed = stack.enter_context(begun)
        view.begin(prepared, feed, pool)
        if pool:
            with view.watch(prepared, feed) as observer:
                run_all(feed, pool, observer, execution.rules, view.stop)
    view.end(prepared, feed)
