"""The controller: a pure function of results, budgets, failures, learning rates, fresh seeds, and equal candidates."""

import dataclasses
import itertools
import math
import random
from collections.abc import Callable, Sequence

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from moe_cli.decisions.controller import Race, next_step
from moe_cli.decisions.stage_costs import bound_stage_costs
from moe_cli.decisions.terms import (
    CONFIRMATION,
    EQUAL,
    FULL_BUDGET_CHOICE,
    LEARNING_RATE,
    PRICE,
    SCREENING,
    Candidate,
    Decision,
    DecisionLimit,
    Outcome,
    Rules,
    RunRequest,
)
from moe_cli.report.significance import BETTER, INCONCLUSIVE
from tests.decisions.surfaces import KINDS, RULES, UNLIMITED, decide, draw_surface

Loss = Callable[[RunRequest], float | None]


def simulate(
    candidates: Sequence[Candidate], loss: Loss, rules: Rules = RULES, limit: DecisionLimit = UNLIMITED
) -> tuple[Decision, dict[RunRequest, Outcome]]:
    """Decides with a formula in place of runs; None is a run that diverges. A run takes its fraction of seconds."""
    results: dict[RunRequest, Outcome] = {}
    while (step := next_step(candidates, rules, results, limit)).decision is None:
        for request in step.wanted:
            found = loss(request)
            results[request] = Outcome(found, request.fraction, "" if found else "diverged")
    return step.decision, results


def candidates(losses: dict[str, float]) -> list[Candidate]:
    """Returns one candidate for each name; `dense` is the baseline."""
    return [Candidate(name, name == "dense", tie_break_cost=index) for index, name in enumerate(losses)]


def noisy(losses: dict[str, float], deviation: float = 0.002) -> Loss:
    """Returns a formula with noise that is the same for equal runs."""

    def loss(request: RunRequest) -> float:
        place = (request.candidate, request.seed, request.fraction, request.lr_multiplier)
        return losses[request.candidate] * math.exp(random.Random(str(place)).gauss(0, deviation))

    return loss


FOUR = {"dense": 2.2, "4x1": 2.1, "8x2": 2.0, "16x2": 2.12}


