"""sweep(words) -> pandas.DataFrame: what `moe sweep` does, for Python."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from moe_cli.config.executors import is_executor_word, load_executor
from moe_cli.store import outputs_folder
from moe_cli.sweeps.driver import Listed, drive, to_do
from moe_cli.sweeps.plan import plan_sweep
from moe_cli.sweeps.pools import make_pool

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

    Args:
        workers: runs at a time; None: what this machine bears, or the cluster that the word `executor=ray` names.

    Raises:
        MoeError: a word is wrong, or no point can be run. A run that fails is a row with status `failed`.
    """
    from moe_cli.report.frame import load_runs

    folder = outputs_folder(outputs)
    executor = load_executor([word for word in words if is_executor_word(word)])
    words = [word for word in words if not is_executor_word(word)]
    plan = plan_sweep(words, seeds=seeds, name=name).pinned(folder)
    runs = to_do(plan.open(folder), retry_failed=False)
    if runs:
        drive(Listed(runs), make_pool(executor, folder, workers))
    return load_runs(folder / plan.name)
