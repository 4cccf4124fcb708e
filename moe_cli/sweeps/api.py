"""sweep(words) -> pandas.DataFrame: what `moe sweep` does, for Python."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from moe_cli.store import outputs_folder
from moe_cli.sweeps.driver import Listed, drive, to_do
from moe_cli.sweeps.local import LocalPool, default_workers
from moe_cli.sweeps.plan import plan_sweep
from moe_cli.sweeps.space import SearchOptions, SearchPlan, plan_if_search

if TYPE_CHECKING:
    import pandas as pd


def sweep(  # noqa: PLR0913  (an argument for each option)
    words: Sequence[str],
    *,
    seeds: int | None = None,
    name: str | None = None,
    workers: int | None = None,
    outputs: Path | None = None,
    search: str | None = None,
    trials: int | None = None,
    objective: str | None = None,
    prune: str | None = None,
    search_seed: int | None = None,
) -> "pd.DataFrame":
    """Carries out `moe sweep WORDS` and gives one row a run, as `load_runs` does.

    Args:
        search: "tpe" or "random" searches the settings; the options after it are for that.

    Raises:
        MoeError: a word is wrong, or no point can be run. A run that fails is a row with status `failed`.
    """
    from moe_cli.report.frame import load_runs

    folder = outputs_folder(outputs)
    options = SearchOptions(search, trials, objective, prune, search_seed)
    if asked := plan_if_search(words, options, seeds=seeds, name=name):
        _search(asked, folder, workers or default_workers())
        return load_runs(folder / asked.name)
    plan = plan_sweep(words, seeds=seeds, name=name).pinned(folder)
    runs = to_do(plan.open(folder), retry_failed=False)
    drive(Listed(runs), LocalPool(folder, workers or default_workers()))
    return load_runs(folder / plan.name)


def _search(plan: SearchPlan, folder: Path, workers: int) -> None:
    from moe_cli.sweeps.preview import preview
    from moe_cli.sweeps.search import SearchFeed, open_study

    study = open_study(plan, folder, preview(plan, folder).evaluations)
    with SearchFeed(plan, study, folder, workers).at_work() as feed:
        drive(feed, LocalPool(folder, workers))
