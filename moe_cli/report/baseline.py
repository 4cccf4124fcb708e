"""What differences are taken to, and the command that makes the dense baseline a configuration lacks."""

import shlex
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_cli.config.parse import show
from moe_cli.config.schema import RunConfig
from moe_cli.errors import MoeError
from moe_cli.report.fold import DENSE, Row, applies, shared_with_dense
from moe_cli.report.frame import flatten
from moe_cli.store import read_json

if TYPE_CHECKING:
    import pandas as pd

    from moe_cli.config.load import Composer


def sweep_baseline(frame: "pd.DataFrame") -> Mapping[str, Any]:
    """The baseline that the sweep of all these runs names in its sweep.json; of several sweeps or none, the dense model."""
    folders = dict.fromkeys(Path(path).parent for path in frame["path"])
    named = [(read_json(folder / "sweep.json") or {}).get("baseline") or DENSE for folder in folders]
    agreed = named and all(isinstance(each, dict) and each == named[0] for each in named)
    return named[0] if agreed else DENSE


def twin_command(config: RunConfig) -> str:
    """The command for what a run is compared with: its dense twin, or of a dense one the default experts."""
    row = {**flatten(config.to_dict()), "seeds": [config.seed]}
    return baseline_command(row, {} if config.dense else DENSE)


def baseline_command(row: Row, choice: Mapping[str, Any] = DENSE) -> str:
    """`moe train expert=1`, or another choice, with every setting in which the configuration differs from the defaults."""
    wanted = {name: row[name] for name in shared_with_dense([name for name in row if "." in name])}
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
    from moe_cli.config.load import Composer

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
