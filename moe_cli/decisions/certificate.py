"""The certificate of a decision: its answer, the gain on fresh seeds at equal tokens, time and FLOPs, and the price."""

import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from moe_cli.config.compose import Composer
from moe_cli.config.ranges import format_setting
from moe_cli.config.schema import RunConfig
from moe_cli.config.start_config import fewest_settings
from moe_cli.decisions.decision_file import LimitOptions
from moe_cli.decisions.feed import Results, run_of
from moe_cli.decisions.plan import FLOPS, TIME, TOKENS, DecisionPlan
from moe_cli.decisions.terms import Decision, Interval, RunRequest
from moe_cli.errors import MoeError
from moe_cli.formatting import count, plural
from moe_cli.metrics import target_name
from moe_cli.report import equal_time
from moe_cli.report.configuration import losses_by_seed
from moe_cli.report.equal_time import TimedCurves, compare_at_equal_time, shortest_times
from moe_cli.report.intervals import paired_difference
from moe_cli.report.load import read_rows
from moe_cli.report.price import Price, price_over_budgets
from moe_cli.report.run_row import RunRow
from moe_cli.runs.folder import Run

# The axis of curves for each equality.
AXES = {TOKENS: equal_time.TOKENS, TIME: equal_time.SECONDS, FLOPS: equal_time.FLOPS}
WINNER_COSTS = ("params", "peak_memory_bytes", "tokens_per_second", "flops_per_token")


@dataclass(frozen=True)
class Gain:
    """The relative difference of the winner to the dense model at equal tokens, time or FLOPs, on fresh seeds.

    Attributes:
        difference: negative is better; None means unknown.
        low, high: its interval; None for one seed.
        seeds: the number of seeds with a value.
        is_final: whether final losses are compared; else losses at a common point of both curves, where the learning
            rate of the longer run had not yet fallen.
        missing: why it is unknown; "" otherwise.
    """

    by: str
    difference: float | None
    low: float | None
    high: float | None
    seeds: int
    is_final: bool
    missing: str = ""


@dataclass(frozen=True)
class Certificate:
    """A decision with what its runs cost and what the winner gains.

    Attributes:
        context: the data, the budget and the model for which this is valid.
        unit: of the losses.
        gains: the differences of the winner to the dense model; empty if the winner is dense or unknown.
        cost_ratios: ratios of the winner to the dense model, by the metric; empty likewise.
        price: the price tag of the winner; None likewise.
        train: the command that trains the winner.
        repeat: the command that decides again.
        seeds: the fresh seeds of both the winner and the dense model.
        not_tried: what was equal for all candidates, and candidates that the budget left out.
        wall_seconds: the time in which at least one run was executed.
        history: the outcomes in order of time.
    """

    name: str
    question: str
    by: str
    within: float
    alpha: float
    context: str
    unit: str
    decision: Decision
    gains: tuple[Gain, ...]
    cost_ratios: dict[str, float]
    price: Price | None
    seeds: tuple[int, ...]
    not_tried: tuple[str, ...]
    train: str | None
    repeat: str
    limits: LimitOptions
    wall_seconds: float
    history: "tuple[Finished, ...]"

    def to_dict(self) -> dict[str, Any]:
        """Returns the certificate as a JSON object."""
        return asdict(self)


@dataclass(frozen=True)
class Finished:
    """An outcome in the race: when its run ended, in runs and in seconds of wall clock since the start."""

    candidate: str
    seed: int
    fraction: float
    lr_multiplier: float
    stage: str
    loss: float | None
    runs: int
    seconds: float


def make_certificate(
    plan: DecisionPlan, decision: Decision, results: Results, limits: LimitOptions, outputs: Path
) -> Certificate:
    """Returns the certificate of a decision from the folders of its runs."""
    rates = {rate.name: rate.multiplier for rate in decision.rates}
    fresh = _fresh_rows(plan, results, rates, outputs)
    winner, dense = fresh.get((decision.winner or "", 1.0), []), fresh.get((decision.baseline or "", 1.0), [])
    larger = [rows for (name, multiple), rows in fresh.items() if name == decision.baseline and multiple != 1]
    compared = decision.winner not in (None, decision.baseline) and winner and dense
    spans = _spans(plan, results, outputs)
    config = (
        None
        if decision.winner is None
        else plan.config(RunRequest(decision.winner, plan.rules.first_seed, 1.0, rates.get(decision.winner, 1.0), ""))
    )
    return Certificate(
        plan.name,
        plan.question,
        plan.by,
        plan.rules.within,
        plan.rules.alpha,
        context_of(plan),
        _unit(winner or dense, plan.dense),
        decision,
        _gains(plan, decision, winner, dense) if compared else (),
        _cost_ratios(winner, dense) if compared else {},
        _price(winner, dense, larger) if compared else None,
        tuple(sorted(_seeds(winner) & _seeds(dense))),
        _not_tried(plan, decision),
        None if config is None else _train_command(config),
        _repeat_command(plan, limits),
        limits,
        _wall_seconds([(start, end) for _, start, end in spans]),
        _history(results, spans),
    )


