"""What differences are taken to, and the command that makes the dense baseline a configuration lacks."""

import shlex
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_cli.config.baselines import parse_baseline
from moe_cli.config.build import did_you_mean, show
from moe_cli.config.schema import RunConfig
from moe_cli.errors import ConfigError, MoeError
from moe_cli.formatting import printable
from moe_cli.report.aggregate import (
    DENSE,
    Row,
    applies,
    base_of,
    baselines_of,
    is_baseline,
    rows_of,
    settings_of,
    shared_with,
    shared_with_dense,
    varying,
)
from moe_cli.report.load import flatten, runs_frame
from moe_cli.report.sweep_record import read_record
from moe_cli.runs.folder import COMPLETED, Run
from moe_cli.runs.lookup import list_runs

if TYPE_CHECKING:
    import pandas as pd

    from moe_cli.config.compose import Composer


def declared_baselines(frame: "pd.DataFrame") -> list[Mapping[str, Any]]:
    """The baseline of each sweep of these runs, as its sweep.json has it; the dense model where it names none."""
    folders = dict.fromkeys(Path(path).parent for path in frame["path"])
    named = [read_record(folder).get("baseline") or DENSE for folder in folders]
    return [each if isinstance(each, dict) else DENSE for each in named]


def sweep_baseline(frame: "pd.DataFrame") -> Mapping[str, Any]:
    """The baseline on which all sweeps of these runs agree; else the dense model."""
    named = declared_baselines(frame)
    return named[0] if named and all(each == named[0] for each in named) else DENSE


def baseline_name(baseline: Mapping[str, Any]) -> str:
    """dense, or balance=none."""
    return (
        "dense" if baseline == DENSE else printable(" ".join(f"{key}={show(value)}" for key, value in baseline.items()))
    )


def baseline_runs_elsewhere(
    outputs: Path, frame: "pd.DataFrame", baseline: Mapping[str, Any] | None = None, also: Collection[str] = ()
) -> "pd.DataFrame":
    """The complete runs of the outputs folder, or of `also`, that are not in the frame and may serve as its baselines.

    They have the settings of `baseline`, of one that a sweep of the frame declares, or of the dense model.
    """
    seen = {Path(path).resolve() for path in frame["path"]}
    runs = [*(list_runs(outputs) if outputs.is_dir() else []), *(Run(Path(path)) for path in also)]
    found = {path: run for run in runs if (path := run.path.resolve()) not in seen}
    others = runs_frame(list(found.values()))
    wanted = [*([] if baseline is None else [baseline]), *declared_baselines(frame), DENSE]
    fitting = [row["path"] for row in rows_of(others)
               if row["status"] == COMPLETED and any(is_baseline(row, each) for each in wanted)]  # fmt: skip
    return others[others["path"].isin(fitting)].reset_index(drop=True)


def find_baseline(
    text: str | None, outputs: Path, frame: "pd.DataFrame", also: Collection[str] = (), *, whole: bool
) -> "tuple[Mapping[str, Any] | None, pd.DataFrame | None]":
    """The baseline that `--baseline` names, None without the option, and runs outside the frame that may serve as it.

    Args:
        also: folders of runs that may serve too.
        whole: the frame has all runs of the outputs folder.

    Raises:
        ConfigError: no configuration has these settings, or several have them.
    """
    given = None if text is None else parse_baseline(text)
    elsewhere = None if whole else baseline_runs_elsewhere(outputs, frame, given, also)
    return None if text is None else chosen_baseline(text, frame, elsewhere), elsewhere


def chosen_baseline(text: str, frame: "pd.DataFrame", elsewhere: "pd.DataFrame | None" = None) -> Mapping[str, Any]:
    """What `--baseline` says.

    Raises:
        ConfigError: it cannot be read, no complete run has these settings, or several or all configurations fit, or it
            compares with none.
    """
    baseline = parse_baseline(text)
    settings, rows = settings_of(map(str, frame.columns)), rows_of(frame)
    known = [name.removesuffix(".name") for name in settings]
    for name in baseline:
        if name not in (*known, *settings):
            raise ConfigError(f"--baseline {text}: no setting '{name}'.{did_you_mean(name, known)}")
    bases, ambiguous = baselines_of(rows, [] if elsewhere is None else rows_of(elsewhere), baseline, settings)
    if ambiguous:
        raise ConfigError(f"--baseline {text} {ambiguity(ambiguous)}")
    if not bases:
        there = "; ".join(f"{name}={', '.join(values)}" for name in baseline if (values := _values(rows, name)))
        null = [name for name, value in baseline.items() if value is None]
        read = (
            f" ({null[0]} was read as null, which is no name; for a name write {null[0]}=none)"
            if null and there
            else ""
        )
        raise ConfigError(
            f"--baseline {text}: no complete run has these settings{read}. There are: {there or 'no complete runs'}"
        )
    done = [row for row in rows if row["status"] == COMPLETED]
    others = [row for row in done if not is_baseline(row, baseline)]
    if done and not others:
        raise ConfigError(f"--baseline {text} fits every configuration: name a setting that varies, or leave it out.")
    shared = shared_with(baseline, settings)
    if others and not any(base_of(row, bases, shared) for row in others):
        raise ConfigError(f"--baseline {text}: no configuration differs from it in these settings alone, at equal data, "
                          "budget and evaluation context. Add what else it brings along, or name another.")  # fmt: skip
    return baseline


