"""Plug-ins: routers, models, tasks, metrics and other parts of other distributions, or of a file of one's own.

The metadata of an installed distribution tell its entry points. The module of an entry point is imported when its name
is used, never to list it, and never because a file of a run names it: only commands that build the model do. A name of
the program itself comes first. Knows neither torch nor the settings; imports importlib.metadata when a name is unknown.
"""

import hashlib
import os
import re
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from moe_cli.errors import ConfigError
from moe_cli.formatting import sanitise

if TYPE_CHECKING:
    from importlib.metadata import Distribution, EntryPoint
    from types import ModuleType

# The entry points of each group of settings; `log` is a setting that takes names, and a metric is a column of a report.
ENTRY_POINTS = {
    "router": "moe.routers",
    "balance": "moe.balances",
    "model": "moe.models",
    "task": "moe.tasks",
    "data": "moe.data",
    "executor": "moe.executors",
    "log": "moe.loggers",
    "metric": "moe.metrics",
}
# The environment variable by which the processes of a run and of a sweep get the files of --plugin.
FILES_VARIABLE = "MOE_PLUGINS"
_NAME = re.compile(r"[a-z][a-z0-9_]*")
REASON_LENGTH = 200


class HasKey(Protocol):
    """A `Metric` of `moe_cli.metrics`."""

    @property
    def key(self) -> str: ...


class HasText(Protocol):
    """A file of a package, as `importlib.resources.files("mine") / "greedy.yaml"` returns it."""

    def read_text(self, encoding: str) -> str: ...


@dataclass(frozen=True)
class Plugin:
    """A router, a balancing loss, a model, a task, a text, an executor, a logger or a metric that extends the program.

    Attributes:
        build: the code, called as `docs/howto/write-a-plugin.md` says; or "module:name", which is imported when a model
            is built, so that commands on settings need not import torch.
        config: the dataclass of its settings, whose default of `name` is its name; a logger and a metric have none.
        conf: the yaml with the default of each setting, as a file of conf/ has it: the text, or a file of a package.
        name: the name of a logger.
        metric: the `Metric` of `moe_cli.metrics` that a column of the report shows; its key is the name.
    """

    build: Callable[..., Any] | str
    config: type[Any] | None = None
    conf: str | HasText = ""
    name: str = ""
    metric: HasKey | None = None

    def __post_init__(self) -> None:
        if not callable(self.build) and not isinstance(self.build, str):
            raise ConfigError(
                f'build={sanitise(repr(self.build))[:80]} is neither a class or function nor "module:name".'
            )
        if self.metric is not None:
            if self.config is not None or self.name not in ("", self.metric.key):
                raise ConfigError(f"the plug-in of the metric {self.metric.key!r} has no settings and no other name.")
            if not _NAME.fullmatch(self.metric.key):
                raise ConfigError(f"key={self.metric.key!r} of a metric must have small letters, digits and _ only.")
            object.__setattr__(self, "name", self.metric.key)
        elif self.config is not None:
            group, name = getattr(self.config, "group", None), getattr(self.config, "name", None)
            if group not in ENTRY_POINTS or not isinstance(name, str) or not _NAME.fullmatch(name):
                raise ConfigError(
                    f"{self.config.__name__} must be a subclass of PluginRouter or the like, with a default for `name` "
                    "of small letters, digits and _."
                )
            if self.name not in ("", name):
                raise ConfigError(
                    f"name={self.name!r} differs from {self.config.__name__}.name={name!r}: leave it out."
                )
            object.__setattr__(self, "name", name)
            _BY_CONFIG[self.config] = self
        elif not _NAME.fullmatch(self.name):
            raise ConfigError(f"name={self.name!r} of a logger must have small letters, digits and _ only.")

    @property
    def group(self) -> str:
        """Returns the group of settings that the plug-in extends."""
        if self.metric is not None:
            return "metric"
        return self.config.group if self.config is not None else "log"

    def conf_text(self) -> str:
        return self.conf if isinstance(self.conf, str) else self.conf.read_text("utf-8")

    def code(self) -> Callable[..., Any]:
        """Returns `build`, imported. Raises ConfigError where it cannot be imported."""
        if not isinstance(self.build, str):
            return self.build
        from importlib import import_module

        module, _, name = self.build.partition(":")
        try:
            found: Callable[..., Any] = getattr(import_module(module), name)
        except (Exception, SystemExit) as error:
            raise ConfigError(f"{self.group}={self.name}: {self.build} cannot be imported: {_reason(error)}") from None
        return found


