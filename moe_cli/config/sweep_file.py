"""conf/sweep, conf/decide and conf/claim: files with configurations, and the question on them. Does not import torch.

A block is a product: of the values of each key of `grid`, of the rows of `zip` (keys that advance together), and of
`points` (partial configurations), all with the settings of `set`, restricted by `where`. A sweep is a block, or the
`union` of several; the other parts hold for each of them. A file of conf/decide is a space of candidates: it has the
parts of a sweep that say what varies, and `rules`, the rules by which `moe decide` chooses among them. A file of
conf/claim is a published claim: the sweep that tries it, its own or that of a file of conf/sweep, and the parts that
`moe_cli.claims.claim_file` reads.
"""

import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any, get_args

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from moe_cli.config.axes import Axis, Interval
from moe_cli.config.bounds import SEEDS
from moe_cli.config.build import check_choice, did_you_mean, takes_list, takes_text
from moe_cli.config.compose import Composer, first_comment, shorten_error
from moe_cli.config.expressions import Expression, parse_expression
from moe_cli.config.folders import is_text
from moe_cli.config.overrides import parse_override
from moe_cli.config.ranges import check_whole, format_setting
from moe_cli.config.schema import Match, RunConfig
from moe_cli.config.search_block import SearchBlock, known_parts, parse_search
from moe_cli.config.training import BUDGET_KEYS, BUDGETS
from moe_cli.config.yaml_file import read_yaml_text
from moe_cli.errors import ConfigError

BLOCK_PARTS = ("grid", "zip", "points", "set", "match", "budget", "where")
PARTS = (*BLOCK_PARTS, "union", "search", "tune", "seeds", "baseline", "baseline_budgets", "presets")
# Settings that can be tuned for each configuration before a comparison.
TUNABLE = ("optim.lr",)
SPACE_PARTS = (*BLOCK_PARTS, "union", "rules", "presets")
# Parts that only a claim has; `moe_cli.claims.claim_file` reads them.
CLAIM_OWN_PARTS = ("source", "published", "differences", "predicate")
CLAIM_PARTS = (
    *BLOCK_PARTS,
    "union",
    "tune",
    "seeds",
    "baseline",
    "baseline_budgets",
    "sweep",
    "presets",
    *CLAIM_OWN_PARTS,
)
MERGED_PARTS = ("grid", "set", "search", "rules")
# Parts that a file takes over from those in its `defaults`; its own values change them.
INHERITED_PARTS = ("presets", "rules")
# The preset that a file itself is.
DEFAULT_PRESET = "laptop"
DENSE = {"expert": 1}
MIN_MULTIPLE, MAX_MULTIPLE = 0.01, 100.0
_FUNCTION = re.compile(r"\s*(choice|range|glob|sort|shuffle|interval|tag)\s*\(.*\)\s*", re.DOTALL)

Partial = Mapping[str, Any]


@dataclass(frozen=True)
class Dimension:
    """Partial configurations; every point takes one of them."""

    options: tuple[Partial, ...]

    @property
    def keys(self) -> list[str]:
        return list(dict.fromkeys(key for option in self.options for key in option))

    @property
    def is_null(self) -> bool:
        """Returns True if all its values are null."""
        return all(value is None for option in self.options for value in option.values())

    def without(self, keys: Sequence[str]) -> "Dimension":
        """Returns the dimension without these keys; options that are then equal occur once."""
        left = [{key: value for key, value in option.items() if key not in keys} for option in self.options]
        return Dimension(tuple(option for index, option in enumerate(left) if option not in left[:index]))


@dataclass(frozen=True)
class Block:
    """The product of its dimensions, restricted by the conditions."""

    dimensions: tuple[Dimension, ...] = ()
    where: tuple[Expression, ...] = ()

    def with_dimension(self, new: Dimension) -> "Block":
        """Returns the block with `new` in place of its keys' earlier values. One training budget replaces another."""
        keys = list(new.keys)
        if any(option.get(key) is not None for option in new.options for key in BUDGET_KEYS):
            keys += [key for key in BUDGET_KEYS if key not in keys]
        kept: list[Dimension] = []
        for old in self.dimensions:
            if old.keys == new.keys:
                kept.append(new)
            elif old.is_null and not set(old.keys) & set(new.keys):
                kept.append(old)  # so that train.steps=null, next to another budget, removes that of an experiment
            elif set(old.keys) - set(keys):
                kept.append(old.without(keys))
        return replace(self, dimensions=tuple(kept if new in kept else [*kept, new]))

    @property
    def num_points(self) -> int:
        """Returns the number of points before conditions, without generating them."""
        return math.prod(len(dimension.options) for dimension in self.dimensions)

    def settings(self) -> Iterator[dict[str, Any]]:
        """Yields the values of each point."""
        for options in product(*(dimension.options for dimension in self.dimensions)):
            yield {key: value for option in options for key, value in option.items()}


