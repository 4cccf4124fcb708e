"""moe decide."""

from functools import partial
from typing import Annotated

import typer

from moe_cli.cli.options import (
    CONFIGURATIONS,
    FOLDERS,
    STOPPED,
    AsJson,
    BaselineBudgets,
    ConfigDir,
    ExecutorName,
    ForceMemory,
    Jobs,
    Outputs,
    PluginFiles,
    RetryFailed,
    WherePoints,
    interruptible,
    numbers,
    option,
    print_json,
)
from moe_cli.config.bounds import RUNS

BUDGET = "Budget"
Space = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="SPACE|SETTING=VALUE,VALUE", help="A space of conf/decide, 'experts' if none is named, and settings."
    ),
]
Minutes = Annotated[
    float | None, option(BUDGET, metavar="M", help="Decide within M minutes, all invocations together.")
]
Runs = Annotated[int | None, option(BUDGET, min=1, max=RUNS, metavar="N", help="Decide with at most N runs.")]
Within = Annotated[
    str | None,
    option(CONFIGURATIONS, metavar="SHARE", help="Configurations are equal within this share of the loss: 1%, 0.01."),
]
By = Annotated[
    str | None,
    option(
        CONFIGURATIONS,
        metavar="tokens|time|flops",
        help="Give every candidate equal tokens, time or FLOPs.  [default: as the training budget is given]",
    ),
]
Name = Annotated[str | None, option(FOLDERS, help="Folder under outputs/.  [default: decide-SPACE]")]


def decide(  # noqa: PLR0913  (an argument for each option)
    overrides: Space = None,
    minutes: Minutes = None,
    runs: Runs = None,
    within: Within = None,
    by: By = None,
    where: WherePoints = None,
    baseline_budgets: BaselineBudgets = None,
    jobs: Jobs = None,
    executor: ExecutorName = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the stages with their costs and stop.")] = False,
    retry_failed: RetryFailed = False,
    force_memory: ForceMemory = False,
    name: Name = None,
    outputs: Outputs = None,
    config_dir: ConfigDir = None,
    plugin: PluginFiles = None,
    as_json: AsJson = False,
) -> None:
    """Decide within a budget which configuration is best.

    The same command continues a decision that was stopped. Exit code 3: nothing could be confirmed.

    Examples:
        moe decide --minutes 45
        moe decide router --runs 60 --dry-run
    """
    from moe_cli.cli.console import CommandConsole
    from moe_cli.cli.decide_output import DecisionView
    from moe_cli.config.executors import split_executor
    from moe_cli.decisions.decision_file import make_limit_options
    from moe_cli.decisions.plan import plan_decision
    from moe_cli.decisions.run_decision import prepare_decision
    from moe_cli.errors import ConfigError
    from moe_cli.runs.folder import outputs_folder
    from moe_cli.sweeps.run_sweep import Execution, run_sweep

    if dry_run and as_json:
        raise ConfigError("--dry-run prints costs for people: leave out --json.")
    folder, console = outputs_folder(outputs), CommandConsole(unread=130, stderr=as_json)
    limits = make_limit_options(minutes, runs)
    executor_settings, overrides = split_executor(overrides or [], executor, config_dir)
    execution = Execution(executor_settings, jobs, retry_failed=retry_failed, force_memory=force_memory)
    margin = None if within is None else _share(within)
    with interruptible(partial(console.print, STOPPED, soft_wrap=True)):
        plan = plan_decision(
            overrides,
            within=margin,
            by=by,
            name=name,
            where=where or (),
            baseline_budgets=None if baseline_budgets is None else numbers(baseline_budgets),
            config_dir=config_dir,
        )
        view = DecisionView(console)
        prepared = prepare_decision(plan, limits, folder, execution, build=not dry_run)
        if dry_run:
            return view.preview(prepared)
        run_sweep(prepared, view)
    assert view.certificate is not None
    if as_json:
        print_json(view.certificate.to_dict())
    else:
        view.print_answer()
    if view.certificate.decision.winner is None:
        raise typer.Exit(3)


def _share(text: str) -> float:
    """Returns 0.01 for `1%`, `1 %` and `0.01`. Raises ConfigError for another text."""
    from moe_cli.errors import ConfigError

    number = text.strip()
    try:
        share = float(number.removesuffix("%")) / (100 if number.endswith("%") else 1)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise ConfigError(f"--within {text} is not a share of the loss. Give one such as 1% or 0.01")
    return share
