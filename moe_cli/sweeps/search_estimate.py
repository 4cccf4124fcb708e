"""Estimates the cost of a search from random draws before it starts."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from moe_cli.config.schema import RunConfig
from moe_cli.errors import ConfigError
from moe_cli.execution.estimate import RunEstimate, estimate_runs, measure_flops
from moe_cli.execution.memory import check_memory
from moe_cli.execution.upcycling import resolve_upcycle_source
from moe_cli.report.importance import import_optuna
from moe_cli.sweeps.pruning import evaluations_to_prune_at
from moe_cli.sweeps.search import MAX_FAILED_DRAWS, distributions
from moe_cli.sweeps.search_space import SearchPlan, check_has_value

NUM_SAMPLES = 24


@dataclass(frozen=True)
class SearchEstimate:
    """The estimate of a search.

    Attributes:
        estimates: the estimates of some possible draws, with the first seed.
        seconds: the expected time of a run, averaged over these draws.
        evaluations: the smallest number of evaluations of a run.
        possible: the fraction of the draws that are possible.
        notes: settings that have no effect in some draws.
    """

    estimates: tuple[RunEstimate, ...]
    seconds: float
    evaluations: int
    possible: float
    notes: tuple[str, ...]


def estimate_search(plan: SearchPlan, outputs: Path, checks_memory: bool = False) -> SearchEstimate:
    """Draws NUM_SAMPLES configurations, or more until one is possible, and estimates their cost.

    Args:
        checks_memory: whether draws that need far more memory than this machine has are impossible.

    Raises:
        ConfigError: no draw is possible, or a run has no evaluations for pruning.
        MoeError: the data cannot be used, or Optuna is not installed.
    """
    optuna = import_optuna()
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=plan.search_seed))
    space = distributions(plan)
    configs: list[RunConfig] = []
    notes: dict[str, None] = {}
    reasons: list[str] = []
    for number in range(MAX_FAILED_DRAWS):
        if number >= NUM_SAMPLES and configs:
            break
        try:
            resolved = plan.resolved(study.ask(space).params)
            configs.append(resolve_upcycle_source(resolved[0].config, outputs))
            notes |= dict.fromkeys(resolved[0].notes)
        except ConfigError as error:
            reasons.append(str(error))
    if not configs:
        raise ConfigError(
            reasons[0] if len(set(reasons)) == 1 else f"none of {MAX_FAILED_DRAWS} draws can be run.\n{reasons[0]}"
        )
    for config in configs:
        check_has_value(plan.objectives, config)
    estimates = estimate_runs(configs, outputs, measure_flops())
    if checks_memory:
        estimates, refused = _split_by_memory(estimates)
        reasons += refused
        if not estimates:
            raise ConfigError(refused[0])
    if "val_bpb" in plan.objectives and any(map(_bytes_unknown, estimates)):
        raise ConfigError("the bytes of these tokens are unknown, so there is no val_bpb. Add: --objective val_loss")
    return SearchEstimate(
        tuple(estimates),
        sum(estimate.seconds for estimate in estimates) / len(estimates),
        min(evaluations_to_prune_at(estimate.config, estimate.steps) for estimate in estimates) if plan.prune else 0,
        len(estimates) / (len(estimates) + len(reasons)),
        tuple(notes),
    )


def _split_by_memory(estimates: Sequence[RunEstimate]) -> tuple[list[RunEstimate], list[str]]:
    """Returns the estimates that this machine has the memory for, and why the others are refused."""
    kept, refused = [], []
    for estimate in estimates:
        try:
            check_memory([estimate])
            kept.append(estimate)
        except ConfigError as error:
            refused.append(str(error))
    return kept, refused


def _bytes_unknown(estimate: RunEstimate) -> bool:
    return estimate.corpus.meta["num_bytes"] is None or not estimate.corpus.meta.get("lossless", True)
