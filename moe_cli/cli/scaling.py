"""moe report --fit: a scaling law through the runs, and what it says of configurations that were not run."""

import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moe_cli.report.run_row import RunRow
    from moe_cli.report.scaling.points import Points
    from moe_cli.report.scaling.study import Study

FitOption = Annotated[
    str | None,
    typer.Option("--fit", metavar="LAW", help="Fit a scaling law: clark, krajewski, abnar, ludziejewski or auto."),
]
Predict = Annotated[
    list[str] | None,
    typer.Option("--predict", metavar="SETTINGS", help="With --fit: the loss at settings such as 'expert=64 k=2'."),
]
Validate = Annotated[
    bool, typer.Option("--validate", help="With --fit: predict the largest configurations from the others.")
]


def check_fit(law: str | None, predict: list[str] | None, validate: bool) -> None:
    """Raises ConfigError for what has no effect without --fit."""
    from moe_cli.errors import ConfigError

    if law is None and (predict or validate):
        raise ConfigError(f"{'--predict' if predict else '--validate'} is an answer of a fitted law: add --fit auto")


@dataclass(frozen=True)
class FitRequest:
    """What --fit asks: a law, settings to predict, whether to hold the largest out, and a condition on runs."""

    law: str
    predict: tuple[str, ...]
    validate: bool
    condition: str | None


def print_fit(runs: "Sequence[RunRow]", title: str, request: FitRequest, form: str) -> None:
    """The study of the runs as lines, or as JSON."""
    from moe_cli.cli.console import Terminal, text_width
    from moe_cli.cli.options import print_json
    from moe_cli.cli.text_table import print_lines
    from moe_cli.errors import ConfigError
    from moe_cli.report.scaling.lines import study_lines
    from moe_cli.report.scaling.study import study_record

    if form not in ("table", "json"):
        raise ConfigError(f"--fit prints a table or json, not {form}. Use --format json")
    result = make_study(runs, request)
    if form == "json":
        print_json(study_record(result))
        return
    console = Terminal(highlight=False, emoji=False, markup=False)
    print_lines(console, study_lines(result, title, text_width(console)))


def make_study(runs: "Sequence[RunRow]", request: FitRequest) -> "Study":
    """The fit with its answers. Raises ConfigError: the runs cannot support it, or a setting is wrong."""
    from moe_cli.report.scaling.study import study
    from moe_cli.report.table import select_runs

    chosen = select_runs(runs, request.condition)
    wanted = {" ".join(each.split()): make_point(chosen, each) for each in request.predict}
    return study(chosen, request.law, wanted, request.validate)


def make_point(runs: "Sequence[RunRow]", text: str) -> "Points":
    """The sizes of a configuration: the settings in `text` and, for the rest, those of the largest of the runs.

    Raises:
        ConfigError: a setting is wrong, or the budget is a time, of which nobody knows the tokens.
    """
    import numpy as np

    from moe_cli.config.compose import load_config
    from moe_cli.costs.model import cost, training_steps
    from moe_cli.errors import ConfigError
    from moe_cli.report.load import flatten
    from moe_cli.report.scaling.points import Points, expansion, granularity

    try:
        given = shlex.split(text)
    except ValueError:
        raise ConfigError(f"--predict {text}: a quote is not closed. Give settings such as 'expert=64 k=2'") from None
    if not given or any("=" not in word for word in given):
        raise ConfigError(f"--predict '{text}': give settings such as 'expert=64 k=2 train.tokens=1000000'")
    words, vocab_size = _like_largest(runs, {word.split("=")[0] for word in given})
    config = load_config([*words, *given]).config
    costs, steps = cost(config, vocab_size), training_steps(config, vocab_size)
    if steps is None:
        raise ConfigError(f"--predict '{text}': the budget is a time; give train.steps, train.tokens or train.flops.")
    run = {"expert": config.expert, "k": config.k, **flatten(config.to_dict())}
    tokens = float(steps * config.tokens_per_step)
    ratio = expansion(run)
    values = (costs.num_params, costs.num_active_params, ratio, 1 / ratio, granularity(run), tokens,
              tokens * costs.flops_per_token, np.nan, 0, np.nan, -1)  # fmt: skip
    return Points(*(np.array([value]) for value in values))


def _like_largest(runs: "Sequence[RunRow]", given: set[str]) -> tuple[list[str], int]:
    """The settings of the run with the most training FLOPs, as words, without those that are given; and its vocabulary."""
    from moe_cli.config.build import show
    from moe_cli.config.compose import load_config
    from moe_cli.config.schema import BUDGETS
    from moe_cli.costs.model import cost
    from moe_cli.report.baseline import overrides_of

    measured = [run for run in runs if run.results.flops_per_token and run.results.tokens and run.results.params]
    if not measured:
        return [], 256
    largest = max(measured, key=lambda run: (run.results.flops_per_token or 0) * (run.results.tokens or 0))
    budgets = {f"train.{name}" for name in BUDGETS}
    words = overrides_of(largest, given | (budgets if given & budgets else set()))
    if not given & budgets and not any(words.get(name) for name in budgets):
        words["train.tokens"] = largest.results.tokens
    # Parameters are linear in the vocabulary, which a run does not record: it follows from their number.
    same = load_config([f"{key}={show(value)}" for key, value in overrides_of(largest, ()).items()]).config
    few, more = (cost(same, size).num_params for size in (256, 257))
    vocab_size = 256 + round(((largest.results.params or 0) - few) / (more - few)) if more > few else 256
    return [f"{key}={show(value)}" for key, value in words.items()], max(1, vocab_size)