def _seeds(rows: Sequence[RunRow]) -> set[int]:
    return {row.seed for row in rows if row.seed is not None}


def _fresh_rows(
    plan: DecisionPlan, results: Results, rates: dict[str, float], outputs: Path
) -> dict[tuple[str, float], list[RunRow]]:
    """Returns the complete runs of each candidate at its learning rate on fresh seeds, by candidate and budget.

    Budgets are multiples of the full one; others than 1 are those of the dense model, for the price tag.
    """
    found: dict[tuple[str, float], list[Run]] = {}
    for request, outcome in results.items():
        is_fresh = request.seed >= plan.rules.confirmation_seed
        if is_fresh and outcome.loss is not None and request.lr_multiplier == rates.get(request.candidate, 1.0):
            found.setdefault((request.candidate, request.fraction), []).append(run_of(plan, request, outputs))
    return {place: sorted(read_rows(runs), key=lambda row: row.seed or 0) for place, runs in found.items()}


def _gains(
    plan: DecisionPlan, decision: Decision, winner: Sequence[RunRow], dense: Sequence[RunRow]
) -> tuple[Gain, ...]:
    """Returns the gains at equal tokens, time and FLOPs; the first is that of what was held equal."""
    others = [by for by in (TOKENS, TIME, FLOPS) if by != plan.by]
    final = _claimed_gain(decision, plan.by) or _final_gain(plan.by, winner, dense)
    return (final, *(_gain_on_curves(by, winner, dense) for by in others))


def _claimed_gain(decision: Decision, by: str) -> Gain | None:
    """Returns the difference of the decision's own claim, whose interval holds over all looks; None without one."""
    for comparison in decision.comparisons:
        if (comparison.one, comparison.other) == (decision.winner, decision.baseline):
            found = comparison.difference
        elif (comparison.other, comparison.one) == (decision.winner, decision.baseline):
            found = _reversed(comparison.difference)
        else:
            continue
        return Gain(by, found.mean, found.low, found.high, found.seeds, True)
    return None


def _final_gain(by: str, winner: Sequence[RunRow], dense: Sequence[RunRow]) -> Gain:
    """Returns the difference of final losses over shared seeds, with its 95 % interval."""
    own, other = losses_by_seed(winner), losses_by_seed(dense)
    found = paired_difference(own, other)
    if found is None:
        return Gain(by, None, None, None, 0, True, "no common seed")
    return _with_half_width(by, found.mean, found.half_width, len(own.keys() & other.keys()), True)


def _with_half_width(by: str, mean: float, half_width: float | None, seeds: int, is_final: bool) -> Gain:
    if half_width is None:
        return Gain(by, mean, None, None, seeds, is_final)
    return Gain(by, mean, mean - half_width, mean + half_width, seeds, is_final)


def _reversed(found: Interval) -> Interval:
    """Returns the difference of the other to the one: 1 / (1 + d) - 1."""

    def turn(value: float | None) -> float | None:
        return None if value is None else 1 / (1 + value) - 1

    return Interval(1 / (1 + found.mean) - 1, turn(found.high), turn(found.low), found.seeds)


def _gain_on_curves(by: str, winner: Sequence[RunRow], dense: Sequence[RunRow]) -> Gain:
    """Returns the difference at the end of the shorter of two runs of one seed, between evaluations of both curves."""
    curves = TimedCurves(AXES[by])
    reference = {row.seed: row for row in dense}
    ends = shortest_times([*winner, *dense], reference, curves)
    found = compare_at_equal_time(winner, reference, curves, ends)
    if found is None or found.difference is None:
        reasons = list(found.missing) if found else ["no common seed"]
        return Gain(by, None, None, None, 0, False, reasons[0] if reasons else "no curve")
    return _with_half_width(by, found.difference, found.interval, found.seeds, found.is_budget)


def _cost_ratios(winner: Sequence[RunRow], dense: Sequence[RunRow]) -> dict[str, float]:
    found = {}
    for name in WINNER_COSTS:
        own, other = _mean(winner, name), _mean(dense, name)
        if own and other:
            found[name] = own / other
    return found


