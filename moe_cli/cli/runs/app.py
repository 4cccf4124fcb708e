"""moe runs: ls, show, experts, diff, ledger, tag, rm, restore, clean and watch."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moe_cli.cli.echo import echo
from moe_cli.cli.evaluate import Split
from moe_cli.cli.help import HelpCommand, HelpGroup
from moe_cli.cli.options import AsJson, Checkpoint, Outputs, PluginFiles, RunName, print_json, print_notes

if TYPE_CHECKING:
    from moe_cli.runs.folder import Run

HELP = """List, compare, tag and remove runs.

Examples:
    moe runs ls
    moe runs show latest
"""
runs = typer.Typer(cls=HelpGroup, no_args_is_help=True, rich_markup_mode=None, help=HELP)

Statuses = Annotated[
    str | None, typer.Option("--status", metavar="A,B", help="Filter by status, such as failed,interrupted.")
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


@runs.command(cls=HelpCommand)
def ls(
    name: Annotated[
        str | None, typer.Argument(metavar="SWEEP|RUN|FOLDER", help="A sweep, a run, or a folder of runs.")
    ] = None,
    status: Statuses = None,
    tag: Annotated[str | None, typer.Option(metavar="TAG", help="Only runs with this tag.")] = None,
    outputs: Outputs = None,
    as_json: AsJson = False,
) -> None:
    """List runs, the newest last.

    Examples:
        moe runs ls
        moe runs ls sparsity --status failed
    """
    from moe_cli.cli.runs.ls import print_list, status_record
    from moe_cli.runs.folder import outputs_folder
    from moe_cli.runs.lookup import find_runs
    from moe_cli.runs.status import read_statuses

    wanted = _statuses(status)
    found = read_statuses(find_runs(outputs_folder(outputs), name))
    shown = [status for status in found if status.status in wanted and (tag is None or tag in status.tags)]
    if as_json:
        print_json([status_record(status) for status in shown])
    elif shown:
        print_list(shown)
    else:
        echo(f"no matching runs ({len(found)} checked).", err=True)


def _statuses(text: str | None) -> tuple[str, ...]:
    """Returns the statuses named in `text`, all of them for None. Raises ConfigError for any other word."""
    from moe_cli.config.build import did_you_mean
    from moe_cli.errors import ConfigError
    from moe_cli.runs.folder import STATUSES

    names = STATUSES if text is None else tuple(part.strip() for part in text.split(",") if part.strip())
    for name in names:
        if name not in STATUSES:
            raise ConfigError(f"--status {name}: there are {', '.join(STATUSES)}.{did_you_mean(name, STATUSES)}")
    if not names:
        raise ConfigError(f"--status is empty: give some of {', '.join(STATUSES)}.")
    return names


@runs.command(cls=HelpCommand)
def show(run: RunName, outputs: Outputs = None, as_json: AsJson = False) -> None:
    """Show the settings, results, curve and files of a run.

    Examples:
        moe runs show latest
        moe runs show latest --json
    """
    from moe_cli.cli.runs.show import print_run, run_record
    from moe_cli.runs.folder import outputs_folder
    from moe_cli.runs.lookup import find_run

    found = find_run(outputs_folder(outputs), run)
    if as_json:
        print_json(run_record(found))
    else:
        print_run(found)


@runs.command(cls=HelpCommand)
def experts(  # noqa: PLR0913  (an option each)
    run: RunName,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="SETTING=VALUE", help="With --study: other text, such as data=python; eval.k."),
    ] = None,
    layer: Annotated[
        int | None, typer.Option(metavar="N", help="The sparse layer whose tables are shown. None: the most uneven.")
    ] = None,
    study: Annotated[
        bool,
        typer.Option(
            "--study", help="Route text through the model now: domains with controls, repeats, hits of a cache."
        ),
    ] = False,
    earlier: Annotated[
        str | None,
        typer.Option(metavar="A,B", help="With --study: earlier checkpoints, as steps of this run or as other runs."),
    ] = None,
    checkpoint: Checkpoint = "latest",
    split: Split = "validation",
    max_tokens: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="With --study: tokens to read. None: the whole split.")
    ] = None,
    page: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE.html", help="With --study: write a page without network instead."),
    ] = None,
    outputs: Outputs = None,
    plugin: PluginFiles = None,
    as_json: AsJson = False,
) -> None:
    """Show how a run uses its experts.

    The load and balance of each layer, and the domains and tokens of each expert.

    Examples:
        moe runs experts latest
        moe runs experts latest --layer 2
        moe runs experts latest --study data=text data.path=notes
    """
    from moe_cli.errors import ConfigError
    from moe_cli.runs.folder import outputs_folder

    folder = outputs_folder(outputs)
    if study:
        from moe_cli.cli.options import trained_run
        from moe_cli.cli.runs.study import StudyRequest, print_study

        request = StudyRequest(tuple(overrides or ()), layer, earlier, checkpoint, split, max_tokens)
        print_study(trained_run(folder, run), folder, request, page, as_json)
        return
    if overrides or earlier or page or max_tokens or (checkpoint, split) != ("latest", "validation"):
        raise ConfigError(
            "settings, --checkpoint, --split, --earlier, --max-tokens and --output route text through the model. "
            "Add --study"
        )
    from moe_cli.cli.runs.experts import print_experts
    from moe_cli.runs.lookup import find_run

    print_experts(find_run(folder, run), layer, as_json)


@runs.command(cls=HelpCommand)
def diff(
    first: Annotated[str, typer.Argument(metavar="A", help="A run id, its beginning, a folder, or 'latest'.")],
    second: Annotated[str, typer.Argument(metavar="B", help="The other run.")],
    outputs: Outputs = None,
    as_json: AsJson = False,
) -> None:
    """Compare two runs: settings, metrics, curves and loads.

    Examples:
        moe runs diff gpt-8x2 gpt-dense
        moe runs diff latest gpt-dense --json
    """
    from moe_cli.cli.runs.diff import print_comparison
    from moe_cli.errors import ConfigError
    from moe_cli.report.run_comparison import compare_runs
    from moe_cli.runs.folder import outputs_folder
    from moe_cli.runs.lookup import find_run

    folder = outputs_folder(outputs)
    pair = find_run(folder, first), find_run(folder, second)
    if pair[0].path.resolve() == pair[1].path.resolve():
        raise ConfigError(f"'{first}' and '{second}' are one run, {pair[0].id}: give two.")
    comparison = compare_runs(*pair)
    if as_json:
        print_json(comparison.record())
    else:
        print_comparison(comparison)


@runs.command(cls=HelpCommand)
def ledger(outputs: Outputs = None, as_json: AsJson = False) -> None:
    """Count comparisons and looks at verdicts for each validation set.

    Examples:
        moe runs ledger
        moe runs ledger --json
    """
    from moe_cli.cli.runs.ledger import ledger_records, print_ledger
    from moe_cli.report.ledger import read_ledger
    from moe_cli.runs.folder import outputs_folder

    uses = read_ledger(outputs_folder(outputs))
    if as_json:
        print_json(ledger_records(uses))
    else:
        print_ledger(uses)


@runs.command("tag", cls=HelpCommand)
def tag_run(
    run: RunName,
    tags: Annotated[list[str], typer.Argument(metavar="TAG", help="Words to find it by.")],
    remove: Annotated[bool, typer.Option("--remove", help="Remove these tags.")] = False,
    outputs: Outputs = None,
) -> None:
    """Add tags to a run, or remove them.

    Examples:
        moe runs tag latest baseline
        moe runs tag latest baseline --remove
    """
    from moe_cli.runs.folder import outputs_folder
    from moe_cli.runs.lookup import find_run
    from moe_cli.runs.tags import check_tag, read_tags, set_tags

    found = find_run(outputs_folder(outputs), run)
    checked = list(dict.fromkeys(map(check_tag, tags)))
    before = read_tags(found)
    idle = [tag for tag in checked if (tag in before) != remove]
    print_notes(tuple(f"{found.id} {'has no' if remove else 'already has the'} tag '{tag}'." for tag in idle))
    after = [tag for tag in before if not (remove and tag in checked)]
    after += [] if remove else [tag for tag in checked if tag not in before]
    if len(idle) < len(checked):
        set_tags(found, after)
    _echo(f"{found.id}   tags {', '.join(after) or 'none'}")


@runs.command(cls=HelpCommand)
def rm(
    names: Annotated[list[str] | None, typer.Argument(metavar="RUN", help="Run ids, beginnings or folders.")] = None,
    status: Statuses = None,
    sweep: Annotated[str | None, typer.Option(metavar="NAME", help="Only runs of this sweep.")] = None,
    yes: Yes = False,
    outputs: Outputs = None,
) -> None:
    """Move runs to the trash.

    `moe runs restore` brings them back.

    Examples:
        moe runs rm gpt-8x2
        moe runs rm --status failed --sweep sparsity
    """
    from moe_cli.errors import ConfigError, MoeError
    from moe_cli.runs.folder import outputs_folder
    from moe_cli.runs.trash import check_idle, remove

    folder = outputs_folder(outputs)
    if bool(names) == bool(status or sweep):
        raise ConfigError("give either runs by name, or --status and --sweep. See: moe runs ls")
    selected = _named(folder, names) if names else _matching(folder, status, sweep)
    if not selected:
        echo("no matching runs: nothing is removed.", err=True)
        return
    for run in selected:
        check_idle(run)  # before the first is moved
    if len(selected) > 1 and not yes:
        _confirm(f"move {len(selected)} runs to the trash?", [f"{run.sweep}/{run.id}" for run in selected])
    moved = 0
    try:
        for run in selected:
            remove(run, folder)
            moved += 1
            if len(selected) <= 10:
                _echo(f"removed {run.sweep}/{run.id}")
    except MoeError as error:
        raise type(error)(f"{error}\n{moved} of {len(selected)} runs were removed." if moved else str(error)) from None
    groups = {run.sweep for run in selected}
    undo = f"moe runs restore {selected[0].id if moved == 1 else ' '.join(sorted(groups))}"
    _echo(f"{moved} {'run is' if moved == 1 else 'runs are'} in the trash. Undo: {undo}")


def _named(outputs: Path, names: list[str]) -> "list[Run]":
    from moe_cli.runs.lookup import find_run

    found = [find_run(outputs, name) for name in names]
    return list({run.path.resolve(): run for run in found}.values())


def _matching(outputs: Path, status: str | None, sweep: str | None) -> "list[Run]":
    from moe_cli.runs.lookup import find_runs, find_sweep, list_runs
    from moe_cli.runs.status import read_statuses

    wanted = _statuses(status)
    runs = list_runs(find_sweep(outputs, sweep)) if sweep else find_runs(outputs, None)
    return [status.run for status in read_statuses(runs) if status.status in wanted]


def _confirm(question: str, names: list[str]) -> None:
    """Asks for confirmation on a terminal. Raises ConfigError without one; exits with code 1 if the answer is no."""
    from moe_cli.errors import ConfigError

    if not sys.stdin.isatty():
        raise ConfigError(f"{question} Not a terminal: pass --yes to confirm.")
    for name in names[:10]:
        _echo(f"  {name}")
    if len(names) > 10:
        _echo(f"  and {len(names) - 10} more")
    if not typer.confirm(question):
        _echo("nothing is removed.")
        raise typer.Exit(1)


def _echo(text: str) -> None:
    from moe_cli.formatting import sanitise

    echo(sanitise(text))


@runs.command(cls=HelpCommand)
def restore(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="RUN|SWEEP", help="Runs of the trash, 'latest', or a sweep with all its runs."),
    ] = None,
    outputs: Outputs = None,
    as_json: AsJson = False,
) -> None:
    """Bring runs back from the trash; without a name, list it.

    Examples:
        moe runs restore
        moe runs restore latest
    """
    from moe_cli.cli.runs.cleanup import print_trash, trash_records
    from moe_cli.runs.folder import outputs_folder
    from moe_cli.runs.trash import find_trashed, trashed_runs
    from moe_cli.runs.trash import restore as bring_back

    folder = outputs_folder(outputs)
    trash = trashed_runs(folder)
    if names:
        selected = {run.path: run for name in names for run in find_trashed(name, trash)}
        back = []
        for removed in selected.values():
            back.append(bring_back(removed, folder))
            if not as_json:
                _echo(f"restored {back[-1].sweep}/{back[-1].id}")
        if as_json:
            print_json([{"run": run.id, "sweep": run.sweep, "path": str(run.path)} for run in back])
    elif as_json:
        print_json(trash_records(trash))
    else:
        print_trash(trash)


@runs.command(cls=HelpCommand)
def clean(
    older_than: Annotated[
        str, typer.Option("--older-than", metavar="30d", help="Trash older than this; 0d: all, 12h: hours.")
    ] = "30d",
    checkpoints: Annotated[
        bool, typer.Option("--checkpoints", help="Older checkpoints of complete runs, but not the best.")
    ] = False,
    cache: Annotated[bool, typer.Option("--cache", help="Cached data that no run uses.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Delete permanently.")] = False,
    outputs: Outputs = None,
    as_json: AsJson = False,
) -> None:
    """List what can be deleted; delete it with --yes.

    Examples:
        moe runs clean
        moe runs clean --older-than 0d --checkpoints --yes
    """
    from moe_cli.cli.runs.cleanup import delete_all, parse_age, print_reclaimable
    from moe_cli.runs.cleanup import find_reclaimable
    from moe_cli.runs.folder import outputs_folder

    waste = list(find_reclaimable(outputs_folder(outputs), parse_age(older_than)))
    options = {"trash": True, "unfinished": True, "checkpoints": checkpoints, "cache": cache}
    selected = [item for item in waste if options[item.kind]]
    freed = delete_all(selected) if yes else []
    if as_json:
        records = [
            {
                "kind": item.kind,
                "path": str(item.path),
                "bytes": item.num_bytes,
                "why": item.why,
                "chosen": options[item.kind],
                "freed": item in freed,
            }
            for item in waste
        ]
        print_json(records)
    else:
        print_reclaimable(waste, selected, freed if yes else None)


@runs.command(cls=HelpCommand)
def watch(
    name: Annotated[
        str | None, typer.Argument(metavar="SWEEP|RUN", help="What to watch. None: the newest sweep.")
    ] = None,
    outputs: Outputs = None,
) -> None:
    """Watch a sweep or a run from another terminal.

    Exit code 3: runs of the sweep are not complete. Exit code 1: the single run is not complete.

    Examples:
        moe runs watch
        moe runs watch sparsity
    """
    from moe_cli.cli.console import CommandConsole
    from moe_cli.cli.runs.watch import resolve_target, watch_run, watch_sweep
    from moe_cli.runs.folder import Run, outputs_folder

    found, console = resolve_target(outputs_folder(outputs), name), CommandConsole()
    code = watch_run(console, found) if isinstance(found, Run) else watch_sweep(console, found)
    if code:
        raise typer.Exit(code)
