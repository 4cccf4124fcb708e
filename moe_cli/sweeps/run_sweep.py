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
from moe_cli.execution.estimate import RunEstimate, estimate_runs, measure_flops
from moe_cli.execution.machine import check_devices
from moe_cli.execution.memory import check_memory
from moe_cli.runs.corpora import record_corpora
from moe_cli.runs.folder import Run, make_group
from moe_cli.runs.locks import sweep_lock
from moe_cli.runs.trash import check_idle
from moe_cli.sweeps.executors.make import at_once, make_pool
from moe_cli.sweeps.plan import SweepPlan
from moe_cli.sweeps.rerun import discard, outdated, put_back
from moe_cli.sweeps.scheduler import Feed, Listed, Observer, Rules, drive, to_do
from moe_cli.sweeps.search_space import SearchPlan

if TYPE_CHECKING:
    from moe_cli.sweeps.search import SearchFeed
    from moe_cli.sweeps.search_estimate import Preview


@dataclass(frozen=True)
class Execution:
    """How the runs of a sweep or a search are carried out.

    Attributes:
        jobs: runs at a time; None: what this machine bears, or what the cluster gives.
        retry_failed: runs that failed are run again, from their last checkpoint.
        force, rerun_on_code: all runs start again, or those of other code; what there is goes to the trash.
        force_memory: runs that need far more memory than this machine has are begun all the same.
    """

    executor: Executor
    jobs: int | None = None
    rules: Rules = field(default_factory=Rules)
    retry_failed: bool = False
    force: bool = False
    rerun_on_code: bool = False
    force_memory: bool = False


@dataclass(frozen=True)
class PreparedSweep:
    """A sweep that can start.

    Attributes:
        plans: the cost of each run.
        runs: their folders, made or not.
        outdated: those of them that start again.
    """

    plan: SweepPlan
    outputs: Path
    execution: Execution
    plans: Sequence[RunEstimate]
    runs: Sequence[Run]
    outdated: Sequence[Run]

    @property
    def jobs(self) -> int | None:
        """Runs at a time, as many as there are at the most; None: what the cluster gives."""
        if self.execution.executor.name != "local":
            return self.execution.jobs
        return min(at_once(self.execution.executor, self.execution.jobs, self.plans) or 1, len(self.plans))

    def has_work(self) -> bool:
        return bool(self.outdated or to_do(self.runs, self.execution.retry_failed))

    @contextmanager
    def begin(self, pool: Any) -> Iterator[Listed]:
        """Moves the outdated runs to the trash and makes the folders; if that fails, all lies where it lay."""
        removed = discard(self.outdated, self.outputs)
        try:
            if pool:
                _record_data(make_group(self.outputs, self.plan.name), self.plans, replace=self.execution.force)
            runs = self.plan.open(self.outputs)
        except BaseException:
            put_back(removed, self.outputs)
            raise
        with sweep_lock(self.outputs / self.plan.name):
            yield Listed(to_do(runs, self.execution.retry_failed))


@dataclass(frozen=True)
class PreparedSearch:
    """A search that can start; `preview` holds some of its draws."""

    plan: SearchPlan
    outputs: Path
    execution: Execution
    preview: "Preview"

    @property
    def plans(self) -> Sequence[RunEstimate]:
        return self.preview.plans

    @property
    def jobs(self) -> int | None:
        return self.execution.jobs

    @property
    def most(self) -> int:
        """How many runs it has at the most."""
        return self.plan.trials * len(self.plan.seeds)

    def has_work(self) -> bool:
        from moe_cli.report.importance import load_study
        from moe_cli.sweeps.search import SearchFeed, check_asked

        study = load_study(self.outputs / self.plan.name)
        if study is None:
            return True
        check_asked(self.plan, study, self.outputs / self.plan.name)
        feed = SearchFeed(self.plan, study, self.outputs)
        failed = any(trial.state.name == "FAIL" for trial in feed.trials())
        return feed.waiting() > 0 or (self.execution.retry_failed and failed)

    @contextmanager
    def begin(self, pool: Any) -> "Iterator[SearchFeed]":
        """Opens the study, or begins it."""
        from moe_cli.sweeps.search import SearchFeed, open_study

        study = open_study(self.plan, self.outputs, self.preview.evaluations)
        _record_data(self.outputs / self.plan.name, self.plans)

        def at_a_time() -> int:
            return min(pool.workers, self.most) if pool else 1

        with SearchFeed(self.plan, study, self.outputs, at_a_time, self.execution.retry_failed).at_work() as feed:
            yield feed


