"""The times of training steps on another machine, from a file of `moe bench optimizer --json`."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_cli.errors import ConfigError
from moe_cli.files.reading import Unreadable, number_in, parse_json, read_bytes
from moe_cli.formatting import sanitise
from moe_cli.report.run_row import RunRow

# The settings that a run must share with a measurement, by the keys of the file.
SETTINGS = {
    "experts": "expert",
    "k": "k",
    "router": "router",
    "optimizer": "optim.name",
    "expert_period": "optim.expert_period",
    "d_model": "model.d_model",
    "d_ff": "model.d_ff",
    "num_layers": "model.num_layers",
    "context_length": "model.context_length",
    "batch_size": "train.batch_size",
}
# Settings without effect in a dense model.
SPARSE = ("k", "router", "expert_period")
TIMES = ("pass_seconds", "update_seconds")
HOW = "Make it there by: moe bench optimizer --experts 1,8 --json > FILE"


@dataclass(frozen=True)
class BenchedSteps:
    """The measurements of one or several files, with their names."""

    files: tuple[str, ...]
    records: Sequence[Mapping[str, Any]]

    def relative_speed(self, run: RunRow, base: RunRow) -> float | None:
        """Returns the seconds of a step of the baseline over those of a run; None if one was not measured."""
        own, other = self._step_seconds(run), self._step_seconds(base)
        return other / own if own and other else None

    def _step_seconds(self, run: RunRow) -> float | None:
        """Returns the time of an optimizer step: a pass for each accumulated batch, and the update."""
        passes = number_in(run.settings.get("train.grad_accumulation")) or 1.0
        for record in self.records:
            names = [name for name in SETTINGS if not (run.is_dense and name in SPARSE)]
            if all(record.get(name) == _setting(run, name) for name in names):
                return float(passes * record["pass_seconds"] + record["update_seconds"])
        return None


def _setting(run: RunRow, name: str) -> Any:
    value = run.settings.get(SETTINGS[name])
    return 1 if name == "expert_period" and value is None else value


def read_bench_files(paths: Iterable[Path]) -> BenchedSteps:
    """Reads files of `moe bench optimizer --json`.

    Raises:
        ConfigError: a file cannot be read, or is no such file, or none has a dense model.
    """
    records: list[Mapping[str, Any]] = []
    names = []
    for path in paths:
        shown = sanitise(str(path))
        try:
            content = parse_json(read_bytes(path.expanduser()))
        except FileNotFoundError:
            raise ConfigError(f"--machine {shown}: there is no such file. {HOW}") from None
        except Unreadable as error:
            raise ConfigError(f"--machine {shown} {sanitise(str(error))}. {HOW}") from None
        if not isinstance(content, list) or not content or not all(map(_is_record, content)):
            raise ConfigError(f"--machine {shown} is not the output of moe bench optimizer. {HOW}")
        records += content
        names.append(path.name)
    if not any(record["experts"] == 1 for record in records):
        raise ConfigError(f"--machine {', '.join(names)}: no time of a dense model. {HOW}")
    return BenchedSteps(tuple(names), records)


def _is_record(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and all(name in entry for name in SETTINGS)
        and all((number_in(entry.get(name)) or 0) > 0 for name in TIMES)
    )