# The plug-in of each class of settings that a plug-in brings.
_BY_CONFIG: dict[type[Any], Plugin] = {}


def plugin_of(config: object) -> Plugin | None:
    """Returns the plug-in that brings the settings `config`, or their class; None for settings of the program."""
    return _BY_CONFIG.get(config if isinstance(config, type) else type(config))


@dataclass(frozen=True)
class Origin:
    """The distribution of a plug-in and its version; or the name of a file, and the digest of its content."""

    source: str
    version: str
    summary: str = ""

    def __str__(self) -> str:
        return f"{self.source} {self.version}"

    @property
    def is_file(self) -> bool:
        return self.version.startswith("sha256:")

    @property
    def how_to_get(self) -> str:
        if self.is_file:
            return f"Give the file: --plugin {self.source}"
        return f"Install it: pip install {self.source}=={self.version}"


def use_files(paths: Sequence[Path]) -> None:
    """Makes the plug-ins of Python files known to this process and to those that it starts. Runs no code yet.

    Raises ConfigError where a path is no Python file.
    """
    for path in paths:
        if path.suffix != ".py" or not path.is_file():
            raise ConfigError(f"--plugin {path} is not a Python file. An installed plug-in needs no option.")
        if os.pathsep in str(path.resolve()):
            raise ConfigError(f"--plugin {path}: the path has a '{os.pathsep}', which separates paths. Rename it.")
    absolute = [str(path.resolve()) for path in paths]
    os.environ[FILES_VARIABLE] = os.pathsep.join(dict.fromkeys([*_files(), *absolute]))


def file_options() -> str:
    """Returns the words ` --plugin FILE` for each file of --plugin, which further commands on the same run need."""
    return "".join(f" --plugin {shlex.quote(os.path.relpath(path))}" for path in _files())


def names(group: str) -> list[str]:
    """Returns the names of the plug-ins of a group, from metadata alone, and those in files of --plugin."""
    own = [name for path in _files() for found, name in _of_file(path) if found == group]
    return sorted({*own, *installed_names(group)})


def refuse_built_in(group: str, name: object) -> None:
    """Raises ConfigError where a file of --plugin has the name of a choice of the program, which would hide it."""
    for path in _files():
        if (group, name) in _of_file(path):
            raise ConfigError(f"{group}={name} of --plugin {path} has a name of the program itself: give it another.")


def installed_names(group: str) -> list[str]:
    """Returns the names of the installed plug-ins of a group. Runs no code of theirs."""
    return sorted(name for found, name in _installed() if found == group) if group in ENTRY_POINTS else []


def describe(group: str, name: str) -> str:
    """Returns where a plug-in comes from, for a list of choices; "" if there is none."""
    own = [_of_file(path)[group, name][0] for path in _files() if (group, name) in _of_file(path)]
    return ", ".join(_description(origin) for origin in own[:1]) or describe_installed(group, name)


def describe_installed(group: str, name: str) -> str:
    return ", ".join(_description(origin) for origin, _ in _installed().get((group, name), ()))


def _description(origin: Origin) -> str:
    return f"{origin.summary or 'plug-in'} ({origin})"


