"""moe recommend."""

from pathlib import Path
from typing import Annotated

import typer

from moe_cli.cli.options import AsJson, Baseline, LossLaw, Machine, Outputs, Sweeps, Where, print_json

AllowDifferent = Annotated[
    str | None,
    typer.Option(
        metavar="A,B",
        help="Also rank runs that differ in A, B (any of data, tokenizer, validation, eval_context, budget, code).",
    ),
]


def recommend(
    sweeps: Sweeps = None,
    where: Where = None,
    baseline: Baseline = None,
    allow_different: AllowDifferent = None,
    loss_law: LossLaw = None,
    machine: Machine = None,
    as_json: AsJson = False,
    outputs: Outputs = None,
) -> None:
    """Choose a configuration, and say what to run next.

    The recommendation of a decision is its answer (moe decide).

    Examples:
        moe recommend sparsity
        moe recommend sparsity --baseline balance=none
    """
    from rich.text import Text

    from moe_cli.cli.console import CommandConsole, print_fitted
    from moe_cli.decisions.terms import DECISION_FILE
    from moe_cli.report.baseline import find_baseline
    from moe_cli.report.load import load_selection
    from moe_cli.report.looks import remember
    from moe_cli.report.price import read_pricing
    from moe_cli.report.recommend.recommendation import make_recommendation
    from moe_cli.report.render.recommendation import recommendation_text
    from moe_cli.report.table import select_runs
    from moe_cli.runs.folder import outputs_folder

    pricing = read_pricing(loss_law, machine or [])
    folder = outputs_folder(outputs)
    runs = load_selection(folder, sweeps or [])
    folders = {Path(run.path).parent for run in runs}
    if where is baseline is allow_different is None and any((path / DECISION_FILE).is_file() for path in folders):
        from moe_cli.cli.decide_output import print_certificate
        from moe_cli.decisions.page import find_certificate  # knows Hydra, which takes as long as a recommendation

        if certificate := find_certificate(folders):
            return print_json(certificate.to_dict()) if as_json else print_certificate(certificate, CommandConsole())
    selected = select_runs(runs, where)
    whole = not sweeps and where is None
    base, extra = find_baseline(baseline, folder, selected, [run.path for run in runs], whole=whole)
    aspects = tuple(name.strip() for name in (allow_different or "").split(",") if name.strip())
    found = make_recommendation(selected, aspects, extra, base, pricing)
    if as_json:
        print_json(found.to_dict())
    else:
        print_fitted(lambda width: [Text(line) for line in recommendation_text(found, width).split("\n")])
    remember(found.look)
