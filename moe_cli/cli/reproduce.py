"""moe reproduce."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from moe_cli.cli.options import (
    FOLDERS,
    STOPPED,
    AsJson,
    ConfigDir,
    ExecutorName,
    ForceMemory,
    Jobs,
    Outputs,
    PluginFiles,
    RetryFailed,
    Seeds,
    interruptible,
    option,
    print_json,
)

Claim = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="CLAIM|SETTING=VALUE", help="A claim of conf/claim, then settings and preset=. None: list all claims."
    ),
]
Name = Annotated[str | None, option(FOLDERS, help="Folder under outputs/.  [default: claim-CLAIM]")]


def reproduce(  # noqa: PLR0913  (an argument for each option)
    overrides: Claim = None,
    seeds: Seeds = None,
    jobs: Jobs = None,
    executor: ExecutorName = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print power and every point, and stop.")] = False,
    retry_failed: RetryFailed = False,
    force_memory: ForceMemory = False,
    name: Name = None,
    outputs: Outputs = None,
    config_dir: ConfigDir = None,
    plugin: PluginFiles = None,
    as_json: AsJson = False,
) -> None:
    """Try what a paper claims: holds, contradicted, or cannot tell here.

    The same command continues a claim that was stopped. Exit code 3: cannot tell here.

    Examples:
        moe reproduce
        moe reproduce more_experts --seeds 5 -j 2
    """
    from moe_cli.claims.plan import plan_claim
    from moe_cli.claims.records import CANNOT_TELL
    from moe_cli.claims.result import read_result
    from moe_cli.claims.text import result_lines
    from moe_cli.cli.console import CommandConsole, print_lines, text_width
    from moe_cli.cli.reproduce_output import ClaimView
    from moe_cli.config.executors import split_executor
    from moe_cli.errors import ConfigError
    from moe_cli.runs.folder import outputs_folder
    from moe_cli.sweeps.run_sweep import Execution, prepare
    from moe_cli.sweeps.tuning import previews, run_stages

    folder = outputs_folder(outputs)
    if not overrides:
        options = {
            "--seeds": seeds,
            "--jobs": jobs,
            "--executor": executor,
            "--name": name,
            "--dry-run": dry_run,
            "--retry-failed": retry_failed,
            "--force-memory": force_memory,
        }
        if useless := [word for word, value in options.items() if value]:
            raise ConfigError(f"{useless[0]} needs a claim. To list them: moe reproduce")
        return _list_claims(folder, config_dir, as_json)
    if dry_run and as_json:
        raise ConfigError("--dry-run prints a plan for people: leave out --json.")
    executor_settings, overrides = split_executor(overrides, executor, config_dir)
    execution = Execution(executor_settings, jobs, retry_failed=retry_failed, force_memory=force_memory)
    console = CommandConsole(unread=130, stderr=as_json)
    with interruptible(partial(console.print, STOPPED, soft_wrap=True)):
        plan = plan_claim(overrides, seeds=seeds, name=name, config_dir=config_dir)
        view = ClaimView(console, plan)
        if dry_run:
            for stage in previews(plan.sweep, folder):
                view.preview(prepare(stage, folder, execution, build=False))
            return
        run_stages(plan.sweep, folder, execution, view)
    result = read_result(plan, folder)
    if as_json:
        print_json(result.to_dict())
    else:
        console.print()
        print_lines(console, result_lines(result, text_width(console)))
    if result.verdict == CANNOT_TELL:
        raise typer.Exit(3)


def _list_claims(folder: Path, config_dir: Path | None, as_json: bool) -> None:
    """Prints all claims with the verdicts of the runs that exist."""
    from moe_cli.claims.claim_file import load_claim
    from moe_cli.claims.plan import recorded_plan
    from moe_cli.claims.result import read_result
    from moe_cli.claims.text import list_lines, short_source
    from moe_cli.cli.console import print_fitted
    from moe_cli.config.compose import Composer
    from moe_cli.config.sweep_file import CLAIM, list_sweeps

    composer = Composer(config_dir)
    claims = [load_claim(composer, name) for name in list_sweeps(composer, CLAIM)]
    plans = [recorded_plan(claim.name, folder, config_dir) for claim in claims]
    verdicts = [None if plan is None else read_result(plan, folder).verdict for plan in plans]
    if as_json:
        return print_json(
            [
                {
                    "claim": claim.name,
                    "sentence": claim.sentence,
                    "source": short_source(claim.source),
                    "verdict": verdict,
                }
                for claim, verdict in zip(claims, verdicts, strict=True)
            ]
        )
    print_fitted(lambda width: list_lines(claims, verdicts, width))