def origin_of(group: str, name: str) -> Origin | None:
    """Returns where a plug-in of this name comes from; None if there is none. Imports no installed plug-in.

    Raises ConfigError where several distributions bring the name.
    """
    for path in _files():
        if (group, name) in _of_file(path):
            return _of_file(path)[group, name][0]
    found = _installed().get((group, name), ())
    if len(found) > 1:
        several = " and ".join(str(origin) for origin, _ in found)
        raise ConfigError(f"{group}={name} is in two plug-ins, {several}. Uninstall one of them.")
    return found[0][0] if found else None


def find(group: str, name: object) -> Plugin | None:
    """Returns the plug-in of this name, imported; None if there is none.

    Raises ConfigError where it is broken, which names the distribution.
    """
    if not isinstance(name, str) or group not in ENTRY_POINTS:
        return None
    origin = origin_of(group, name)
    if origin is None:
        return None
    for path in _files():
        if (group, name) in _of_file(path):
            return _of_file(path)[group, name][1]
    if not _MAY_RUN.get() and (group, name) not in _LOADED:
        raise ConfigError(f"{group}={name} of {origin} is not imported to read the folders of runs.")
    return _load(group, name)


@cache
def _load(group: str, name: str) -> Plugin:
    origin, entry = _installed()[group, name][0]
    where = f"{group}={name} of {origin}"
    try:
        plugin = entry.load()
    except (Exception, SystemExit) as error:
        raise ConfigError(
            f"{where} cannot be loaded: {_reason(error)}\nUpdate it, or remove it: pip uninstall {origin.source}"
        ) from None
    if not isinstance(plugin, Plugin) or (plugin.group, plugin.name) != (group, name):
        is_another = f"{plugin.group}={plugin.name}" if isinstance(plugin, Plugin) else type(plugin).__name__
        raise ConfigError(f"{where}: {entry.value} is {is_another}, not a Plugin of that group and name.")
    _LOADED.add((group, name))
    for module in (entry.value, plugin.build if isinstance(plugin.build, str) else plugin.build.__module__):
        _MODULES.setdefault(re.split(r"[.:]", module)[0], where)
    return plugin


# The plug-in that the modules of a distribution or a file belong to.
_MODULES: dict[str, str] = {}


def blame(error: BaseException) -> str | None:
    """Returns the sentence that names the plug-in in whose code an exception was raised; None for other exceptions."""
    frames = []
    trace = error.__traceback__
    while trace is not None:
        module = str(trace.tb_frame.f_globals.get("__name__", ""))
        frames.append((_MODULES.get(module.partition(".")[0]), trace))
        trace = trace.tb_next
    found = [(origin, trace) for origin, trace in frames if origin]
    if not found:
        return None
    origin, trace = found[-1]
    code = trace.tb_frame.f_code
    place = f"{os.path.basename(code.co_filename)}, line {trace.tb_lineno}, in {code.co_name}"
    return f"{origin} fails: {_reason(error)}\nin {sanitise(place)}"


def _reason(error: BaseException) -> str:
    text = (str(error).strip() or "no message").splitlines()[0]
    return sanitise(f"{type(error).__name__}: {text}"[:REASON_LENGTH])


@cache
def _installed() -> Mapping[tuple[str, str], tuple[tuple[Origin, "EntryPoint"], ...]]:
    """Returns the entry points of all installed plug-ins by group of settings and name.

    The working folder, which `python -m` puts on sys.path, is left out: what lies there is not installed.
    """
    from importlib.metadata import distributions

    here = os.path.abspath(os.curdir)
    paths = [path for path in sys.path if path and os.path.abspath(path) != here]
    found: dict[tuple[str, str], tuple[tuple[Origin, EntryPoint], ...]] = {}
    known: set[str] = set()
    for distribution in distributions(path=paths):
        try:
            source, entries = distribution.name, _entries_of(distribution)
            if not entries or source.lower().replace("_", "-") in known:
                continue
            lines = str(distribution.metadata["Summary"] or "").splitlines() or [""]
            origin = Origin(*(sanitise(text) for text in (source, distribution.version, lines[0])))
        except Exception:  # metadata that cannot be read: no plug-in
            continue
        known.add(source.lower().replace("_", "-"))
        for key, entry in entries.items():
            found[key] = (*found.get(key, ()), (origin, entry))
    return found


