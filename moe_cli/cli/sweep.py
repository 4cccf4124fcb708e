"""moe sweep."""

from functools import partial
from typing import Annotated, Any

import typer

from moe_cli.cli.options import (
    CONFIGURATIONS,
    EXECUTION,
    EXISTING_RUNS,
    FOLDERS,
    SEARCH,
    STOPPED,
    BaselineBudgets,
    ConfigDir,
    ExecutorName,
    ForceMemory,
    Jobs,
    Outputs,
    PluginFiles,
    RetryFailed,
    Seeds,
    WherePoints,
    interruptible,
    numbers,
    option,
)
from moe_cli.config.bounds import RETRIES

SweepOverrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="NAME|SETTING=VALUE,VALUE", help="A sweep of conf/sweep, or settings with several values."),
]
Name = Annotated[str | None, option(FOLDERS, help="Folder under outputs/.  [default: NAME, 'sweep' or 'search']")]
Baseline = Annotated[
    str | None,
    option(CONFIGURATIONS, metavar="SETTINGS", help="Baseline of the report, such as balance=none."),
]
Tune = Annotated[
    str | None,
    option(
        CONFIGURATIONS,
        metavar="SETTING",
        help="Tune this setting for each configuration first, with equal trials: optim.lr.",
    ),
]
Source = Annotated[
    str | None,
    option(
        CONFIGURATIONS,
        "--from",
        metavar="RUN|EXPERIMENT",
        help="With the name 'ablate': this configuration, and the same without each of its settings.",
    ),
]
Force = Annotated[
    bool, option(EXISTING_RUNS, "--force", help="Start every run again; the old folders go to the trash.")
]
RerunStale = Annotated[bool, option(EXISTING_RUNS, "--rerun-stale", help="Start runs of another code version again.")]
Timeout = Annotated[str | None, option(EXECUTION, metavar="DURATION", help="Stop a run after this long: 30s, 10m, 2h.")]
Retries = Annotated[int, option(EXECUTION, min=0, max=RETRIES, help="Retry a failed run up to N times.")]
FailFast = Annotated[bool, option(EXECUTION, "--fail-fast", help="Stop at the first failure.")]
Sampler = Annotated[
    str | None,
    option(SEARCH, metavar="tpe|random", help="Draw settings instead of running every combination. Needs Optuna."),
]
Trials = Annotated[int | None, option(SEARCH, metavar="N", help="Number of configurations to try.  [default: 20]")]
Objective = Annotated[
    str | None, option(SEARCH, metavar="RESULT[,RESULT]", help="Metrics to optimise.  [default: val_bpb]")
]
Prune = Annotated[
    str | None,
    option(SEARCH, metavar="asha|hyperband|median", help="Stop runs that are behind the others."),
]
SearchSeed = Annotated[int | None, option(SEARCH, metavar="N", help="Seed of the sampler.  [default: 0]")]


def sweep(  # noqa: PLR0913  (an argument for each option)
    overrides: SweepOverrides = None,
    seeds: Seeds = None,
    jobs: Jobs = None,
    where: WherePoints = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print every point with its cost and stop.")] = False,
    retry_failed: RetryFailed = False,
    force: Force = False,
    rerun_stale: RerunStale = False,
    force_memory: ForceMemory = False,
    timeout: Timeout = None,
    retries: Retries = 0,
    fail_fast: FailFast = False,
    sampler: Sampler = None,
    trials: Trials = None,
    objective: Objective = None,
    prune: Prune = None,
    search_seed: SearchSeed = None,
    executor: ExecutorName = None,
    name: Name = None,
    baseline: Baseline = None,
    baseline_budgets: BaselineBudgets = None,
    tune: Tune = None,
    source: Source = None,
    outputs: Outputs = None,
    config_dir: ConfigDir = None,
    plugin: PluginFiles = None,
) -> None:
    """Train every combination of settings, or search them.

    The same command continues a sweep that was stopped. Exit code 3: not every run is complete.

    Examples:
        moe sweep expert=1,8 k=1,2 --seeds 3
        moe sweep sparsity --dry-run
    """
    from moe_cli.cli.console import CommandConsole
    from moe_cli.cli.foreign_source import with_imported_source
    from moe_cli.cli.sweep_preview import print_tuning_price
    from moe_cli.cli.views import SearchView, SweepView
    from moe_cli.config.executors import split_executor
    from moe_cli.runs.folder import outputs_folder
    from moe_cli.sweeps.run_sweep import Execution, prepare
    from moe_cli.sweeps.scheduler import FailurePolicy
    from moe_cli.sweeps.search_space import SearchOptions, SearchPlan, plan_sweep_or_search
    from moe_cli.sweeps.tuning import previews, run_stages

    folder, console = outputs_folder(outputs), CommandConsole(unread=130)
    executor_settings, overrides = split_executor(overrides or [], executor, config_dir)
    rules = FailurePolicy(_seconds(timeout), retries, fail_fast)
    execution = Execution(executor_settings, jobs, rules, retry_failed, force, rerun_stale, force_memory)
    arguments: Any = {
        "seeds": seeds,
        "name": name,
        "where": where or (),
        "config_dir": config_dir,
        "baseline": baseline,
        "baseline_budgets": None if baseline_budgets is None else numbers(baseline_budgets),
        "tune": tune,
        "source": source,
    }
    with interruptible(partial(console.print, STOPPED, soft_wrap=True)):
        overrides = with_imported_source(overrides, folder, may_import=not dry_run)
        options = SearchOptions(sampler, trials, objective, prune, search_seed)
        plan = plan_sweep_or_search(overrides, options, outputs=folder, **arguments)
        view = SearchView(console) if isinstance(plan, SearchPlan) else SweepView(console)
        if dry_run:
            prepared = [prepare(stage, folder, execution, build=False) for stage in previews(plan, folder)]
            for stage in prepared:
                view.preview(stage)
            return print_tuning_price(console, prepared)
        run_stages(plan, folder, execution, view)
    if not view.complete:
        raise typer.Exit(3)


def _seconds(text: str | None) -> float | None:
    from moe_cli.errors import ConfigError
    from moe_cli.formatting import parse_duration

    seconds = parse_duration(text) if text is not None else None
    if text is not None and seconds is None:
        raise ConfigError(f"--timeout {text} is not a duration. Give a number with a unit: 30s, 10m, 2h or 1h30m.")
    return seconds
