"""Rule for trials of a learning rate: equal numbers for each configuration, and on from the edge of what was tried.

Rates are multiples of the rate that the configuration has before tuning.
"""

import math
from collections.abc import Mapping, Sequence

# The first trials of each configuration.
MULTIPLIERS = (0.5, 1.0, 2.0)
# How many more trials each configuration has at most, while the best rate of one of them is at the edge.
MAX_EXTENSIONS = 3

# The loss of each multiplier; None where the run failed.
TrialLosses = Mapping[float, float | None]


def best_multiplier(losses: TrialLosses) -> float | None:
    """Returns the multiplier with the lowest loss; None if every trial failed."""
    finished = {multiplier: loss for multiplier, loss in losses.items() if loss is not None}
    return min(finished, key=lambda multiplier: finished[multiplier]) if finished else None


def steps_to_edge(losses: TrialLosses) -> int:
    """Returns how many tried multipliers lie between the best one and the nearer edge, the edge included.

    0 means that the best one is the smallest or the largest, so that a better one may lie beyond.
    """
    best, ordered = best_multiplier(losses), sorted(losses)
    return 0 if best is None else min(ordered.index(best), len(ordered) - 1 - ordered.index(best))


def next_multiplier(losses: TrialLosses, first: Sequence[float] = MULTIPLIERS) -> float:
    """Returns the next multiplier to try: outward from a best one at the edge, otherwise next to the best one.

    Outward steps have the mean ratio of the `first` multipliers. Next to means halfway, on a logarithmic scale, to the
    neighbour with the lower loss.
    """
    ordered = sorted(losses)
    best = ordered.index(best_multiplier(losses) or first[0])
    step = math.pow(max(first) / min(first), 1 / max(1, len(first) - 1))
    if best == 0:
        return ordered[0] / step
    if best == len(ordered) - 1:
        return ordered[-1] * step
    neighbour = min(ordered[best - 1], ordered[best + 1], key=lambda multiplier: losses[multiplier] or math.inf)
    return math.sqrt(ordered[best] * neighbour)
