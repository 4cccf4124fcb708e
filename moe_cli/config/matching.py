"""The width of an expert at which a layer with experts equals a dense one: `match=`."""

from bisect import bisect_right
from collections.abc import Callable
from functools import partial

from moe_cli.config.layer_costs import (
    dense_step_flops,
    expert_params,
    experts_per_token,
    layer_kinds,
    mean_over_layers,
    sparse_params,
    sparse_step_flops,
)
from moe_cli.config.ranges import format_setting
from moe_cli.config.schema import RunConfig
from moe_cli.errors import ConfigError

# The relative error of a matched width: below the first it may be rounded, above the second it is refused.
ROUNDING, TOLERANCE = 0.01, 0.05
# match= of all three quantities: the first sets the width, and `unmatched` reports the others.
ALL = "active+total+flops"
QUANTITIES = {
    "active": "active parameters",
    "total": "total parameters",
    "flops": "training FLOPs",
    "model_flops": "model FLOPs",
}


def matched_d_expert(config: RunConfig) -> int:
    """Returns the expert width at which a sparse layer equals the dense network of width d_ff in `match`'s quantity.

    The quantities are counted by `moe_cli.config.layer_costs`, for a layer of E experts, S shared ones and the gates:

    - active: active parameters of a token, gate + K experts + the S shared ones; null experts lower K.
    - total: all parameters, gate + E experts + the S shared ones.
    - flops: FLOPs of an optimizer step, of model and optimizer; they depend on optim and on tokens per step.
    - model_flops: of these, the model's.
    - With a k for each layer, active and flops are means over the sparse layers.
    - active+total+flops: as active, because one width cannot match three quantities; see `unmatched`.

    The width is rounded to the largest of 16, 8, 4 and 2 whose nearest multiple moves the sum by less than 1 %, because
    such widths are faster. Otherwise it is rounded to the nearest integer, which must be within 5 %, except for active.

    Raises:
        ConfigError: no such width exists.
    """
    match = _quantity(config)
    target, amount = _dense_amount(config, match), _sparse_amount(config, match)
    d_ff, quantity = config.model.d_ff, QUANTITIES[match]
    who, lower, s = f"expert={config.expert} k={format_setting(config.k)}", "k", ""
    if match == "total":
        who, lower, s = f"expert={config.expert}", "expert", "s"
    advice = f"Raise model.d_ff, lower {lower}, or use match=none."
    if amount(1) > target:
        raise ConfigError(f"{who} leave{s} no width for an expert at equal {quantity} (model.d_ff={d_ff}). {advice}")
    width = _nearest_width(target, amount)
    missed = abs(amount(width) - target) / target
    if match != "active" and missed > TOLERANCE:
        raise ConfigError(
            f"{who}: no whole width of an expert gives equal {quantity}: {width} misses those of "
            f"model.d_ff={d_ff} by {missed:.0%}. {advice}"
        )
    return width


def _nearest_width(target: float, amount: Callable[[int], float]) -> int:
    """Returns the width whose amount is nearest to the target, rounded if the error is small.

    Amounts rise with width.
    """
    wide = 2
    while amount(wide) <= target:
        wide *= 2
    below = bisect_right(range(1, wide), target, key=amount)
    for multiple in (16, 8, 4, 2, 1):
        low = below // multiple * multiple
        width = min(low, low + multiple, key=lambda candidate: abs(amount(candidate) - target))
        if multiple == 1 or (width and abs(amount(width) - target) < ROUNDING * target):
            break
    return width


def unmatched(config: RunConfig, d_expert: int) -> str | None:
    """Returns the quantities in which a layer with experts differs from the dense one; None if all are equal.

    Of active parameters, total parameters and training FLOPs, an equal number of the first fixes the width, and with it
    the others. That all three must be equal for a fair comparison is the claim of arXiv:2603.21862.
    """
    differing = []
    for name in ALL.split("+"):
        ratio = _sparse_amount(config, name)(d_expert) / _dense_amount(config, name)
        if abs(ratio - 1) > ROUNDING:
            differing.append(f"{QUANTITIES[name]} are {ratio:.3g} times")
    if not differing:
        return None
    return (
        f"expert={config.expert} k={format_setting(config.k)}: match={ALL} cannot make all equal. In a layer, "
        f"{' and '.join(differing)} those of the dense one (width {d_expert})"
    )


def _quantity(config: RunConfig) -> str:
    """Returns the quantity that sets the width."""
    return config.match.partition("+")[0]


def _dense_amount(config: RunConfig, match: str) -> float:
    """Returns a quantity of a dense layer."""
    if match in ("flops", "model_flops"):
        with_optimizer = match == "flops"
        return mean_over_layers(layer_kinds(config), lambda kind: dense_step_flops(config, kind, with_optimizer))
    return expert_params(config, config.model.d_ff)


def _sparse_amount(config: RunConfig, match: str) -> Callable[[int], float]:
    """Returns the same quantity of a layer with experts of a width; it rises with the width."""
    kinds = layer_kinds(config)
    if match in ("flops", "model_flops"):
        with_optimizer = match == "flops"
        return lambda width: mean_over_layers(
            kinds, lambda kind: sparse_step_flops(config, kind, width, with_optimizer)
        )
    experts = config.expert if match == "total" else mean_over_layers(kinds, partial(experts_per_token, config))
    fixed = sparse_params(config, 0, experts)  # gates, and shared experts of a width of their own
    networks = experts + (0 if config.model.d_shared else config.model.shared_experts)
    return lambda width: fixed + networks * expert_params(config, width)
