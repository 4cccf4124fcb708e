"""The recommendation for these data and this budget: configuration, certainty, costs, and the next sweep."""

import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_cli.config.ranges import format_setting
from moe_cli.errors import MoeError
from moe_cli.formatting import count, first_line, plural, sanitise
from moe_cli.metrics import MATCH_TOLERANCE_FACTOR, target_name_of_task
from moe_cli.report.aggregate import aggregate_seeds
from moe_cli.report.baseline import baseline_name, sweep_baseline
from moe_cli.report.comparability import BUDGET, CODE, check_across, is_comparable, select_comparable
from moe_cli.report.configuration import Configuration
from moe_cli.report.data_facts import NgramFacts, ngram_facts
from moe_cli.report.equal_time import EqualTime
from moe_cli.report.looks import Look
from moe_cli.report.price import Price, Pricing
from moe_cli.report.recommend.choice import (
    Comparison,
    baseline_path,
    choose,
    compare,
    comparison_with_baseline,
    health_text,
    is_collapsed,
    label,
)
from moe_cli.report.recommend.next_sweep import next_sweep
from moe_cli.report.run_row import (
    RunRow,
    Settings,
    Value,
    column_names,
    is_baseline,
    setting_applies,
    settings_of,
    varying_settings,
)
from moe_cli.report.scaling.summary import scaling_sentence
from moe_cli.report.table_file import is_table_row
from moe_cli.runs.folder import COMPLETED, FAILED, Run

if TYPE_CHECKING:
    import pandas as pd

SHOWN = ("expert", "k", "capacity", "router", "balance")
# The width of a printed recommendation, in characters; `moe recommend` uses that of the terminal.
TEXT_WIDTH = 100


@dataclass(frozen=True)
class Recommendation:
    """The recommended configuration, with the reasons.

    Attributes:
        context: the data, the budget and the model for which this is valid.
        baseline: the settings of the baseline that configurations are compared with.
        settings: expert, k, capacity, router and balance of the recommended configuration.
        reason: see `Choice`.
        score: its mean bits per byte (nats per token, image and so on where there are no bytes).
        is_baseline: whether it has the settings of the baseline.
        vs_baseline: its comparison with its baseline; None without a baseline, and for the baseline itself.
        runner_up: its comparison with the next best configuration; None if there is none.
        ties: the configurations that are not distinguishable from it.
        passed_over: its comparison with the configuration of the lowest loss, where that one is not recommended because
            of its health or its cost. `because` gives the reason.
        health: a description of its routing if that has collapsed, else "". `passed_over_health` is the same for the
            configuration that is passed over.
        comparisons: the number of configurations compared; the verdicts are corrected for it.
        pairs: the number of pairs that the verdicts are corrected for, where there is no baseline and all
            configurations are compared with the lowest; None with a baseline.
        params_ratio, throughput_ratio, memory_ratio: ratios to the baseline; None means unknown.
        equal_time: the comparison with the baseline at the end of the baseline's training; None means unknown.
        price: the price tag against the baseline; None means unknown.
        machine: the files from which its relative speed is taken; "" means the speeds of the runs.
        flops_ratio: ratio of the training FLOPs per token to those of the cheapest configuration compared.
        num_without_baseline: the number of configurations without a baseline of their settings and seeds.
        undefined: configurations whose baseline has a loss of 0, so that relative differences are undefined.
        not_tried: settings that were equal in all runs, and so were not compared.
        failed: configurations that failed, with the reason.
        left_out: runs that were not compared, for each aspect in which they differ.
        scaling: the result of a scaling fit, in one sentence; None where the runs support no law.
        next: the sweep to run; None where this version cannot make the settings.
        next_seconds: the estimated time of that sweep, with one run at a time; None means unknown.
        look: the number of looks at these verdicts with more seeds each time, including this one.
        ngrams: statistics of the text; none where they are unknown.
        tokenizer: `data.tokenizer`; None means unknown, or no text.
    """

    context: str
    baseline: Settings
    settings: Settings
    label: str
    reason: str
    score: float
    unit: str
    seeds: int
    is_baseline: bool
    vs_baseline: Comparison | None
    runner_up: Comparison | None
    ties: tuple[str, ...]
    passed_over: Comparison | None
    passed_over_health: str
    because: str
    health: str
    comparisons: int
    pairs: int | None
    params_ratio: float | None
    throughput_ratio: float | None
    memory_ratio: float | None
    equal_time: EqualTime | None
    price: Price | None
    machine: str
    equal_params: bool
    flops_ratio: float
    num_without_baseline: int
    undefined: int
    not_tried: tuple[str, ...]
    failed: tuple[str, ...]
    left_out: Mapping[str, int]
    scaling: str | None
    next: str | None
    next_seconds: float | None
    look: Look
    ngrams: tuple[NgramFacts, ...]
    tokenizer: Value

    def to_dict(self) -> dict[str, Any]:
        """Returns the recommendation as a JSON object."""
        plain = {name: dict(getattr(self, name)) for name in ("baseline", "settings", "left_out")}
        return {**asdict(replace(self, look=Look(self.look.number))), **plain, "look": self.look.number}

    def __str__(self) -> str:
        """Returns the text of `moe recommend`."""
        from moe_cli.report.render.recommendation import recommendation_text

        return recommendation_text(self, TEXT_WIDTH)

    def _repr_html_(self) -> str:
        """Returns the lines of `moe recommend` for a notebook."""
        from moe_cli.report.render.notebook import recommendation_html

        return recommendation_html(self)


