"""How far is the busiest expert above its fair share? MaxVio, the measure of uneven load. Imports no torch."""

from collections.abc import Sequence


def max_violation(tokens_per_expert: Sequence[float]) -> float:
    """Computes MaxVio from the counts of one layer: (largest - mean) / mean, arXiv:2408.15664; 0 without counts.

    0 is an even load. E / K - 1 is the largest possible value if every token has K assignments, and
    E - 1 if their number varies.
    """
    mean = sum(tokens_per_expert) / len(tokens_per_expert)
    return (max(tokens_per_expert) - mean) / mean if mean else 0.0
