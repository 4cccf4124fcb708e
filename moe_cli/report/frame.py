"""Run folders -> a pandas frame with one row per run."""

import math
from collections.abc import Collection, Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pandas as pd

from moe_cli.config.parse import did_you_mean
from moe_cli.errors import RunNotFound
from moe_cli.store import FAILED, Run, open_runs

UNITS = {
    "params": "parameters",
    "active_params": "parameters",
    "flops_per_token": "FLOP per training token, forward and backward",
    "val_loss": "nats per token",
    "val_bpb": "bits per byte",
    "tokens_per_second": "tokens per second",
    "max_violation": "share above the mean load",
    "dropped_fraction": "share of assignments",
    "dead_experts": "share of experts",
    "forward_flops_per_token": "FLOP per token",
    "val_perplexity": "perplexity per token",
    "val_tokens": "tokens",
    "val_bytes": "bytes",
    "capacity_val_loss": "nats per token",
    "train_loss": "nats per token",
    "routing_entropy": "share of the most possible",
    "mean_routing_entropy": "share of the most possible",
    "load_cv": "standard deviation over mean load",
    "token_specialisation": "share of the most possible",
    "domain_specialisation": "share of the most possible",
    "router_saturation": "share of the final choices",
    "steps": "steps",
    "tokens": "tokens",
    "seconds": "seconds",
    "bigram_bpb": "bits per byte",
    "gzip_bpb": "bits per byte",
}
COUNTS = ("params", "active_params", "val_tokens", "val_bytes", "steps", "tokens")
IDENTITY = ("run", "group", "status", "reason", "created", "path")
SETTINGS = ("expert", "k", "capacity", "router", "balance", "seed")
CORPUS = ("corpus", "corpus_sha256")
DTYPES = {
    **dict.fromkeys(("run", "group", "status", "reason", "path", "router", "balance", *CORPUS), "str"),
    **dict.fromkeys(("expert", "k", "seed", *COUNTS), "Int64"),
    **dict.fromkeys((key for key in UNITS if key not in COUNTS), "float64"),
    **dict.fromkeys(("capacity", "created"), "float64"),
}


def load_runs(path: str | Path) -> pd.DataFrame:
    """One row per run at or below a folder, oldest first; without runs, no rows.

    Columns: `run`, `group`, `status`, `reason` (why it failed), `created`, `path`, the keys of summary.json, and every
    other setting by its dotted name (`model.d_model`); `router` and `balance` are names. Runs that are not complete
    have settings but no results. Units are in `frame.attrs["units"]`.

    Raises:
        RunNotFound: there is no such folder.
    """
    folder = Path(path).expanduser().absolute()
    if not folder.is_dir():
        raise RunNotFound(f"no folder {folder}. Runs are made by: moe train")
    return runs_frame(open_runs(folder))


def load_selection(outputs: Path, names: Collection[str] = ()) -> pd.DataFrame:
    """The runs a user means by names of sweeps, run ids, their beginnings or patterns, `latest`, or folders.

    Raises:
        RunNotFound: a name that means no run, or no runs at all.
    """
    found = open_runs(outputs) if outputs.is_dir() else []
    chosen = [run for name in names for run in _named(name, found, outputs)] if names else found
    if not chosen:
        raise RunNotFound(f"no runs in {outputs}. Make one: moe train")
    return runs_frame({run.path.resolve(): run for run in chosen}.values())


def dense_runs_elsewhere(outputs: Path, frame: pd.DataFrame) -> pd.DataFrame:
    """The dense runs of the outputs folder that are not in the frame: they may serve as its baselines."""
    seen = {Path(path).resolve() for path in frame["path"]}
    runs = open_runs(outputs) if outputs.is_dir() else []
    return runs_frame(run for run in runs if "-dense-" in run.id and run.path.resolve() not in seen)


