"""Prunes the runs of a search: Optuna's pruners receive the evaluations of the running runs.

The steps of a trial are its evaluations 1, 2, ..., not its training steps. A run has ten evaluations unless
train.eval_every is set, so that equal steps are equal fractions of the budget.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from moe_cli.config.schema import RunConfig
from moe_cli.errors import ConfigError
from moe_cli.metrics import ESTIMATES

if TYPE_CHECKING:
    from optuna.pruners import BasePruner
    from optuna.trial import Trial

    from moe_cli.runs.folder import Run

# One in four runs that reach a rung continues. The rungs are at 1, 4, 16, ... evaluations.
REDUCTION = 4


def make_pruner(name: str | None, evaluations: int) -> "BasePruner":
    """Returns the pruner for runs with this number of evaluations; without a name, one that prunes nothing."""
    from optuna.pruners import HyperbandPruner, MedianPruner, NopPruner, SuccessiveHalvingPruner

    if name == "asha":
        return SuccessiveHalvingPruner(min_resource=1, reduction_factor=REDUCTION)
    if name == "hyperband":
        return HyperbandPruner(min_resource=1, max_resource=max(evaluations, REDUCTION), reduction_factor=REDUCTION)
    if name == "median":
        return MedianPruner()
    return NopPruner()


def evaluations_to_prune_at(config: RunConfig, steps: int | None) -> int:
    """Returns the number of evaluations of a run at which it can be pruned: all but the last.

    Raises:
        ConfigError: there are none, so that no run could be pruned.
    """
    count, every = config.train.num_evaluations(steps), config.train.eval_every
    if count < 1:
        budget = f"train.eval_every={every} of {steps} steps" if every else f"train.steps={steps}"
        raise ConfigError(
            f"--prune needs evaluations during training, and with {budget} there are none. "
            "Leave out --prune, or change that setting."
        )
    return count


class PruningMonitor:
    """Reports each evaluation of a run once to its trial, and decides whether to prune the run."""

    def __init__(self, run: "Run", trial: "Trial", objective: str) -> None:
        self.run = run
        self.trial = trial
        self.objective = objective
        self._reported = len(trial.study.get_trials(deepcopy=False)[trial.number].intermediate_values)
        self._steps: list[int] = []
        self._size = -1

    def check(self) -> str | None:
        """Returns the value for which the run is pruned; None means that it goes on."""
        try:
            size = (self.run.path / "metrics.jsonl").stat().st_size
        except OSError:
            return None
        if size == self._size:
            return None
        records = iter(self.run.latest_metrics()) if self._steps else self.run.read_metrics()
        self._size = size
        for value in self._new(records):
            if len(self._steps) > self._reported:
                self._reported = len(self._steps)
                self.trial.report(value, self._reported)
                if self.trial.should_prune():
                    return f"{self.objective} {value:.3f} at evaluation {self._reported}"
        return None

    def _new(self, records: Iterable[Mapping[str, Any]]) -> Iterator[float]:
        """Yields the new evaluations. A resumed run repeats earlier ones with equal values."""
        for record in records:
            step, value = record.get("step"), record.get(ESTIMATES[self.objective])
            if isinstance(step, int) and isinstance(value, float) and step > (self._steps or [0])[-1]:
                self._steps.append(step)
                yield value
