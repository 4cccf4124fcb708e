"""Sizes of configurations that were not run, for predictions."""

import shlex
from collections.abc import Sequence, Set
from dataclasses import dataclass

import numpy as np

from moe_cli.config.compose import load_config
from moe_cli.config.ranges import format_setting
from moe_cli.config.schema import RunConfig
from moe_cli.config.training import BUDGET_KEYS
from moe_cli.costs.model import estimate_cost, training_steps
from moe_cli.errors import ConfigError
from moe_cli.report.baseline import overrides_of
from moe_cli.report.load import flat_settings
from moe_cli.report.run_row import RunRow
from moe_cli.report.scaling.observations import Points, expansion, granularity

DEFAULT_VOCAB_SIZE = 256


@dataclass(frozen=True)
class Configured:
    """A configuration that was not run.

    Attributes:
        arguments: the settings that lead to it, as typed on a command line.
        vocab_size: the number of token ids.
        steps: the optimizer steps of its budget.
    """

    arguments: tuple[str, ...]
    config: RunConfig
    vocab_size: int
    steps: int

    @property
    def tokens(self) -> int:
        return self.steps * self.config.tokens_per_step

    @property
    def flops(self) -> float:
        """Returns the FLOPs of the whole training, of model and optimizer."""
        return self.tokens * estimate_cost(self.config, self.vocab_size).flops_per_token


def points_of(text: str, runs: Sequence[RunRow]) -> Points:
    """Returns the sizes of a configuration: its settings in `text` and, for the rest, those of the largest of the runs.

    Raises:
        ConfigError: a setting is wrong, or the budget is a time, so that the number of tokens is unknown.
    """
    return sizes_of(configure_like(parse_words(text, "--predict"), runs, f"--predict '{text}'"))


def parse_words(text: str, option: str) -> list[str]:
    """Returns the settings in the text of an option. Raises ConfigError for anything else."""
    try:
        arguments = shlex.split(text)
    except ValueError:
        raise ConfigError(f"{option} {text}: a quote is not closed. Give settings such as 'expert=64 k=2'") from None
    if not arguments or any("=" not in word for word in arguments):
        raise ConfigError(f"{option} '{text}': give settings such as 'expert=64 k=2 train.tokens=1000000'")
    return arguments


def configure_like(arguments: Sequence[str], runs: Sequence[RunRow], option: str) -> Configured:
    """Returns the configuration with these settings and, for the rest, those of the largest of the runs.

    Args:
        option: the option and its text, for messages.

    Raises:
        ConfigError: a setting is wrong, or the budget is a time, so that the number of tokens is unknown.
    """
    overrides, vocab_size = _overrides_of_largest(runs, {word.split("=")[0] for word in arguments})
    return configure([*arguments, *overrides], vocab_size, option)


def configure(arguments: Sequence[str], vocab_size: int, option: str) -> Configured:
    """Returns the configuration with these settings. Raises ConfigError, as `configure_like` does."""
    config = load_config(arguments).config
    steps = training_steps(config, vocab_size)
    if steps is None:
        raise ConfigError(f"{option}: the budget is a time; give train.steps, train.tokens or train.flops.")
    return Configured(tuple(arguments), config, vocab_size, steps)


def sizes_of(configured: Configured) -> Points:
    """Returns the sizes of a configuration, with unknown loss, speed and seed."""
    config = configured.config
    costs = estimate_cost(config, configured.vocab_size)
    ratio = expansion(flat := {"expert": config.expert, "k": config.mean_k, **flat_settings(config.to_dict())})
    values = (
        costs.num_params,
        costs.num_active_params,
        ratio,
        1 / ratio,
        granularity(flat),
        configured.tokens,
        configured.flops,
        np.nan,
        0,
        np.nan,
        -1,
    )
    return Points(*(np.array([float(value)]) for value in values))


def _overrides_of_largest(runs: Sequence[RunRow], names: Set[str]) -> tuple[list[str], int]:
    """Returns the settings of the run with the most FLOPs without those in `names`, and its vocabulary size."""
    measured = [run for run in runs if run.results.flops_per_token and run.results.tokens and run.results.params]
    if not measured:
        return [], DEFAULT_VOCAB_SIZE
    largest = max(measured, key=lambda run: run.results.train_flops or 0)
    has_budget = not names.isdisjoint(BUDGET_KEYS)
    settings = {**largest.settings, **largest.execution}
    overrides = overrides_of(settings, {*names, *(BUDGET_KEYS if has_budget else ())})
    if not has_budget and not any(overrides.get(name) for name in BUDGET_KEYS):
        overrides["train.tokens"] = largest.results.tokens
    arguments = [f"{key}={format_setting(value)}" for key, value in overrides.items()]
    return arguments, int(largest.results.vocab_size or DEFAULT_VOCAB_SIZE)
