"""The lines of `moe scaling` for a terminal of any width."""

from collections.abc import Sequence

from rich.text import Text

from moe_cli.formatting import count, format_flops, or_dash, percent, sanitise
from moe_cli.report.render.terminal import plain_table, wrap
from moe_cli.report.scaling.analysis import Analysis
from moe_cli.report.scaling.fit import Fit
from moe_cli.report.scaling.predictions import MAX_COMPUTE_RATIO, DenseEquivalent, IsoFlop, Prediction, Validation

# The least width at which throughput is shown.
WITH_SPEED = 90
# A prediction that lies outside the runs by more than this factor gets a warning.
EXTRAPOLATION_WARNING = 8.0


def analysis_lines(result: Analysis, title: str, width: int) -> list[Text]:
    """Returns the lines on the law: its constants, its results, and its reliability."""
    found = result.fit
    lines = [Text.assemble((sanitise(title), "bold"), f"   scaling law {found.law.name}   ", (found.law.source, "dim"))]
    lines += wrap(found.law.equation, width)
    lines += wrap(_size(result), width, "dim")
    lines += wrap(_seeds(found), width, "yellow" if found.seeds.deviation is None else "dim")
    lines += [Text(), *_constants(found, width)]
    lines += _others(found, width)
    if result.equivalents:
        lines += [Text(), *_equivalents(result.equivalents, width)]
    if result.iso_flop:
        lines += [Text(), *_iso_flop(result.iso_flop, width)]
    if result.predictions:
        lines += [Text(), *_predictions(result.predictions, width)]
    if result.validation:
        lines += [Text(), *_validation(result.validation, width)]
    return lines


def _size(result: Analysis) -> str:
    points = result.fit.points
    omitted = f"; {result.left_out} incomplete ones are left out" if result.left_out else ""
    return (
        f"{len(points)} runs of {points.num_configurations} configurations{omitted}. Residual of a run: "
        f"{percent(result.fit.scale)} (robust standard deviation). Error on held-out configurations: "
        f"{percent(result.fit.held_out)}. Intervals: 95 %, wild bootstrap by configuration."
    )


def _seeds(found: Fit) -> str:
    """Returns the sentence on whether intervals include the shift that a seed gives to all configurations."""
    seeds = found.seeds
    if seeds.deviation is None:
        return (
            "One seed was run, so the intervals do not include the variation between seeds: fewer than 95 % of "
            "runs with other seeds lie inside. Run more: --seeds 3"
        )
    return (
        f"A seed shifts all losses together by {percent(seeds.deviation)} (standard deviation over "
        f"{len(seeds.seeds)} seeds). The intervals include this shift."
    )


def _constants(found: Fit, width: int) -> list[Text]:
    rows = [
        (constant.name, _number(constant.value), f"{_number(constant.low)} to {_number(constant.high)}")
        for constant in found.constants
    ]
    return plain_table(("constant", "value", "95 % interval"), rows, width)


def _number(value: float) -> str:
    return f"{value:.4g}"


def _others(found: Fit, width: int) -> list[Text]:
    lines = []
    for entry in found.rejected:
        if entry.held_out is None:
            text = f"not fitted: {str(entry.reason).splitlines()[0]}"
        else:
            text = f"not chosen: {entry.law}, error on held-out configurations {percent(entry.held_out)}"
        lines += wrap(text, width, "dim")
    return lines


def _compute_ratio(value: float) -> str:
    if value > MAX_COMPUTE_RATIO:
        return f"> {MAX_COMPUTE_RATIO:,.0f}"
    return f"{value:.2f}" if value < 100 else f"{value:.0f}"


def _equivalents(equivalents: Sequence[DenseEquivalent], width: int) -> list[Text]:
    """Returns the table of dense models, with throughput if it was measured and fits."""
    headings = ["equals a dense model of", "x compute", "95 % interval", "x tok/s", "speed-up"]
    rows = [
        [
            sanitise(equivalent.label),
            _compute_ratio(equivalent.compute_ratio),
            f"{_compute_ratio(equivalent.low)} to {_compute_ratio(equivalent.high)}",
            or_dash(equivalent.throughput, 2),
            "-" if equivalent.speed_up is None else _compute_ratio(equivalent.speed_up),
        ]
        for equivalent in equivalents
    ]
    known = any(equivalent.throughput is not None for equivalent in equivalents)
    shown = len(headings) if known and width >= WITH_SPEED else 3
    lines = plain_table(headings[:shown], [row[:shown] for row in rows], width)
    note = (
        "x compute: training FLOPs (model, not optimizer) of the dense model that reaches the same loss on the same "
        "tokens, relative to the dense model of equal active parameters."
    )
    note += (
        " speed-up: training time of that dense model relative to the sparse one, on this machine." if shown > 3 else ""
    )
    return [*lines, *wrap(note, width, "dim")]


def _iso_flop(curves: Sequence[IsoFlop], width: int) -> list[Text]:
    rows = [
        (
            format_flops(curve.flops),
            f"{curve.expansion:g}",
            str(len(curve.sizes)),
            "-" if curve.best is None else count(curve.best),
            or_dash(curve.best_loss),
        )
        for curve in curves
    ]
    lines = plain_table(("iso-FLOP budget", "expert/k", "sizes", "best active", "loss there"), rows, width)
    reasons = dict.fromkeys(
        f"{format_flops(curve.flops)}, expert/k {curve.expansion:g}: {curve.why}" for curve in curves if curve.why
    )
    return lines + [line for reason in reasons for line in wrap(reason, width, "yellow")]


def _predictions(predictions: Sequence[Prediction], width: int) -> list[Text]:
    rows = [
        (sanitise(prediction.label), f"{prediction.loss:.3f}", f"{prediction.low:.3f} to {prediction.high:.3f}")
        for prediction in predictions
    ]
    lines = plain_table(("predicted, not run", "nats/token", "95 % interval of a run"), rows, width)
    for prediction in predictions:
        if prediction.extrapolation_factor > EXTRAPOLATION_WARNING:
            warning = (
                f"{sanitise(prediction.label)} lies outside the runs by a factor of "
                f"{prediction.extrapolation_factor:.1f}: the prediction is unreliable."
            )
            lines += wrap(warning, width, "yellow")
    return lines


def _validation(validation: Validation, width: int) -> list[Text]:
    rows = [
        (
            sanitise(prediction.label),
            f"{prediction.measured or 0:.3f}",
            f"{prediction.loss:.3f}",
            percent(prediction.loss / (prediction.measured or 1) - 1, True),
            f"{prediction.low:.3f} to {prediction.high:.3f}",
        )
        for prediction in validation.predictions
    ]
    lines = plain_table(("largest, held out", "measured", "predicted", "error", "95 % interval"), rows, width)
    total = len(validation.predictions)
    verdict = (
        f"{validation.law} fitted to the {validation.num_fitted} smaller configurations: error "
        f"{percent(validation.error)} (root mean square), {validation.inside} of {total} inside their interval"
    )
    return [*lines, *wrap(verdict, width, "" if validation.inside >= 0.8 * total else "yellow")]
