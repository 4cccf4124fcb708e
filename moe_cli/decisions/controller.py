"""The controller of a decision: which runs are wanted next, as a pure function of the results so far.

The race is written as one sequence of run groups. `next_step` replays it over the results and stops at the first group
that is not complete, so that a killed decision, or a second terminal, comes to the same next step.
"""

import math
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass

from moe_cli.decisions.answer import NO_ANSWER, Confirmation, choose_winner, guarantee
from moe_cli.decisions.books import Books
from moe_cli.decisions.sequential import claims_at_look, prospect
from moe_cli.decisions.standings import Noise, Standings, pooled_noise, rank
from moe_cli.decisions.terms import (
    CONFIRMATION,
    FULL_BUDGET_CHOICE,
    LEARNING_RATE,
    PRICE,
    SCREENING,
    Candidate,
    Decision,
    DecisionLimit,
    Dropped,
    Interval,
    LearningRate,
    Outcome,
    Rules,
    RunRequest,
    Step,
)
from moe_cli.report.learning_rate import best_multiplier, next_multiplier, steps_to_edge
from moe_cli.report.significance import PairedSample, Scores, paired

# A pair that its last look will decide with less than this probability is given up.
MIN_PROSPECT = 0.1


@dataclass(frozen=True)
class RunGroup:
    """Runs that are wanted together, with the reason."""

    stage: str
    reason: str
    requests: tuple[RunRequest, ...]


Outcomes = Mapping[RunRequest, Outcome]
RunGroups = Generator[RunGroup, Outcomes, None]


def next_step(
    candidates: Sequence[Candidate], rules: Rules, results: Mapping[RunRequest, Outcome], limit: DecisionLimit
) -> Step:
    """Returns the runs that are missing now, or the decision. Results of runs that no stage wants have no effect."""

    def outcomes(group: RunGroup) -> Outcomes | None:
        is_complete = all(request in results for request in group.requests)
        return {request: results[request] for request in group.requests} if is_complete else None

    race = Race(candidates, rules, limit)
    group = race.play(outcomes)
    if group is not None:
        missing = tuple(request for request in group.requests if request not in results)
        return Step(group.stage, group.reason, missing)
    decision = race.decision()
    return Step(CONFIRMATION, decision.reason, decision=decision)


