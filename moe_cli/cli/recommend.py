"""moe report --recommend: what to use, in a few lines for a memo, or as JSON."""

import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from moe_cli.cli.options import print_json
from moe_cli.errors import ConfigError

if TYPE_CHECKING:
    import pandas as pd

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
    """Raises ConfigError: another option that has no effect beside this one."""
    for name, value in others.items():
        if value:
            raise ConfigError(f"{name} has no effect with {option}: leave one of them out.")


def print_recommendation(
    frame: "pd.DataFrame", elsewhere: "pd.DataFrame | None", across: str | None, as_json: bool, width: int
) -> None:
    """Raises MoeError: no run is complete."""
    from moe_cli.report.memo import memo
    from moe_cli.report.recommend import recommend

    names = tuple(name.strip() for name in (across or "").split(",") if name.strip())
    found = recommend(frame, names, elsewhere)
    if as_json:
        print_json(found.to_dict())
        return
    for number, line in enumerate(memo(found)):
        if "moe sweep " in line:  # a command is one line, to be copied
            typer.echo("  " + line)
            continue
        indent = "" if number == 0 else "  "
        typer.echo(
            "\n".join(
                textwrap.wrap(
                    line,
                    width,
                    initial_indent=indent,
                    subsequent_indent="  ",
                    break_on_hyphens=False,
                    break_long_words=False,
                )
            )
        )
