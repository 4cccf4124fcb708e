"""Plans a sweep: composes and checks the configurations of all runs before the first run starts, without torch."""

import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from moe_cli import __version__
from moe_cli.config.axes import Axis
from moe_cli.config.baselines import parse_baseline
from moe_cli.config.bounds import CONFIGURATIONS, RUNS, SEEDS, shortened
from moe_cli.config.build import build, names_of
from moe_cli.config.compose import Composer
from moe_cli.config.expressions import Expression, parse_expression
from moe_cli.config.folders import GROUPS
from moe_cli.config.foreign_names import explain_word
from moe_cli.config.ignored_settings import SPARSE_ONLY, is_in_group
from moe_cli.config.overrides import parse_overrides
from moe_cli.config.ranges import check_whole, format_setting
from moe_cli.config.resolve import Resolved
from moe_cli.config.schema import RunConfig
from moe_cli.config.settings import replace_unchecked
from moe_cli.config.sweep_file import (
    DEFAULT_PRESET,
    DENSE,
    SWEEP,
    Block,
    Dimension,
    FileKind,
    Partial,
    SweepFile,
    check_multiples,
    check_tuned_setting,
    discrete,
    load_sweep_file,
)
from moe_cli.errors import BadValue, ConfigError
from moe_cli.execution.upcycling import resolve_upcycle_source
from moe_cli.files.writing import make_folder
from moe_cli.formatting import plural, sanitise
from moe_cli.report.sweep_record import record_command
from moe_cli.runs.folder import Run, open_or_create_run
from moe_cli.runs.lookup import sweep_folder

UNNAMED_SWEEP = "sweep"
# The longest folder name of a sweep. File systems allow 255 bytes, and other files have this name with a suffix.
MAX_NAME_BYTES = 200


@dataclass(frozen=True)
class SweepPoint:
    """One run of a sweep. The label gives the settings that vary: expert=16 k=2 seed=1."""

    label: str
    config: RunConfig


@dataclass(frozen=True)
class SkippedPoint:
    """An impossible point and the reason."""

    label: str
    reason: str


@dataclass(frozen=True)
class SweepPlan:
    """The runs of a sweep.

    Attributes:
        notes: given settings that have no effect in some points.
        conf_notes: whether ./conf is used although no option names it.
        name: the folder under outputs/.
        question: the question that a sweep file answers; "" for a sweep typed by hand.
        num_repeats: points with the same configuration as an earlier one, such as dense with each router.
        num_excluded: points that a condition of `where` excludes.
        overrides: the arguments of the command: overrides, after the name of the sweep if it has one.
        where: the conditions of the command.
        baseline: the partial configuration of the report's baseline; None means that the report chooses it.
        tune: the setting that is tuned for each configuration before the comparison; `sweeps.tuning` does it.
        record: further entries of sweep.json, on the tuning.
    """

    name: str
    question: str
    points: tuple[SweepPoint, ...]
    left_out: tuple[SkippedPoint, ...]
    num_repeats: int
    num_seeds: int
    notes: tuple[str, ...]
    num_excluded: int = 0
    overrides: tuple[str, ...] = ()
    baseline: Partial | None = None
    where: tuple[str, ...] = ()
    conf_notes: tuple[str, ...] = ()
    tune: str | None = None
    record: Mapping[str, Any] | None = None

    @property
    def num_configurations(self) -> int:
        return len(self.points) // self.num_seeds

    def with_upcycle_source(self, outputs: Path) -> "SweepPlan":
        """Returns the plan with the full name of the run that train.upcycle_from denotes.

        Raises MoeError if the weights of that run do not fit.
        """
        points = (replace(point, config=resolve_upcycle_source(point.config, outputs)) for point in self.points)
        return replace(self, points=tuple(points))

    def create_runs(self, outputs: Path) -> list[Run]:
        """Creates the missing run folders, writes sweep.json, and returns all run folders."""
        runs = [open_or_create_run(outputs, self.name, point.config) for point in self.points]
        seeds = dict.fromkeys(point.config.seed for point in self.points)
        declared = declared_by(self.overrides, self.question, self.baseline)
        record_command(
            make_folder(outputs / self.name),
            self.overrides,
            declared,
            seeds=tuple(seeds),
            where=self.where,
            version=__version__,
            also=self.record,
        )
        return runs

    def runs(self, outputs: Path) -> list[Run]:
        """Returns the run folders of the points, which may not exist yet."""
        return [Run(outputs / self.name / point.config.run_id) for point in self.points]


