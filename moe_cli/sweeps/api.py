"""sweep(words) -> pandas.DataFrame: what `moe sweep` does, for Python."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from moe_cli.store import outputs_folder
from moe_cli.sweeps.driver import Listed, drive, to_do
from moe_cli.sweeps.local import LocalPool, default_workers
from moe_cli.sweeps.plan import plan_sweep

if TYPE_CHECKING:
    import pandas as pd


def sweep(
    words: Sequence[str],
    *,
    seeds: int | None = None,
    name: str | None = None,
    workers: int | None = None,
    outputs: Path | None = None,
) -> "pd.DataFrame":
    """Carries out `moe sweep WORDS` and gives one row a run, as `load_runs` does.

    Raises:
        MoeError: a word is wrong, or no point can be run. A run that fails is a row with status `failed`.
    """
    from moe_cli.report.frame import load_runs

    folder = outputs_folder(outputs)
    plan = plan_sweep(words, seeds=seeds, name=name).pinned(folder)
    runs = to_do(plan.open(folder), retry_failed=False)
    drive(Listed(runs), LocalPool(folder, workers or default_workers()))
    return load_runs(folder / plan.name)
