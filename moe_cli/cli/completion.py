"""Finds the words that could stand at the cursor of a command line. Imports neither Typer nor Hydra nor torch.

The commands, options and settings are those of completions.json, which docs/generate.py writes. Choices of the user's
conf/ folder, runs, sweeps, tags and files are read from the disk.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, cached_property
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from moe_cli.plugins import describe_installed, installed_names

# Tags are read only from this many runs.
MAX_TAGGED_RUNS = 1000
# Commands of many runs: their settings take several values, and their first word may name a file of that folder.
SWEEP_COMMANDS = ("sweep", "decide", "reproduce")
# Commands of files in a folder of conf/ with another name.
CONF_FOLDERS = {"reproduce": "claim"}
# Groups whose choices can be combined: balance=switch+z.
COMBINED = ("balance", "log")
# Settings that name files and runs.
SETTING_KINDS = {"data.path": "file", "data.tokenizer": "file", "train.upcycle_from": "run"}
# Groups whose settings are offered with their choices: `tra` finds `train=` and `train.`.
OFTEN_SET = ("model", "data", "optim", "train")


class Candidate(NamedTuple):
    """A word that could stand at the cursor.

    Attributes:
        is_complete: whether the word ends here; otherwise no space follows.
    """

    text: str
    help: str = ""
    is_complete: bool = True


@cache
def program() -> dict[str, Any]:
    """Returns the commands, the groups with their choices, and the settings."""
    content: dict[str, Any] = json.loads(Path(__file__).with_name("completions.json").read_text(encoding="utf-8"))
    return content


class Line:
    """A command line up to the cursor.

    Args:
        arguments: the complete words, without the name of the program.
        current: the part of the last word before the cursor.
    """

    def __init__(self, arguments: Sequence[str], current: str) -> None:
        self.current = current
        commands = program()["commands"]
        self.name = ""
        rest = list(arguments)
        while rest and (f"{self.name} {rest[0]}".strip() in commands or rest[0].startswith("-")):
            if commands[self.name]["commands"] == {} and self.name:
                break
            word = rest.pop(0)
            self.name = self.name if word.startswith("-") else f"{self.name} {word}".strip()
        self.command = commands[self.name]
        self.option_values: dict[str, str] = {}
        self.arguments: list[str] = []
        # The option whose value is at the cursor.
        self.open_option: str | None = None
        self._read(rest)

    def _read(self, arguments: Sequence[str]) -> None:
        """Sorts the words after the command into options and arguments."""
        for word in arguments:
            name, equals, value = word.partition("=")
            if self.open_option is not None:
                self.option_values[self.open_option] = word
                self.open_option = None
            elif name.startswith("-") and name in self.command["options"]:
                self.option_values[name] = value
                needs_value = "kind" in self.command["options"][name] and not equals
                self.open_option = name if needs_value else None
            else:
                self.arguments.append(word)

    @cached_property
    def settings(self) -> dict[str, str]:
        """The settings among the arguments, by their keys."""
        return dict(word.split("=", 1) for word in self.arguments if "=" in word)

    @cached_property
    def conf(self) -> Path | None:
        """The user's folder of conf/ files."""
        typed = self.option_values.get("--config-dir")
        folder = Path(typed or "conf").expanduser()
        is_ours = typed is not None or not (folder / "config.yaml").exists()
        return folder if typed != "none" and is_ours and folder.is_dir() else None

    @cached_property
    def outputs(self) -> Path:
        return Path(self.option_values.get("--outputs") or os.environ.get("MOE_OUTPUTS") or "outputs").expanduser()


def complete(arguments: Sequence[str], current: str) -> list[Candidate]:
    """Returns the words that could stand at the cursor; all of them begin with `current`, except for short keys."""
    line = Line(arguments, current)
    found = {candidate.text: candidate for candidate in _candidates(line)}
    return [candidate for candidate in found.values() if candidate.text.startswith(current)] or _by_last_part(
        line, found.values()
    )


def _candidates(line: Line) -> Iterable[Candidate]:
    options, current = line.command["options"], line.current
    if line.open_option is not None:
        return _of_kind(options[line.open_option]["kind"], line, current)
    name, equals, value = current.partition("=")
    if equals and "kind" in options.get(name, {}):
        return [
            candidate._replace(text=f"{name}={candidate.text}")
            for candidate in _of_kind(options[name]["kind"], line, value)
        ]
    if current.startswith("-"):
        return [
            Candidate(name, about["help"])
            for name, about in options.items()
            if name.startswith("--") and (name not in line.option_values or about.get("repeats"))
        ]
    if line.command["commands"]:
        return [Candidate(name, text) for name, text in line.command["commands"].items()]
    kinds, number = line.command["arguments"], len(line.arguments)
    if line.command["variadic"]:
        number = min(number, len(kinds) - 1)
    return _of_kind(kinds[number], line, current) if number < len(kinds) else []


