"""Plans a search: its search space, fixed settings and objectives. Does not import Optuna."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moe_cli.config.axes import Axis, Interval
from moe_cli.config.bounds import SEARCH_SEED, TRIALS
from moe_cli.config.build import check_choice, did_you_mean, kinds_of, names_of
from moe_cli.config.compose import Composer
from moe_cli.config.expressions import Expression
from moe_cli.config.folders import GROUPS
from moe_cli.config.foreign_names import unknown_setting
from moe_cli.config.overrides import parse_overrides
from moe_cli.config.ranges import check_whole, format_setting
from moe_cli.config.resolve import Resolved
from moe_cli.config.schema import RunConfig
from moe_cli.config.search_block import PRUNERS, SAMPLERS, Domain, SearchBlock, checked
from moe_cli.config.sweep_file import Partial, SweepFile, load_sweep_file
from moe_cli.config.training import BUDGET_KEYS, is_execution
from moe_cli.errors import BadValue, ConfigError
from moe_cli.metrics import BY_KEY, ESTIMATES, LOSS, ROUTING, SIZE, SPEED, keys_of
from moe_cli.runs.folder import outputs_folder
from moe_cli.runs.lookup import sweep_folder
from moe_cli.sweeps.ablation import is_ablation, plan_ablation
from moe_cli.sweeps.plan import (
    SweepPlan,
    check_condition,
    check_folder,
    compose,
    declared_by,
    find_sweep_file,
    is_named,
    parse_conditions,
    plan_sweep,
    seeds_of,
)

UNNAMED_SEARCH = "search"
DEFAULT_TRIALS = 20
# Metrics with a better direction.
OBJECTIVES = tuple(key for key in keys_of(SIZE, LOSS, SPEED, ROUTING) if BY_KEY[key].direction)
SIGNIFICANT_DIGITS = 4


@dataclass(frozen=True)
class SearchOptions:
    """Search options of the command line; None means the sweep file's value, else the default."""

    sampler: str | None = None
    trials: int | None = None
    objective: str | None = None
    prune: str | None = None
    seed: int | None = None

    def first_option(self) -> str | None:
        """Returns the first given option that only a search has, as it was typed."""
        for name, value in (
            ("trials", self.trials),
            ("objective", self.objective),
            ("prune", self.prune),
            ("search-seed", self.seed),
        ):
            if value is not None:
                return f"--{name} {value}"
        return None


