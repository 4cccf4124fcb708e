"""Computes the capacity of an expert, for the layer, the cost model and the plan. Imports no torch."""

import math

from moe_cli.config.ranges import check_above, check_at_least


def expert_capacity(num_tokens: int, num_experts: int, top_k: int, capacity_factor: float) -> int:
    """Computes C = ceil(capacity_factor * T * K / E), at least 1: the most assignments that an expert keeps.

    The T tokens are those of a forward pass; in training, of all processes; with drop=causal, of one sequence.

    Source: GShard, arXiv:2006.16668, section 2.2. Other libraries round differently.

    Raises:
        ConfigError: the factor is not finite or not above 0, a count is negative, or E or K is 0.
    """
    check_at_least("num_tokens", num_tokens, 0)
    check_at_least("num_experts", num_experts, 1)
    check_at_least("top_k", top_k, 1)
    check_above("capacity_factor", capacity_factor, 0)
    # Rounded first: in floating point 1.1 * 100 / 10 is slightly above 11, and ceil would return 12.
    return max(1, math.ceil(round(capacity_factor * num_tokens * top_k / num_experts, 9)))
