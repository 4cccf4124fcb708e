"""Plans a decision: its candidates, composed and checked before the first run, and the configuration of each run."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from moe_cli.config.bounds import SEEDS
from moe_cli.config.build import build, check_choice, did_you_mean
from moe_cli.config.compose import Composer
from moe_cli.config.overrides import parse_overrides
from moe_cli.config.ranges import check_whole, format_assignment, format_setting
from moe_cli.config.schema import RunConfig
from moe_cli.config.settings import replace_group, replace_unchecked
from moe_cli.config.sweep_file import SPACE, SweepFile, check_multiples, discrete
from moe_cli.decisions.terms import Rules, RunRequest
from moe_cli.errors import BadValue, ConfigError
from moe_cli.execution.upcycling import resolve_upcycle_source
from moe_cli.runs.lookup import sweep_folder
from moe_cli.sweeps.plan import (
    SkippedPoint,
    check_folder,
    find_configurations,
    find_sweep_file,
    is_named,
    parse_conditions,
)

DEFAULT_SPACE = "experts"
DENSE_NAME = "dense"
TOKENS, TIME, FLOPS = "tokens", "time", "flops"
# What every candidate gets the same amount of, and the budgets of runs that say so.
BUDGETS_OF = {TOKENS: ("steps", "tokens"), TIME: ("minutes",), FLOPS: ("flops",)}
# The learning rates of the optimizers, which are multiplied together.
LEARNING_RATES = ("lr", "adam_lr", "router_lr")
SIGNIFICANT_DIGITS = 4
MAX_CANDIDATES = 200


@dataclass(frozen=True)
class DecisionPlan:
    """A planned decision.

    Attributes:
        name: the folder under outputs/.
        space: the name of the file of conf/decide.
        question: its first line.
        configs: the configuration of each candidate by its name, with the whole budget and the first seed. The dense
            model is the first.
        by: what all candidates get the same amount of: tokens, time or flops.
        given_budget: the training budget as it was given, by its setting; with `by` it may become another one.
        left_out: impossible points.
        overrides: the arguments of the command: settings, after the name of the space if it has one.
    """

    name: str
    space: str
    question: str
    configs: Mapping[str, RunConfig]
    rules: Rules
    by: str
    given_budget: tuple[str, float]
    left_out: tuple[SkippedPoint, ...] = ()
    notes: tuple[str, ...] = ()
    conf_notes: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    where: tuple[str, ...] = ()

    @property
    def dense(self) -> RunConfig:
        return self.configs[DENSE_NAME]

    def with_upcycle_source(self, outputs: Path) -> "DecisionPlan":
        """Returns the plan with the full name of the run that train.upcycle_from denotes. Raises MoeError."""
        return replace(
            self, configs={name: resolve_upcycle_source(config, outputs) for name, config in self.configs.items()}
        )

    def with_budget(self, budget: str, amount: float) -> "DecisionPlan":
        """Returns the plan with this training budget of every candidate, such as `flops` instead of `steps`."""
        changes: dict[str, Any] = {name: None for names in BUDGETS_OF.values() for name in names} | {budget: amount}
        return replace(
            self, configs={name: replace_group(config, "train", **changes) for name, config in self.configs.items()}
        )

    def config(self, request: RunRequest) -> RunConfig:
        """Returns the configuration of a run: that of its candidate with its seed, budget and learning rate.

        The best learning rate falls with the length of the training: as 1 / sqrt(T) in the convex theory that predicts
        learning-rate schedules well (arXiv:2501.18965), as T^-0.32 where it was measured with AdamW (arXiv:2409.19913).
        With equal rates, a short run would make a rate look best that is too high for the full budget.
        """
        config = replace_unchecked(self.configs[request.candidate], seed=request.seed)
        if request.fraction != 1:
            config = _with_part(config, request.fraction)
        multiplier = request.lr_multiplier * request.fraction**-self.rules.lr_horizon
        if multiplier != 1:
            rates = {
                name: float(f"{getattr(config.optim, name) * multiplier:.{SIGNIFICANT_DIGITS}g}")
                for name in LEARNING_RATES
                if getattr(config.optim, name, None) is not None
            }
            config = replace_group(config, "optim", **rates)
        return config

    def label(self, request: RunRequest) -> str:
        """Returns the label of a run: expert=8 k=2 seed=0, 1/4 budget, lr x2."""
        parts = [f"{request.candidate} seed={request.seed}"]
        parts += [f"{fraction_text(request.fraction)} budget"] if request.fraction != 1 else []
        parts += [f"lr x{request.lr_multiplier:g}"] if request.lr_multiplier != 1 else []
        return ", ".join(parts)


def _with_part(config: RunConfig, fraction: float) -> RunConfig:
    """Returns a run with a part of its budget.

    Only the final loss of such a run counts. Its evaluations during training, ten unless the user says otherwise, would
    take as long as the training itself, so that there is one, half-way.
    """
    budget, amount = config.train.budget
    changes: dict[str, Any] = {budget: part_of(budget, amount, fraction)}
    if budget in BUDGETS_OF[TOKENS] and config.train.eval_every is None:
        steps = changes[budget] if budget == "steps" else changes[budget] / config.tokens_per_step
        changes["eval_every"] = max(1, math.ceil(steps / 2))
    return replace_group(config, "train", **changes)


def part_of(budget: str, amount: float, fraction: float) -> float:
    """Returns a fraction of a budget; steps and tokens are whole and at least 1."""
    part = amount * fraction
    return max(1, round(part)) if budget in BUDGETS_OF[TOKENS] else float(f"{part:.{SIGNIFICANT_DIGITS}g}")


def fraction_text(fraction: float) -> str:
    """Returns 1/4 for 0.25, 30 % for 0.3, and 1.5x for 1.5."""
    if fraction > 1:
        return f"{fraction:g}x"
    inverse = 1 / fraction
    return f"1/{inverse:.0f}" if abs(inverse - round(inverse)) < 1e-6 else f"{100 * fraction:.0f} %"


def plan_decision(
    overrides: Sequence[str],
    *,
    within: float | None = None,
    by: str | None = None,
    name: str | None = None,
    where: Sequence[str] = (),
    baseline_budgets: Sequence[float | str] | None = None,
    config_dir: Path | None = None,
) -> DecisionPlan:
    """Returns the plan of `moe decide WORDS`. The first word may name a file of conf/decide; the others are settings.

    A setting with several values replaces that of the space, or adds a dimension to it. `seed=N` is the first seed.

    Args:
        within: the margin of equality; None means that of the file.
        by: tokens, time or flops; None means what the training budget is given in.
        name: the folder under outputs/; None means decide-SPACE.
        where: conditions that every candidate must fulfil, such as "k <= expert".
        baseline_budgets: multiples of the budget that the dense model is trained at too; None means those of the file.

    Raises:
        ConfigError: a word or a rule is wrong, or there is no candidate next to the dense model.
    """
    composer = Composer(config_dir)
    named = is_named(overrides)
    axes = {axis.key: axis for axis in parse_overrides(overrides[1:] if named else overrides)}
    space = find_sweep_file(composer, overrides if named else [DEFAULT_SPACE], axes.pop("preset", None), SPACE)
    axes = {key: discrete(composer, axis) for key, axis in axes.items()}
    seed = axes.pop("seed", None)
    if seed is not None and len(seed.values) > 1:
        raise ConfigError(
            f"'{seed}' names several seeds, and a decision counts them up from one. Give the first: seed=0"
        )
    first_seed = 0 if seed is None else build(RunConfig, {"seed": seed.values[0]}).seed
    rules = parse_rules(space, first_seed, within)
    if baseline_budgets is not None:
        rules = replace(rules, baseline_budgets=check_multiples("--baseline-budgets", baseline_budgets))
    found = find_configurations(composer, space, axes.values(), parse_conditions(where), [first_seed])
    if found.no_baseline:
        raise ConfigError(f"no dense model to compare with: {found.no_baseline}")
    dense = [label for config, label in found.configs.items() if config.dense]
    if len(dense) > 1:
        raise ConfigError(
            f"a decision compares with one dense model, and these settings make {len(dense)}: {'; '.join(dense[:4])}."
            "\nDecide for one of them at a time."
        )
    configs = {DENSE_NAME if config.dense else label: config for config, label in found.configs.items()}
    configs = {DENSE_NAME: configs.pop(DENSE_NAME), **configs}
    if len(configs) < 2:
        raise ConfigError("only the dense model is left: nothing can be decided. Give experts, such as expert=8,16")
    if len(configs) > MAX_CANDIDATES:
        raise ConfigError(
            f"{len(configs)} candidates are too many for one decision: at most {MAX_CANDIDATES}. Give fewer values."
        )
    return DecisionPlan(
        check_folder(f"decide-{sweep_folder(space.name)}" if name is None else name),
        space.name,
        space.question,
        configs,
        rules,
        _check_by(by, configs[DENSE_NAME]),
        configs[DENSE_NAME].train.budget,
        tuple(found.left_out.values()),
        tuple(found.notes),
        composer.notes,
        tuple(overrides),
        tuple(where),
    )


def _check_by(by: str | None, dense: RunConfig) -> str:
    """Returns what is held equal. Raises ConfigError where the training budget is of another kind."""
    budget, amount = dense.train.budget
    kind = next((kind for kind, budgets in BUDGETS_OF.items() if budget in budgets), None)
    if kind is None:
        raise ConfigError(
            f"train.{budget}={format_setting(amount)} is a budget that no decision holds equal. Use train.flops="
            f"{format_setting(amount)}, which counts the optimizer too, or train.steps=600"
        )
    if by is None:
        return kind
    check_choice("--by", by, list(BUDGETS_OF))
    if kind not in (by, TOKENS):
        raise ConfigError(
            f"--by {by}: the training budget is given in {kind}, train.{budget}={format_setting(amount)}. "
            f"Leave out --by, or give the budget of the dense model: train.steps=600"
        )
    return by


def parse_rules(space: SweepFile, first_seed: int, within: float | None = None) -> Rules:
    """Returns the rules of a space. Raises ConfigError for one that is missing, unknown or out of its range."""
    values = dict(space.rules)
    if within is not None:
        values["within"] = _number("--within", within, SHARES["within"])
    known = [name for name in Rules.__dataclass_fields__ if name != "first_seed"]
    for name in values:
        if name not in known:
            raise ConfigError(
                f"{space.name}: no rule '{name}'.{did_you_mean(name, known)} There are: {', '.join(known)}."
            )
    if missing := [name for name in known if name not in values]:
        raise ConfigError(
            f"{space.name}: the rule {missing[0]} is missing. For the usual rules, write: defaults: [_rules, _self_]"
        )
    return make_rules(values, first_seed)


def make_rules(values: Mapping[str, Any], first_seed: int) -> Rules:
    """Returns the rules with these values, as files hold them. Raises ConfigError for one out of its range."""
    names = [name for name in Rules.__dataclass_fields__ if name != "first_seed"]
    return Rules(**{name: _rule(name, values[name]) for name in names}, first_seed=first_seed)


# Rules that are shares, with the largest value, and those that are whole numbers, with the smallest.
SHARES = {"within": 1.0, "alpha": 0.5, "screening_fraction": 1.0, "safety": 1.0, "lr_horizon": 1.0}
MAY_BE_ZERO = ("safety", "lr_horizon")
WHOLE = {"screening_seeds": 2, "finalists": 1, "lr_extensions": 0, "lr_seeds": 1, "choice_seeds": 1, "contenders": 1}


def _rule(name: str, value: Any) -> Any:
    key = f"rules.{name}"
    if name in SHARES:
        return _number(key, value, SHARES[name], may_be_zero=name in MAY_BE_ZERO)
    if name in WHOLE:
        return check_whole(key, value, WHOLE[name], SEEDS)
    if name == "baseline_budgets":
        return check_multiples(key, value)
    if not isinstance(value, list) or not value:
        raise ConfigError(f"{key} must be a list of numbers, not: {format_setting(value)}")
    if name == "looks":
        looks = tuple(check_whole(key, look, 2, SEEDS) for look in value)
        if list(looks) != sorted(set(looks)):
            raise ConfigError(f"{key} must rise: {format_setting(value)}")
        return looks
    multipliers = tuple(_number(key, multiplier, 1e6) for multiplier in value)
    if list(multipliers) != sorted(set(multipliers)) or 1.0 not in multipliers:
        raise ConfigError(f"{key} must rise and hold 1, the learning rate of the settings: {format_setting(value)}")
    return multipliers


def _number(key: str, value: Any, most: float, may_be_zero: bool = False) -> float:
    """Returns the value. Raises BadValue unless it is a number above 0, or 0 where it may be, and at most `most`."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not (0 < value <= most or (may_be_zero and value == 0)):
        least = "of at least 0" if may_be_zero else "above 0"
        raise BadValue(f"{format_assignment(key, value)} is not a number {least} and at most {most:g}.")
    return float(value)
