"""The lines of `moe scaling --bet` and `--bets` for a terminal of any width."""

import time
from collections.abc import Sequence
from pathlib import Path

from rich.text import Text

from moe_cli.formatting import format_flops, format_loss, or_dash, percent, plural, sanitise
from moe_cli.report.render.terminal import plain_table, wrap
from moe_cli.report.scaling.bet_scores import Calibration, Outcome, calibrate
from moe_cli.report.scaling.bets import BET_CONFIDENCE, Bet

# The Brier score of a probability of one half.
UNINFORMED = 0.25
# The columns of the table of scores.
HEADINGS = ("bet", "predicted", "80 % interval", "measured", "inside", "P(win)", "won", "sweep", "placed")
# The least widths at which the last two columns are shown, and the predicted loss next to its interval.
WITH_SWEEP, WITH_LOSS = 140, 100


def placed_lines(bets: Sequence[Bet], files: Sequence[Path], earlier: Sequence[Outcome], width: int) -> list[Text]:
    """Returns the lines on new bets: prediction, method, commands; and the record of the earlier ones if any."""
    lines: list[Text] = []
    for bet, file in zip(bets, files, strict=True):
        lines += [*([Text()] if lines else []), *_placed(bet, file, width)]
    record = calibrate(earlier)
    return [*lines, Text(), Text("Earlier bets:"), *_calibration(record, width)] if record.scored else lines


def _placed(bet: Bet, file: Path, width: int) -> list[Text]:
    loss = format_loss(bet.loss if bet.metric == "val_bpb" else None, bet.loss)
    lines = [Text.assemble((f"bet {bet.digest}", "bold"), f"   {sanitise(bet.settings)}   on {sanitise(bet.sweep)}")]
    lines += wrap(
        f"predicted: {loss}, {percent(BET_CONFIDENCE)} interval {bet.low:.3f} to {bet.high:.3f}, for the "
        f"mean over {plural(len(bet.seeds), 'seed')}",
        width,
    )
    lines += wrap(_winner(bet), width)
    lines += wrap(
        f"cost: {format_flops(bet.flops)} for each run, {bet.compute_factor:.3g} times the FLOPs of the largest run "
        "that it rests on",
        width,
    )
    lines += wrap(f"method: {sanitise(bet.method)}", width, "dim")
    lines += wrap(f"written: {sanitise(str(file))}; it does not change", width, "dim")
    lines.append(Text("Run it, then score it:"))
    commands = (*bet.commands, f"moe scaling {bet.sweep} --bets")
    return [*lines, *(Text(f"  {sanitise(command)}") for command in commands)]


def _winner(bet: Bet) -> str:
    if bet.wins is None or bet.baseline_loss is None:
        return "winner: no bet, because the runs do not predict a dense model"
    return (
        f"winner: beats the dense model of equal {bet.equal} ({bet.baseline_loss:.3f}) with probability {bet.wins:.2f}"
    )


def score_lines(outcomes: Sequence[Outcome], width: int) -> list[Text]:
    """Returns the table of bets with their outcomes, and the record of their calibration."""
    if not outcomes:
        return wrap("no bets. Place one: moe scaling SWEEP --bet 'expert=8 train.tokens=4000000'", width)
    last = len(HEADINGS) if width >= WITH_SWEEP else len(HEADINGS) - 2
    shown = [index for index in range(last) if index != 1 or width >= WITH_LOSS]
    rows = [[row[index] for index in shown] for row in map(_row, outcomes)]
    lines = plain_table([HEADINGS[index] for index in shown], rows, width)
    return [*lines, Text(), *_calibration(calibrate(outcomes), width)]


def _row(outcome: Outcome) -> list[str]:
    bet = outcome.bet
    state = f"{len(outcome.seeds)}/{len(bet.seeds)} seeds"
    return [
        sanitise(bet.settings),
        f"{bet.loss:.3f}",
        f"{bet.low:.3f} to {bet.high:.3f}",
        state if outcome.measured is None else f"{outcome.measured:.3f}",
        _yes(outcome.inside),
        or_dash(bet.wins, 2),
        _yes(outcome.won),
        sanitise(bet.sweep),
        time.strftime("%Y-%m-%d %H:%M", time.localtime(bet.placed)),
    ]


def _yes(value: bool | None) -> str:
    return "-" if value is None else "yes" if value else "no"


def _calibration(record: Calibration, width: int) -> list[Text]:
    if record.coverage is None or record.coverage_low is None or record.coverage_high is None:
        return wrap(f"0 of {plural(record.bets, 'bet')} scored: run the commands that were printed", width, "dim")
    text = (
        f"{record.scored} of {plural(record.bets, 'bet')} scored: {record.inside} inside the {percent(BET_CONFIDENCE)} "
        f"interval, {percent(record.coverage)} (95 % interval {percent(record.coverage_low)} to "
        f"{percent(record.coverage_high)}, too narrow if bets share a sweep); mean width "
        f"{percent(record.mean_width or 0.0)} of the loss"
    )
    lines = wrap(text, width)
    if record.brier is not None:
        winners = (
            f"winner: {record.right} of {record.winners} right; Brier score {record.brier:.3f} "
            f"({UNINFORMED} for a probability of one half)"
        )
        lines += wrap(winners, width)
    return lines