def plan_sweep(  # noqa: PLR0913  (an argument for each option)
    overrides: Sequence[str],
    *,
    seeds: int | None = None,
    name: str | None = None,
    where: Sequence[str] = (),
    baseline: str | None = None,
    baseline_budgets: Sequence[float] | None = None,
    tune: str | None = None,
    config_dir: Path | None = None,
    kind: FileKind = SWEEP,
) -> SweepPlan:
    """Returns the plan of `moe sweep WORDS`. The first word may name a sweep file; the others are settings.

    Args:
        kind: the kind of file that the first word may name.
        seeds: the number of seeds of each configuration; None means that of the file, else 1.
        name: the folder under outputs/; None means the file's name, or "sweep".
        where: conditions that every point must fulfil, such as "k <= expert".
        baseline: settings of the report's baseline, such as "balance=none"; None means that of the file.
        baseline_budgets: multiples of each budget that the baseline is trained at too; None means those of the file.
        tune: the setting to tune for each configuration first: "optim.lr"; None means that of the file.

    Raises:
        ConfigError: a word is wrong, or no point is left.
    """
    composer = Composer(config_dir)
    axes = {axis.key: axis for axis in parse_overrides(overrides[1:] if is_named(overrides) else overrides)}
    sweep = find_sweep_file(composer, overrides, axes.pop("preset", None), kind)
    assert sweep.search is None, "plan_search plans searches"
    if baseline is not None:
        sweep = replace(sweep, baseline=parse_baseline(baseline))
    if baseline_budgets is not None:
        multiples = check_multiples("--baseline-budgets", baseline_budgets)
        sweep = replace(sweep, baseline=sweep.baseline or DENSE, baseline_budgets=multiples)
    if tune is not None:
        sweep = replace(sweep, tune=check_tuned_setting("--tune", tune))
    axes = {key: discrete(composer, axis) for key, axis in axes.items()}
    run_seeds = seeds_of(axes.pop("seed", None), seeds, sweep)
    conditions = parse_conditions(where)
    if (
        not is_named(overrides)
        and not seeds
        and len(run_seeds) == 1
        and all(len(axis.values) == 1 for axis in axes.values())
    ):
        composer.point({key: axis.values[0] for key, axis in axes.items()})  # reports unknown names first
        raise ConfigError(
            "nothing varies. Give several values, as in: moe sweep expert=1,8 k=1,2. "
            "Or name a sweep: moe config --groups"
        )
    found = find_configurations(composer, sweep, axes.values(), conditions, run_seeds)
    if found.no_baseline and (baseline is not None or found.wrong_baseline):
        raise ConfigError(f"{'baseline' if baseline is None else f'--baseline {baseline}'}: {found.no_baseline}")
    if sweep.tune is not None:
        _refuse_equal_but_for_rate(found.configs)
    folder = check_folder(sweep_folder(sweep.name) if name is None else name)
    points = [
        SweepPoint(f"{label} seed={seed}".strip(), replace_unchecked(config, seed=seed))
        for seed in run_seeds
        for config, label in found.configs.items()
    ]
    return SweepPlan(
        folder,
        sweep.question,
        tuple(points),
        tuple(found.left_out.values()),
        found.repeats * len(run_seeds),
        len(run_seeds),
        tuple(found.notes),
        found.excluded,
        tuple(overrides),
        sweep.baseline,
        tuple(where),
        composer.notes,
        sweep.tune,
    )


