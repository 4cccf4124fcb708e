"""The sentence on a scaling law in a recommendation."""

import math
from collections.abc import Collection, Sequence

from moe_cli.errors import ConfigError
from moe_cli.formatting import percent
from moe_cli.report.run_row import RunRow
from moe_cli.report.scaling.fit import fit
from moe_cli.report.scaling.observations import make_points
from moe_cli.report.scaling.predictions import dense_equivalents


def scaling_sentence(runs: Sequence[RunRow], paths: Collection[str]) -> str | None:
    """Returns a sentence on the dense model of equal loss for the configuration in these folders, by a fitted law.

    Returns None if the runs support no law, if the configuration is dense, or if the interval has no upper end.
    """
    own = [run for run in runs if run.path in paths]
    try:
        points = make_points([*own, *(run for run in runs if run.path not in paths)]).points
        found = fit(points)
    except ConfigError:
        return None
    # The configuration comes first, so that its number is 0.
    labels = {int(cluster): str(cluster) for cluster in points.cluster}
    equal = next((equivalent for equivalent in dense_equivalents(found, labels) if equivalent.label == "0"), None)
    if equal is None or not math.isfinite(equal.high):
        return None
    return (
        f"The scaling law {found.law.name} ({points.num_configurations} configurations, error on held-out ones "
        f"{percent(found.held_out)}) predicts the same loss for a dense model of {equal.compute_ratio:.2f}x the model "
        f"FLOPs ({equal.low:.2f} to {equal.high:.2f})."
    )
