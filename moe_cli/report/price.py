"""The price tag of a configuration: compute multiplier x relative speed = effective speedup.

    compute multiplier  times the tokens that the baseline needs for the loss of the configuration
    relative speed      training tokens per second of the configuration over those of the baseline
    effective speedup   their product: training time of the baseline for this loss over that of the configuration

The multiplier comes from runs of the baseline at other budgets, each trained to its end with its own learning-rate
schedule. The curve of one run does not replace them: before its end the learning rate has not fallen. Between two
budgets log loss is interpolated linearly over log tokens; outside of them there is only a bound. With a stated loss law
it comes from the law instead.

All intervals are 95 %. That of the multiplier inverts the paired t-test: it holds the multiples of the budget at which
the baseline's interpolated loss does not differ from that of the configuration (Fieller, J. R. Stat. Soc. B 16, 1954,
in each segment). That of the product combines both factors' intervals of logarithms by the method of Zou and Donner
(Stat. Med. 27, 2008).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from moe_cli.config.training import BUDGET_KEYS
from moe_cli.errors import ConfigError
from moe_cli.report.baseline_runs import Key, SeedRuns, shared_key
from moe_cli.report.bench_file import BenchedSteps, read_bench_files
from moe_cli.report.comparability import budget_aspect
from moe_cli.report.equal_time import is_same_machine
from moe_cli.report.intervals import CONFIDENCE, mean_and_interval, t_quantile
from moe_cli.report.run_row import DENSE, RunRow, Settings
from moe_cli.runs.folder import COMPLETED

# The ratios of a price tag, by the names of their metrics.
SPEEDUP_RATIOS = ("compute_multiplier", "relative_speed", "effective_speedup")
Losses = Mapping[int, float]


@dataclass(frozen=True)
class Ratio:
    """A positive ratio with its 95 % interval.

    Attributes:
        value: the estimate; None if there is only a bound.
        low, high: the limits of the interval; None where it has no limit, and with one seed. Without a value, one of
            them is the bound; with one seed this is the bound of that seed's losses, without a confidence.
    """

    value: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def is_known(self) -> bool:
        return not (self.value is None and self.low is None and self.high is None)


@dataclass(frozen=True)
class Price:
    """The price tag of one configuration.

    Attributes:
        multiplier: the compute multiplier.
        relative_speed: the ratio of training speeds; unknown if the runs were trained on different machines.
        budgets: the budgets of the baseline's runs, as multiples of the configuration's tokens; empty with a loss law.
        seeds: the number of seeds that the multiplier is estimated from.
    """

    multiplier: Ratio
    relative_speed: Ratio
    budgets: tuple[float, ...]
    seeds: int

    @property
    def speedup(self) -> Ratio:
        return multiply(self.multiplier, self.relative_speed)

    def ratio(self, name: str) -> Ratio:
        """Returns the ratio with one of the names in `SPEEDUP_RATIOS`."""
        return dict(zip(SPEEDUP_RATIOS, (self.multiplier, self.relative_speed, self.speedup), strict=True))[name]


@dataclass(frozen=True)
class LossLaw:
    """A law of the baseline's loss over training compute C: loss = irreducible + a / C^exponent, in the score's unit.

    Hoffmann et al. 2022 (arXiv:2203.15556), section 3.3, along the compute.
    """

    irreducible: float
    exponent: float

    def multiplier(self, baseline_loss: float, loss: float) -> float:
        """Computes the compute multiplier ((L_b - L_inf) / (L - L_inf))^(1 / exponent).

        Raises:
            ConfigError: a loss is not above the irreducible one.
        """
        if min(baseline_loss, loss) <= self.irreducible:
            raise ConfigError(
                f"--loss-law {self.irreducible:g},{self.exponent:g}: the irreducible loss must be below every measured "
                f"loss, and one is {min(baseline_loss, loss):.4g}."
            )
        return float(((baseline_loss - self.irreducible) / (loss - self.irreducible)) ** (1 / self.exponent))


def parse_loss_law(text: str) -> LossLaw:
    """Returns the law of `--loss-law L_INF,EXPONENT`. Raises ConfigError for other texts."""
    try:
        irreducible, exponent = (float(part) for part in text.split(","))
    except ValueError:
        irreducible, exponent = math.nan, math.nan
    if not (0 <= irreducible < math.inf and 0 < exponent < math.inf):
        raise ConfigError(
            f"--loss-law '{text}' must be two numbers, the irreducible loss (at least 0) and the exponent (above 0), "
            "as in: --loss-law 1.6,0.0941"
        )
    return LossLaw(irreducible, exponent)


@dataclass(frozen=True)
class Pricing:
    """How multipliers and speeds are determined.

    Attributes:
        law: the stated law of the baseline; None means by its runs at several budgets.
        steps: times of steps on another machine; None means the speeds of the runs.
    """

    law: LossLaw | None = None
    steps: BenchedSteps | None = None


def read_pricing(loss_law: str | None, machine: Sequence[Path]) -> Pricing:
    """Returns what the options `--loss-law` and `--machine` mean. Raises ConfigError for other texts and files."""
    law = None if loss_law is None else parse_loss_law(loss_law)
    return Pricing(law, read_bench_files(machine) if machine else None)


class Pricer:
    """The runs of the baseline at all budgets, and the price tags that follow from them.

    Args:
        runs: all runs, and others that may serve as baselines.
        baseline: the settings of the baseline. Only those of a dense model identify runs of other budgets.
        shared: the settings that a configuration shares with its baseline.
    """

    def __init__(
        self, runs: Iterable[RunRow], baseline: Settings, shared: Sequence[str], pricing: Pricing | None = None
    ) -> None:
        self.pricing = pricing or Pricing()
        self._shared = [name for name in shared if name not in BUDGET_KEYS]
        self._found: dict[Key, dict[object, dict[int, RunRow]]] = {}
        dense = [run for run in runs if run.is_dense and run.status == COMPLETED] if baseline == DENSE else []
        for run in sorted(dense, key=lambda run: run.created or 0):  # the newest run of a seed counts
            if run.seed is not None and run.results.tokens:
                by_budget = self._found.setdefault(shared_key(run, self._shared), {})
                by_budget.setdefault(budget_aspect(run.settings, run.results.tokens), {})[run.seed] = run

    def price(self, runs: Sequence[RunRow], baseline: SeedRuns) -> Price | None:
        """Returns the price tag of a configuration; None without a common seed.

        Args:
            runs: the complete runs of the configuration.
            baseline: the baseline's runs of the same budget, by seed.

        Raises:
            ConfigError: the stated law does not fit the losses.
        """
        pairs = [(run, base) for run in runs if run.seed is not None and (base := baseline.get(run.seed)) is not None]
        own, same = (_losses(pair[place] for pair in pairs) for place in (0, 1))
        if not own.keys() & same.keys():
            return None
        steps, law = self.pricing.steps, self.pricing.law
        if law is None:
            found = price_over_budgets(pairs, self._budgets(pairs[0]))
        else:
            shared = sorted(own.keys() & same.keys())
            multiplier = geometric_mean([law.multiplier(same[seed], own[seed]) for seed in shared])
            found = Price(multiplier, _relative_speed(pairs), (), len(shared))
        return found if steps is None else replace(found, relative_speed=Ratio(steps.relative_speed(*pairs[0])))

    def _budgets(self, pair: tuple[RunRow, RunRow]) -> list[list[RunRow]]:
        """Returns the baseline's runs of each budget, on the data and the evaluation of a run."""
        text = pair[0].comparison_key[0]
        found = [list(seeds.values()) for seeds in self._found.get(shared_key(pair[0], self._shared), {}).values()]
        return [runs for runs in found if runs[0].comparison_key[0] == text] or [[pair[1]]]