def find_configurations(
    composer: Composer,
    sweep: SweepFile,
    axes: Collection[Axis],
    conditions: tuple[Expression, ...],
    seeds: Sequence[int],
) -> "Configurations":
    """Returns the configurations of a file with the typed values and conditions, at the first seed.

    Raises:
        ConfigError: they are too many for this number of seeds, or none can be run.
    """
    blocks = [_apply_overrides(block, axes, conditions) for block in sweep.blocks]
    _check_size(blocks, len(seeds))
    found = _find(composer, blocks, sweep, seeds[0])
    if not found.configs:
        raise ConfigError(_reasons(found))
    return found


def _refuse_equal_but_for_rate(configs: Iterable[RunConfig]) -> None:
    """Raises ConfigError if configurations differ only in the learning rate, which is tuned."""
    seen: dict[RunConfig, float] = {}
    for config in configs:
        rate = seen.setdefault(
            replace_unchecked(config, optim=replace_unchecked(config.optim, lr=1.0)), config.optim.lr
        )
        if rate != config.optim.lr:
            raise ConfigError(
                f"optim.lr has several values ({rate:g}, {config.optim.lr:g}) and is tuned: give one value, from which "
                "the trials start, or do not tune it."
            )


def _check_size(blocks: Sequence[Block], seeds: int) -> None:
    """Raises ConfigError for too many points, before they are composed."""
    number = sum(block.num_points for block in blocks)
    if number > CONFIGURATIONS or number * seeds > RUNS:
        raise ConfigError(
            f"{shortened(number)} configurations x {seeds} seeds are too many: at most {CONFIGURATIONS:,} and "
            f"{RUNS:,} runs.\nGive fewer values or seeds, or draw some of them: --sampler random --trials 100"
        )


def check_folder(folder: str) -> str:
    """Returns the folder name of a sweep. Raises ConfigError if it is no plain name."""
    if Path(folder).name != folder or folder.startswith(".") or not folder.isprintable() or not folder.strip():
        raise ConfigError(f"--name {sanitise(shortened(folder))} must be a plain folder name.")
    if len(os.fsencode(folder)) > MAX_NAME_BYTES:
        raise ConfigError(f"--name {shortened(folder)} is too long: at most {MAX_NAME_BYTES} bytes.")
    if folder == "latest":
        raise ConfigError("--name latest is the name of the newest run in other commands. Choose another name.")
    return folder


def is_named(overrides: Sequence[str]) -> bool:
    """Returns whether the first word names a sweep file."""
    return bool(overrides) and "=" not in overrides[0] and explain_word(overrides[0]) is None


def declared_by(overrides: Sequence[str], question: str, baseline: Partial | None) -> dict[str, Any]:
    """Returns the declarations of a command: question and baseline of a named sweep, else the typed baseline."""
    if is_named(overrides):
        return {"question": question, "baseline": baseline}
    return {} if baseline is None else {"baseline": baseline}


def find_sweep_file(
    composer: Composer, overrides: Sequence[str], preset: Axis | None, kind: FileKind = SWEEP
) -> SweepFile:
    """Returns the named file of a kind with its preset; for a sweep typed by hand, an empty one."""
    if is_named(overrides):
        if preset is not None and len(preset.values) > 1:
            raise ConfigError(f"'{preset}' names several presets: a {kind.noun} has one.")
        name = DEFAULT_PRESET if preset is None else format_setting(preset.values[0])
        return load_sweep_file(composer, overrides[0], name, kind)
    if preset is not None:
        raise ConfigError(f"'{preset}' chooses the size of a named sweep. Name one first: moe config --groups")
    return SweepFile(UNNAMED_SWEEP, "", (Block(),), 1, None)


def seeds_of(axis: Axis | None, count: int | None, sweep: SweepFile) -> list[int]:
    """Returns the seeds of the sweep. Raises ConfigError for invalid seeds, or if two options choose them."""
    if count is not None:
        check_whole("--seeds", count, most=SEEDS)
    if axis is None:
        return list(range(count or sweep.seeds))
    if count is not None:
        raise ConfigError(f"{axis} and --seeds {count} both choose seeds: give one.")
    return list(dict.fromkeys(build(RunConfig, {"seed": value}).seed for value in axis.values))