def _by_last_part(line: Line, found: Iterable[Candidate]) -> list[Candidate]:
    """Returns the settings whose last part begins with the word: `lr` finds `optim.lr=`."""
    if not line.current or any(mark in line.current for mark in "=.-/"):
        return []
    keys = [Candidate(f"{key}=", about["help"], False) for key, about in _settings(line).items()]
    return [candidate for candidate in keys if candidate.text.rpartition(".")[2].startswith(line.current)]


def _of_kind(kind: Any, line: Line, current: str) -> Iterable[Candidate]:
    """Returns the words of a kind: its name, a list of choices, or a list in a list where several may be given."""
    if not isinstance(kind, list):
        return _KINDS[kind](line, current)
    if kind and isinstance(kind[0], list):
        return _listed([Candidate(choice) for choice in kind[0]], current)
    return [Candidate(choice) for choice in kind]


def _listed(found: Sequence[Candidate], current: str) -> list[Candidate]:
    """Returns the words after the last comma of the current one, without those before it."""
    head, comma, _ = current.rpartition(",")
    taken = head.split(",")
    return [
        candidate._replace(text=f"{head}{comma}{candidate.text}", is_complete=False)
        for candidate in found
        if candidate.text not in taken
    ]


def _overrides(line: Line, current: str) -> list[Candidate]:
    """Returns KEY= for a key, and KEY=VALUE once the key is there."""
    key, equals, value = current.partition("=")
    if equals:
        return [candidate._replace(text=f"{key}={candidate.text}") for candidate in _values_of(key, line, value)]
    settings, groups = _settings(line), _groups(line)
    if "." in current:
        return [Candidate(f"{name}=", about["help"], False) for name, about in settings.items() if "." in name]
    found = [Candidate(f"{name}=", text, False) for name, text in groups.items()]
    found += [Candidate(f"{name}=", about["help"], False) for name, about in settings.items() if "." not in name]
    prefixes = dict.fromkeys(name.partition(".")[0] for name in settings if "." in name)
    return found + [
        Candidate(f"{name}.", f"settings of {name}", False)
        for name in prefixes
        if name in OFTEN_SET or name not in groups or name == current
    ]


def _groups(line: Line) -> dict[str, str]:
    """Returns the groups that the command takes, and what is chosen in them."""
    if "--resume" in line.option_values or "settings" in line.command:
        return {}
    groups: dict[str, str] = program()["groups"]
    return {
        name: text for name, text in groups.items() if line.name in SWEEP_COMMANDS or name not in ("executor", "preset")
    }


def _settings(line: Line) -> dict[str, dict[str, Any]]:
    """Returns the settings that the command takes, with the choices that the line makes."""
    settings: dict[str, dict[str, Any]] = program()["settings"]
    if names := line.command.get("settings"):
        return {name: settings[name] for name in names}
    if "--resume" in line.option_values:
        return {name: about for name, about in settings.items() if about.get("execution")}
    return {name: about for name, about in settings.items() if _applies(name, about, line)}


def _applies(name: str, about: dict[str, Any], line: Line) -> bool:
    """Returns whether a setting belongs to the choice of its group; all do where a file may have chosen."""
    group = name.partition(".")[0]
    if group == "executor" and line.name not in SWEEP_COMMANDS:
        return False
    if "choices" not in about:
        return True
    if group not in line.settings and ("experiment" in line.settings or "model" in line.settings):
        return True
    choice = line.settings.get(group) or program()["defaults"].get(group, "")
    known = program()["choices"][group]
    return choice not in known or choice in about["choices"]


def _values_of(key: str, line: Line, value: str) -> list[Candidate]:
    """Returns values of a setting, or choices of a group; in a sweep after those before the last comma."""
    if line.name in SWEEP_COMMANDS and key not in ("preset", "executor"):
        return _listed(_one_value(key, line, value.rpartition(",")[2]), value)
    return _one_value(key, line, value)


def _one_value(key: str, line: Line, value: str) -> list[Candidate]:
    if key in COMBINED and "+" in value:
        head, _, last = value.rpartition("+")
        taken = [*head.split("+"), "none", "null"]
        found = [candidate for candidate in _one_value(key, line, last) if candidate.text not in taken]
        return [candidate._replace(text=f"{head}+{candidate.text}") for candidate in found]
    if key in program()["groups"]:
        return [Candidate(name, text) for name, text in _choices(key, line.conf).items()]
    built_in = program()["settings"].get(key, {}).get("values", [])
    found = [Candidate(text) for text in built_in]
    found += [Candidate(name, describe_installed(key, name)) for name in installed_names(key) if name not in built_in]
    return found + list(_KINDS[SETTING_KINDS[key]](line, value) if key in SETTING_KINDS else [])


