"""moe scaling."""

from pathlib import Path
from typing import Annotated

import typer

import moe_cli
from moe_cli.cli.options import AsJson, Outputs, Sweeps, Where, print_json, print_written
from moe_cli.errors import ConfigError

Law = Annotated[str, typer.Option(metavar="LAW", help="clark, krajewski, abnar, ludziejewski, or auto: the best fit.")]
Predict = Annotated[
    list[str] | None,
    typer.Option(metavar="SETTINGS", help="Predict the loss at settings such as 'expert=64 k=2'. Repeatable."),
]
Validate = Annotated[bool, typer.Option("--validate", help="Predict the largest configurations from the others.")]
Page = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="FILE.html", help="Write an HTML page with the report and the law."),
]
PlaceBet = Annotated[
    list[str] | None,
    typer.Option(
        "--bet",
        metavar="SETTINGS",
        help="Write a prediction of settings with more compute, 'k=2 train.tokens=4e6', before their run. Repeatable.",
    ),
]
ShowBets = Annotated[
    bool, typer.Option("--bets", help="Score the bets of these sweeps, or of all, against the runs made since.")
]


def scaling(  # noqa: PLR0913  (an argument for each option)
    sweeps: Sweeps = None,
    law: Law = "auto",
    predict: Predict = None,
    validate: Validate = False,
    bet: PlaceBet = None,
    bets: ShowBets = False,
    where: Where = None,
    as_json: AsJson = False,
    page: Page = None,
    outputs: Outputs = None,
) -> None:
    """Fit a scaling law to runs of several sizes.

    Examples:
        moe scaling isoflop
        moe scaling isoflop --predict 'expert=64 k=2'
        moe scaling scaling --bet 'expert=16 k=2 train.tokens=4e6'
    """
    if bet is not None or bets:
        _refuse_others(bool(bet is not None and bets), law, predict, validate, where, page)
        if bet is not None:
            _place_bets(sweeps or [], bet, as_json, outputs)
        else:
            _score_bets(sweeps or [], as_json, outputs)
        return
    from moe_cli.cli.console import print_fitted
    from moe_cli.report.load import load_selection, title_of
    from moe_cli.report.scaling.analysis import analyse, analysis_record
    from moe_cli.report.scaling.settings import points_of
    from moe_cli.report.scaling.text import analysis_lines
    from moe_cli.report.table import select_runs
    from moe_cli.runs.folder import outputs_folder

    if page and (as_json or page.suffix.lower() != ".html"):
        raise ConfigError("--output writes a page: give the name of a .html file, without --json.")
    runs = load_selection(outputs_folder(outputs), sweeps or [])
    selected, title = select_runs(runs, where), title_of(runs, sweeps or [])
    found = analyse(
        selected, law, {" ".join(text.split()): points_of(text, selected) for text in predict or ()}, validate
    )
    if page:
        from moe_cli.report.export import check_files, export
        from moe_cli.report.html.page_data import Source
        from moe_cli.report.table import ReportQuery, build_table

        check_files([page])
        source = Source(selected, (), title, f"moe {moe_cli.__version__}")
        export([page], build_table(selected, ReportQuery()), source, found)
        print_written([page])
    elif as_json:
        print_json(analysis_record(found))
    else:
        print_fitted(lambda width: analysis_lines(found, title, width))


def _refuse_others(
    both: bool, law: str, predict: list[str] | None, validate: bool, where: str | None, page: Path | None
) -> None:
    """Raises ConfigError for options that have no effect on bets."""
    others = {
        "--bets": both,
        "--law": law != "auto",
        "--predict": bool(predict),
        "--validate": validate,
        "--where": where is not None,
        "--output": page is not None,
    }
    if found := [name for name, is_used in others.items() if is_used]:
        raise ConfigError(f"{' and '.join(found)} cannot be combined with {'--bet' if both else '--bet or --bets'}.")


def _place_bets(sweeps: list[str], texts: list[str], as_json: bool, outputs: Path | None) -> None:
    from moe_cli.cli.console import print_fitted
    from moe_cli.report.scaling.bet_forecast import make_bets
    from moe_cli.report.scaling.bet_scores import bets_record, score, score_bets
    from moe_cli.report.scaling.bet_text import placed_lines
    from moe_cli.report.scaling.bets import write_bet
    from moe_cli.runs.folder import outputs_folder

    if len(sweeps) != 1:
        raise ConfigError("--bet rests on the runs of one sweep: moe scaling SWEEP --bet 'expert=16 train.tokens=4e6'")
    earlier = score_bets(outputs_folder(outputs))
    folder, placed = make_bets(outputs_folder(outputs), sweeps[0], texts, moe_cli.__version__)
    files = [write_bet(folder, bet) for bet in placed]
    if as_json:
        print_json(bets_record([score(bet, {}) for bet in placed]))
        return
    print_fitted(lambda width: placed_lines(placed, files, earlier, width))


def _score_bets(sweeps: list[str], as_json: bool, outputs: Path | None) -> None:
    from moe_cli.cli.console import print_fitted
    from moe_cli.report.scaling.bet_scores import bets_record, score_bets
    from moe_cli.report.scaling.bet_text import score_lines
    from moe_cli.runs.folder import outputs_folder

    outcomes = score_bets(outputs_folder(outputs), sweeps)
    if as_json:
        print_json(bets_record(outcomes))
    else:
        print_fitted(lambda width: score_lines(outcomes, width))