@dataclass(frozen=True)
class FileKind:
    """A kind of file with configurations.

    Attributes:
        folder: its folder in conf/, and the folder of the files in its `defaults`.
        instead: the advice where a name means no file.
    """

    folder: str
    noun: str
    parts: tuple[str, ...]
    instead: str
    base_folder: str


SWEEP = FileKind("sweep", "sweep", PARTS, "Or give values: moe sweep k=1,2", "sweep")
SPACE = FileKind("decide", "space", SPACE_PARTS, "Or give values: moe decide experts k=1,2", "decide")
CLAIM = FileKind("claim", "claim", CLAIM_PARTS, "To list them: moe reproduce", "sweep")


@dataclass(frozen=True)
class SweepFile:
    """A sweep file, or a file of a space.

    Attributes:
        question: its first line.
        baseline: the partial configuration of the baseline; None means none.
        baseline_budgets: the multiples of each point's budget that the baseline is trained at too, for price tags.
        search: the search settings; None means that all configurations are run.
        tune: the setting that is tuned for each configuration before the comparison; None means none.
        rules: the rules of a decision, as they are written; empty for a sweep.
        claim: the parts that only a claim has, as they are written.
        presets: the names of its presets.
    """

    name: str
    question: str
    blocks: tuple[Block, ...]
    seeds: int
    baseline: Partial | None
    search: SearchBlock | None = None
    tune: str | None = None
    baseline_budgets: tuple[float, ...] = ()
    rules: Partial = field(default_factory=dict)
    claim: Partial = field(default_factory=dict)
    presets: tuple[str, ...] = ()


def list_sweeps(composer: Composer, kind: FileKind = SWEEP) -> list[str]:
    """Returns the names of the files of conf/sweep, also in folders: paper/switch_table1; or those of another kind."""
    folders = [folder / kind.folder for folder in composer.folders]
    return sorted(
        {
            file.relative_to(folder).with_suffix("").as_posix()
            for folder in folders
            for file in folder.rglob("[!_]*.yaml")
            if file.is_file()
        },
        key=lambda name: ("/" in name, name),
    )


