"""The record behind `moe scaling`: the fit, the requested results, and their form for programs."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from moe_cli.errors import ConfigError
from moe_cli.report.run_row import RunRow
from moe_cli.report.scaling.fit import Fit, fit
from moe_cli.report.scaling.observations import Points, make_points
from moe_cli.report.scaling.predictions import (
    DenseEquivalent,
    IsoFlop,
    Prediction,
    Validation,
    dense_equivalents,
    iso_flop,
    predict,
    validate,
)
from moe_cli.report.table_file import is_table_row


@dataclass(frozen=True)
class Analysis:
    """A fit with its answers.

    Attributes:
        left_out: runs that are not complete.
        validation: None without `hold_out`.
    """

    fit: Fit
    left_out: int
    equivalents: tuple[DenseEquivalent, ...]
    iso_flop: tuple[IsoFlop, ...]
    predictions: tuple[Prediction, ...]
    validation: Validation | None


# The remedy in the messages of `make_points` and `fit`, which a table of other programs has no use for.
_MAKE_RUNS = re.compile(r"Make (more|some): moe sweep .*")


def analyse(
    runs: Sequence[RunRow],
    law: str,
    wanted: Mapping[str, Points],
    hold_out: bool,
) -> Analysis:
    """Fits a scaling law to runs and computes the requested results.

    Args:
        law: clark, krajewski, abnar, ludziejewski, or auto: the law with the least error on held-out configurations.
        wanted: configurations to predict, by label.
        hold_out: also predict the largest configurations from the others.

    Raises:
        ConfigError: no such law, no runs, or runs that cannot support it; the message names the missing runs.
    """
    try:
        named = make_points(runs)
        found = fit(named.points, law)
    except ConfigError as error:
        if not all(is_table_row(run) for run in runs):
            raise
        raise type(error)(re.sub(_MAKE_RUNS, "Add rows with others to the table.", str(error))) from None
    predictions = tuple(prediction for label, point in wanted.items() for prediction in predict(found, point, [label]))
    validation = validate(named.points, named.labels, law) if hold_out else None
    labels = {int(cluster): label for cluster, label in zip(named.points.cluster, named.labels, strict=True)}
    return Analysis(found, named.left_out, dense_equivalents(found, labels), iso_flop(runs), predictions, validation)


def analysis_record(result: Analysis) -> dict[str, Any]:
    """Returns the study as one JSON object; infinite numbers are for the writer to replace."""
    found = result.fit
    return {
        "law": found.law.name,
        "equation": found.law.equation,
        "source": found.law.source,
        "runs": len(found.points),
        "configurations": found.points.num_configurations,
        "left_out": result.left_out,
        "constants": [asdict(constant) for constant in found.constants],
        "seeds": len(found.seeds.seeds),
        "seed_deviation": found.seeds.deviation,
        "residual": found.scale,
        "held_out_error": found.held_out,
        "rejected": [asdict(law) for law in found.rejected],
        "dense_equivalents": [
            {**asdict(equivalent), "speed_up": equivalent.speed_up} for equivalent in result.equivalents
        ],
        "iso_flop": [asdict(curve) for curve in result.iso_flop],
        "predictions": [asdict(prediction) for prediction in result.predictions],
        "validation": asdict(result.validation) if result.validation else None,
    }
