"""sweep(words) -> pandas.DataFrame: what `moe sweep` does, for Python."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from moe_cli.config.executors import Executor, split_executor
from moe_cli.errors import ConfigError
from moe_cli.forecast import make_plans
from moe_cli.marks import at_work
from moe_cli.store import outputs_folder
from moe_cli.sweeps.again import discard, outdated
from moe_cli.sweeps.driver import Listed, Rules, drive, to_do
from moe_cli.sweeps.plan import plan_sweep
from moe_cli.sweeps.pools import make_pool
from moe_cli.sweeps.space import SearchOptions, SearchPlan, check_no_baseline, plan_if_search

if TYPE_CHECKING:
    import pandas as pd


def sweep(  # noqa: PLR0913  (an argument for each option)
    words: Sequence[str],
    *,
    seeds: int | None = None,
    where: Sequence[str] = (),
    name: str | None = None,
    baseline: str | None = None,
    workers: int | None = None,
    outputs: Path | None = None,
    retry_failed: bool = False,
    force: bool = False,
    rerun_on_code: bool = False,
    timeout: float | None = None,
    retries: int = 0,
    fail_fast: bool = False,
    search: str | None = None,
    trials: int | None = None,
    objective: str | None = None,
    prune: str | None = None,
    search_seed: int | None = None,
) -> "pd.DataFrame":
    """Carries out `moe sweep WORDS` and gives one row a run, as `load_runs` does.

    Args:
        workers: runs at a time; None: what this machine bears, or the cluster that the word `executor=ray` names.
        force, rerun_on_code: run points again, all or those of other code; what there is goes to outputs/.trash.
        where, baseline: see `plan_sweep`; timeout, retries, fail_fast: see `Rules`.
        search: "tpe" or "random" searches the settings; the options after it are for that.

    Raises:
        MoeError: a word is wrong, or no point can be run. A run that fails is a row with status `failed`.
    """
    from moe_cli.report.frame import load_runs

    folder = outputs_folder(outputs)
    executor, words = split_executor(words)
    options, rules = SearchOptions(search, trials, objective, prune, search_seed), Rules(timeout, retries, fail_fast)
    if asked := plan_if_search(words, options, seeds=seeds, name=name, where=where):
        _check_search(force or rerun_on_code, baseline)
        _search(asked, folder, executor, workers, rules, retry_failed)
        return load_runs(folder / asked.name)
    plan = plan_sweep(words, seeds=seeds, name=name, where=where, baseline=baseline).pinned(folder)
    discard(outdated(plan.existing(folder), force=force, code=rerun_on_code), folder)
    runs = to_do(plan.open(folder), retry_failed)
    if runs:
        plans = make_plans([point.config for point in plan.points], folder, 1.0)
        with at_work(folder / plan.name):
            drive(Listed(runs), make_pool(executor, folder, workers, plans), rules=rules)
    return load_runs(folder / plan.name)


def _check_search(again: bool, baseline: str | None) -> None:
    """Raises ConfigError: an argument that is for sweeps alone."""
    if again:
        raise ConfigError("force and rerun_on_code are for sweeps; a search keeps what it has found: name another.")
    check_no_baseline(baseline)


def _search(
    plan: SearchPlan, folder: Path, executor: Executor, workers: int | None, rules: Rules, retry_failed: bool
) -> None:
    from moe_cli.sweeps.preview import preview
    from moe_cli.sweeps.search import SearchFeed, open_study

    ahead = preview(plan, folder)
    study = open_study(plan, folder, ahead.evaluations)
    pool = make_pool(executor, folder, workers, ahead.plans)
    with SearchFeed(plan, study, folder, lambda: pool.workers, retry_failed).at_work() as feed:
        drive(feed, pool, rules=rules)