def _choices(group: str, conf: Path | None) -> dict[str, str]:
    """Returns the choices of a group with their first comments: those of the user's folder, then the program's."""
    found = {}
    if conf is not None:
        for path in sorted((conf / group).rglob("[!_]*.yaml")):
            found[path.relative_to(conf / group).with_suffix("").as_posix()] = _first_comment(path)
    found |= {name: text for name, text in program()["choices"][group].items() if name not in found}
    return found | {name: describe_installed(group, name) for name in installed_names(group) if name not in found}


def _first_comment(path: Path) -> str:
    try:
        lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    except OSError:
        return ""
    comments = (line[1:].strip() for line in lines if line.startswith("#") and "@package" not in line)
    return next(comments, "")


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """Returns what a folder holds, the newest first; nothing where it cannot be read."""
    try:
        entries = [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
        return sorted(entries, key=lambda entry: -entry.stat().st_mtime)
    except OSError:
        return []


def _folders(folder: Path) -> Iterator[os.DirEntry[str]]:
    return (entry for entry in _entries(folder) if entry.is_dir())


def _run_paths(line: Line) -> Iterator[os.DirEntry[str]]:
    return (run for sweep in _folders(line.outputs) for run in _folders(Path(sweep.path)))


def _runs(line: Line, current: str) -> list[Candidate]:
    return [Candidate("latest", "the newest run"), *(Candidate(run.name) for run in _run_paths(line))]


def _sweeps(line: Line, current: str) -> list[Candidate]:
    return [Candidate(folder.name, "sweep") for folder in _folders(line.outputs)]


def _sweeps_and_runs(line: Line, current: str) -> list[Candidate]:
    return [*_sweeps(line, current), *_runs(line, current)]


def _trash(line: Line, current: str) -> list[Candidate]:
    removed = [_read(folder, "trashed.json").get("from") for folder in _folders(line.outputs / ".trash")]
    runs = [Candidate(place.rpartition("/")[2]) for place in removed if isinstance(place, str)]
    return [Candidate("latest", "the run removed last"), *runs]


def _tags(line: Line, current: str) -> list[Candidate]:
    found = [_read(run, "tags.json").get("tags") for run in islice(_run_paths(line), MAX_TAGGED_RUNS)]
    tags = [tag for tags in found if isinstance(tags, list) for tag in tags if isinstance(tag, str)]
    return [Candidate(tag) for tag in dict.fromkeys(tags)]


def _read(folder: "os.DirEntry[str]", name: str) -> dict[str, Any]:
    """Returns the content of a JSON file of a folder; {} where it cannot be read."""
    from moe_cli.files.reading import read_json

    return read_json(Path(folder.path, name)) or {}


def _files(line: Line, current: str) -> list[Candidate]:
    """Returns the files and folders that a path could mean; a folder goes on."""
    head, slash, last = current.rpartition("/")
    entries = _entries(Path(head + slash).expanduser())
    shown = [entry for entry in entries if entry.name.startswith(last)]
    return [Candidate(f"{head}{slash}{entry.name}{'/' * entry.is_dir()}", "", not entry.is_dir()) for entry in shown]


def _directories(line: Line, current: str) -> list[Candidate]:
    return [candidate for candidate in _files(line, current) if not candidate.is_complete]


def _nothing(line: Line, current: str) -> list[Candidate]:
    return []


def _overrides_or_file(line: Line, current: str) -> list[Candidate]:
    """Returns settings, and files where the word is the beginning of a path and the command takes one."""
    takes_file = (
        current and "=" not in current and "settings" not in line.command and "--resume" not in line.option_values
    )
    return _overrides(line, current) + (_files(line, current) if takes_file else [])


def _sweeps_and_overrides(line: Line, current: str) -> list[Candidate]:
    """Returns the names of sweeps, spaces or claims, which stand first, and settings."""
    names = {} if line.arguments or "=" in current else _choices(CONF_FOLDERS.get(line.name, line.name), line.conf)
    return [*(Candidate(name, text) for name, text in names.items()), *_overrides_or_file(line, current)]


_KINDS: dict[str, Callable[[Line, str], list[Candidate]]] = {
    "run": _runs,
    "sweep": _sweeps,
    "sweep or run": _sweeps_and_runs,
    "trash": _trash,
    "tag": _tags,
    "file": _files,
    "folder": _directories,
    "setting": _overrides,
    "setting or file": _overrides_or_file,
    "sweep or setting": _sweeps_and_overrides,
    "text": _nothing,
}