def _apply_overrides(block: Block, axes: Iterable[Axis], conditions: tuple[Expression, ...]) -> Block:
    """Returns the block of a file with the typed values applied."""
    for axis in axes:
        block = block.with_dimension(Dimension(tuple({axis.key: value} for value in axis.values)))
    return replace(block, where=block.where + conditions)


@dataclass
class Configurations:
    """The configurations of a sweep at its first seed, and the points that were left out.

    Attributes:
        configs: their labels.
        no_baseline: the reason why none of the baselines can be run.
        wrong_baseline: whether a baseline has a value that is invalid in every configuration.
    """

    configs: dict[RunConfig, str] = field(default_factory=dict)
    run_ids: set[str] = field(default_factory=set)
    left_out: dict[str, SkippedPoint] = field(default_factory=dict)
    repeats: int = 0
    excluded: int = 0
    notes: dict[str, None] = field(default_factory=dict)
    no_baseline: str = ""
    wrong_baseline: bool = False


def _reasons(found: Configurations) -> str:
    """Returns why no point can be run, with the effect of `where`, in at most three lines."""
    reasons = {point.reason for point in found.left_out.values()}
    if len(reasons) == 1 and not found.excluded:
        return reasons.pop()
    lines = [f"{point.label}: {point.reason}" for point in found.left_out.values()][: 1 if found.excluded else 2]
    if found.excluded:
        lines.append(f"'where' leaves out {plural(found.excluded, 'point')}.")
    return "\n".join(["no combination of these settings can be run.", *lines])


def parse_conditions(texts: Sequence[str]) -> tuple[Expression, ...]:
    """Returns the conditions of `--where`. Raises ConfigError for one that cannot be read or is about no setting."""
    conditions = tuple(map(parse_expression, texts))
    for condition in conditions:
        check_condition(condition)
    return conditions


def check_condition(condition: Expression) -> None:
    """Raises ConfigError if a condition uses other names than settings, or the seed."""
    condition.check({*names_of(RunConfig), *GROUPS}, "setting")
    if "seed" in condition.names:
        raise ConfigError(f"'{condition.text}': every configuration has all seeds. Choose them: seed=0,1")


def _find(composer: Composer, blocks: Sequence[Block], sweep: SweepFile, seed: int) -> Configurations:
    """Composes each configuration once, and adds the baselines that are not among them, at all their budgets."""
    baseline = sweep.baseline
    points = [(values, block.where) for block in blocks for values in block.settings()]
    for condition in dict.fromkeys(condition for block in blocks for condition in block.where):
        check_condition(condition)
    found, write = Configurations(), _labels([values for values, _ in points], baseline)
    bases: dict[str, dict[str, Any]] = {}
    for values, where in points:
        label, resolved = write(values), compose(composer, {**values, "seed": seed}, where)
        if isinstance(resolved, str):
            found.left_out[label] = SkippedPoint(label or "this point", resolved)
            continue
        if resolved is None:
            found.excluded += 1
            continue
        found.notes |= dict.fromkeys(resolved.notes)
        if resolved.config.run_id in found.run_ids:
            found.repeats += 1
        else:
            found.run_ids.add(resolved.config.run_id)
            found.configs[resolved.config] = label
        if baseline is not None:
            base = _with_baseline(values, baseline)
            bases.setdefault(repr(sorted(base.items())), base)
    _add_baselines(composer, found, bases.values(), sweep.baseline_budgets, write, seed)
    return found