def price_over_budgets(pairs: Sequence[tuple[RunRow, RunRow]], budgets: Iterable[Sequence[RunRow]]) -> Price:
    """Returns the price tag of a configuration from the runs of its baseline at several budgets.

    Args:
        pairs: a run of the configuration and one of the baseline for each seed, with the same budget.
        budgets: the runs of the baseline at each budget, that of the configuration included.
    """
    own, tokens = _losses(run for run, _ in pairs), _mean_tokens(run for run, _ in pairs)
    curve = {
        _mean_tokens(runs) / tokens: losses
        for runs in budgets
        if tokens and own.keys() & (losses := _losses(runs)).keys()
    }
    multiplier, seeds = compute_multiplier(own, curve)
    return Price(multiplier, _relative_speed(pairs), tuple(sorted(curve)), seeds)


def compute_multiplier(own: Losses, curve: Mapping[float, Losses]) -> tuple[Ratio, int]:
    """Returns the multiple of the tokens at which the baseline has the loss of a configuration, and the seeds used.

    Args:
        own: the loss of each seed.
        curve: the baseline's losses by seed, for each of its budgets as a multiple of the configuration's tokens.
    """
    places = sorted(curve)
    seeds = sorted(own.keys() & set.intersection(*(set(curve[place]) for place in places))) if places else []
    if not seeds:
        return Ratio(), 0
    # The differences of log loss, baseline minus configuration, for each budget: they fall with the budget.
    gaps = [[math.log(curve[place][seed]) - math.log(own[seed]) for seed in seeds] for place in places]
    x = [math.log(place) for place in places]
    means = [math.fsum(gap) / len(seeds) for gap in gaps]
    value = _first_crossing(x, means)
    if len(seeds) == 1:
        if value is not None or len(places) == 1:  # one seed at one budget shows nothing
            return Ratio(None if value is None else math.exp(value)), 1
        return (Ratio(low=places[-1]) if means[0] > 0 else Ratio(high=places[0])), 1
    accepted = [] if value is None else [value]
    for place, gap in zip(x, gaps, strict=True):
        accepted += [place] if _misfit([gap, gap])[2] <= 0 else []
    for (a, b), segment in zip(pairwise(x), pairwise(gaps), strict=True):
        accepted += [a + (b - a) * root for root in _roots(*_misfit(segment))]
    if not accepted:
        return (Ratio(low=places[-1]) if means[0] > 0 else Ratio(high=places[0])), len(seeds)
    # Beyond the budgets nothing is known, so a limit holds only if the end on its side is rejected, in its direction.
    low = None if min(accepted) <= x[0] or means[0] < 0 else math.exp(min(accepted))
    high = None if max(accepted) >= x[-1] or means[-1] > 0 else math.exp(max(accepted))
    return Ratio(None if value is None else math.exp(value), low, high), len(seeds)