@dataclass(frozen=True)
class SearchPlan:
    """A planned search.

    Attributes:
        name: the folder under outputs/.
        space: the domain of each setting that varies.
        fixed: the other settings.
        seeds: the seeds of each configuration; the result of a trial is the mean over them.
        trials: the number of trials, including those of earlier commands.
        objectives: keys of the metrics in OBJECTIVES.
        overrides: the arguments of the command: overrides, after the name of the sweep if it has one.
        declared: the question and the baseline that the command declares.
    """

    name: str
    question: str
    space: Mapping[str, Domain]
    fixed: Partial
    where: tuple[Expression, ...]
    seeds: tuple[int, ...]
    sampler: str
    trials: int
    objectives: tuple[str, ...]
    prune: str | None
    search_seed: int
    composer: Composer
    overrides: tuple[str, ...] = ()
    declared: Mapping[str, Any] = field(default_factory=dict)

    @property
    def conf_notes(self) -> tuple[str, ...]:
        """Returns a note where ./conf is used although no option names it."""
        return self.composer.notes

    @property
    def identity(self) -> dict[str, Any]:
        """Returns the settings that all trials of one search share."""
        fixed = {key: value for key, value in self.fixed.items() if not is_execution(key)}
        return {
            "space": {key: format_domain(domain) for key, domain in self.space.items()},
            "settings": fixed,
            "objectives": list(self.objectives),
            "seeds": list(self.seeds),
            "where": [condition.text for condition in self.where],
        }

    @property
    def size(self) -> int | None:
        """Returns the number of configurations; None means infinite."""
        size = 1
        for key, domain in self.space.items():
            number = num_values(key, domain)
            if number is None:
                return None
            size *= number
        return size

    def trial_overrides(self, drawn: Mapping[str, Any]) -> list[str]:
        """Returns the settings of a trial as overrides of `moe train`."""
        return [f"{key}={format_setting(value)}" for key, value in (*self.fixed.items(), *self.settings(drawn).items())]

    def label(self, drawn: Mapping[str, Any]) -> str:
        return " ".join(f"{key}={format_setting(value)}" for key, value in self.settings(drawn).items())

    def settings(self, drawn: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the drawn settings in the order of the space; fractions are rounded to four digits."""
        return {key: _rounded(domain, drawn[key]) for key, domain in self.space.items() if key in drawn}

    def resolved(self, drawn: Mapping[str, Any]) -> list[Resolved]:
        """Returns the configuration of a trial for each seed.

        Raises ConfigError if it is impossible or does not meet a condition.
        """
        values, found = {**self.fixed, **self.settings(drawn)}, []
        for seed in self.seeds:
            resolved = compose(self.composer, {**values, "seed": seed}, self.where)
            if not isinstance(resolved, Resolved):
                raise ConfigError(resolved or "a condition of 'where' does not hold.")
            found.append(resolved)
        return found

    def configs(self, drawn: Mapping[str, Any]) -> list[RunConfig]:
        """Returns the configurations of a trial; see `resolved`."""
        return [resolved.config for resolved in self.resolved(drawn)]


def plan_sweep_or_search(
    overrides: Sequence[str],
    options: SearchOptions,
    *,
    baseline: str | None = None,
    baseline_budgets: Sequence[float] | None = None,
    tune: str | None = None,
    source: str | None = None,
    outputs: Path | None = None,
    config_dir: Path | None = None,
    **arguments: Any,
) -> SweepPlan | SearchPlan:
    """Returns the planned search, ablation, or else sweep, of these overrides.

    Args:
        source: the run or the experiment to ablate, if the first word is `ablate`.
        outputs: the folder in which a run is looked up.
        arguments: seeds, name and where, as `plan_sweep` takes them.

    Raises:
        ConfigError: a word is wrong, no point can be run, or a search has a baseline or is tuned.
    """
    if is_ablation(overrides, source):
        typed = "--sampler" if options.sampler else options.first_option() or ("--baseline" if baseline else None)
        typed = "--where" if arguments.pop("where", ()) else typed
        typed = "--baseline-budgets" if baseline_budgets is not None else typed
        if typed:
            raise ConfigError(f"{typed} has no effect on an ablation, which chooses its points and its baseline.")
        folder = outputs_folder(None) if outputs is None else outputs
        return plan_ablation(overrides, source or "", folder, tune=tune, config_dir=config_dir, **arguments)
    composer = Composer(config_dir)
    if options.sampler is None and not (is_named(overrides) and load_sweep_file(composer, overrides[0]).search):
        if typed := options.first_option():
            raise ConfigError(f"{typed} is for a search. Add: --sampler tpe")
        arguments |= {"baseline": baseline, "baseline_budgets": baseline_budgets, "tune": tune}
        return plan_sweep(overrides, config_dir=config_dir, **arguments)
    search = plan_search(overrides, options, composer=composer, **arguments)
    if baseline is not None:
        raise ConfigError(
            f"--baseline {baseline} is for sweeps; a search draws its points. "
            "Give it to the report: moe report --baseline"
        )
    if baseline_budgets is not None:
        raise ConfigError("--baseline-budgets is for sweeps; a search draws its points. Leave it out.")
    if tune is not None:
        raise ConfigError(f"--tune {tune} is for sweeps; a search tries {tune} itself if its space has it.")
    return search


def plan_search(
    overrides: Sequence[str],
    options: SearchOptions,
    *,
    seeds: int | None = None,
    name: str | None = None,
    where: Sequence[str] = (),
    composer: Composer,
) -> SearchPlan:
    """Plans the search of `moe sweep WORDS --sampler ...`. It draws the settings that have several values.

    Raises:
        ConfigError: a word or an option is wrong, or no setting has several values.
    """
    axes = {axis.key: axis for axis in parse_overrides(overrides[1:] if is_named(overrides) else overrides)}
    sweep = find_sweep_file(composer, overrides, axes.pop("preset", None))
    block = sweep.search or SearchBlock({})
    seed = axes.pop("seed", None)
    if seed is not None and isinstance(seed.values[0], Interval):
        raise ConfigError(f"{seed}: seeds are not searched. Give: --seeds 3")
    run_seeds = seeds_of(seed, seeds, sweep)
    domains = _domains(composer, sweep, block, axes.values())
    space = {key: domain for key, domain in domains.items() if isinstance(domain, Interval) or len(domain) > 1}
    conditions = (*sweep.blocks[0].where, *parse_conditions(where))
    if not space:
        composer.point({key: domain[0] for key, domain in domains.items()})  # type: ignore[index]
        raise ConfigError(
            "nothing to search: every setting has one value. "
            "Give an interval or several values: optim.lr='interval(0.001,0.1)'"
        )
    for condition in sweep.blocks[0].where:
        check_condition(condition)
    _check_values(composer, domains)
    objectives = parse_objectives(options.objective or block.objective or "val_bpb")
    prune = block.prune if options.prune is None else check_choice("--prune", options.prune, PRUNERS)
    _check_prune(prune, objectives)
    return SearchPlan(
        check_folder(name if name is not None else sweep_folder(sweep.name) if is_named(overrides) else UNNAMED_SEARCH),
        sweep.question,
        space,
        {key: domain[0] for key, domain in domains.items() if key not in space},  # type: ignore[index]
        conditions,
        tuple(run_seeds),
        (block.sampler or "tpe") if options.sampler is None else check_choice("--sampler", options.sampler, SAMPLERS),
        (block.trials or DEFAULT_TRIALS)
        if options.trials is None
        else check_whole("--trials", options.trials, most=TRIALS),
        objectives,
        prune,
        check_whole("--search-seed", options.seed or 0, 0, SEARCH_SEED),
        composer,
        tuple(overrides),
        declared_by(overrides, sweep.question, sweep.baseline),
    )


def _check_values(composer: Composer, domains: Mapping[str, Domain]) -> None:
    """Raises BadValue for a value that is invalid in every configuration.

    Impossible combinations are found when they are drawn.
    """
    first = {key: domain.high if isinstance(domain, Interval) else domain[0] for key, domain in domains.items()}
    for key, domain in domains.items():
        for value in (domain.high,) if isinstance(domain, Interval) else domain:
            try:
                composer.point({**first, key: value})
            except BadValue:
                raise
            except ConfigError:
                continue


def _domains(composer: Composer, sweep: SweepFile, block: SearchBlock, axes: Any) -> dict[str, Domain]:
    """Returns the domain of each setting, from the command line, else the file's part `search`, else the file."""
    if len(sweep.blocks) > 1 or any(len(dimension.keys) > 1 for dimension in sweep.blocks[0].dimensions):
        raise ConfigError(
            f"the sweep {sweep.name} lists whole configurations (zip, points or union), and a search draws single "
            "settings. Run it without --sampler."
        )
    domains: dict[str, Domain] = {}
    for dimension in sweep.blocks[0].dimensions:
        (key,) = dimension.keys
        domains[key] = tuple(option[key] for option in dimension.options)
    domains |= block.space
    for axis in axes:
        if axis.key in BUDGET_KEYS and axis.values != (None,):
            domains = {key: domain for key, domain in domains.items() if key not in BUDGET_KEYS or domain == (None,)}
        domains[axis.key] = _domain_of(composer, axis)
    for key, domain in domains.items():
        if isinstance(domain, Interval):
            _check_interval(key, domain)
    return {
        key: domain if isinstance(domain, Interval) else tuple(dict.fromkeys(domain)) for key, domain in domains.items()
    }


def _domain_of(composer: Composer, axis: Axis) -> Domain:
    first = axis.values[0]
    return checked(axis.key, first) if isinstance(first, Interval) else composer.expanded(axis).values


def _check_interval(key: str, interval: Interval) -> None:
    """Raises ConfigError if the setting is not a number, or is an integer and the interval has fractions."""
    kinds, known = _kinds(key), [*names_of(RunConfig), *GROUPS]
    if not kinds and key not in known:
        raise ConfigError(unknown_setting(key, known))
    if not kinds & {int, float}:
        raise ConfigError(f"{key}={interval} is an interval of numbers, and {key} is no number. Write: {key}=A,B")
    if is_whole(key) and any(bound != int(bound) for bound in (interval.low, interval.high, interval.step or 1)):
        raise ConfigError(
            f"{key}={interval}: {key} is a whole number, so the bounds of its interval must be whole numbers."
        )


def is_whole(key: str) -> bool:
    """Returns whether a setting must be a whole number."""
    return float not in _kinds(key)


def _kinds(key: str) -> set[type]:
    """Returns the types of a setting; balance.switch.weight has the types of balance.weight."""
    group, _, name = key.partition(".")
    return kinds_of(RunConfig, key) or kinds_of(RunConfig, f"{group}.{name.rpartition('.')[2]}")


def num_values(key: str, domain: Domain) -> int | None:
    """Returns the number of values in a domain; None means infinite."""
    if not isinstance(domain, Interval):
        return len(domain)
    step = domain.step or (1 if is_whole(key) else None)
    return None if step is None else int((domain.high - domain.low) / step + 1e-9) + 1


def parse_objectives(text: str) -> tuple[str, ...]:
    """Parses `val_bpb` or `val_bpb,flops_per_token`. Raises ConfigError for a name that is not an objective."""
    names = tuple(name.strip() for name in text.split(","))
    for name in names:
        if name not in OBJECTIVES:
            hint = did_you_mean(name, OBJECTIVES)
            raise ConfigError(f"--objective {name}: no such result.{hint} Available: {', '.join(OBJECTIVES)}.")
    if len(set(names)) < len(names):
        raise ConfigError(f"--objective {text} names a result twice.")
    return names


def check_has_value(objectives: Sequence[str], config: RunConfig) -> None:
    """Raises ConfigError for an objective without a value in this configuration."""
    for name in objectives:
        if config.dense and BY_KEY[name].kind == ROUTING:
            raise ConfigError(
                f"--objective {name}: a dense model has no such value, and the search draws expert=1. "
                "Leave out expert=1."
            )
        if config.capacity is None and name == "capacity_val_loss":
            raise ConfigError(
                f"--objective {name}: a dropless model has no such value, and the search draws one. "
                "Give a capacity: capacity=1.25"
            )


def _check_prune(prune: str | None, objectives: tuple[str, ...]) -> None:
    if prune is None:
        return
    if len(objectives) > 1:
        raise ConfigError(
            f"--prune {prune} compares runs by one metric, not by {' and '.join(objectives)}. "
            "Leave out --prune, or give one metric."
        )
    if objectives[0] not in ESTIMATES:
        raise ConfigError(
            f"--prune {prune}: {objectives[0]} is known only at the end of a run. "
            f"Prune by one of: {', '.join(ESTIMATES)}."
        )


def _rounded(domain: Domain, value: Any) -> Any:
    if not isinstance(domain, Interval) or not isinstance(value, float):
        return value
    return min(max(float(f"{value:.{SIGNIFICANT_DIGITS}g}"), domain.low), domain.high)


def format_domain(domain: Domain) -> str:
    """Returns the domain as an override."""
    return str(domain) if isinstance(domain, Interval) else ",".join(map(format_setting, domain))