def _add_baselines(
    composer: Composer,
    found: Configurations,
    bases: Iterable[Partial],
    multiples: Sequence[float],
    write: Callable[[Partial], str],
    seed: int,
) -> None:
    """Inserts the missing baselines before the configurations, or records why none can be run."""
    first: dict[RunConfig, str] = {}
    reasons: dict[str, None] = {}
    for base in bases:
        label = write(base)
        try:
            config = compose_run(composer, {**base, "seed": seed}).config
            first.setdefault(config, label)
            for multiple in multiples:
                budget = _scaled_budget(config, multiple)
                longer = compose_run(composer, {**base, **budget, "seed": seed}).config
                first.setdefault(longer, f"{label} budget x{multiple:g}".strip())
        except ConfigError as error:
            found.wrong_baseline |= isinstance(error, BadValue)
            found.left_out[label] = SkippedPoint(f"baseline {label}".rstrip(), str(error))
            reasons[str(error)] = None
    if reasons and not first:
        found.no_baseline = "\n".join([*reasons][:2])
    new = {config: label for config, label in first.items() if config.run_id not in found.run_ids}
    found.configs = new | found.configs


def _scaled_budget(config: RunConfig, multiple: float) -> dict[str, Any]:
    """Returns the budget of a run times a number, as a setting."""
    name, amount = config.train.budget
    amount *= multiple
    return {f"train.{name}": max(1, round(amount)) if name in ("steps", "tokens") else amount}


def compose(composer: Composer, values: Partial, where: Sequence[Expression]) -> Resolved | str | None:
    """Returns the configuration; the reason if it is impossible; None if a condition does not hold.

    A condition refers to settings as given, so that `k <= expert` can exclude impossible points. A setting that is null
    has its derived value.

    Raises BadValue for a value that is invalid in every configuration.
    """
    names = {name for condition in where for name in condition.names}
    try:
        tree = composer.tree(values) if names else {}
    except BadValue:
        raise
    except ConfigError as error:
        return str(error)
    present = {name: _setting_value(tree, values, name) for name in names}
    decided = [condition for condition in where if all(present[name] is not None for name in condition.names)]
    if not all(condition.holds(present) for condition in decided):
        return None
    try:
        resolved = compose_run(composer, values)
    except BadValue:
        raise
    except ConfigError as error:
        return str(error)
    derived = {name: _derived(resolved.config, name) if value is None else value for name, value in present.items()}
    return resolved if all(condition.holds(derived) for condition in where) else None


def compose_run(composer: Composer, values: Partial) -> Resolved:
    """Composes a run of a sweep, with one thread unless train.threads is set.

    A second parallel run gains more than a second thread. With a fixed number of threads, the last digits of results do
    not depend on the number of parallel runs.
    """
    resolved = composer.point(values)
    train = resolved.config.train
    one = train if train.threads is not None else replace_unchecked(train, threads=1)
    return replace(resolved, config=replace_unchecked(resolved.config, train=one))


def _setting_value(tree: Mapping[str, Any], values: Partial, name: str) -> Any:
    """Returns the value of a setting, or the name of a group's choice."""
    if name in values:
        return values[name]
    value: Any = tree
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value.get("name") if isinstance(value, Mapping) else value


def _derived(config: RunConfig, name: str) -> Any:
    value: Any = config
    for part in name.split("."):
        value = getattr(value, part, None)
    return getattr(value, "name", value)


def _with_baseline(values: Partial, baseline: Partial) -> dict[str, Any]:
    """Returns the baseline of a configuration: its settings, replaced by those of the baseline where they conflict."""
    replaced = [key for key in baseline if key in GROUPS]
    if baseline.get("expert") == 1:
        replaced += SPARSE_ONLY
    return {**{key: value for key, value in values.items() if not is_in_group(key, replaced)}, **baseline}


def _labels(points: Sequence[Partial], baseline: Partial | None) -> Callable[[Partial], str]:
    """Returns a function that labels a configuration by the settings that vary, in the order of the command."""
    shown_values: dict[str, set[str]] = {}
    for key, value in (item for values in (*points, baseline or {}) for item in values.items()):
        shown_values.setdefault(key, set()).add(format_setting(value))
    varying = [
        key for key, shown in shown_values.items() if len(shown) > 1 or not all(key in values for values in points)
    ]
    return lambda values: " ".join(f"{key}={format_setting(values[key])}" for key in varying if key in values)