def load_sweep_file(composer: Composer, name: str, preset: str = DEFAULT_PRESET, kind: FileKind = SWEEP) -> SweepFile:
    """Loads conf/sweep/NAME.yaml, or the file of a path that ends in .yaml, with the changes of its preset.

    Raises:
        ConfigError: no such sweep, file or preset exists, or the file has an invalid structure.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else None
    if path and not path.is_file():
        raise ConfigError(f"there is no file {path}. Give a path, or the name of a {kind.noun}: moe config --groups")
    names = list_sweeps(composer, kind)
    if path is None and name not in names:
        raise ConfigError(
            f"no {kind.noun} '{name}'.{did_you_mean(name, names)} There are: {', '.join(names)}. "
            f"{kind.instead}{composer.misnamed(kind.folder, name)}"
        )
    file = path or _file_of(composer, name, kind.folder)
    content = _read(file)
    try:
        content = _with_bases(composer, content, kind)
        content = _with_sweep(composer, content) if kind is CLAIM else content
        parts = known_parts(content, kind.parts, f"a {kind.noun}")
        named = parts.get("presets")
        presets = tuple(map(str, named)) if isinstance(named, dict) else ()
        parts = _with_preset(parts, name, preset, kind)
        return SweepFile(
            path.stem if path else name,
            first_comment(file),
            _blocks(composer, parts, kind),
            check_whole("seeds", parts.get("seeds", 1), most=SEEDS),
            _baseline(parts),
            parse_search(parts["search"]) if "search" in parts else None,
            _tune(parts),
            _baseline_budgets(parts),
            _mapping(parts, "rules"),
            {part: parts[part] for part in CLAIM_OWN_PARTS if part in parts},
            presets,
        )
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from None


def _file_of(composer: Composer, name: str, group: str, part: str = "defaults") -> Path:
    """Returns the file conf/GROUP/NAME.yaml that is used. Raises ConfigError where there is none."""
    file = next((path for folder in composer.folders if (path := folder / group / f"{name}.yaml").is_file()), None)
    if file is None:
        raise ConfigError(f"{part}: there is no conf/{group}/{name}.yaml.")
    composer.remember(f"{group}/{name}.yaml")
    return file


def _read(file: Path) -> Any:
    """Returns the content of a sweep file. Raises ConfigError where it cannot be read."""
    try:
        return OmegaConf.to_container(OmegaConf.load(io.StringIO(read_yaml_text(file, is_text))), resolve=True)
    except (OmegaConfBaseException, YAMLError, OSError, ValueError) as error:
        raise ConfigError(f"{file}: {shorten_error(error)}") from None


def _with_bases(composer: Composer, content: Any, kind: FileKind) -> Any:
    """Returns the content with the presets and rules of the files in its `defaults`.

    Its own presets change these part by part, its own rules one by one.
    """
    if not isinstance(content, dict) or "defaults" not in content:
        return content
    bases = content.pop("defaults")
    shared: dict[str, dict[str, Any]] = {part: {} for part in INHERITED_PARTS}
    for base in bases if isinstance(bases, list) else [bases]:
        if base != "_self_":
            parts = _read(_file_of(composer, str(base), kind.base_folder))
            shared = {part: {**shared[part], **_mapping(parts, part)} for part in INHERITED_PARTS}
    own = {part: _mapping(content, part) for part in INHERITED_PARTS}
    names = (*shared["presets"], *own["presets"])
    presets = {name: _changed(shared["presets"].get(name, {}), own["presets"].get(name, {})) for name in names}
    inherited = {"presets": presets, "rules": {**shared["rules"], **own["rules"]}}
    return {**content, **{part: values for part, values in inherited.items() if values or part in content}}


def _with_sweep(composer: Composer, content: Any) -> Any:
    """Returns the content of a claim with the parts of the sweep that it names; its own parts change these.

    Without a baseline of its own, a claim has none: only what its predicate compares is run.
    """
    if not isinstance(content, dict):
        return content
    content = {"baseline": None, **content}
    if "sweep" not in content:
        return content
    named = _read(_file_of(composer, str(content.pop("sweep")), SWEEP.folder, "sweep"))
    named = known_parts(_with_bases(composer, named, SWEEP), PARTS, "a sweep")
    own = _mapping(content, "presets")
    presets = {name: _changed(changes, own.get(name, {})) for name, changes in _mapping(named, "presets").items()}
    return {**_changed(named, content), "presets": {**own, **presets}}


def _with_preset(parts: dict[str, Any], name: str, preset: str, kind: FileKind) -> dict[str, Any]:
    """Returns the parts with those of the preset instead; of `grid`, `set`, `search` and `rules`, key by key."""
    presets = parts.pop("presets", {})
    if not isinstance(presets, dict) or DEFAULT_PRESET in presets:
        raise ConfigError(
            f"presets must hold names and their changes; '{DEFAULT_PRESET}' is the file without a preset."
        )
    if preset == DEFAULT_PRESET:
        return parts
    if preset not in presets:
        there = [DEFAULT_PRESET, *map(str, presets)]
        raise ConfigError(
            f"no preset '{preset}' in the {kind.noun} {name}.{did_you_mean(preset, there)} "
            f"There are: {', '.join(there)}."
        )
    known = tuple(part for part in kind.parts if part != "presets")
    return _changed(parts, known_parts(presets[preset], known, f"the preset {preset}"))


def _changed(parts: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged: dict[str, Any] = {
        part: {**_mapping(parts, part), **_mapping(changes, part)} for part in MERGED_PARTS if part in changes
    }
    return {**parts, **changes, **merged}


def _blocks(composer: Composer, parts: dict[str, Any], kind: FileKind) -> tuple[Block, ...]:
    shared = _block(composer, parts)
    if "union" not in parts:
        varying = [part for part in ("grid", "zip", "points", "union", "search") if part in kind.parts]
        if not any(part in parts for part in varying):
            raise ConfigError(f"a {kind.noun} must hold what varies: {', '.join(varying[:-1])} or {varying[-1]}.")
        return (shared,)
    union = parts["union"]
    if not isinstance(union, list) or not union:
        raise ConfigError("union must be a list of blocks, each with some of: " + ", ".join(BLOCK_PARTS) + ".")
    blocks = []
    for content in union:
        own = _block(composer, known_parts(content, BLOCK_PARTS, "a block of union"))
        block = shared
        for dimension in own.dimensions:
            block = block.with_dimension(dimension)
        blocks.append(replace(block, where=shared.where + own.where))
    return tuple(blocks)


def _block(composer: Composer, parts: dict[str, Any]) -> Block:
    """Returns the block that `grid`, `zip`, `points`, `set`, `match`, `budget` and `where` describe."""
    where: dict[str, str] = {}
    dimensions = []
    for part, found in (
        ("set", _fixed(parts)),
        ("grid", _grid(composer, parts)),
        ("zip", _zip(parts)),
        ("points", _points(parts)),
    ):
        for dimension in found:
            for key in dimension.keys:
                if key == "seed":
                    raise ConfigError("the seed is no setting of a sweep. Write: seeds: 3")
                if key in where:
                    raise ConfigError(f"{key} stands in {where[key]} and in {part}: give it once.")
                where[key] = part
            dimensions.append(dimension)
    return Block(tuple(dimensions), _conditions(parts))


def _mapping(parts: Mapping[str, Any], part: str) -> dict[str, Any]:
    content = parts.get(part, {})
    if not isinstance(content, dict) or (part in parts and not content):
        raise ConfigError(f"{part} must hold settings, as in: {part}: {{expert: {8 if part == 'set' else [1, 8]}}}")
    return {str(key): value for key, value in content.items()}


def _fixed(parts: Mapping[str, Any]) -> list[Dimension]:
    """Returns the dimensions that hold for all points: `set`, `match` and `budget`."""
    fixed = _mapping(parts, "set")
    for key, value in fixed.items():
        if isinstance(value, dict) or (isinstance(value, list) and not takes_list(RunConfig, key)):
            raise ConfigError(f"set.{key} must be one value. Several stand in grid.")
    if "match" in parts:
        check_choice("match", parts["match"], get_args(Match))
        fixed = _once(fixed, {"match": parts["match"]})
    if "budget" in parts:
        fixed = _once(fixed, _budget(parts["budget"]))
    return [Dimension(({key: value},)) for key, value in fixed.items()]


def _once(fixed: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    twice = sorted(fixed.keys() & more.keys())
    if twice:
        raise ConfigError(
            f"{twice[0]} stands in set and in {'match' if twice[0] == 'match' else 'budget'}: give it once."
        )
    return {**fixed, **more}


def _budget(budget: Any) -> dict[str, Any]:
    """Returns the one budget, with null for the others, so that it replaces the budget of the `train` choice."""
    if not isinstance(budget, dict) or len(budget) != 1 or set(budget) - set(BUDGETS):
        names = ", ".join(map(str, budget)) if isinstance(budget, dict) else format_setting(budget)
        raise ConfigError(f"budget must hold one of {', '.join(BUDGETS)}, not: {names or 'nothing'}.")
    name, amount = next(iter(budget.items()))
    if isinstance(amount, bool) or not isinstance(amount, int | float) or not amount > 0:
        raise ConfigError(f"budget: {name}: {format_setting(amount)} is not a number above 0.")
    return {f"train.{other}": amount if other == name else None for other in BUDGETS}


def _grid(composer: Composer, parts: Mapping[str, Any]) -> list[Dimension]:
    dimensions = []
    for key, content in _mapping(parts, "grid").items():
        values = _values(composer, key, content)
        if not values:
            raise ConfigError(f"grid.{key} names no value.")
        dimensions.append(Dimension(tuple({key: value} for value in values)))
    return dimensions


def _values(composer: Composer, key: str, content: Any) -> tuple[Any, ...]:
    """Returns the values of a list, one value, or Hydra's grammar: range(1,9,2), glob(s*), and for non-text 1,2,4."""
    if isinstance(content, dict):
        raise ConfigError(f"grid.{key} must be a list of values.")
    if isinstance(content, list):
        return tuple(content)
    if isinstance(content, str) and (
        _FUNCTION.fullmatch(content) or ("," in content and not takes_text(RunConfig, key))
    ):
        return discrete(composer, parse_override(f"{key}={content}")).values
    return (content,)