def ambiguity(fitting: Collection[Row]) -> str:
    """Says among which configurations a baseline cannot be chosen."""
    names = varying(fitting, settings_of({name: None for row in fitting for name in row}))
    found = list(dict.fromkeys(" ".join(f"{name}={show(row.get(name))}" for name in names) for row in fitting))
    more = f" and {len(found) - 4} more" if len(found) > 4 else ""
    return printable(
        f"fits several configurations where one is needed: {'; '.join(found[:4])}{more}. Add what tells them apart."
    )


def _values(rows: Collection[Row], name: str) -> list[str]:
    found = [row.get(name, row.get(f"{name}.name")) for row in rows if row["status"] == COMPLETED]
    return list(dict.fromkeys(printable(show(value)) for value in found if value is not None))[:8]


def twin_command(config: RunConfig) -> str:
    """The command for what a run is compared with: its dense twin, or of a dense one the default experts."""
    row = {**flatten(config.to_dict()), "seeds": [config.seed]}
    return baseline_command(row, {} if config.dense else DENSE)


def baseline_command(row: Row, choice: Mapping[str, Any] = DENSE) -> str:
    """`moe train expert=1`, or another choice, with every setting in which the configuration differs from the defaults."""
    shared = shared_with_dense([name for name in row if "." in name])
    # A dense model starts from its initial weights: there are no experts to make of another's.
    wanted = {name: row[name] for name in shared if name != "train.upcycle_from"}
    try:
        words = _words({**choice}, wanted)
    except MoeError:
        words = {**choice}
    seeds = row["seeds"] or [0]
    if seeds[0] != 0:
        words["seed"] = seeds[0]
    if len(seeds) == 1:
        return f"moe train {_written(words)}".rstrip()
    return "moe sweep " + _written({**words, "seed": ",".join(map(str, seeds))})


def words_like(run: Row, without: Collection[str]) -> dict[str, Any]:
    """The settings in which a run differs from the defaults, those apart that are given otherwise; seed left out.

    Raises:
        MoeError: its settings cannot hold.
    """
    wanted = {name: value for name, value in run.items()
              if ("." in name or name in ("capacity", "drop", "match")) and applies(name, run) and name not in without}  # fmt: skip
    choices = {name: run[name] for name in ("expert", "k", "router", "balance")
               if run.get(name) is not None and applies(name, run) and name not in without}  # fmt: skip
    return _words(choices, wanted)


def _words(words: dict[str, Any], wanted: Row) -> dict[str, Any]:
    """These words with all that is still wanted otherwise than they resolve to."""
    from moe_cli.config.compose import Composer

    composer = Composer()
    default = resolved_point(composer, words)
    for group in ("model", "data", "optim"):
        if wanted.get(f"{group}.name") not in (None, default.get(f"{group}.name")):
            words[group] = wanted[f"{group}.name"]
    # Without these there is nothing to resolve.
    words.update((name, wanted[name]) for name in ("data.path", "data.vocab_size") if wanted.get(name))
    words.update(differences_to(resolved_point(composer, words), wanted, with_null=False))
    words.update(differences_to(resolved_point(composer, words), wanted, with_null=True))
    return words


def _written(words: dict[str, Any]) -> str:
    return " ".join(shlex.quote(f"{key}={show(value)}") for key, value in words.items())


def resolved_point(composer: "Composer", words: dict[str, Any]) -> dict[str, Any]:
    return flatten(composer.point(words).config.to_dict())


def differences_to(default: dict[str, Any], wanted: Row, with_null: bool) -> dict[str, Any]:
    """What still differs. Null values come last: most follow from a setting that has a value."""
    return {
        name: value
        for name, value in wanted.items()
        if not name.endswith(".name") and default.get(name) != value
        and (value is not None or (with_null and name in default))
    }  # fmt: skip
