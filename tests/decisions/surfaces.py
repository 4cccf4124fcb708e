"""Simulated decision surfaces: true losses of candidates, learning rates and budgets, and runs drawn with noise."""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from moe_cli.decisions.controller import Race, RunGroup
from moe_cli.decisions.sequential import claims_at_look
from moe_cli.decisions.terms import EQUAL, Candidate, Decision, DecisionLimit, Outcome, Rules, RunRequest
from moe_cli.report.significance import BETTER, INCONCLUSIVE, paired

KINDS = (
    "no difference",
    "clear winner",
    "near ties",
    "at the margin",
    "unequal noise",
    "learning rates",
    "order changes",
    "all at once",
)
RULES = Rules(
    within=0.01,
    alpha=0.05,
    screening_fraction=0.25,
    screening_seeds=2,
    safety=0.015,
    finalists=4,
    lr_multipliers=(0.5, 1.0, 2.0),
    lr_horizon=0.5,
    lr_extensions=2,
    lr_seeds=2,
    choice_seeds=3,
    contenders=2,
    looks=(4, 6, 9, 13),
    baseline_budgets=(),
    first_seed=0,
)
UNLIMITED = DecisionLimit()


@dataclass
class Surface:
    """True log losses and noise of candidates; a run is a draw. Legend: octaves are of the learning rate."""

    names: Sequence[str]
    effects: Mapping[str, float]
    fraction_effects: Mapping[str, float]
    optima: Mapping[str, float]
    curvature: float
    noise: Mapping[str, float]
    seed_noise: float
    seconds: Mapping[str, float]
    baseline: str
    generator: random.Random
    seed_effects: dict[tuple[int, float], float] = field(default_factory=dict)

    def log_loss(self, name: str, multiplier: float, fraction: float = 1.0) -> float:
        """Returns the expected log loss of a candidate at a learning rate."""
        effects = self.effects if fraction == 1.0 else self.fraction_effects
        return effects[name] + self.curvature * (math.log2(multiplier) - self.optima[name]) ** 2

    def candidates(self) -> list[Candidate]:
        """Returns the candidates; the price is the duration."""
        return [Candidate(name, name == self.baseline, self.seconds[name], self.seconds[name]) for name in self.names]

    def draw(self, request: RunRequest) -> Outcome:
        """Draws a run: seeds shift all candidates alike, and each run has its own noise."""
        place = (request.seed, request.fraction)
        if place not in self.seed_effects:
            self.seed_effects[place] = self.generator.gauss(0, self.seed_noise)
        noise = self.seed_effects[place] + self.generator.gauss(0, self.noise[request.candidate])
        loss = 2 * math.exp(self.log_loss(request.candidate, request.lr_multiplier, request.fraction) + noise)
        return Outcome(loss, self.seconds[request.candidate] * request.fraction)


def draw_surface(kind: str, number: int, within: float = 0.01) -> Surface:
    """Draws a surface of a kind: 5 to 30 candidates, standard deviation over seeds 0.3 to 1 %, correlation 0.3."""
    generator = random.Random(f"{kind} {number}")
    count = generator.randint(5, 30)
    names = [f"c{index:02}" for index in range(count)]
    generator.shuffle(names)
    best, *rest = names
    deviation = generator.uniform(0.003, 0.01)
    own, shared = deviation * math.sqrt(0.7), deviation * math.sqrt(0.3)
    noise = dict.fromkeys(names, own)
    effects = {best: 0.0} | {name: generator.uniform(2 * within, 6 * within) for name in rest}
    effects[rest[0]] = 2 * within
    optima, curvature = dict.fromkeys(names, 0.0), 0.0
    if kind == "no difference":
        effects = dict.fromkeys(names, 0.0)
    elif kind == "near ties":
        for name in rest[: generator.randint(1, 4)]:
            effects[name] = generator.uniform(0, within / 2)
    elif kind == "at the margin":
        effects |= dict.fromkeys(rest, math.log1p(within))
    if kind in ("unequal noise", "all at once"):
        noise = {name: own * generator.uniform(0.4, 1.6) for name in names}
    if kind in ("learning rates", "all at once"):
        curvature = generator.uniform(0.003, 0.01)
        optima = {name: generator.uniform(-1.5, 1.5) for name in names}
    fraction_effects = dict(effects)
    if kind in ("order changes", "all at once"):
        fraction_effects = {name: effect + generator.gauss(0, 0.005) for name, effect in effects.items()}
    seconds = {name: generator.uniform(1, 2) for name in names}
    baseline = generator.choice(names)
    names.sort()
    return Surface(names, effects, fraction_effects, optima, curvature, noise, shared, seconds, baseline, generator)


