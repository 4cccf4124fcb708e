"""The terms of a decision: candidates, rules, limit, the runs that are wanted, their outcomes, and the decision.

All relative differences are (loss of one - loss of the other) / loss of the other; negative is better.
"""

from dataclasses import dataclass, field

SCREENING, LEARNING_RATE, FULL_BUDGET_CHOICE, CONFIRMATION = "screening", "learning rate", "full budget", "confirmation"
PRICE = "price"
STAGES = (SCREENING, LEARNING_RATE, FULL_BUDGET_CHOICE, CONFIRMATION, PRICE)
# A verdict, next to BETTER, WORSE and INCONCLUSIVE of `report.significance`.
EQUAL = "equal"
# In the folder of a decision, see `decision_file`.
DECISION_FILE = "decision.json"


@dataclass(frozen=True)
class Candidate:
    """A configuration of the space: unique name and costs known before the first run.

    `tie_break_cost` orders candidates that are equal: the lowest is advised. `seconds` is the predicted duration of one
    run with the full budget, and `fixed_seconds` the part of it that runs with any budget take, for evaluation; the
    durations of finished runs correct both.
    """

    name: str
    is_baseline: bool = False
    tie_break_cost: float = 0.0
    seconds: float = 1.0
    fixed_seconds: float = 0.0

    def seconds_at(self, fraction: float) -> float:
        """Returns the predicted duration of a run with a fraction of the budget."""
        return self.fixed_seconds + (self.seconds - self.fixed_seconds) * fraction


@dataclass(frozen=True)
class Rules:
    """The rules of a decision, fixed before the first run. Their defaults stand in conf/decide.

    `within`: margin of equality, relative to the loss. `alpha`: rate of wrong claims.
    `screening_fraction`, `screening_seeds`: share of the budget and seeds of each candidate in the screening.
    `safety`: relative difference by which the order at a fraction may be wrong about the order at the full budget.
    `finalists`: largest number of candidates that go on to the learning rates, without the baseline.
    `lr_multipliers`: tried by each finalist and by the baseline. `lr_extensions`: largest number of further trials of
    each when the best rate of one of them is at the edge. `lr_seeds`: seeds of each trial, at `screening_fraction`.
    `lr_horizon`: a run with a fraction f of the budget has f^-lr_horizon times the learning rate.
    `choice_seeds`: largest number of seeds with the full budget from which the contenders are chosen.
    `contenders`: largest number of candidates in the confirmation, without the baseline.
    `looks`: numbers of confirmation seeds after which the claims are tested, ascending; at least two seeds.
    `baseline_budgets`: multiples of the budget that the baseline is trained with if another candidate wins, for the
    price tag; no claim depends on them.
    `first_seed`: seeds of the choice count up from here, those of the confirmation from `confirmation_seed`.
    """

    within: float
    alpha: float
    screening_fraction: float
    screening_seeds: int
    safety: float
    finalists: int
    lr_multipliers: tuple[float, ...]
    lr_horizon: float
    lr_extensions: int
    lr_seeds: int
    choice_seeds: int
    contenders: int
    looks: tuple[int, ...]
    baseline_budgets: tuple[float, ...]
    first_seed: int

    @property
    def confirmation_seed(self) -> int:
        """Returns the first seed that takes no part in the choice."""
        return self.first_seed + 1000


@dataclass(frozen=True)
class DecisionLimit:
    """The limit of a decision: seconds of wall clock, runs, or neither. `parallel` runs share the wall clock."""

    seconds: float | None = None
    runs: int | None = None
    parallel: int = 1


@dataclass(frozen=True)
class RunRequest:
    """A run that is wanted. `stage` says why; a run that two stages want is one run.

    `lr_multiplier` is for the full budget; runs with a fraction of it have a higher rate, see `Rules.lr_horizon`.
    """

    candidate: str
    seed: int
    fraction: float
    lr_multiplier: float
    stage: str = field(compare=False)


@dataclass(frozen=True)
class Outcome:
    """The result of a run: final loss, or None and the failure (diverged, out of memory, ...); seconds of training."""

    loss: float | None
    seconds: float
    failure: str = ""


@dataclass(frozen=True)
class Interval:
    """A relative difference with the interval that holds for all claims and looks at once; None for a single seed."""

    mean: float
    low: float | None
    high: float | None
    seeds: int


@dataclass(frozen=True)
class Comparison:
    """A claim from confirmation seeds: `one` is better than, worse than, equal to `other`, or inconclusive."""

    one: str
    other: str
    difference: Interval
    verdict: str


@dataclass(frozen=True)
class Dropped:
    """A candidate that was dropped or set aside: stage, reason, and how far it was behind the leader then.

    `is_behind` is true if it was behind beyond doubt; false if it failed or if there was no place for it.
    """

    name: str
    stage: str
    reason: str
    is_behind: bool
    difference: Interval | None = None


@dataclass(frozen=True)
class LearningRate:
    """The learning rate of a candidate: best multiplier, losses of all that were tried, whether it is at the edge."""

    name: str
    multiplier: float
    losses: tuple[tuple[float, float | None], ...]
    is_at_edge: bool


@dataclass(frozen=True)
class FinalLoss:
    """The loss of a candidate over the confirmation seeds, with the half-width of its 95 % interval."""

    name: str
    mean: float
    half_width: float | None
    seeds: int


@dataclass(frozen=True)
class Decision:
    """The answer of a decision and its certificate.

    `winner` is the advised candidate: the best, or the cheapest of those that are equal to the best; None if no run of
    the confirmation succeeded. `verdict` is better (the winner leads all others of the confirmation), equal (some are
    equal to it and it leads the rest), or inconclusive. `classes` are groups of candidates that are equal within the
    margin. `dropped` stands in order of time. `unused` lists what was not tried, as sentences.
    """

    winner: str | None
    verdict: str
    best: str | None
    runner_up: str | None
    baseline: str | None
    classes: tuple[tuple[str, ...], ...]
    comparisons: tuple[Comparison, ...]
    losses: tuple[FinalLoss, ...]
    dropped: tuple[Dropped, ...]
    rates: tuple[LearningRate, ...]
    unused: tuple[str, ...]
    guarantee: tuple[str, ...]
    reason: str
    runs: int
    seconds: float


@dataclass(frozen=True)
class Step:
    """The next step: the runs that are missing now, which may run in parallel, or the decision.

    The group does not depend on which of its runs have already finished; `wanted` lists those that have not.
    """

    stage: str
    reason: str
    wanted: tuple[RunRequest, ...] = ()
    decision: Decision | None = None


@dataclass(frozen=True)
class StageCost:
    """The least and the most that a stage costs: runs, and seconds of training on one worker."""

    stage: str
    min_runs: int
    max_runs: int
    min_seconds: float
    max_seconds: float
