"""Finds the runs of a folder, and the runs and sweeps that a name on the command line denotes."""

import os
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from moe_cli.config.build import did_you_mean, flatten_dict
from moe_cli.config.ranges import format_setting
from moe_cli.errors import RunNotFound
from moe_cli.files.reading import note_unreadable, read_json, time_in
from moe_cli.formatting import sanitise
from moe_cli.runs.folder import Run
from moe_cli.runs.status import modified_ns


def list_runs_by_age(path: Path) -> list[Run]:
    """Returns the runs of a folder, oldest first: a run folder, a sweep's folder or the outputs folder."""
    return sorted(list_runs(path), key=_age)


def list_runs(path: Path) -> list[Run]:
    """Returns the runs of a folder in no order, without opening files. Skips folders whose names begin with a dot."""
    if is_run(path):
        return [Run(path)]
    runs, folders = _runs_in(path)
    return runs + [run for folder in folders for run in _runs_in(folder)[0]]


def _runs_in(path: Path) -> tuple[list[Run], list[Path]]:
    """Returns the run folders and the other folders in a folder. Unreadable folders are recorded."""
    runs, others = [], []
    try:
        entries = [entry for entry in os.scandir(path) if not entry.name.startswith(".")]
    except (FileNotFoundError, NotADirectoryError):
        return [], []
    except OSError as error:
        note_unreadable(path, f"cannot be listed: {error.strerror}")
        return [], []
    for entry in entries:
        try:
            if not entry.is_dir():
                continue
        except OSError as error:
            note_unreadable(entry.path, f"cannot be looked into: {error.strerror}")
            continue
        if is_run(entry.path):
            runs.append(Run(path / entry.name))
        else:
            others.append(path / entry.name)
    return runs, others


def is_run(folder: Path | str) -> bool:
    """Returns whether a folder is a run folder: whether it has a config.json."""
    try:
        os.lstat(os.path.join(folder, "config.json"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    except OSError as error:
        note_unreadable(folder, f"cannot be looked into: {error.strerror}")
        return False
    return True


def _age(run: Run) -> tuple[float, str]:
    """Returns the sort key of a run: when it was created, then its id."""
    status = read_json(run.path / "status.json") or {}
    return time_in(status.get("created")) or 0.0, run.id


def sweep_folder(name: str) -> str:
    """Returns the folder of a named sweep: paper/switch_table1 is kept in paper-switch_table1."""
    return name.replace("/", "-")


def spellings(name: str) -> list[str]:
    """Returns the possible folders of a name: paper/x as typed, paper-x as a sweep, paper-x/RUN as a run of a sweep."""
    sweep, slash, last = name.rpartition("/")
    return list(dict.fromkeys((name, sweep_folder(name), f"{sweep_folder(sweep)}{slash}{last}")))


def find_runs(outputs: Path, name: str | None, runs: Sequence[Run] | None = None) -> list[Run]:
    """Returns the runs that a name on the command line denotes, in no order; without a name, all of them.

    The first of these that matches is used: a sweep or a run of the outputs folder (paper/x, paper-x, paper/x/RUN), any
    other folder, `latest`, a run id in any sweep, the beginning of one (RUN or SWEEP/RUN), or a pattern of one
    (*-8x2-*).

    Args:
        runs: every run of the outputs folder, if they are known.

    Raises:
        RunNotFound: the name denotes no run, or the outputs folder has no runs.
    """
    if name and (folder := find_folder(outputs, name)):
        return list_runs(folder)
    runs = list_runs(outputs) if runs is None else runs
    if not runs:
        raise RunNotFound(f"no runs in {outputs}. Make one: moe train")
    if name is None:
        return [*runs]
    if name == "latest":
        return [max(runs, key=_age)]
    found = [run for run in runs if run.id == name]
    for fits in (str.startswith, fnmatchcase):
        found = found or [
            run
            for run in runs
            if any(fits(text, spelling) for text in (run.id, f"{run.sweep}/{run.id}") for spelling in spellings(name))
        ]
    if not found:
        hint = did_you_mean(name, [*dict.fromkeys(run.sweep for run in runs), *(run.id for run in runs)])
        raise RunNotFound(f"no sweep, run or folder '{name}' in {outputs}.{hint} See: moe runs ls")
    return found


def find_run(outputs: Path, name: str) -> Run:
    """Returns the run that a name denotes; see `find_runs`. Raises RunNotFound for no run, or several."""
    found = find_runs(outputs, name)
    if len(found) > 1:
        shown = sorted(found, key=lambda run: (run.sweep, run.id))[:4]
        listed = ", ".join(
            f"{run.sweep}/{run.id}{difference}" for run, difference in zip(shown, _differences(shown), strict=True)
        )
        more = ", ..." if len(found) > 4 else ""
        raise RunNotFound(f"'{name}' could be {len(found)} runs: {listed}{more}. Give more of the name.")
    return found[0]


def _differences(runs: Sequence[Run]) -> list[str]:
    """Returns up to three settings of each run in which the runs differ, such as ` (data=text seed=1)`."""
    rows = [flatten_dict(run.config_dict() or {}) for run in runs]
    keys = [key for key in rows[0] if len({repr(row.get(key)) for row in rows}) > 1]
    named = {key.partition(".")[0] for key in keys if key.endswith(".name")}
    keys = [key for key in keys if key.endswith(".name") or key.partition(".")[0] not in named]
    texts = [
        " ".join(f"{key.removesuffix('.name')}={format_setting(row.get(key))}" for key in keys[:3]) for row in rows
    ]
    return [f" ({sanitise(text)})" if text else "" for text in texts]


def find_folder(outputs: Path, name: str) -> Path | None:
    """Returns the run folder or the folder of runs that a name denotes, in the outputs folder or elsewhere."""
    folders = [*(outputs / spelling for spelling in spellings(name)), Path(name).expanduser().absolute()]
    return next((folder for folder in folders if is_run(folder) or (folder.is_dir() and list_runs(folder))), None)


def find_sweep(outputs: Path, name: str) -> Path:
    """Returns the folder of a sweep, `runs` included. Raises RunNotFound if no sweep has this name."""
    for folder in (outputs / spelling for spelling in spellings(name)):
        if folder.is_dir() and not is_run(folder) and list_runs(folder):
            return folder
    sweeps = sorted({run.sweep for run in list_runs(outputs)})
    hint = did_you_mean(name, sweeps) or (f" There are: {', '.join(sweeps[:8])}." if sweeps else "")
    raise RunNotFound(f"no sweep '{name}' in {outputs}.{hint}")


def newest_sweep(outputs: Path) -> str:
    """Returns the sweep that changed last. The folder `runs` counts only if there is no sweep.

    Raises:
        RunNotFound: the outputs folder has no runs.
    """
    changed: dict[str, float] = {}
    for run in find_runs(outputs, None):
        changed[run.sweep] = max(changed.get(run.sweep, 0.0), modified_ns(str(run.path / "status.json")) / 1e9)
    sweeps = {name: time for name, time in changed.items() if name != "runs"} or changed
    return max(sweeps, key=lambda name: sweeps[name])
