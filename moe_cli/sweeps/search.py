"""Feed of a search: Optuna chooses each configuration and receives its result.

A trial is a configuration. Its runs, one per seed, are ordinary run folders. A journal in the same folder holds the
trials and their results. A process may be killed at any time; another one then continues its trials with the same
settings. Searches in one folder share the trials.
"""

import json
import os
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_cli import __version__
from moe_cli.config.axes import Interval
from moe_cli.config.schema import RunConfig
from moe_cli.config.search_block import Domain
from moe_cli.errors import ConfigError, MoeError, RunBusy
from moe_cli.execution.upcycling import resolve_upcycle_source
from moe_cli.files.writing import delete, delete_abandoned, delete_empty, hold, make_folder
from moe_cli.metrics import BY_KEY
from moe_cli.report.importance import IDENTITY, STUDY, import_optuna, open_journal
from moe_cli.report.sweep_record import record_command
from moe_cli.runs.folder import COMPLETED, FAILED, PRUNED, Run, make_sweep_folder, open_or_create_run
from moe_cli.runs.locks import is_locked, lock, sweep_lock
from moe_cli.runs.recorder import Recorder
from moe_cli.sweeps.pruning import PruningMonitor, make_pruner
from moe_cli.sweeps.scheduler import ListFeed
from moe_cli.sweeps.search_space import SearchPlan, is_whole

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial, Trial

# A search stops after this many impossible draws in a row.
MAX_FAILED_DRAWS = 100
# Keys of a trial's attributes: its process, its failure, why it does not count, why it was pruned, the retried trial.
OWNER, REASON, EXCLUDED, PRUNED_BY, RETRY_OF = "owner", "reason", "excluded", "pruned_by", "retry_of"
# Values of EXCLUDED: the trial does not count towards the requested number.
IMPOSSIBLE, ORPHANED = "impossible", "orphaned"
# The folder with a locked folder of each process that executes the search.
OWNERS_FOLDER = ".owners"


def distributions(plan: SearchPlan) -> "dict[str, BaseDistribution]":
    return {key: _distribution(key, domain) for key, domain in plan.space.items()}


def _distribution(key: str, domain: Domain) -> "BaseDistribution":
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if not isinstance(domain, Interval):
        return CategoricalDistribution(domain)
    if is_whole(key):
        return IntDistribution(int(domain.low), int(domain.high), log=domain.log, step=int(domain.step or 1))
    return FloatDistribution(domain.low, domain.high, log=domain.log, step=domain.step)


def make_sampler(name: str, search_seed: int, index: int) -> "BaseSampler":
    """Returns the sampler of draw number `index`, which does not depend on interruptions of the search."""
    from optuna.samplers import RandomSampler, TPESampler

    seed = random.Random(f"{search_seed} {index}").getrandbits(32)
    return TPESampler(seed=seed) if name == "tpe" else RandomSampler(seed=seed)


def open_study(plan: SearchPlan, outputs: Path, evaluations: int) -> "Study":
    """Opens the search of the sweep's folder, or creates it. `evaluations` is the number of evaluations of a run.

    Raises:
        ConfigError: the existing search has other settings.
        MoeError: its journal cannot be read.
    """
    optuna = import_optuna()
    folder = make_sweep_folder(outputs, plan.name)
    with hold(folder / ".search.lock"):
        study: Study = optuna.create_study(
            study_name=STUDY,
            storage=open_journal(folder),
            load_if_exists=True,
            pruner=make_pruner(plan.prune, evaluations),
            directions=["maximize" if BY_KEY[name].direction > 0 else "minimize" for name in plan.objectives],
        )
        if IDENTITY not in study.user_attrs:
            study.set_user_attr(IDENTITY, json.loads(json.dumps(plan.identity)))
    check_identity(plan, study, folder)
    where = [condition.text for condition in plan.where]
    record_command(folder, plan.overrides, plan.declared, seeds=plan.seeds, where=where, version=__version__)
    return study