def recommend(
    frame: "pd.DataFrame",
    across: Collection[str] = (),
    extra_baselines: "pd.DataFrame | None" = None,
    baseline: Settings | None = None,
) -> Recommendation:
    """Returns which configuration of the runs to use, how sure that is, and what it costs. `print` shows it as text.

    Args:
        frame: the result of `load_runs` or `sweep`; runs that are not complete are left out.
        across: aspects in which runs may differ and be ranked together all the same, such as "data"; see
            `moe recommend --allow-different`.
        extra_baselines: a frame of more runs that are compared with, but not recommended.
        baseline: the settings of the baseline, such as {"balance": "none"}; None means the dense model.

    Raises:
        ConfigError: no run is complete, or no two runs can be compared.
    """
    from moe_cli.report.frame import from_frame

    extra = [] if extra_baselines is None else from_frame(extra_baselines)
    return make_recommendation(from_frame(frame), across, extra, baseline)


def make_recommendation(
    runs: Sequence[RunRow],
    across: Collection[str] = (),
    extra_baselines: Sequence[RunRow] = (),
    baseline: Settings | None = None,
    pricing: Pricing | None = None,
) -> Recommendation:
    """Returns the recommendation that these runs support.

    Args:
        across: aspects in which ranked runs may differ: data, tokenizer, validation, eval_context, budget, code.
        extra_baselines: runs that may serve as baselines.
        baseline: the settings of the baseline; None means the one that the sweep declares, else the dense model.
        pricing: how price tags are determined; None means by the runs alone.

    Raises:
        MoeError: no run is complete.
        ConfigError: `across` names no aspect.
    """
    found = _compare_all(runs, across, extra_baselines, baseline, pricing)
    choice = choose(found.rows, found.baseline, found.pairs is not None, found.look)
    best, base = choice.row, _baseline_row(found, choice.row)
    difference = comparison_with_baseline(best, baseline_name(found.baseline)) if found.pairs is None else None
    second = compare(best, choice.runner_up, choice.known, found.names) if choice.runner_up else None
    wanted = [comparison.more_seeds for comparison in (difference, second) if comparison and comparison.more_seeds]
    following = None
    if not any(is_table_row(run) for run in runs):
        following = next_sweep(
            choice, found.rows, found.names, found.baseline, min(wanted, default=None), _options(found, baseline, runs)
        )
    flops = [row.results.flops_per_token for row in found.rows if row.results.flops_per_token]
    passed, alone = choice.passed_over, [row for row in found.rows if row.verdict is None]
    return Recommendation(
        context=_context(best),
        baseline=found.baseline,
        settings={name: best.settings.get(name) for name in SHOWN},
        label=label(best, found.names),
        reason=choice.reason,
        score=best.primary_loss or 0.0,
        unit=f"nats/{target_name_of_task(best.settings.get('task.name'))}"
        if best.results.val_bpb is None
        else "bits/byte",
        seeds=len(best.seeds),
        is_baseline=is_baseline(best, found.baseline),
        vs_baseline=difference,
        runner_up=second,
        ties=tuple(label(row, found.names) for row in choice.ties),
        passed_over=compare(best, passed, choice.known, found.names) if passed else None,
        passed_over_health=health_text(passed) if passed and is_collapsed(passed) else "",
        because=choice.because,
        health=health_text(best) if is_collapsed(best) else "",
        comparisons=len(found.rows) - len(alone),
        pairs=found.pairs,
        params_ratio=_ratio(best, base, "params"),
        throughput_ratio=_ratio(best, base, "tokens_per_second"),
        memory_ratio=_ratio(best, base, "peak_memory_bytes"),
        equal_time=None if base is None or base is best else _known(best.at_equal_time),
        price=None if base is None or base is best else _known_price(best.price),
        machine=", ".join(pricing.steps.files) if pricing and pricing.steps else "",
        equal_params=base is not None
        and 1 / MATCH_TOLERANCE_FACTOR <= (_ratio(best, base, "active_params") or 1) <= MATCH_TOLERANCE_FACTOR,
        flops_ratio=best.results.flops_per_token / min(flops) if flops and best.results.flops_per_token else 1.0,
        num_without_baseline=0
        if found.pairs is not None
        else sum(not is_baseline(row, found.baseline) and row.baseline_path is None for row in alone),
        undefined=sum(row.is_undefined for row in found.rows),
        not_tried=_not_tried(found.rows, found.names, best),
        failed=_failed(runs, found.names),
        left_out=found.left_out,
        scaling=scaling_sentence(found.runs, best.paths),
        next=following.command if following else None,
        next_seconds=following.seconds if following else None,
        look=found.look,
        ngrams=ngram_facts(Run(Path(best.paths[0])).meta()),
        tokenizer=best.settings.get("data.tokenizer"),
    )


