"""sweep() for Python, equivalent to `moe sweep`. Notes go to the logger `moe_cli` at level WARNING."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from moe_cli.api.arguments import LOGGER, check_list
from moe_cli.cli import search as search_lines
from moe_cli.cli.console import CommandConsole
from moe_cli.cli.sweep_preview import data_notes
from moe_cli.cli.views import SearchView, SweepView
from moe_cli.config.bounds import JOBS, RETRIES
from moe_cli.config.executors import split_executor
from moe_cli.config.ranges import check_above, check_between
from moe_cli.exchange.upcycle_source import import_upcycle_source
from moe_cli.runs.folder import outputs_folder
from moe_cli.sweeps.run_sweep import Execution, PreparedSearch, PreparedSweep, View
from moe_cli.sweeps.scheduler import FailurePolicy
from moe_cli.sweeps.search_space import SearchOptions, SearchPlan, plan_sweep_or_search
from moe_cli.sweeps.tuning import run_stages

if TYPE_CHECKING:
    import pandas as pd


def sweep(  # noqa: PLR0913  (an argument for each option)
    overrides: Sequence[str],
    *,
    seeds: int | None = None,
    where: Sequence[str] = (),
    name: str | None = None,
    baseline: str | None = None,
    baseline_budgets: Sequence[float] | None = None,
    tune: str | None = None,
    source: str | None = None,
    jobs: int | None = None,
    executor: str | None = None,
    outputs: Path | None = None,
    retry_failed: bool = False,
    force: bool = False,
    rerun_stale: bool = False,
    force_memory: bool = False,
    timeout: float | None = None,
    retries: int = 0,
    fail_fast: bool = False,
    sampler: str | None = None,
    trials: int | None = None,
    objective: str | None = None,
    prune: str | None = None,
    search_seed: int | None = None,
    progress: bool = False,
) -> "pd.DataFrame":
    """Runs `moe sweep OVERRIDES` and returns one row per run, as `load_runs` does.

    Args:
        jobs: the number of parallel runs; None means as many as this machine or the cluster can hold.
        executor: "local", "ray" or "slurm"; None means the one of the word `executor=...`, else "local".
        where: conditions that every point must fulfil, such as "k <= expert".
        baseline: settings of the report's baseline, such as "balance=none".
        baseline_budgets: multiples of each budget that the baseline is trained at too, for the price tag.
        tune: "optim.lr" tunes the learning rate of each configuration first, with equal trials.
        source: for `["ablate"]`, the run or the experiment whose settings are left out one by one.
        force, rerun_stale: start all runs again, or those of another code version. The old folders go to the trash.
        force_memory, timeout, retries, fail_fast: see `Execution` and `FailurePolicy`.
        sampler: "tpe" or "random" for a search; the arguments after it are options of the search.
        progress: print the output of `moe sweep`.

    Raises:
        MoeError: a word is wrong, or no point can be run. A run that fails is a row with status `failed`.
    """
    from moe_cli.report.load import load_runs

    check_list("overrides", overrides)
    check_list("where", where)
    check_between("jobs", 1 if jobs is None else jobs, 1, JOBS)
    check_between("retries", retries, 0, RETRIES)
    check_above("timeout", timeout, 0)
    folder = outputs_folder(outputs)
    executor_settings, overrides = split_executor(overrides, executor)
    overrides = import_upcycle_source(overrides, folder)
    rules = FailurePolicy(timeout, retries, fail_fast)
    execution = Execution(executor_settings, jobs, rules, retry_failed, force, rerun_stale, force_memory)
    options = SearchOptions(sampler, trials, objective, prune, search_seed)
    plan = plan_sweep_or_search(
        overrides,
        options,
        baseline=baseline,
        baseline_budgets=baseline_budgets,
        tune=tune,
        source=source,
        outputs=folder,
        seeds=seeds,
        name=name,
        where=where,
    )
    shown: View = SearchView(CommandConsole()) if isinstance(plan, SearchPlan) else SweepView(CommandConsole())
    run_stages(plan, folder, execution, shown if progress else Notes())
    return load_runs(folder / plan.name)


class Notes(View):
    """Sends the notes of a sweep or a search to the logger, and shows nothing else."""

    def begin(self, prepared: PreparedSweep | PreparedSearch, feed: object, pool: object) -> None:
        if isinstance(prepared, PreparedSearch):
            notes = search_lines.notes(prepared.plan, prepared.preview)
        else:
            notes = [" ".join(line.split()) for _, line in data_notes(prepared)]
        for note in (*prepared.plan.conf_notes, *notes):
            LOGGER.warning(note)