def _price(winner: Sequence[RunRow], dense: Sequence[RunRow], others: Sequence[Sequence[RunRow]]) -> Price | None:
    """Returns the price tag of the winner; None without a common seed. `others` are dense runs with other budgets."""
    by_seed = {row.seed: row for row in dense}
    pairs = [(row, by_seed[row.seed]) for row in winner if row.seed in by_seed]
    return price_over_budgets(pairs, [dense, *others]) if pairs else None


def _mean(rows: Sequence[RunRow], name: str) -> float | None:
    values = [value for row in rows if (value := row.number(name)) is not None]
    return sum(values) / len(values) if values else None


def context_of(plan: DecisionPlan) -> str:
    """Returns the context of a decision, such as: python, 1.23M tokens, gpt of 4 layers x 96."""
    config = plan.dense
    model = f"{config.model.name} of {plural(config.model.num_layers, 'layer')} x {config.model.d_model}"
    return ", ".join([config.data.name, training_budget(config), model])


def training_budget(config: RunConfig) -> str:
    """Returns the training budget of a run: 1.23M tokens, 2 min, 1.3e15 FLOPs."""
    train = config.train
    if train.minutes is not None:
        return f"{train.minutes:g} min of training"
    if train.flops is not None:
        return f"{count(train.flops)} FLOPs"
    tokens = train.tokens if train.tokens is not None else (train.steps or 0) * config.tokens_per_step
    return f"{count(tokens)} tokens"


def _unit(rows: Sequence[RunRow], config: RunConfig) -> str:
    if rows and rows[0].results.val_bpb is None:
        return f"nats/{target_name(config.to_dict())}"
    return "bits/byte"


def _not_tried(plan: DecisionPlan, decision: Decision) -> tuple[str, ...]:
    """Returns what the decision says nothing about: left-out candidates, more experts, and what was equal for all."""
    found = [dropped.name for dropped in decision.dropped if dropped.reason.startswith("not tried")]
    sparse = [config for config in plan.configs.values() if not config.dense]
    found.append(f"more than {max(config.expert for config in sparse)} experts")
    for group in ("router", "balance"):
        names = {getattr(getattr(config, group), "name", "none") for config in sparse}
        found += [f"other {group}s than {next(iter(names))}"] if len(names) == 1 else []
    found += ["a capacity"] if all(config.capacity is None for config in sparse) else []
    return (*found, "other data, sizes and training budgets")


def _train_command(config: RunConfig) -> str:
    """Returns the command that trains a configuration, with the fewest settings. The seed and threads are left out."""
    try:
        settings = fewest_settings(Composer(), config)
    except MoeError:  # settings of the user's own conf/
        settings = {"expert": config.expert, "k": config.k}
    settings = {key: value for key, value in settings.items() if key not in ("seed", "train.threads")}
    first: dict[str, Any] = {"expert": config.expert}
    first |= {key: settings.pop(key) for key in ("expert", "k") if key in settings}
    written = (f"{key}={format_setting(value)}" for key, value in {**first, **settings}.items())
    return f"moe train {shlex.join(written)}"


def _repeat_command(plan: DecisionPlan, limits: LimitOptions) -> str:
    """Returns the command that takes the decision again, on other seeds and in a folder of its own."""
    settings = [word for word in plan.overrides if not word.startswith("seed=")]
    options = limits.options()
    options += [f"--where {shlex.quote(condition)}" for condition in plan.where]
    options += [f"--by {plan.by}"]
    seed = plan.rules.first_seed + 5000
    written = " ".join([*map(shlex.quote, settings), f"seed={seed}"])
    return f"moe decide {written} {' '.join(options)} --name {shlex.quote(f'{plan.name}-again')}"


Span = tuple[RunRequest, float, float]


def _spans(plan: DecisionPlan, results: Results, outputs: Path) -> list[Span]:
    """Returns when each run ended and began, by its recorded end and its duration, in order of the ends."""
    found = []
    for request, outcome in results.items():
        end = run_of(plan, request, outputs).status().get("heartbeat")
        if isinstance(end, int | float):
            found.append((request, end - outcome.seconds, float(end)))
    return sorted(found, key=lambda span: span[2])


def _wall_seconds(spans: Sequence[tuple[float, float]]) -> float:
    """Returns the time covered by at least one interval."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def _history(results: Results, spans: Sequence[Span]) -> tuple[Finished, ...]:
    found = []
    for number, (request, _, _) in enumerate(spans, start=1):
        seconds = _wall_seconds([(start, end) for _, start, end in spans[:number]])
        found.append(
            Finished(
                request.candidate,
                request.seed,
                request.fraction,
                request.lr_multiplier,
                request.stage,
                results[request].loss,
                number,
                seconds,
            )
        )
    return tuple(found)