Prepared = PreparedSweep | PreparedSearch


class View:
    """Shows how a sweep goes. This one shows nothing."""

    def begin(self, prepared: Any, feed: Any, pool: Any) -> None:
        """Called before the first run starts; `pool` is None where there is nothing to do."""

    def watch(self, prepared: Any, feed: Any) -> AbstractContextManager[Observer]:
        """Gives the observer of `drive`, for as long as runs are at work."""
        return nullcontext(lambda progress: None)

    def stop(self) -> None:
        """Called when the runs have been asked to save and stop."""

    def end(self, prepared: Any, feed: Any) -> None:
        """Called when nothing is left to do."""


SILENT = View()


def prepare(plan: SweepPlan | SearchPlan, outputs: Path, execution: Execution, *, build: bool = True) -> Prepared:
    """Checks everything that can fail before an executor is asked; changes no run.

    Args:
        build: False: nothing will be trained, so that no tokenizer has to be either.

    Raises:
        MoeError: a device, a library or the data are missing, or a run that is to start again is at work.
    """
    check = check_devices if execution.executor.name == "local" else _check_nothing
    if isinstance(plan, SearchPlan):
        from moe_cli.sweeps.search_estimate import preview

        search = PreparedSearch(plan, outputs, execution, preview(plan, outputs))
        check([each.config for each in search.plans])
        _check_memory(search.plans, execution, build)
        return search
    plan = plan.pinned(outputs)
    configs = [point.config for point in plan.points]
    check(configs)
    plans, runs = estimate_runs(configs, outputs, measure_flops(), build=build), plan.existing(outputs)
    _check_memory(plans, execution, build)
    again = outdated(runs, force=execution.force, code=execution.rerun_on_code)
    for run in again if build else ():
        check_idle(run)
    return PreparedSweep(plan, outputs, execution, plans, runs, again)


def _record_data(folder: Path, estimates: Sequence[RunEstimate], replace: bool = False) -> None:
    """Records in a sweep's folder the data that its runs learn from. Raises DataError: other data than before."""
    record_corpora(folder, [(each.config.data, each.corpus.meta) for each in estimates], replace)


def _check_memory(plans: Sequence[RunEstimate], execution: Execution, build: bool) -> None:
    """Raises ConfigError for a run that needs far more memory than this machine has, if it is this one that runs it."""
    if build and execution.executor.name == "local":
        check_memory(plans, execution.force_memory)


def _check_nothing(configs: object) -> None:
    """The devices of a cluster are not known here."""


def run_sweep(prepared: Prepared, view: View = SILENT) -> None:
    """Carries it out.

    Raises:
        MoeError: the executor cannot be reached, and nothing has changed; or the disk is full.
    """
    execution, pool = prepared.execution, None
    if prepared.has_work():
        pool = make_pool(execution.executor, prepared.outputs, prepared.jobs, prepared.plans)
    with ExitStack() as stack:
        if pool:
            stack.callback(pool.close)
        begun: AbstractContextManager[Feed] = prepared.begin(pool)
        feed = stack.enter_context(begun)
        view.begin(prepared, feed, pool)
        if pool:
            with view.watch(prepared, feed) as observer:
                drive(feed, pool, observer, execution.rules, view.stop)
    view.end(prepared, feed)