def _first_crossing(x: Sequence[float], means: Sequence[float]) -> float | None:
    """Returns where the mean difference first falls to 0; None if it does so at no budget, or below all of them."""
    if means[0] <= 0:
        return x[0] if means[0] == 0 else None
    for (a, b), (above, below) in zip(pairwise(x), pairwise(means), strict=True):
        if below <= 0:
            return a + (b - a) * above / (above - below)
    return None


def _misfit(segment: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    """Returns (A, B, C) of A w^2 + B w + C = mean^2 - (t deviation)^2 / n at the place w of a segment.

    It is at most 0 where the mean of differences does not differ from 0. w runs from 0 to 1.
    """
    start, slope = segment[0], [end - start for start, end in zip(*segment, strict=True)]
    count = len(start)
    p, q = math.fsum(start) / count, math.fsum(slope) / count
    factor = t_quantile((1 + CONFIDENCE) / 2, count - 1) ** 2 / count / (count - 1)
    pp = math.fsum((value - p) ** 2 for value in start)
    qq = math.fsum((value - q) ** 2 for value in slope)
    pq = math.fsum((a - p) * (b - q) for a, b in zip(start, slope, strict=True))
    return q * q - factor * qq, 2 * (p * q - factor * pq), p * p - factor * pp


def _roots(a: float, b: float, c: float) -> list[float]:
    """Returns the solutions of a w^2 + b w + c = 0 within 0 to 1."""
    discriminant = b * b - 4 * a * c
    if discriminant < 0:
        return []
    # The form without cancellation; it also holds for a = 0.
    q = -(b + math.copysign(math.sqrt(discriminant), b)) / 2
    found = [q / a] if a else []
    found += [c / q] if q else []
    return [root for root in found if 0 <= root <= 1]


def _relative_speed(pairs: Iterable[tuple[RunRow, RunRow]]) -> Ratio:
    """Returns the speed of runs over that of the baseline's runs of the same seeds; unknown across machines.

    Tables of runs of other programs have no machine. Their speeds are taken to be of one.
    """
    ratios = []
    for run, base in pairs:
        own, other = run.results.tokens_per_second, base.results.tokens_per_second
        unnamed = "machine" not in run.others and "machine" not in base.others
        if own and other and (unnamed or is_same_machine(run, base)):
            ratios.append(own / other)
    return geometric_mean(ratios)


def geometric_mean(values: Sequence[float]) -> Ratio:
    """Returns the geometric mean of positive values with the t-interval of their logarithms."""
    if not values:
        return Ratio()
    found = mean_and_interval([math.log(value) for value in values])
    if found.half_width is None:
        return Ratio(values[0])
    return Ratio(*(math.exp(found.mean + sign * found.half_width) for sign in (0, -1, 1)))


def multiply(a: Ratio, b: Ratio) -> Ratio:
    """Returns the product of two independent ratios. A factor `b` without an interval counts as exact."""
    if b.value is None or not a.is_known:
        return Ratio()
    low, high = (b.value, b.value) if b.low is None or b.high is None else (b.low, b.high)
    if a.value is None:
        return Ratio(None, a.low and a.low * low, a.high and a.high * high)
    value = a.value * b.value
    return Ratio(
        value,
        a.low and value * math.exp(-math.hypot(math.log(a.value / a.low), math.log(b.value / low))),
        a.high and value * math.exp(math.hypot(math.log(a.high / a.value), math.log(high / b.value))),
    )


def _losses(runs: Iterable[RunRow]) -> dict[int, float]:
    """Returns the loss of each seed; a loss of 0 has no logarithm."""
    return {run.seed: loss for run in runs if run.seed is not None and (loss := run.primary_loss)}


def _mean_tokens(runs: Iterable[RunRow]) -> float:
    """Returns the mean training tokens of runs that have some; 0 without any."""
    known = [run.results.tokens for run in runs if run.results.tokens]
    return math.fsum(known) / len(known) if known else 0.0
