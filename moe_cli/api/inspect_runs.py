"""report_table() and explain() for Python, equivalent to `moe report` and `moe explain`.

A notebook shows their results.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from moe_cli.api.arguments import check_list
from moe_cli.report.baseline import find_baseline
from moe_cli.report.load import load_selection
from moe_cli.report.table import ReportQuery, ReportTable, build_table
from moe_cli.runs.folder import Run, outputs_folder
from moe_cli.runs.lookup import find_run

if TYPE_CHECKING:
    from moe_cli.cli.explain_output import ExplainResult


def report_table(
    sweeps: Sequence[str] = (),
    *,
    where: str | None = None,
    sort: str | None = None,
    columns: Sequence[str] = (),
    by_run: bool = False,
    baseline: str | None = None,
    outputs: Path | None = None,
) -> ReportTable:
    """Returns the table of `moe report`: configurations as means over seeds, compared with a baseline.

    Args:
        sweeps: names of sweeps or runs; none means all runs.
        where: a condition on settings and results, such as "expert >= 8 and k == 2".
        sort: the column to sort by; "-val_bpb" puts the largest value first.
        columns: the columns to show, as of `moe report --columns`.
        by_run: a row for each run instead of each configuration.
        baseline: settings of the baseline, such as "balance=none".
        outputs: the folder of runs; None means $MOE_OUTPUTS or ./outputs.

    Raises:
        RunNotFound: a name means no run.
        ConfigError: a condition or a column is wrong.
    """
    check_list("sweeps", sweeps)
    check_list("columns", columns)
    folder = outputs_folder(outputs)
    runs = load_selection(folder, sweeps)
    base, extra = find_baseline(baseline, folder, runs, whole=not sweeps)
    return build_table(runs, ReportQuery(where, sort, tuple(columns), by_run), extra, base)


def explain(
    run: Run | str,
    text: str,
    overrides: Sequence[str] = (),
    *,
    layer: int | None = None,
    checkpoint: str = "latest",
    outputs: Path | None = None,
) -> "ExplainResult":
    """Returns the experts of each token of a text, as `moe explain` shows them.

    Args:
        run: a run, its id or the beginning of one, or "latest".
        text: the text.
        overrides: settings of the evaluation, such as "eval.k=1".
        layer: one sparse layer, counted from 1; None means all.
        checkpoint: "latest", "best" or a step.
        outputs: the folder of runs; None means $MOE_OUTPUTS or ./outputs.

    Raises:
        RunNotFound: the name means no run.
        ConfigError: the model reads no text or is dense, the text is empty, or a setting is wrong.
    """
    from moe_cli.cli.explain import explain_run

    check_list("overrides", overrides)
    folder = outputs_folder(outputs)
    found = run if isinstance(run, Run) else find_run(folder, run)
    return explain_run(found, folder, text, list(overrides), layer, checkpoint)