def _entries_of(distribution: "Distribution") -> dict[tuple[str, str], "EntryPoint"]:
    """Returns the plug-ins of a distribution by group of settings and name."""
    groups = {entry_points: group for group, entry_points in ENTRY_POINTS.items()}
    return {
        (groups[entry.group], entry.name): entry
        for entry in distribution.entry_points
        if entry.group in groups and _NAME.fullmatch(entry.name)
    }


_MAY_RUN = ContextVar("_MAY_RUN", default=True)
# The plug-ins, and the files of --plugin, whose code this process has run.
_LOADED: set[tuple[str, str] | str] = set()


@contextmanager
def not_imported() -> Iterator[None]:
    """Imports no further plug-in meanwhile: their names raise ConfigError. For code that only reads folders of runs."""
    before = _MAY_RUN.set(False)
    try:
        yield
    finally:
        _MAY_RUN.reset(before)


def _files() -> list[str]:
    paths = (path for path in os.environ.get(FILES_VARIABLE, "").split(os.pathsep) if path)
    return [path for path in paths if _MAY_RUN.get() or path in _LOADED]


@cache
def _of_file(path: str) -> Mapping[tuple[str, str], tuple[Origin, Plugin]]:
    """Runs a file of --plugin and returns the plug-ins among its variables.

    Raises ConfigError where the file fails or has no plug-in.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"--plugin {path} cannot be read: {error.strerror}.") from None
    origin = Origin(sanitise(os.path.basename(path)), f"sha256:{hashlib.sha256(content).hexdigest()[:16]}")
    try:
        module = _run_file(path, content)
    except (Exception, SystemExit) as error:
        raise ConfigError(f"--plugin {path} cannot be run: {_reason(error)}") from None
    plugins = list({id(value): value for value in vars(module).values() if isinstance(value, Plugin)}.values())
    if not plugins:
        raise ConfigError(f"--plugin {path} has no plug-in. Write in it: plugin = moe_cli.plugins.Plugin(...)")
    twice = [key for key, times in Counter((plugin.group, plugin.name) for plugin in plugins).items() if times > 1]
    if twice:
        raise ConfigError(f"--plugin {path} has two plug-ins {'='.join(twice[0])}: give each another name.")
    _LOADED.add(path)
    _MODULES[module.__name__] = f"--plugin {path}"
    return {(plugin.group, plugin.name): (origin, plugin) for plugin in plugins}


def _run_file(path: str, content: bytes) -> "ModuleType":
    """Runs the bytes of a file as a module: those that were hashed, and no cached byte code."""
    from importlib.abc import SourceLoader
    from importlib.util import module_from_spec, spec_from_loader

    class FileLoader(SourceLoader):
        def get_filename(self, fullname: str) -> str:
            return path

        def get_data(self, _path: str | bytes | os.PathLike[str]) -> bytes:
            return content

    name = f"moe_plugin_{hashlib.sha256(path.encode()).hexdigest()[:8]}"
    spec = spec_from_loader(name, FileLoader())
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[name] = module  # the types of dataclasses are looked up there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def forget() -> None:
    """Forgets what was found, for a process in which distributions are installed or removed."""
    for cached in (_installed, _load, _of_file):
        cached.cache_clear()
    _LOADED.clear()


def is_installed(name: str) -> bool:
    """Returns whether a package can be imported. A folder of the same name, such as ./wandb, does not count."""
    try:
        found = find_spec(name)
    except (ImportError, ValueError):
        return False
    return found is not None and found.origin is not None