def _options(found: "_Compared", wanted: Settings | None, runs: Sequence[RunRow]) -> list[str]:
    """Returns options of the next sweep's command.

    They are --baseline, if another one is wanted than that of the sweep, and --rerun-stale, if code differs.
    """
    other = wanted if wanted != sweep_baseline(runs) else None
    settings = shlex.join(f"{name}={format_setting(value)}" for name, value in (other or {}).items())
    return [*(["--baseline", settings] if other else []), *(["--rerun-stale"] if CODE in found.left_out else [])]


@dataclass(frozen=True)
class _Compared:
    """The comparable runs and their comparisons.

    Attributes:
        left_out: the number of other runs, for each aspect.
        names: the settings that vary.
        pairs: see `Aggregate`.
        outside: the configurations of the extra baselines.
    """

    runs: Sequence[RunRow]
    left_out: Mapping[str, int]
    rows: list[Configuration]
    names: list[str]
    pairs: int | None
    outside: list[Configuration]
    baseline: Settings
    look: Look


def _compare_all(
    runs: Sequence[RunRow],
    across: Collection[str],
    extra_baselines: Sequence[RunRow],
    baseline: Settings | None,
    pricing: Pricing | None,
) -> _Compared:
    """Aggregates the complete comparable runs and compares them with the baseline.

    Raises the errors of `recommend`.
    """
    free = check_across(across)
    complete = [run for run in runs if run.is_countable and run.status == COMPLETED and run.primary_loss is not None]
    if not complete:
        raise MoeError(f"no run of {len(runs)} is complete: nothing can be recommended. See: moe report --runs")
    comparable = select_comparable(complete, free)
    first, paths = comparable.rows[0], {run.path for run in comparable.rows}
    own = [run for run in runs if run.path in paths]
    base = sweep_baseline(own) if baseline is None else baseline
    extra = [
        run
        for run in extra_baselines
        if run.status == COMPLETED
        and run.primary_loss is not None
        and is_baseline(run, base)
        and run.is_countable
        and is_comparable(run, first, free)
    ]
    other_budgets = [
        run
        for run in (*complete, *extra_baselines)
        if run.is_dense and run.status == COMPLETED and is_comparable(run, first, {*free, BUDGET})
    ]
    aggregate = aggregate_seeds(own, extra_baselines=extra, baseline=base, pricing=pricing, other_budgets=other_budgets)
    rows = [row for row in aggregate.configurations if row.primary_loss is not None]
    outside = aggregate_seeds(extra, baseline=base).configurations
    names = varying_settings([row.settings for row in rows], settings_of(column_names(runs)))
    left_out = dict(comparable.left_out)
    if all(run.is_dense for run in complete if is_comparable(run, first, {*free, BUDGET}) and run.path not in paths):
        left_out.pop(BUDGET, None)  # they count in the price tag
    return _Compared(own, left_out, rows, names, aggregate.pairs, outside, base, aggregate.look)