def decide(
    surface: Surface, rules: Rules = RULES, limit: DecisionLimit = UNLIMITED
) -> tuple[Decision, dict[RunRequest, Outcome]]:
    """Runs the controller with draws in place of runs until it decides."""
    results: dict[RunRequest, Outcome] = {}

    def outcomes(group: RunGroup) -> dict[RunRequest, Outcome]:
        results.update((request, surface.draw(request)) for request in group.requests if request not in results)
        return {request: results[request] for request in group.requests}

    race = Race(surface.candidates(), rules, limit)
    assert race.play(outcomes) is None
    return race.decision(), results


@dataclass(frozen=True)
class Score:
    """The worth of a decision. Decided: not inconclusive. `regret`: the loss that the winner gives away."""

    has_wrong_better: bool
    has_wrong_equal: bool
    has_wrong_winner: bool
    is_right: bool
    is_decided: bool
    regret: float


def score(surface: Surface, decision: Decision, within: float = RULES.within) -> Score:
    """Compares a decision with the truth, claims at the learning rates that were chosen, regret to the best rates.

    Right is the best candidate, or one of a class of equals without a wrong claim that is within the margin of the
    best. A wrong winner is one that is called better without being the best.
    """
    rates = {rate.name: rate.multiplier for rate in decision.rates}
    wrong_better = wrong_equal = False
    for claim in decision.comparisons:
        logs = [surface.log_loss(name, rates.get(name, 1.0)) for name in (claim.one, claim.other)]
        difference = math.expm1(logs[0] - logs[1])
        match claim.verdict:
            case "equal":
                wrong_equal |= abs(difference) >= within * (1 - 1e-9)
            case "better":
                wrong_better |= difference >= 0
            case "worse":
                wrong_better |= difference <= 0
    winner = decision.winner
    assert winner is not None
    best = min(surface.effects.values())
    is_best = surface.effects[winner] == best
    is_equal = decision.verdict == EQUAL and not wrong_equal and surface.effects[winner] - best < within
    return Score(
        wrong_better,
        wrong_equal,
        decision.verdict == BETTER and not is_best,
        is_best or is_equal,
        decision.verdict != INCONCLUSIVE,
        math.expm1(surface.log_loss(winner, rates.get(winner, 1.0)) - best),
    )


def grid_answers(surface: Surface, seeds: int, is_tuned: bool, rules: Rules = RULES) -> bool:
    """Says whether a fixed grid decides rightly: every candidate with the full budget and this many seeds, one look.

    The leader is compared with all others. A tuned grid first tries each learning rate of the rules with one seed.
    """
    losses: dict[str, dict[int, float]] = {}
    for name in surface.names:
        trials = (
            {rate: _draw_loss(surface, name, -1, rate) for rate in rules.lr_multipliers} if is_tuned else {1.0: 0.0}
        )
        rate = min(trials, key=lambda multiplier: trials[multiplier])
        losses[name] = {seed: _draw_loss(surface, name, seed, rate) for seed in range(seeds)}
    leader = min(losses, key=lambda name: math.fsum(losses[name].values()))
    samples = {name: sample for name in losses if name != leader and (sample := paired(losses[leader], losses[name]))}
    claims = claims_at_look(samples, rules.within, rules.alpha)
    best = min(surface.effects, key=lambda name: surface.effects[name])
    return len(claims) == len(samples) and (leader == best or claims[best] == EQUAL)


def _draw_loss(surface: Surface, name: str, seed: int, rate: float) -> float:
    loss = surface.draw(RunRequest(name, seed, 1.0, rate, "")).loss
    assert loss is not None
    return loss
