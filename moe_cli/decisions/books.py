"""The books of a decision: its runs so far, what they cost, and which further runs its limit allows."""

import math
from collections.abc import Iterable, Sequence

from moe_cli.decisions.terms import CONFIRMATION, Candidate, DecisionLimit, LearningRate, Outcome, Rules, RunRequest


class Books:
    """The outcomes of a decision's runs, and the limit of the whole decision.

    Attributes:
        rates: the learning rate of each candidate that is tuned; the others have the multiplier 1.
    """

    def __init__(self, candidates: Sequence[Candidate], rules: Rules, limit: DecisionLimit) -> None:
        self.candidates = {candidate.name: candidate for candidate in candidates}
        assert len(self.candidates) == len(candidates), "names are unique"
        self.rules, self.limit = rules, limit
        self.baseline = next((candidate.name for candidate in candidates if candidate.is_baseline), None)
        self.rates: dict[str, LearningRate] = {}
        self.outcomes: dict[RunRequest, Outcome] = {}
        # By candidate, fraction, multiplier; then by seed.
        self.losses: dict[tuple[str, float, float], dict[int, float]] = {}
        # Seconds of the finished runs of each candidate, as measured and as predicted.
        self.spent: dict[str, tuple[float, float]] = {}

    def book(self, request: RunRequest, outcome: Outcome) -> None:
        """Adds the outcome of a run, unless it has been added."""
        if request in self.outcomes:
            return
        self.outcomes[request] = outcome
        place = request.candidate, request.fraction, request.lr_multiplier
        if outcome.loss is not None:
            self.losses.setdefault(place, {})[request.seed] = outcome.loss
        seconds, predicted = self.spent.get(request.candidate, (0.0, 0.0))
        predicted += self.candidates[request.candidate].seconds_at(request.fraction)
        self.spent[request.candidate] = seconds + outcome.seconds, predicted

    def predict_seconds(self, request: RunRequest) -> float:
        """Predicts the duration of a run, corrected by the finished runs of its candidate, or of all."""
        seconds, predicted = self.spent.get(request.candidate, (0.0, 0.0))
        pace = seconds / predicted if predicted else self.pace
        return pace * self.candidates[request.candidate].seconds_at(request.fraction)

    @property
    def pace(self) -> float:
        """Returns the measured duration of the finished runs divided by the predicted one."""
        predicted = math.fsum(predicted for _, predicted in self.spent.values())
        return math.fsum(seconds for seconds, _ in self.spent.values()) / predicted if predicted else 1.0

    def fits(self, requests: Iterable[RunRequest], reserve: Sequence[str] = ()) -> bool:
        """Says whether the limit allows these runs, and after them the first look at `reserve`."""
        if self.limit == DecisionLimit(parallel=self.limit.parallel):
            return True
        later = self.fresh_requests(reserve, 0, self.rules.looks[0])
        missing = [request for request in {*requests, *later} if request not in self.outcomes]
        if self.limit.runs is not None and len(self.outcomes) + len(missing) > self.limit.runs:
            return False
        if self.limit.seconds is None:
            return True
        seconds = math.fsum(seconds for seconds, _ in self.spent.values())
        seconds += math.fsum(self.predict_seconds(request) for request in missing)
        return seconds / self.limit.parallel <= self.limit.seconds

    def dearest(self, names: Sequence[str]) -> list[str]:
        """Returns the arms that the confirmation must be able to pay: the dearest two, and the baseline."""
        others = sorted(
            (name for name in names if name != self.baseline), key=lambda name: -self.predict_full_run(name)
        )
        return others[:2] + [name for name in names if name == self.baseline]

    def predict_full_run(self, name: str) -> float:
        return self.predict_seconds(RunRequest(name, 0, 1.0, 1.0, CONFIRMATION))

    def requests_at(self, stage: str, names: Iterable[str], seeds: Iterable[int], fraction: float) -> list[RunRequest]:
        """Returns the runs of these candidates at their learning rates."""
        places = [(name, seed) for seed in seeds for name in names]
        return [RunRequest(name, seed, fraction, self.multiplier(name), stage) for name, seed in places]

    def fresh_requests(self, names: Iterable[str], first: int, last: int) -> list[RunRequest]:
        """Returns the confirmation runs from the first to the last number of seeds."""
        start = self.rules.confirmation_seed
        return self.requests_at(CONFIRMATION, names, range(start + first, start + last), 1.0)

    def multiplier(self, name: str) -> float:
        return self.rates[name].multiplier if name in self.rates else 1.0

    def losses_of(self, name: str, fraction: float, multiplier: float, first_seed: int, seeds: int) -> dict[int, float]:
        """Returns the finished losses of a candidate by seed."""
        losses = self.losses.get((name, fraction, multiplier), {})
        return {seed: losses[seed] for seed in range(first_seed, first_seed + seeds) if seed in losses}
