"""decide() for Python, equivalent to `moe decide`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from moe_cli.api.arguments import LOGGER, check_list
from moe_cli.cli.console import CommandConsole
from moe_cli.cli.decide_output import DecisionView
from moe_cli.config.bounds import JOBS
from moe_cli.config.executors import split_executor
from moe_cli.config.ranges import check_between
from moe_cli.decisions.decision_file import make_limit_options
from moe_cli.decisions.page import load_certificate
from moe_cli.decisions.plan import plan_decision
from moe_cli.decisions.run_decision import prepare_decision
from moe_cli.runs.folder import outputs_folder
from moe_cli.sweeps.run_sweep import SILENT, Execution, run_sweep

if TYPE_CHECKING:
    from moe_cli.decisions.certificate import Certificate


def decide(  # noqa: PLR0913  (an argument for each option)
    overrides: Sequence[str] = (),
    *,
    minutes: float | None = None,
    runs: int | None = None,
    within: float | None = None,
    by: str | None = None,
    where: Sequence[str] = (),
    baseline_budgets: Sequence[float] | None = None,
    name: str | None = None,
    jobs: int | None = None,
    executor: str | None = None,
    outputs: Path | None = None,
    retry_failed: bool = False,
    force_memory: bool = False,
    progress: bool = False,
) -> "Certificate":
    """Runs `moe decide OVERRIDES` and returns its certificate. A decision that has ended is not taken again.

    Args:
        overrides: the name of a space, and settings.
        minutes, runs: the budget; one of them at least.
        within: configurations are equal within this share of the loss; None means that of the space.
        by: "tokens", "time" or "flops"; None means what the training budget is given in.
        where: conditions that every candidate must fulfil, such as "k <= expert".
        baseline_budgets: multiples of the budget that the dense model is trained at too, for the price tag.
        jobs: the number of parallel runs; None means as many as this machine or the cluster can hold.
        executor: "local", "ray" or "slurm"; None means the one of the word `executor=...`, else "local".
        progress: print the output of `moe decide`.

    Raises:
        MoeError: a word is wrong, or the budget covers no decision.
    """
    check_list("overrides", overrides)
    check_list("where", where)
    check_between("jobs", 1 if jobs is None else jobs, 1, JOBS)
    folder, limits = outputs_folder(outputs), make_limit_options(minutes, runs)
    executor_settings, settings = split_executor(overrides, executor)
    execution = Execution(executor_settings, jobs, retry_failed=retry_failed, force_memory=force_memory)
    plan = plan_decision(settings, within=within, by=by, name=name, where=where, baseline_budgets=baseline_budgets)
    for note in (*plan.conf_notes, *plan.notes):
        LOGGER.warning(note)
    view = DecisionView(CommandConsole()) if progress else SILENT
    run_sweep(prepare_decision(plan, limits, folder, execution), view)
    if isinstance(view, DecisionView):
        view.print_answer()
    certificate = load_certificate(folder / plan.name)
    assert certificate is not None, "the decision has ended"
    return certificate
