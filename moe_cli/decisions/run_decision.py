"""Prepares and executes a decision, as `sweeps.run_sweep` does a sweep or a search."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from moe_cli import __version__
from moe_cli.config.sweep_file import DENSE
from moe_cli.decisions.decision_file import (
    DecisionRecord,
    LimitOptions,
    check_same_decision,
    make_candidates,
    read_decision,
    write_decision,
)
from moe_cli.decisions.feed import DecisionFeed, read_outcome, read_success, replay
from moe_cli.decisions.plan import BUDGETS_OF, FLOPS, TIME, TOKENS, DecisionPlan
from moe_cli.decisions.rehearsal import can_start, least_limits
from moe_cli.decisions.terms import SCREENING, Candidate, DecisionLimit, RunRequest
from moe_cli.errors import ConfigError
from moe_cli.execution.estimate import RunEstimate, estimate_runs, measure_flops
from moe_cli.execution.memory import check_memory
from moe_cli.report.sweep_record import record_command
from moe_cli.runs.folder import make_sweep_folder
from moe_cli.runs.locks import sweep_lock
from moe_cli.sweeps.executors.make import max_parallel
from moe_cli.sweeps.run_sweep import Execution, device_check, record_data
from moe_cli.sweeps.scheduler import Pool


@dataclass(frozen=True)
class PreparedDecision:
    """A decision that can start.

    Attributes:
        estimates: the estimates of the candidates at the full budget, in the order of the plan.
        candidates: the candidates with their costs; those of the first start if there was one.
    """

    plan: DecisionPlan
    outputs: Path
    execution: Execution
    estimates: Sequence[RunEstimate]
    candidates: tuple[Candidate, ...]
    limits: LimitOptions

    @property
    def jobs(self) -> int | None:
        return self.execution.jobs

    def limit(self, pool: Pool | None = None) -> DecisionLimit:
        """Returns the limits with the number of parallel runs of the pool; without one, the expected number."""
        parallel = pool.workers if pool else max_parallel(self.execution.executor, self.jobs, self.estimates)
        return make_decision_limit(self.limits, parallel or 1)

    def has_work(self) -> bool:
        outcome = read_success if self.execution.retry_failed else read_outcome
        return replay(self.plan, self.candidates, self.limit(), self.outputs, outcome).decision is None

    @contextmanager
    def begin(self, pool: Pool | None) -> Iterator[DecisionFeed]:
        """Records the data and the decision, and yields its feed."""
        folder = make_sweep_folder(self.outputs, self.plan.name)
        if pool:
            record_data(folder, self.estimates)
        limit = self.limit(pool)
        write_decision(folder, DecisionRecord(self.plan, self.candidates, self.limits, limit.parallel))
        declared = {"question": self.plan.question, "baseline": dict(DENSE)}
        seeds, where = (self.plan.rules.first_seed,), self.plan.where
        record_command(folder, self.plan.overrides, declared, seeds=seeds, where=where, version=__version__)
        with sweep_lock(folder):
            yield DecisionFeed(self.plan, self.candidates, self.outputs, limit, self.execution.retry_failed)


def make_decision_limit(limits: LimitOptions, parallel: int) -> DecisionLimit:
    return DecisionLimit(None if limits.minutes is None else 60 * limits.minutes, limits.runs, parallel)


def prepare_decision(
    plan: DecisionPlan, limits: LimitOptions, outputs: Path, execution: Execution, *, build: bool = True
) -> PreparedDecision:
    """Checks everything that can fail before the executor starts. Changes no run.

    Args:
        build: False, for a dry run, trains no tokenizer.

    Raises:
        MoeError: a device, a library or data are missing, or the folder holds another decision.
    """
    plan = plan.with_upcycle_source(outputs)
    known = read_decision(outputs / plan.name)
    device_check(execution)(list(plan.configs.values()))
    estimates = _estimate(plan, outputs, build)
    converted = _with_equal_budget(plan, estimates[0], known.plan if known else None)
    if converted is not plan:
        plan, estimates = converted, _estimate(converted, outputs, build)
    if build and execution.checks_memory:
        check_memory(estimates)
    if known is not None:
        check_same_decision(plan, known.plan, outputs / plan.name)
        # Runs with the budgets of an earlier command keep their place in the price tag.
        budgets = {*plan.rules.baseline_budgets, *known.plan.rules.baseline_budgets}
        plan = replace(plan, rules=replace(plan.rules, baseline_budgets=tuple(sorted(budgets))))
        candidates = known.candidates
    else:
        candidates = make_candidates(plan, _amounts(plan, estimates, outputs, build))
    prepared = PreparedDecision(plan, outputs, execution, estimates, candidates, limits)
    _check_limit(prepared)
    return prepared


def _check_limit(prepared: PreparedDecision) -> None:
    """Raises ConfigError for a limit with which no run would start: it covers no screening and first look."""
    rules, limit = prepared.plan.rules, prepared.limit()
    if can_start(prepared.candidates, rules, limit):
        return
    runs, minutes = least_limits(prepared.candidates, rules, limit.parallel)
    raise ConfigError(
        f"{' and '.join(prepared.limits.options())} cannot decide anything: the least is {runs} runs, or "
        f"{minutes:g} min here: two candidates and dense, compared once each and then on {rules.looks[0]} fresh "
        "seeds.\n"
        "Give a larger budget, or make runs cheaper: fewer candidates, train.steps, model.d_model."
    )


def _estimate(plan: DecisionPlan, outputs: Path, build: bool) -> list[RunEstimate]:
    return estimate_runs(list(plan.configs.values()), outputs, measure_flops(), build=build)


def _amounts(
    plan: DecisionPlan, estimates: Sequence[RunEstimate], outputs: Path, build: bool
) -> dict[str, tuple[float, ...]]:
    """Returns the `AMOUNTS` of each candidate: tie-break cost, and the straight line of its seconds over the budget."""
    fraction, seed = plan.rules.screening_fraction, plan.rules.first_seed
    parts = [plan.config(RunRequest(name, seed, fraction, 1.0, SCREENING)) for name in plan.configs]
    found: dict[str, tuple[float, ...]] = {}
    for name, whole, part in zip(
        plan.configs, estimates, estimate_runs(parts, outputs, measure_flops(), build=build), strict=True
    ):
        fixed = (part.seconds - fraction * whole.seconds) / (1 - fraction) if fraction < 1 else 0.0
        found[name] = (_tie_break_cost(plan.by, whole), whole.seconds, max(0.0, fixed))
    return found


def _tie_break_cost(by: str, estimate: RunEstimate) -> float:
    """Returns the FLOPs of a token, optimizer included; the parameters where the budget makes those equal."""
    return float(estimate.cost.flops_per_token if by == TOKENS else estimate.cost.num_params)


def _with_equal_budget(plan: DecisionPlan, dense: RunEstimate, known: DecisionPlan | None) -> DecisionPlan:
    """Returns the plan with the training budget that `by` makes equal.

    A budget of tokens becomes what the dense model takes for it: FLOPs, optimizer included, or minutes of training. The
    minutes are an estimate for this machine, and a decision that has begun keeps its own.
    """
    if plan.dense.train.budget[0] in BUDGETS_OF[plan.by]:
        return plan
    assert dense.steps is not None, "a budget of tokens"
    if plan.by == FLOPS:
        return plan.with_budget("flops", float(f"{dense.steps * dense.cost.flops_per_step:.3g}"))
    assert plan.by == TIME, plan.by
    if known is not None and known.by == TIME and known.given_budget == plan.given_budget:
        return plan.with_budget(*known.dense.train.budget)
    return plan.with_budget("minutes", float(f"{dense.seconds / 60:.2g}"))