def check_identity(plan: SearchPlan, study: "Study", folder: Path) -> None:
    """Raises ConfigError if the search of the folder has other settings."""
    wanted, before = json.loads(json.dumps(plan.identity)), study.user_attrs.get(IDENTITY, {})
    other = [part for part in wanted if wanted[part] != before.get(part)]
    if other:
        raise ConfigError(
            f"{folder} holds a search with other {other[0]}: {json.dumps(before.get(other[0]))[:200]}\n"
            "Trials of both cannot be compared. Give this one a name: --name NAME"
        )


@dataclass
class _OpenTrial:
    """A trial that this process executes."""

    trial: "Trial"
    configs: list[RunConfig]
    runs: list[Run] = field(default_factory=list)


class SearchFeed(ListFeed):
    """Gives the runs of a search's trials.

    Args:
        max_open_runs: returns the number of parallel runs. The sampler draws from the results that are known, so that
            only with 1 are the trials reproducible.
        check: raises MoeError for a configuration that must not be run; the trial is then not counted.
    """

    def __init__(
        self,
        plan: SearchPlan,
        study: "Study",
        outputs: Path,
        max_open_runs: Callable[[], int] = lambda: 1,
        retry_failed: bool = False,
        check: Callable[[RunConfig], None] = lambda config: None,
    ) -> None:
        super().__init__()
        self.plan = plan
        self.study = study
        self.outputs = outputs
        self.max_open_runs = max_open_runs
        self.retry_failed = retry_failed
        self.check = check
        self.stop_reason: str | None = None
        self.labels: dict[Path, str] = {}
        self._distributions = distributions(plan)
        self._open: dict[int, _OpenTrial] = {}
        self._ended: set[Run] = set()
        self._monitors: dict[Run, PruningMonitor] = {}
        self._failed_draws = 0
        self._owner = f"{os.getpid()}-{os.urandom(4).hex()}"

    @contextmanager
    def at_work(self) -> Iterator["SearchFeed"]:
        """Locks a folder of this process, so that other searches do not continue its trials."""
        owner_folder = make_folder(self.outputs / self.plan.name / OWNERS_FOLDER / self._owner)
        delete_abandoned(owner_folder.parent, "*", lambda folder: not is_locked(folder))
        try:
            with lock(owner_folder), sweep_lock(self.outputs / self.plan.name):
                if self.retry_failed:
                    self._retry_failed_trials()
                yield self
        finally:
            with suppress(OSError):
                delete(owner_folder)
                delete_empty(owner_folder.parent)

    def trials(self) -> "list[FrozenTrial]":
        """Returns the counted trials of all processes; see `counted_trials`."""
        return counted_trials(self.study.get_trials(deepcopy=False))

    def best(self) -> "list[FrozenTrial]":
        """Returns the best trial; with several objectives, the Pareto front sorted by the first objective.

        Trials with the same settings count as one. The list is empty without results.
        """
        completed = [trial for trial in self.trials() if trial.state.name == "COMPLETE"]
        unique = {self.plan.label(trial.params): trial for trial in reversed(completed)}
        return pareto_front(list(unique.values()), self.plan.objectives)

    def next_run(self) -> Run | None:
        if len(self._active) >= self.max_open_runs():
            return None
        while not self._waiting and all(is_locked(run.path) for run in self._busy) and self._next_trial():
            pass
        return super().next_run()

    def ended(self, run: Run) -> None:
        super().ended(run)
        self._ended.add(run)
        self._monitors.pop(run, None)
        for number in [number for number, opened in self._open.items() if run in opened.runs]:
            self._settle(number)

    def waiting(self) -> int:
        """Counts the trials of other processes too, because this process continues them if those processes die."""
        trials = self.study.get_trials(deepcopy=False)
        in_other_processes = sum(_is_running(trial) and trial.number not in self._open for trial in trials)
        return super().waiting() + in_other_processes + self._num_left(trials)

    def to_prune(self, running: Sequence[Run]) -> list[Run]:
        if self.plan.prune is None:
            return []
        return [run for run in running if self._is_unpromising(run)]

    def _is_unpromising(self, run: Run) -> bool:
        """Returns whether the first run of a trial is now to be pruned."""
        mine = [opened for opened in self._open.values() if opened.runs[:1] == [run]]
        if not mine:
            return False
        if run not in self._monitors:
            self._monitors[run] = PruningMonitor(run, mine[0].trial, self.plan.objectives[0])
        found = self._monitors[run].check()
        if found is not None:
            for opened in mine:
                opened.trial.set_user_attr(PRUNED_BY, f"by {self.plan.prune}: {found}")
        return found is not None

    def _num_left(self, trials: "Sequence[FrozenTrial]") -> int:
        if self.stop_reason:
            return 0
        return max(0, self.plan.trials - len(counted_trials(trials)))

    def _next_trial(self) -> bool:
        """Continues an orphaned trial or starts a new one; returns False if there is none."""
        with hold(self.outputs / self.plan.name / ".search.lock"):
            trials = self.study.get_trials(deepcopy=False)
            trial = self._orphaned_trial(trials) or (self._ask(trials) if self._num_left(trials) else None)
            if trial is None:
                return False
            trial.set_user_attr(OWNER, self._owner)
        self._begin(trial)
        return True

    def _ask(self, trials: "Sequence[FrozenTrial]") -> "Trial":
        index = sum(trial.user_attrs.get(EXCLUDED) != ORPHANED for trial in trials)
        self.study.sampler = make_sampler(self.plan.sampler, self.plan.search_seed, index)
        return self.study.ask(self._distributions)

    def _orphaned_trial(self, trials: "Sequence[FrozenTrial]") -> "Trial | None":
        """Returns a trial whose process has died. A trial without all its settings is ended and drawn again."""
        from optuna.trial import Trial

        for frozen in trials:
            if (
                not _is_running(frozen)
                or frozen.number in self._open
                or self._owner_is_alive(frozen.user_attrs.get(OWNER))
            ):
                continue
            trial = Trial(self.study, frozen._trial_id)
            if set(frozen.params) == set(self._distributions):
                return trial
            self._exclude(trial, ORPHANED, "the search was killed while it was drawn")
        return None

    def _owner_is_alive(self, owner: Any) -> bool:
        folder = self.outputs / self.plan.name / OWNERS_FOLDER / str(owner)
        return owner == self._owner or (owner is not None and is_locked(folder))

    def _begin(self, trial: "Trial") -> None:
        try:
            configs = [resolve_upcycle_source(config, self.outputs) for config in self.plan.configs(trial.params)]
            self.check(configs[0])
        except MoeError as error:
            reason = str(error).splitlines()[0]
            self._exclude(trial, IMPOSSIBLE, reason)
            self._failed_draws += 1
            if self._failed_draws >= MAX_FAILED_DRAWS:
                self.stop_reason = f"{MAX_FAILED_DRAWS} draws in a row are impossible, the last: {reason}"
            return
        self._failed_draws = 0
        self._open[trial.number] = _OpenTrial(trial, configs)
        # With pruning, the other seeds start only if the first one is not pruned.
        self._open_runs(trial.number, 1 if self.plan.prune else len(configs))
        self._settle(trial.number)

    def _exclude(self, trial: "Trial", why: str, reason: str) -> None:
        """Ends a trial that does not count."""
        trial.set_user_attr(REASON, reason)
        trial.set_user_attr(EXCLUDED, why)
        self._tell(trial.number, FAILED)

    def _open_runs(self, number: int, seeds: int) -> None:
        """Creates the runs of the first `seeds` seeds of a trial. A run that several trials share is given once."""
        opened = self._open[number]
        for config in opened.configs[len(opened.runs) : seeds]:
            run = open_or_create_run(self.outputs, self.plan.name, config)
            label = self.plan.label(opened.trial.params)
            self.labels[run.path] = label + (f" seed={config.seed}" if len(opened.configs) > 1 else "")
            opened.runs.append(run)
            known = run in self._active or run in self._waiting or run in self._busy
            if self._final_status(run) is None and not known:
                self._waiting.append(run)

    def _final_status(self, run: Run) -> str | None:
        """Returns completed, pruned or failed; None means that the run has not ended."""
        status = str(run.status()["status"])
        if status == FAILED and run in self._busy:  # the run will be retried
            return None
        if status == FAILED and self.retry_failed and run not in self._ended:
            return None
        return status if status in (COMPLETED, FAILED, PRUNED) else None

    def _settle(self, number: int) -> None:
        """Reports the result of a trial to Optuna if all its runs have ended, else opens the runs of further seeds."""
        opened = self._open[number]
        if PRUNED_BY in opened.trial.user_attrs:
            self._prune(opened)
        statuses = [self._final_status(run) for run in opened.runs]
        for state in (FAILED, PRUNED):
            if state in statuses:
                self._end(number, state, opened.runs[statuses.index(state)])
                return
        if None in statuses:
            return
        if len(opened.runs) < len(opened.configs):
            self._open_runs(number, len(opened.configs))
            self._settle(number)
            return
        self._end(number, COMPLETED, opened.runs[0])

    def _prune(self, opened: _OpenTrial) -> None:
        """Records why a run was pruned, unless it was complete before it could be stopped."""
        reason = f"pruned {opened.trial.user_attrs[PRUNED_BY]}"
        run = opened.runs[0]
        if run.summary() is None and not is_locked(run.path) and run.status().get("reason") != reason:
            with suppress(RunBusy), lock(run.path):  # another process holds it
                Recorder(run).status(PRUNED, reason=reason)
        if run in self._waiting:
            self._waiting.remove(run)

    def _end(self, number: int, state: str, run: Run) -> None:
        opened = self._open.pop(number)
        others = {run for other in self._open.values() for run in other.runs}
        for mine in set(opened.runs) - others:
            for queue in (self._waiting, self._busy):
                if mine in queue:
                    queue.remove(mine)
        if state == COMPLETED:
            values = [self._mean(name, opened.runs) for name in self.plan.objectives]
            missing = [name for name, value in zip(self.plan.objectives, values, strict=True) if value is None]
            if not missing:
                self._tell(number, COMPLETED, [value for value in values if value is not None])
                return
            opened.trial.set_user_attr(REASON, f"{missing[0]} has no value")
            state = FAILED
        elif reason := run.status().get("reason"):
            opened.trial.set_user_attr(REASON, str(reason))
        self._tell(number, state)

    @staticmethod
    def _mean(name: str, runs: Sequence[Run]) -> float | None:
        values = [(run.summary() or {}).get(name) for run in runs]
        known = [value for value in values if isinstance(value, int | float)]
        return sum(known) / len(known) if known and len(known) == len(values) else None

    def _tell(self, number: int, state: str, values: list[float] | None = None) -> None:
        from optuna.trial import TrialState

        states = {COMPLETED: TrialState.COMPLETE, FAILED: TrialState.FAIL, PRUNED: TrialState.PRUNED}
        self.study.tell(number, values, states[state], skip_if_finished=True)

    def _retry_failed_trials(self) -> None:
        """Queues each failed trial once more, with the same settings."""
        for trial in counted_trials(self.study.get_trials(deepcopy=False)):
            if trial.state.name == "FAIL":
                self.study.enqueue_trial(trial.params, user_attrs={RETRY_OF: trial.number})


