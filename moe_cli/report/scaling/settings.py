"""Sizes of configurations that were not run, for predictions."""

import shlex
from collections.abc import Collection, Sequence

import numpy as np

from moe_cli.config.compose import load_config
from moe_cli.config.ranges import format_setting
from moe_cli.config.schema import BUDGETS
from moe_cli.costs.model import estimate_cost, training_steps
from moe_cli.errors import ConfigError
from moe_cli.report.baseline import overrides_of
from moe_cli.report.load import flat_settings
from moe_cli.report.run_row import RunRow
from moe_cli.report.scaling.observations import Points, expansion, granularity

DEFAULT_VOCAB_SIZE = 256


def points_of(text: str, runs: Sequence[RunRow]) -> Points:
    """Returns the sizes of a configuration: its settings in `text` and, for the rest, those of the largest of the runs.

    Raises:
        ConfigError: a setting is wrong, or the budget is a time, so that the number of tokens is unknown.
    """
    try:
        budget = shlex.split(text)
    except ValueError:
        raise ConfigError(f"--predict {text}: a quote is not closed. Give settings such as 'expert=64 k=2'") from None
    if not budget or any("=" not in word for word in budget):
        raise ConfigError(f"--predict '{text}': give settings such as 'expert=64 k=2 train.tokens=1000000'")
    overrides, vocab_size = _overrides_of_largest(runs, {word.split("=")[0] for word in budget})
    config = load_config([*overrides, *budget]).config
    costs, steps = estimate_cost(config, vocab_size), training_steps(config, vocab_size)
    if steps is None:
        raise ConfigError(f"--predict '{text}': the budget is a time; give train.steps, train.tokens or train.flops.")
    run = {"expert": config.expert, "k": config.mean_k, **flat_settings(config.to_dict())}
    tokens = float(steps * config.tokens_per_step)
    ratio = expansion(run)
    values = (
        costs.num_params,
        costs.num_active_params,
        ratio,
        1 / ratio,
        granularity(run),
        tokens,
        tokens * costs.flops_per_token,
        np.nan,
        0,
        np.nan,
        -1,
    )
    return Points(*(np.array([value]) for value in values))


def _overrides_of_largest(runs: Sequence[RunRow], budget: Collection[str]) -> tuple[list[str], int]:
    """Returns the settings of the run with the most FLOPs without those in `given`, and its vocabulary size."""
    measured = [run for run in runs if run.results.flops_per_token and run.results.tokens and run.results.params]
    if not measured:
        return [], DEFAULT_VOCAB_SIZE
    largest = max(measured, key=lambda run: (run.results.flops_per_token or 0) * (run.results.tokens or 0))
    budgets = {f"train.{name}" for name in BUDGETS}
    of_budget = budgets.intersection(budget)
    overrides = overrides_of(largest, {*budget, *(budgets if of_budget else ())})
    if not of_budget and not any(overrides.get(name) for name in budgets):
        overrides["train.tokens"] = largest.results.tokens
    arguments = [f"{key}={format_setting(value)}" for key, value in overrides.items()]
    return arguments, int(largest.results.vocab_size or DEFAULT_VOCAB_SIZE)