@settings(deadline=None, max_examples=5, phases=[Phase.generate])
@given(st.integers(0, 10_000), st.sampled_from(KINDS), st.randoms(use_true_random=False))
def test_order_of_results_has_no_effect(number: int, kind: str, order: random.Random) -> None:
    """A group that is done in any order and in any portions leads to the same runs, each once, and one decision."""
    decision, results = decide(draw_surface(kind, number))
    candidates, seen, steps = draw_surface(kind, number).candidates(), dict[RunRequest, Outcome](), 0
    while (step := next_step(candidates, RULES, seen, UNLIMITED)).decision is None:
        assert seen.keys().isdisjoint(step.wanted)
        portion = order.sample(step.wanted, order.randint((len(step.wanted) + 2) // 3, len(step.wanted)))
        seen |= {request: results[request] for request in portion}
        steps += 1
    assert results == seen
    assert decision == step.decision


def test_results_that_no_stage_wants_have_no_effect() -> None:
    """Runs of other seeds, and of later stages, are ignored."""
    space = candidates(FOUR)
    decision, results = simulate(space, noisy(FOUR))
    other = {RunRequest("8x2", 77, 1.0, 1.0, CONFIRMATION): Outcome(9.0, 100.0)}
    assert decision == next_step(space, RULES, results | other, UNLIMITED).decision
    later = {request: outcome for request, outcome in results.items() if request.stage == CONFIRMATION}
    first = next_step(space, RULES, {}, UNLIMITED)
    assert first == next_step(space, RULES, later, UNLIMITED)


def test_claims_come_from_fresh_seeds() -> None:
    """Confirmation seeds take no part in the choice: changing all other losses by a factor changes no estimate."""
    space = candidates(FOUR)
    rules = dataclasses.replace(RULES, safety=1.0)  # So large that all go on to the full budget.
    decision, results = simulate(space, noisy(FOUR), rules)
    assert FULL_BUDGET_CHOICE in {request.stage for request in results}
    fresh = {request.seed for request in results if request.stage == CONFIRMATION}
    rest = {request.seed for request in results if request.stage != CONFIRMATION}
    assert fresh.isdisjoint(rest)
    scaled = {
        request: outcome if request.stage == CONFIRMATION else dataclasses.replace(outcome, loss=3 * outcome.loss)
        for request, outcome in results.items()
        if outcome.loss is not None
    }
    other = next_step(space, rules, scaled, UNLIMITED).decision
    assert other is not None
    assert decision.comparisons == other.comparisons
    assert decision.losses == other.losses


def test_winner_is_named_with_its_gain() -> None:
    """A clear winner is better than the runner-up and the dense model, and the interval holds the true gain."""
    decision, _ = simulate(candidates(FOUR), noisy(FOUR))
    assert ("8x2", BETTER, "8x2", "dense") == (decision.winner, decision.verdict, decision.best, decision.baseline)
    gain = next(claim for claim in decision.comparisons if claim.other == "dense")
    assert gain.verdict == BETTER
    assert gain.difference.low is not None
    assert gain.difference.high is not None
    assert gain.difference.low < FOUR["8x2"] / FOUR["dense"] - 1 < gain.difference.high


def test_cheapest_of_equals_is_advised() -> None:
    """Of two candidates that are equal within the margin, the cheaper one wins, although the other has the lower loss."""
    losses = {"4x1": 2.001, "dense": 2.2, "8x2": 2.0}
    decision, _ = simulate(candidates(losses), noisy(losses))
    assert ("4x1", EQUAL, "8x2") == (decision.winner, decision.verdict, decision.best)
    assert decision.classes == (("8x2", "4x1"),)


def test_learning_rates_have_equal_trials() -> None:
    """Each finalist and the dense model try the same number of rates, and a best rate at the edge is followed."""
    optima = {"dense": 0.0, "4x1": 0.0, "8x2": 2.0, "16x2": 0.5}

    def loss(request: RunRequest) -> float:
        octaves = math.log2(request.lr_multiplier) - optima[request.candidate]
        noise = random.Random(f"{request.candidate} {request.seed}").gauss(0, 1e-4)
        return FOUR[request.candidate] * (1 + 0.01 * octaves * octaves + noise)

    decision, results = simulate(candidates(FOUR), loss)
    tried = {rate.name: [multiplier for multiplier, _ in rate.losses] for rate in decision.rates}
    assert {len(multipliers) for multipliers in tried.values()} == {5}
    assert "dense" in tried
    found = {rate.name: rate.multiplier for rate in decision.rates}
    assert found["8x2"] == 4.0
    assert found["dense"] == 1.0
    confirmed = {(r.candidate, r.lr_multiplier) for r in results if r.stage == CONFIRMATION}
    assert all(found[name] == multiplier for name, multiplier in confirmed)


def test_one_learning_rate_is_not_tuned() -> None:
    """Rules with one rate have no trials, cost none, and the decision says so."""
    rules = dataclasses.replace(RULES, lr_multipliers=(1.0,))
    decision, results = simulate(candidates(FOUR), noisy(FOUR), rules)
    assert decision.winner == "8x2"
    assert LEARNING_RATE not in {request.stage for request in results}
    assert any("not tuned" in sentence for sentence in decision.unused)
    cost = next(cost for cost in bound_stage_costs(candidates(FOUR), rules) if cost.stage == LEARNING_RATE)
    assert cost.max_runs == 0


def test_failures_are_dropped_with_their_reason() -> None:
    """A candidate that diverges is dropped; a learning rate that diverges is not chosen."""

    def loss(request: RunRequest) -> float | None:
        if request.candidate == "16x2" or request.lr_multiplier > 1:
            return None
        return noisy(FOUR)(request)

    decision, _ = simulate(candidates(FOUR), loss)
    assert decision.winner == "8x2"
    dropped = {drop.name: drop for drop in decision.dropped}
    assert "diverged" in dropped["16x2"].reason
    assert not dropped["16x2"].is_behind
    assert all(dict(rate.losses)[2.0] is None for rate in decision.rates)


def test_leader_that_fails_on_fresh_seeds_loses_its_place() -> None:
    """The runner-up leads if the leader diverges in the confirmation."""

    def loss(request: RunRequest) -> float | None:
        return None if request.candidate == "8x2" and request.seed == 1002 else noisy(FOUR, 0.01)(request)

    decision, _ = simulate(candidates(FOUR), loss)
    assert decision.winner == "4x1"
    assert ("8x2", CONFIRMATION) in {(drop.name, drop.stage) for drop in decision.dropped}


def test_nothing_works() -> None:
    """If every run fails, there is no winner and no error."""
    decision, results = simulate(candidates(FOUR), lambda _: None)
    assert (None, INCONCLUSIVE) == (decision.winner, decision.verdict)
    assert set(FOUR) == {drop.name for drop in decision.dropped}
    assert len(results) == len(FOUR)


@pytest.mark.parametrize("limit", [0, 5, 12, 25, 40, 70])
def test_budget_of_runs_is_kept(limit: int) -> None:
    """No more runs than the budget; without enough for fresh seeds there is no claim, and the decision says so."""
    surface = draw_surface("clear winner", 3)
    decision, results = decide(surface, limit=DecisionLimit(runs=limit))
    assert len(results) <= limit
    assert decision.runs == len(results)
    if not decision.comparisons:
        assert decision.verdict == INCONCLUSIVE
        assert decision.unused


def test_budget_of_seconds_reserves_the_confirmation() -> None:
    """With half the time that the decision would take, the confirmation still has its first look."""
    full, _ = decide(draw_surface("clear winner", 3))
    half = DecisionLimit(seconds=full.seconds / 2)
    short, results = decide(draw_surface("clear winner", 3), limit=half)
    assert math.fsum(outcome.seconds for outcome in results.values()) <= full.seconds / 2
    assert short.comparisons
    parallel, _ = decide(draw_surface("clear winner", 3), limit=dataclasses.replace(half, parallel=3))
    assert parallel == full


@pytest.mark.parametrize(("dense", "limit", "trained"), [(2.2, None, 8), (1.9, None, 0), (2.2, 4, 4), (2.2, 0, 0)])
def test_larger_budgets_of_dense_follow_the_answer(dense: float, limit: int | None, trained: int) -> None:
    """They are trained if another candidate has won, on the seeds of the first look, as far as the budget goes."""
    losses = FOUR | {"dense": dense}
    without, runs = simulate(candidates(losses), noisy(losses))
    whole = UNLIMITED if limit is None else DecisionLimit(runs=len(runs) + limit)
    rules = dataclasses.replace(RULES, baseline_budgets=(1.5, 2.0))
    decision, results = simulate(candidates(losses), noisy(losses), rules, whole)
    added = [request for request in results if request.stage == PRICE]
    assert trained == len(added)
    assert {"dense"} >= {request.candidate for request in added}
    assert {1000, 1001, 1002, 1003} >= {request.seed for request in added}
    assert (without.winner, without.comparisons, without.losses) == (
        decision.winner,
        decision.comparisons,
        decision.losses,
    )
    assert bool(decision.unused) == (limit is not None)


def test_time_that_every_run_takes_is_no_time_of_training() -> None:
    """Where evaluation takes half of a full run, a short run says how long a full one takes, at any pace."""
    space = [dataclasses.replace(candidate, seconds=2.0, fixed_seconds=1.0) for candidate in candidates(FOUR)]
    race = Race(space, RULES, UNLIMITED)
    pace = 3.0
    group = race.play(lambda group: None)
    assert group is not None
    race = Race(space, RULES, UNLIMITED)
    results = {request: Outcome(2.0, pace * (1 + request.fraction)) for request in group.requests}
    race.play(lambda group: results if set(group.requests) <= results.keys() else None)
    assert pytest.approx(2 * pace) == race.books.predict_full_run("8x2")
    assert pytest.approx(2 * pace) == race.books.predict_full_run("dense")


@pytest.mark.parametrize(("kind", "number"), list(itertools.product(["clear winner", "learning rates"], range(4))))
def test_stage_costs_bound_the_runs(kind: str, number: int) -> None:
    """Each stage of an unlimited decision costs at least its least price and at most its largest."""
    surface = draw_surface(kind, number)
    costs = {cost.stage: cost for cost in bound_stage_costs(surface.candidates(), RULES)}
    _, results = decide(surface)
    for stage in (SCREENING, LEARNING_RATE, FULL_BUDGET_CHOICE, CONFIRMATION):
        runs = [request for request in results if request.stage == stage]
        seconds = math.fsum(results[request].seconds for request in runs)
        assert costs[stage].min_runs <= len(runs) <= costs[stage].max_runs
        assert costs[stage].min_seconds <= seconds * (1 + 1e-9)
        assert seconds <= costs[stage].max_seconds * (1 + 1e-9)
