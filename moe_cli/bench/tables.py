"""What `moe bench layer` prints: a table per shape that fits 80 columns, and the lines around it."""

from collections.abc import Mapping

from rich.table import Table

from moe_cli.bench.layer import Match
from moe_cli.bench.step import StepMatch
from moe_cli.bench.timing import Spread
from moe_cli.formatting import count, plural


def layer_heading(match: Match) -> list[str]:
    """The shape, and what the dense network took."""
    shape = match.shape
    return [
        f"{shape.tokens:,} tokens   {shape.experts} experts, {shape.k} chosen   d_model {shape.d_model}   "
        f"d_expert {shape.d_expert}",
        f"  rows per expert  {shape.rows_per_expert:g}, the busiest {match.largest_load}",
        f"  dense            {milliseconds(match.dense.seconds.median)} ms   {shape.dtype}   "
        f"{_where(match.device, shape.threads)}   {plural(match.rounds, 'round')}",
    ]


def layer_table(match: Match) -> Table:
    """Who reaches which share of the dense network's speed, the best first."""
    table = _table("layer", "efficiency", "min - max", "ms", "saved MiB")
    for score in sorted(match.scores, key=lambda score: -score.efficiency.median):
        table.add_row(
            score.name, f"{score.efficiency.median:.2f}", _range(score.efficiency, "{:.2f}"),
            milliseconds(score.seconds.median), f"{score.saved_bytes / 2**20:.1f}",
        )  # fmt: skip
    return table


def step_heading(match: StepMatch) -> list[str]:
    """The model and the batch."""
    config, model = match.config, match.config.model
    return [
        f"{config.expert} experts, {config.k} chosen   {model.num_layers} layers   d_model {model.d_model}   "
        f"d_expert {model.d_expert}   context {model.context_length}",
        f"  batch {config.train.batch_size}   {count(match.scores[0].num_params)} parameters   "
        f"{_where(match.device, match.threads)}   "
        f"{plural(match.rounds, 'round')}   Mixtral: transformers' MixtralForCausalLM",
    ]


def step_table(match: StepMatch) -> Table:
    """Tokens per second of whole training steps, the fastest first."""
    table = _table("training step", "tok/s", "min - max", f"x {match.yardstick}", "min - max")
    for score in sorted(match.scores, key=lambda score: -score.ratio.median):
        rate = score.tokens_per_second
        table.add_row(
            score.name, count(rate.median), f"{count(rate.least)} - {count(rate.most)}",
            f"{score.ratio.median:.2f}", _range(score.ratio, "{:.2f}"),
        )  # fmt: skip
    return table


def left_out_lines(left_out: Mapping[str, str]) -> list[str]:
    """A line for each reason, with all whom it concerns."""
    by_reason: dict[str, list[str]] = {}
    for name, why in left_out.items():
        by_reason.setdefault(why, []).append(name)
    return [f"left out: {'; '.join(names)}: {why}" for why, names in by_reason.items()]


def milliseconds(seconds: float) -> str:
    """Three significant digits."""
    value = 1000 * seconds
    return f"{value:.0f}" if value >= 99.95 else f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"


def _where(device: str, threads: int) -> str:
    return device if device.startswith("cuda") else plural(threads, "thread")


def _range(values: Spread, form: str) -> str:
    return f"{form.format(values.least)} - {form.format(values.most)}"


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(first, no_wrap=False)
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table