def _baseline_row(found: _Compared, best: Configuration) -> Configuration | None:
    """Returns the row of the baseline of the best, or the best itself where it is one; None without one."""
    path = baseline_path(best, found.baseline)
    return next(
        (row for row in (*found.rows, *found.outside) if is_baseline(row, found.baseline) and path in row.paths), None
    )


def _context(row: Configuration) -> str:
    """Returns the context, such as: python (29845f), 1.23M tokens, gpt of 4 layers x 96."""
    data = sanitise(str(row.corpus or row.settings.get("data.name") or "data"))
    digest = f" ({sanitise(row.corpus_sha256)[:6]})" if row.corpus_sha256 else ""
    tokens = [f"{count(row.results.tokens)} tokens"] if row.results.tokens else []
    layers, width = row.settings.get("model.num_layers"), row.settings.get("model.d_model")
    shape = f" of {plural(int(layers), 'layer')} x {width}" if layers and width else ""
    return ", ".join([f"{data}{digest}", *tokens, f"{sanitise(str(row.settings.get('model.name') or 'model'))}{shape}"])


def _ratio(best: Configuration, base: Configuration | None, name: str) -> float | None:
    if base is None or base is best:
        return None
    own, other = best.number(name), base.number(name)
    return own / other if own and other else None


def _known(found: EqualTime | None) -> EqualTime | None:
    return found if found and found.difference is not None else None


def _known_price(found: Price | None) -> Price | None:
    return found if found and found.multiplier.is_known else None


def _not_tried(rows: Sequence[Configuration], names: Collection[str], best: Configuration) -> tuple[str, ...]:
    sparse = [row for row in rows if not row.is_dense]
    if not sparse:
        return ("any experts",)
    row = sparse[0] if best.is_dense else best
    lacking = []
    if row is best and row.expert == max(other.expert or 0 for other in sparse):
        lacking.append(f"more than {row.expert} experts")
    for name in ("k", "capacity", "router", "balance", "balance.weight", "model.d_expert", "optim.lr"):
        value: Value = row.settings.get(name)
        if name in names or name not in row.settings or not setting_applies(name, row.settings):
            continue
        if value is not None:
            lacking.append(f"other {name} than {sanitise(str(value))}")
        elif name == "capacity":
            lacking.append("a capacity")
    return tuple(lacking[:5])


def _failed(runs: Sequence[RunRow], names: Collection[str]) -> tuple[str, ...]:
    found = {}
    for run in runs:
        if run.status == FAILED and run.is_countable:
            found[label(run, names)] = sanitise(first_line(run.reason, "see traceback.txt"))
    return tuple(f"{name}: {reason}" for name, reason in found.items())
