"""sweep(words) -> pandas.DataFrame: what `moe sweep` does, for Python."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from moe_cli.forecast import memory_of
from moe_cli.store import outputs_folder
from moe_cli.sweeps.again import discard, outdated
from moe_cli.sweeps.driver import Listed, Rules, drive, to_do
from moe_cli.sweeps.local import LocalPool, default_workers
from moe_cli.sweeps.plan import plan_sweep

if TYPE_CHECKING:
    import pandas as pd


def sweep(  # noqa: PLR0913  (what the command has as options)
    words: Sequence[str],
    *,
    seeds: int | None = None,
    name: str | None = None,
    workers: int | None = None,
    outputs: Path | None = None,
    retry_failed: bool = False,
    force: bool = False,
    timeout: float | None = None,
    retries: int = 0,
    fail_fast: bool = False,
) -> "pd.DataFrame":
    """Carries out `moe sweep WORDS` and gives one row a run, as `load_runs` does.

    Args:
        force: run every point from the start; what there is goes to outputs/.trash.
        timeout, retries, fail_fast: see `Rules`.

    Raises:
        MoeError: a word is wrong, or no point can be run. A run that fails is a row with status `failed`.
    """
    from moe_cli.report.frame import load_runs

    folder = outputs_folder(outputs)
    plan = plan_sweep(words, seeds=seeds, name=name).pinned(folder)
    discard(outdated(plan.existing(folder), force=force, code=False), folder)
    runs = to_do(plan.open(folder), retry_failed)
    needs = [memory_of(point.config, folder) for point in plan.points]
    pool = LocalPool(folder, workers or default_workers(needs))
    drive(Listed(runs), pool, rules=Rules(timeout, retries, fail_fast))
    return load_runs(folder / plan.name)