def pareto_front(trials: "Sequence[FrozenTrial]", objectives: Sequence[str]) -> "list[FrozenTrial]":
    """Returns the trials on the Pareto front, sorted by the first objective; with one objective, the best trial."""
    from moe_cli.report.pareto import as_cost, on_front, tolerance

    sides = [BY_KEY[name].direction for name in objectives]
    points = [tuple(map(as_cost, trial.values, sides)) for trial in trials]
    # With one objective only the best value counts, not all values within the tolerance.
    factors = [tolerance(name) if len(objectives) > 1 else 1.0 for name in objectives]
    kept = [
        (point, trial) for point, trial, mark in zip(points, trials, on_front(points, factors), strict=True) if mark
    ]
    return [trial for _, trial in sorted(kept, key=lambda pair: (pair[0], pair[1].number))]


def counted_trials(trials: "Sequence[FrozenTrial]") -> "list[FrozenTrial]":
    """Returns the started trials, without impossible ones and those that were retried."""
    retried = {trial.user_attrs.get(RETRY_OF) for trial in trials}
    return [
        trial
        for trial in trials
        if EXCLUDED not in trial.user_attrs and trial.state.name != "WAITING" and trial.number not in retried
    ]


def _is_running(trial: "FrozenTrial") -> bool:
    return trial.state.name == "RUNNING"
