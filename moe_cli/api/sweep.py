"""sweep() for Python: what `moe sweep` does. Notes go to the logger `moe_cli` at level WARNING."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from moe_cli.cli import search as search_lines
from moe_cli.cli.console import Terminal
from moe_cli.cli.sweep_preview import remarks
from moe_cli.cli.views import SearchView, SweepView, describe
from moe_cli.config.bounds import JOBS, RETRIES
from moe_cli.config.executors import split_executor
from moe_cli.config.ranges import above, between
from moe_cli.errors import ConfigError
from moe_cli.runs.folder import outputs_folder
from moe_cli.sweeps.run_sweep import Execution, PreparedSearch, PreparedSweep, View, prepare, run_sweep
from moe_cli.sweeps.scheduler import Rules
from moe_cli.sweeps.search_space import SearchOptions, SearchPlan, plan_words

if TYPE_CHECKING:
    import pandas as pd
from moe_cli.api.arguments import LOGGER, check_list


def sweep(  # noqa: PLR0913  (an argument for each option)
    words: Sequence[str],
    *,
    seeds: int | None = None,
    where: Sequence[str] = (),
    name: str | None = None,
    baseline: str | None = None,
    workers: int | None = None,
    executor: str | None = None,
    outputs: Path | None = None,
    retry_failed: bool = False,
    force: bool = False,
    rerun_on_code: bool = False,
    force_memory: bool = False,
    timeout: float | None = None,
    retries: int = 0,
    fail_fast: bool = False,
    search: str | None = None,
    trials: int | None = None,
    objective: str | None = None,
    prune: str | None = None,
    search_seed: int | None = None,
    progress: bool = False,
) -> "pd.DataFrame":
    """Carries out `moe sweep WORDS` and gives one row a run, as `load_runs` does.

    Args:
        workers: runs at a time; None: what this machine bears, or what the executor's cluster gives.
        executor: "local", "ray" or "slurm"; None: what the word `executor=...` names, else this machine.
        where: conditions that hold of every point, such as "k <= expert".
        baseline: settings of what the report's differences are taken to, such as "balance=none".
        force, rerun_on_code: run points again, all or those of other code; what there is goes to outputs/.trash.
        force_memory, timeout, retries, fail_fast: see `Execution` and `Rules`.
        search: "tpe" or "random" searches the settings; the options after it are for that.
        progress: print what `moe sweep` prints.

    Raises:
        MoeError: a word is wrong, or no point can be run. A run that fails is a row with status `failed`.
    """
    from moe_cli.report.load import load_runs

    check_list("words", words)
    check_list("where", where)
    between("workers", 1 if workers is None else workers, 1, JOBS)
    between("retries", retries, 0, RETRIES)
    above("timeout", timeout, 0)
    folder = outputs_folder(outputs)
    chosen, words = split_executor(words, executor)
    rules = Rules(timeout, retries, fail_fast)
    execution = Execution(chosen, workers, rules, retry_failed, force, rerun_on_code, force_memory)
    options = SearchOptions(search, trials, objective, prune, search_seed)
    plan = plan_words(words, options, baseline=baseline, seeds=seeds, name=name, where=where)
    _check_again(execution, searched := isinstance(plan, SearchPlan))
    shown: View = SearchView(Terminal()) if searched else SweepView(Terminal())
    run_sweep(prepare(plan, folder, execution), shown if progress else Notes())
    return load_runs(folder / plan.name)


def _check_again(execution: Execution, is_search: bool) -> None:
    """Raises ConfigError for an argument that has no effect."""
    if is_search and (execution.force or execution.rerun_on_code):
        raise ConfigError("force and rerun_on_code are for sweeps; a search keeps what it has found: name another.")
    if execution.force and (execution.rerun_on_code or execution.retry_failed):
        other = "rerun_on_code" if execution.rerun_on_code else "retry_failed"
        raise ConfigError(f"force runs every point again: {other} has no effect. Leave it out.")


class Notes(View):
    """Gives the notes of a sweep or a search to the logger, and shows nothing else."""

    def begin(self, prepared: PreparedSweep | PreparedSearch, feed: object, pool: object) -> None:
        if isinstance(prepared, PreparedSearch):
            notes = search_lines.notes(prepared.plan, prepared.preview)
        else:
            notes = [" ".join(line.split()) for _, line in remarks(describe(prepared))]
        for note in notes:
            LOGGER.warning(note)