def discrete(composer: Composer, axis: Axis) -> Axis:
    """Returns the axis with values for a glob. Raises ConfigError for an interval: only a search draws from one."""
    interval = axis.values[0]
    if isinstance(interval, Interval):
        raise ConfigError(
            f"'{axis}' is an interval, from which only a search draws. Add --sampler random, or write: "
            f"{axis.key}={interval.low:g},{interval.high:g}"
        )
    return composer.expanded(axis)


def _zip(parts: Mapping[str, Any]) -> list[Dimension]:
    columns = _mapping(parts, "zip")
    for key, values in columns.items():
        if not isinstance(values, list) or not values:
            raise ConfigError(f"zip.{key} must be a list of values.")
    lengths = {key: len(values) for key, values in columns.items()}
    if len(set(lengths.values())) > 1:
        counts = " and ".join(f"{key} {length}" for key, length in lengths.items())
        raise ConfigError(f"zip: keys advance together, so each needs as many values as the others, not: {counts}.")
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return [Dimension(tuple(rows))] if rows else []


def _points(parts: Mapping[str, Any]) -> list[Dimension]:
    if "points" not in parts:
        return []
    points = parts["points"]
    if not isinstance(points, list) or not points or not all(isinstance(point, dict) and point for point in points):
        raise ConfigError(
            "points must be a list of partial configurations, as in: points: [{expert: 1}, {expert: 8, k: 2}]"
        )
    return [Dimension(tuple({str(key): value for key, value in point.items()} for point in points))]


