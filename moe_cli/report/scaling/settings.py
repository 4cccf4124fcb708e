"""Sizes of configurations that were not run, for predictions."""

import shlex
from collections.abc import Collection

import numpy as np
import pandas as pd

from moe_cli.config.build import show
from moe_cli.config.compose import load_config
from moe_cli.config.schema import BUDGETS
from moe_cli.costs.model import cost, training_steps
from moe_cli.errors import ConfigError
from moe_cli.report.aggregate import rows_of
from moe_cli.report.baseline import words_like
from moe_cli.report.load import flatten
from moe_cli.report.scaling.points import Points, expansion, granularity

DEFAULT_VOCAB_SIZE = 256


def points_of(text: str, frame: pd.DataFrame) -> Points:
    """The sizes of a configuration: its settings in `text` and, for the rest, those of the largest of the runs.

    Raises:
        ConfigError: a setting is wrong, or the budget is a time, so that the number of tokens is unknown.
    """
    try:
        given = shlex.split(text)
    except ValueError:
        raise ConfigError(f"--predict {text}: a quote is not closed. Give settings such as 'expert=64 k=2'") from None
    if not given or any("=" not in word for word in given):
        raise ConfigError(f"--predict '{text}': give settings such as 'expert=64 k=2 train.tokens=1000000'")
    overrides, vocab_size = _overrides_of_largest(frame, {word.split("=")[0] for word in given})
    config = load_config([*overrides, *given]).config
    costs, steps = cost(config, vocab_size), training_steps(config, vocab_size)
    if steps is None:
        raise ConfigError(f"--predict '{text}': the budget is a time; give train.steps, train.tokens or train.flops.")
    run = {"expert": config.expert, "k": config.k, **flatten(config.to_dict())}
    tokens = float(steps * config.tokens_per_step)
    ratio = expansion(run)
    values = (costs.num_params, costs.num_active_params, ratio, 1 / ratio, granularity(run), tokens,
              tokens * costs.flops_per_token, np.nan, 0, np.nan, -1)  # fmt: skip
    return Points(*(np.array([value]) for value in values))


def _overrides_of_largest(frame: pd.DataFrame, given: Collection[str]) -> tuple[list[str], int]:
    """The settings of the run with the most training FLOPs without those in `given`, and its vocabulary size."""
    runs = [row for row in rows_of(frame) if row["flops_per_token"] and row["tokens"] and row["params"]]
    if not runs:
        return [], DEFAULT_VOCAB_SIZE
    largest = max(runs, key=lambda row: row["flops_per_token"] * row["tokens"])
    budgets = {f"train.{name}" for name in BUDGETS}
    of_budget = budgets.intersection(given)
    overrides = words_like(largest, {*given, *(budgets if of_budget else ())})
    if not of_budget and not any(overrides.get(name) for name in budgets):
        overrides["train.tokens"] = largest["tokens"]
    return [f"{key}={show(value)}" for key, value in overrides.items()], int(
        largest.get("vocab_size") or DEFAULT_VOCAB_SIZE
    )
