"""moe report --recommend: what to use, in a few lines for a memo, or as JSON."""

import textwrap
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from moe_cli.cli.options import print_json
from moe_cli.cli.terminal import echo
from moe_cli.errors import ConfigError

if TYPE_CHECKING:
    from moe_cli.report.recommend.recommendation import Recommendation
    from moe_cli.report.run_row import RunRow, Settings

Recommend = Annotated[
    bool, typer.Option("--recommend", help="What to use, how sure that is, its cost, what to run next.")
]
Across = Annotated[
    str | None,
    typer.Option(
        metavar="A,B",
        help="With --recommend: rank runs that differ in data, tokenizer, validation, eval_context, budget or code.",
    ),
]


def check_options(recommend: bool, form: str, others: Mapping[str, object]) -> None:
    """Raises ConfigError: an option that has no effect here."""
    if not recommend:
        raise ConfigError("--across is for --recommend: moe report --recommend --across code")
    if form not in ("table", "json"):
        raise ConfigError(f"--recommend prints text or, with --format json, JSON; not {form}.")
    check_alone("--recommend", others)


def check_alone(option: str, others: Mapping[str, object]) -> None:
    """Raises ConfigError: another option that has no effect with this one."""
    for name, value in others.items():
        if value:
            raise ConfigError(f"{name} has no effect with {option}: leave one of them out.")


def print_recommendation(
    runs: "Sequence[RunRow]",
    condition: str | None,
    across: str | None,
    baselines: "Callable[[Sequence[RunRow], Collection[str]], tuple[Settings | None, list[RunRow]]]",
    as_json: bool,
    width: int,
) -> None:
    """Prints the recommendation as JSON, or as lines, and remembers the look at it.

    Args:
        baselines: gives, for the chosen runs and all that were selected, the baseline and runs elsewhere that may serve as it.

    Raises:
        MoeError: no run is complete.
    """
    from moe_cli.report.recommend.looks import remember
    from moe_cli.report.recommend.recommendation import make_recommendation
    from moe_cli.report.table import select_runs

    names = tuple(name.strip() for name in (across or "").split(",") if name.strip())
    chosen = select_runs(runs, condition)
    baseline, extra = baselines(chosen, [run.path for run in runs])
    found = make_recommendation(chosen, names, extra, baseline)
    if as_json:
        print_json(found.to_dict())
    else:
        _print_memo(found, width)
    remember(found.look)


def _print_memo(found: "Recommendation", width: int) -> None:
    """The lines, wrapped; a command is a line of its own that can be pasted."""
    from moe_cli.report.recommend.text import format_recommendation

    for number, line in enumerate(format_recommendation(found)):
        indent = "  " if number else ""
        if line.startswith("moe "):
            echo(indent + line)
            continue
        wrapped = textwrap.wrap(line, width, initial_indent=indent, subsequent_indent="  ", break_on_hyphens=False,
                                break_long_words=False)  # fmt: skip
        echo("\n".join(wrapped))