def _named(name: str, runs: list[Run], outputs: Path) -> list[Run]:
    found = [run for run in runs if run.group in (name, name.replace("/", "-"))] or [
        run for run in runs if run.id == name
    ]
    if name == "latest":
        found = found or runs[-1:]
    found = found or [run for run in runs if run.id.startswith(name) or f"{run.group}/{run.id}".startswith(name)]
    found = found or [run for run in runs if fnmatchcase(run.id, name) or fnmatchcase(f"{run.group}/{run.id}", name)]
    folder = Path(name).expanduser()
    if not found and folder.is_dir():
        found = open_runs(folder.absolute())
    if found:
        return found
    if not runs:
        raise RunNotFound(f"no runs in {outputs}. Make one: moe train")
    hint = did_you_mean(name, [*dict.fromkeys(run.group for run in runs), *(run.id for run in runs)])
    raise RunNotFound(f"no sweep, run or folder '{name}' in {outputs}.{hint} Without a name: all runs.")


def runs_frame(runs: Iterable[Run]) -> pd.DataFrame:
    """One row per run; see `load_runs`."""
    rows = [_row(run) for run in runs]
    names = dict.fromkeys([*IDENTITY, *SETTINGS, *UNITS, *CORPUS])
    for row in rows:
        names.update(dict.fromkeys(row))
    # Settings stand last, so that what was measured is seen first.
    order = sorted(names, key=lambda name: name in ("drop", "match") or "." in name)
    frame = pd.DataFrame({name: _series(name, [row.get(name) for row in rows]) for name in order})
    frame.attrs["units"] = {**UNITS, "created": "seconds since 1970"}
    return frame


def _row(run: Run) -> dict[str, Any]:
    status = run.status()
    state, reason = str(status.get("status")), status.get("reason")
    config, results = run.config_dict(), run.summary() or {}
    settings = flatten(config)
    if not config:
        state, reason, results = FAILED, "config.json cannot be read", {}
    if settings.get("expert") == 1:
        settings["capacity"] = settings["router"] = settings["balance"] = None
    measured = {key: value for key, value in results.items() if _is_scalar(value)}
    identity = {"run": run.id, "group": run.group, "status": state, "reason": reason}
    identity.update(created=status.get("created"), path=str(run.path))
    return {**settings, **measured, **identity}


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by their dotted names; the name of the router and of the balancing loss stand for the group."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value if _is_scalar(value) else str(value)
    if not prefix:
        for group in ("router", "balance"):
            flat[group] = flat.pop(f"{group}.name", None)
    return flat


def _is_scalar(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float)


def _series(name: str, values: list[Any]) -> "pd.Series[Any]":
    dtype = DTYPES.get(name) or _dtype(values)
    if dtype == "float64":
        return pd.Series([_number(value) for value in values], dtype=dtype)
    if dtype == "Int64":
        return pd.Series([_whole(value) for value in values], dtype=dtype)
    if dtype == "str":
        return pd.Series([None if value is None else str(value) for value in values], dtype=dtype)
    return pd.Series(values, dtype=dtype)


def _dtype(values: list[Any]) -> str:
    """What all values that are there have in common."""
    kinds = {type(value) for value in values if value is not None}
    if kinds == {bool}:
        return "boolean"
    if kinds == {int}:
        return "Int64"
    if kinds and kinds <= {int, float}:
        return "float64"
    return "str" if kinds == {str} else "object"


def _number(value: Any) -> float:
    """The value as a number, NaN when it is none: a result written by a stranger must not stop the report."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan
    return number if math.isfinite(number) and not isinstance(value, bool) else math.nan


def _whole(value: Any) -> int | None:
    number = _number(value)
    return int(value) if number == number and number == int(number) and abs(number) < 2**63 else None


def plain(frame: pd.DataFrame) -> dict[str, list[Any]]:
    """The columns as lists of Python values, with None for whatever is not there."""
    return {str(name): frame[name].astype(object).where(frame[name].notna(), None).tolist() for name in frame.columns}