class Race:
    """The stages of a decision and what they have found so far."""

    def __init__(self, candidates: Sequence[Candidate], rules: Rules, limit: DecisionLimit) -> None:
        self.books = Books(candidates, rules, limit)
        self.rules, self.baseline = rules, self.books.baseline
        self.alive = [candidate.name for candidate in candidates]
        self.dropped: list[Dropped] = []
        self.unused: list[str] = []
        self.scores: dict[str, Scores] = {}
        # At the fraction, after the learning rates; `scores` move on to the full budget.
        self.fraction_scores: dict[str, Scores] = {}
        self.noise: Noise | None = None
        self.confirmation: Confirmation | None = None

    def play(self, outcomes: Callable[[RunGroup], Outcomes | None]) -> RunGroup | None:
        """Asks for the outcomes of group after group; returns the first without outcomes, or None at the end."""
        groups = self._groups()
        group = next(groups, None)
        while group is not None and (found := outcomes(group)) is not None:
            try:
                group = groups.send(found)
            except StopIteration:
                return None
        return group

    def _groups(self) -> RunGroups:
        """Yields the groups of all stages and receives their outcomes."""
        yield from self._screen()
        if not self.scores:
            return
        yield from self._tune_learning_rates()
        yield from self._choose()
        yield from self._confirm()
        yield from self._price_baseline()

    # Runs

    def _is_affordable(self, requests: Iterable[RunRequest]) -> bool:
        """Says whether the budget covers these runs, and after them a first look at the confirmation."""
        return self.books.fits(requests, self.books.dearest(self.alive))

    def _finish(self, stage: str, reason: str, requests: Sequence[RunRequest]) -> RunGroups:
        """Yields a group and books its outcomes. A candidate that fails is dropped, except in trials of a rate."""
        if not requests:
            return
        outcomes = yield RunGroup(stage, reason, tuple(requests))
        for request in requests:
            outcome = outcomes[request]
            self.books.book(request, outcome)
            if outcome.loss is None and stage not in (LEARNING_RATE, PRICE):
                self._drop(request.candidate, stage, f"{outcome.failure or 'failed'} (seed {request.seed})", False)

    def _drop(self, name: str, stage: str, reason: str, is_behind: bool, difference: Interval | None = None) -> None:
        if name in self.alive:
            self.alive.remove(name)
            self.dropped.append(Dropped(name, stage, reason, is_behind, difference))

    @property
    def _others(self) -> list[str]:
        """Returns the candidates of the race without the baseline."""
        return [name for name in self.alive if name != self.baseline]

    # Stages

    def _screen(self) -> RunGroups:
        """Runs all candidates at a fraction of the budget; later seeds go to those that may be among the finalists."""
        rules = self.rules
        while len(self._others) > 2 and not self._is_affordable(self._screening(self.alive, 1)):
            dearest = max(self._others, key=self.books.predict_full_run)
            self._drop(dearest, SCREENING, "not tried: the budget does not cover its first run", False)
        if not self._is_affordable(self._screening(self.alive, 1)):
            self.unused.append("No run was started: the budget covers no screening and first look.")
            return
        yield from self._finish(SCREENING, "First seed of every candidate.", self._screening(self.alive, 1))
        self._update_scores(1)
        for seeds in range(2, rules.screening_seeds + 1):
            leaders = self._compare_others().order[: 2 * rules.finalists] if self._others else ()
            requests = self._screening([name for name in self.alive if name in leaders or name == self.baseline], seeds)
            if not self._is_affordable(requests):
                self.unused.append(f"Screening stopped after {seeds - 1} seeds: the budget.")
                break
            yield from self._finish(SCREENING, f"Seed {seeds} of the {len(leaders)} in front.", requests)
            self._update_scores(seeds)
            self._drop_behind(SCREENING, rules.safety)
            rest = [name for name in self.alive if name not in leaders and name != self.baseline]
            requests = self._screening(rest, seeds)
            if not self._is_affordable(requests):
                self.unused.append(f"Seed {seeds} of the screening only for those in front: the budget.")
            else:
                yield from self._finish(SCREENING, f"Seed {seeds} of those that are not behind beyond doubt.", requests)
            self._update_scores(seeds)
        self._drop_behind(SCREENING, rules.safety)
        self._set_aside(SCREENING, rules.finalists)

    def _screening(self, names: Sequence[str], seeds: int) -> list[RunRequest]:
        first = self.rules.first_seed
        return self.books.requests_at(SCREENING, names, range(first, first + seeds), self.rules.screening_fraction)

    def _update_scores(self, seeds: int) -> None:
        """Reads the scores of the screening and the noise of those that have all seeds."""
        rules = self.rules
        self.scores = {
            name: self.books.losses_of(name, rules.screening_fraction, 1.0, rules.first_seed, seeds)
            for name in self.alive
        }
        complete = {name: scores for name, scores in self.scores.items() if len(scores) == seeds}
        self.noise = pooled_noise([complete])

    def _compare_others(self) -> Standings:
        """Compares the candidates without the baseline; at least one is left."""
        return rank({name: self.scores[name] for name in self._others}, self.noise, self.rules.alpha)

    def _drop_behind(self, stage: str, safety: float) -> None:
        """Drops the candidates that are behind the leader beyond doubt. The leader's runner-up always goes on."""
        if len(self._others) < 2:
            return
        standings = self._compare_others()
        for name in standings.order[2:]:
            if standings.is_behind(name, safety):
                self._drop(name, stage, f"behind {standings.order[0]} beyond doubt", True, standings.differences[name])

    def _set_aside(self, stage: str, places: int) -> None:
        """Keeps the best candidates if there are more than places."""
        if len(self._others) <= places:
            return
        standings = self._compare_others()
        for name in standings.order[places:]:
            self._drop(name, stage, f"no place among the best {places}", False, standings.differences[name])

    def _tune_learning_rates(self) -> RunGroups:
        """Tries the same number of learning rates for each finalist and the baseline, at a fraction of the budget."""
        rules = self.rules
        if len(rules.lr_multipliers) < 2:
            self.unused.append("Learning rates were not tuned: the rules name no two.")
            return
        trials = {name: list(rules.lr_multipliers) for name in self.alive}
        while len(self._others) > 2 and not self._is_affordable(self._trials(trials)):
            self._set_aside(LEARNING_RATE, len(self._others) - 1)
            trials = {name: trials[name] for name in self.alive}
        if not self.alive or not self._is_affordable(self._trials(trials)):
            self.unused.append("Learning rates were not tuned: the budget.")
            return
        yield from self._finish(LEARNING_RATE, f"{len(rules.lr_multipliers)} rates each.", self._trials(trials))
        for _ in range(rules.lr_extensions):
            self._set_rates(trials)
            if not any(rate.is_at_edge for rate in self.books.rates.values()):
                break
            trials = {name: tried for name, tried in trials.items() if name in self.alive}
            longer = {
                name: [*tried, next_multiplier(self._trial_losses(name, tried), rules.lr_multipliers)]
                for name, tried in trials.items()
            }
            if not self._is_affordable(self._trials(longer)):
                self.unused.append("A best learning rate at the edge was not followed: the budget.")
                break
            trials = longer
            yield from self._finish(LEARNING_RATE, "On from the edge, one more rate each.", self._trials(trials))
        self._set_rates(trials)
        self._drop_behind(LEARNING_RATE, rules.safety)

    def _trials(self, multipliers: Mapping[str, Sequence[float]]) -> list[RunRequest]:
        seeds = range(self.rules.first_seed, self.rules.first_seed + self.rules.lr_seeds)
        return [
            RunRequest(name, seed, self.rules.screening_fraction, multiplier, LEARNING_RATE)
            for name, tried in multipliers.items()
            for multiplier in tried
            for seed in seeds
        ]

    def _trial_losses(self, name: str, tried: Sequence[float]) -> dict[float, float | None]:
        """Returns the mean loss of each multiplier; None if one of its seeds failed."""
        rules = self.rules
        found: dict[float, float | None] = {}
        for multiplier in sorted(tried):
            losses = self.books.losses_of(name, rules.screening_fraction, multiplier, rules.first_seed, rules.lr_seeds)
            found[multiplier] = math.fsum(losses.values()) / len(losses) if len(losses) == rules.lr_seeds else None
        return found

    def _set_rates(self, trials: Mapping[str, Sequence[float]]) -> None:
        """Chooses the multiplier with the lowest mean loss, and corrects the scores of the screening by its gain."""
        for name, tried in trials.items():
            losses = self._trial_losses(name, tried)
            best = best_multiplier(losses)
            if best is None:
                self._drop(name, LEARNING_RATE, "every learning rate failed", False)
                continue
            self.books.rates[name] = LearningRate(name, best, tuple(losses.items()), steps_to_edge(losses) == 0)
        fraction, first = self.rules.screening_fraction, self.rules.first_seed
        for name in self.alive:
            losses = self._trial_losses(name, trials[name])
            untuned = losses.get(1.0)
            gain = (losses[self.books.multiplier(name)] or 1.0) / untuned if untuned else 1.0
            scores = self.books.losses_of(name, fraction, 1.0, first, self.rules.screening_seeds)
            self.scores[name] = {seed: loss * gain for seed, loss in scores.items()}

    def _choose(self) -> RunGroups:
        """Chooses the contenders among more finalists, with the full budget. Later seeds go to those still in front."""
        rules = self.rules
        screening_noise, self.fraction_scores = self.noise, dict(self.scores)
        for seeds in range(1, rules.choice_seeds + 1):
            if len(self._others) <= rules.contenders:
                break
            seed = rules.first_seed + seeds - 1
            requests = self.books.requests_at(FULL_BUDGET_CHOICE, self._others, [seed], 1.0)
            while len(self._others) > 2 and not self._is_affordable(requests):
                self._set_aside(FULL_BUDGET_CHOICE, len(self._others) - 1)
                requests = self.books.requests_at(FULL_BUDGET_CHOICE, self._others, [seed], 1.0)
            if len(self._others) <= rules.contenders or not self._is_affordable(requests):
                break
            yield from self._finish(FULL_BUDGET_CHOICE, f"Seed {seeds} of {len(requests)} finalists.", requests)
            for name in self._others:
                self.scores[name] = self.books.losses_of(
                    name, 1.0, self.books.multiplier(name), rules.first_seed, seeds
                )
            self.noise = pooled_noise([{name: self.scores[name] for name in self._others}]) or screening_noise
            self._drop_behind(FULL_BUDGET_CHOICE, 0.0)
            if self._are_contenders_certain():
                break
        self._set_aside(FULL_BUDGET_CHOICE, rules.contenders)

    def _are_contenders_certain(self) -> bool:
        """Says whether the candidates beyond the places of the contenders cannot lead by more than the margin."""
        if self.noise is None or not self._others:
            return not self._others
        standings = self._compare_others()
        lows = (standings.differences[name].low for name in standings.order[self.rules.contenders :])
        return all(low is not None and low > -self.rules.within for low in lows)

    def _arms(self) -> list[str]:
        """Returns the contenders, the leader first, and the baseline: first if it led at the fraction, else last."""
        if not self._others:
            return list(self.alive)
        ranked = self._compare_others().order
        if self.baseline is None or self.baseline not in self.alive:
            return list(ranked)
        leads = rank({name: self.fraction_scores[name] for name in self.alive}, None, 1.0).order[0]
        return [self.baseline, *ranked] if leads == self.baseline else [*ranked, self.baseline]

    def _confirm(self) -> RunGroups:
        """Runs the contenders and the baseline on fresh seeds until every pair with the leader is decided."""
        arms = self._arms()
        looks = self.rules.looks
        while len(arms) > 2 and not self.books.fits(self.books.fresh_requests(arms, 0, looks[0])):
            name = next(name for name in reversed(arms) if name != self.baseline)
            self._drop(name, CONFIRMATION, "no place in the confirmation: the budget", False)
            arms.remove(name)
        if len(arms) < 2 or not self.books.fits(self.books.fresh_requests(arms, 0, looks[0])):
            reason = "the budget" if len(arms) > 1 else "nothing is left to compare"
            self.unused.append(f"No confirmation was run: {reason}.")
            return
        # Independent of the budget, so that the claims stay valid if a larger budget continues the decision.
        alpha = self.rules.alpha / len(looks)
        samples: dict[str, PairedSample] = {}
        claims: dict[str, str] = {}
        leader, given_up, seeds = arms[0], set[str](), 0
        for look in looks:
            open_pairs = [name for name in arms if name != leader and name not in claims and name not in given_up]
            requests = self.books.fresh_requests([leader, *open_pairs], seeds, look)
            if not self.books.fits(requests):
                self.unused.append(f"The confirmation stopped after {seeds} of {looks[-1]} seeds: the budget.")
                break
            reason = f"Fresh seeds up to {look} of {leader} against {', '.join(open_pairs)}."
            yield from self._finish(CONFIRMATION, reason, requests)
            seeds = look
            arms = [name for name in arms if name in self.alive]
            if leader not in arms:
                # The next in order leads; its pairs have not been tested yet.
                leader, samples, claims, given_up = arms[0] if arms else "", {}, {}, set()
            samples = {name: sample for name, sample in samples.items() if name in arms}
            claims = {name: claim for name, claim in claims.items() if name in arms}
            open_pairs = [name for name in arms if name != leader and name not in claims and name not in given_up]
            for name in open_pairs:
                sample = paired(self._fresh_losses(leader), self._fresh_losses(name))
                assert sample is not None, name
                samples[name] = sample
            tested = {name: samples[name] for name in open_pairs}
            claims |= claims_at_look(tested, self.rules.within, alpha, len(given_up))
            given_up |= {
                name for name in open_pairs if name not in claims and not self._may_decide(samples[name], looks, alpha)
            }
            if len(arms) < 2 or len(claims) + len(given_up) == len(arms) - 1:
                break
        if leader:
            losses = {name: self._fresh_losses(name) for name in arms}
            self.confirmation = Confirmation(leader, losses, samples, claims, looks, alpha)

    def _fresh_losses(self, name: str) -> dict[int, float]:
        return self.books.losses_of(
            name, 1.0, self.books.multiplier(name), self.rules.confirmation_seed, self.rules.looks[-1]
        )

    def _may_decide(self, sample: PairedSample, looks: Sequence[int], alpha: float) -> bool:
        """Says whether the last look may still decide a pair, by what the fresh seeds have shown."""
        if sample.deviation is None or sample.seeds >= looks[-1]:
            return False
        spread = sample.deviation * math.sqrt(1 / sample.seeds - 1 / looks[-1])
        chance = prospect(sample.mean, spread, sample.deviation, looks[-1], self.rules.within, alpha)
        return chance >= MIN_PROSPECT

    def _price_baseline(self) -> RunGroups:
        """Trains the baseline with larger budgets, on the seeds of the first look, if another candidate has won."""
        winner = None if self.confirmation is None else choose_winner(self.confirmation, self.books.candidates).winner
        if winner in (None, self.baseline) or self.baseline not in self.alive:
            return
        start = self.rules.confirmation_seed
        for multiple in self.rules.baseline_budgets:
            requests = self.books.requests_at(
                PRICE, [self.baseline], range(start, start + self.rules.looks[0]), multiple
            )
            if not self.books.fits(requests):
                self.unused.append(f"The baseline was not trained at {multiple:g} times the budget: the budget.")
                break
            yield from self._finish(PRICE, f"The baseline at {multiple:g} times the budget.", requests)

    # Result

    def decision(self) -> Decision:
        """Returns the decision after the last group."""
        confirmation = self.confirmation
        found = NO_ANSWER if confirmation is None else choose_winner(confirmation, self.books.candidates)
        return Decision(
            winner=found.winner,
            verdict=found.verdict,
            best=found.best,
            runner_up=found.runner_up,
            baseline=self.baseline,
            classes=found.classes,
            comparisons=() if confirmation is None else confirmation.comparisons(),
            losses=() if confirmation is None else confirmation.final_losses(),
            dropped=tuple(self.dropped),
            rates=tuple(self.books.rates[name] for name in self.books.candidates if name in self.books.rates),
            unused=tuple(self.unused),
            guarantee=() if confirmation is None else guarantee(confirmation, self.rules),
            reason=_reason(confirmation),
            runs=len(self.books.outcomes),
            seconds=math.fsum(outcome.seconds for outcome in self.books.outcomes.values()),
        )


def _reason(confirmation: Confirmation | None) -> str:
    """Says why the race ended."""
    if confirmation is None:
        return "Nothing was confirmed."
    if not confirmation.samples:
        return "Only one candidate is left."
    pending = [name for name in confirmation.samples if name not in confirmation.claims]
    if not pending:
        return "Every pair with the leader is decided."
    return f"Not decided within the looks or the budget: {', '.join(pending)}."