def _conditions(parts: Mapping[str, Any]) -> tuple[Expression, ...]:
    content = parts.get("where", [])
    conditions = content if isinstance(content, list) else [content]
    if not all(isinstance(condition, str) for condition in conditions):
        raise ConfigError("where must be a condition or a list of them, as in: where: k <= expert")
    return tuple(parse_expression(condition) for condition in conditions)


def check_tuned_setting(key: str, setting: object) -> str:
    """Returns the setting to tune. Raises ConfigError for another setting than the learning rate."""
    if setting not in TUNABLE:
        raise ConfigError(f"{key} can be {' or '.join(TUNABLE)}, not: {format_setting(setting)}.")
    return str(setting)


def _tune(parts: Mapping[str, Any]) -> str | None:
    if parts.get("tune") is None:
        return None
    if "search" in parts:
        raise ConfigError("tune and search both try settings: give one of them.")
    return check_tuned_setting("tune", parts["tune"])


def _baseline(parts: Mapping[str, Any]) -> Partial | None:
    baseline = parts.get("baseline", DENSE)
    if baseline is not None and (not isinstance(baseline, dict) or not baseline):
        raise ConfigError("baseline must be a partial configuration, as in: baseline: {expert: 1}. Without one: null")
    for key in () if baseline is None else baseline:
        if key in ("train", "experiment"):
            raise ConfigError(f"baseline: a run does not record its choice of {key}. Name the settings that it brings.")
    return None if baseline is None else {str(key): value for key, value in baseline.items()}


def _baseline_budgets(parts: Mapping[str, Any]) -> tuple[float, ...]:
    content = parts.get("baseline_budgets", [])
    if content and parts.get("baseline", DENSE) is None:
        raise ConfigError("baseline_budgets are budgets of a baseline, and baseline is null: leave one of them out.")
    return check_multiples("baseline_budgets", content)


def check_multiples(name: str, content: Any) -> tuple[float, ...]:
    """Returns multiples of a budget in order, from a list or one number.

    Raises:
        ConfigError: one is 1, or not a number from 0.01 to 100.
    """
    values = content if isinstance(content, list | tuple) else [content]
    for value in values:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not MIN_MULTIPLE <= value <= MAX_MULTIPLE or value == 1:
            raise ConfigError(
                f"{name}: {format_setting(value)} is no multiple of the budget: give numbers from {MIN_MULTIPLE:g} to "
                f"{MAX_MULTIPLE:g} other than 1, such as 1.5 and 2."
            )
    return tuple(sorted({float(value) for value in values}))
