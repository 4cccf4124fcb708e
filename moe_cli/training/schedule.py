"""The learning rate of a step, as a fraction of its peak: warm-up, then constant or decaying."""

import math

from moe_cli.config.optim import OptimConfig


def schedule(config: OptimConfig, progress: float, after: float | None = None) -> float:
    """Computes the learning rate of a step as a fraction of its peak.

    The warm-up is linear over the first `warmup_fraction` of the budget. Then the rate is constant, or decays linearly
    or by a cosine to `min_lr_ratio`. With `wsd` it is constant and then decays linearly to `min_lr_ratio` over the last
    `decay_fraction` (warm-up, stable, decay: arXiv:2404.06395).

    The warm-up is evaluated at the end of the step and the decay at its beginning, so that neither the first nor the
    last step has a rate of 0: of W warm-up steps, step s = 1, 2, ... has s / W of the peak.

    Args:
        progress: fraction of the budget spent before the step, in [0, 1).
        after: fraction of the budget spent after the step; None means the same as before.
    """
    if progress < config.warmup_fraction:
        return min(1.0, (progress if after is None else after) / config.warmup_fraction)
    final = 1.0 if config.min_lr_ratio is None else config.min_lr_ratio
    length = (
        config.decay_fraction
        if config.schedule == "wsd" and config.decay_fraction is not None
        else 1 - config.warmup_fraction
    )
    decay_progress = min(1.0, max(0.0, 1 - (1 - progress) / length)) if length else 0.0
    if config.schedule == "constant":
        return 1.0
    if config.schedule == "cosine":
        return final + (1 - final) * (1 + math.cos(math.pi * decay_progress)) / 2
    return 1 - (1 - final) * decay_progress
