"""Tables of `moe bench`, which fit 80 columns, and the lines around them."""

from collections.abc import Mapping

from rich.table import Table

from moe_cli.bench.layer import LayerBenchmark
from moe_cli.bench.optimizer import OptimizerBenchmark
from moe_cli.bench.spread import Spread
from moe_cli.bench.step import StepBenchmark
from moe_cli.bench.sweep import SweepBenchmark
from moe_cli.formatting import count, plural
from moe_cli.report.render.line_wrap import wrap_lines


def layer_heading(benchmark: LayerBenchmark) -> list[str]:
    """Returns the lines above a table: the shape, and the time of the dense network."""
    shape = benchmark.shape
    return [
        f"{shape.tokens:,} tokens   {shape.experts} experts, {shape.k} chosen   d_model {shape.d_model}   "
        f"d_expert {shape.d_expert}",
        f"  rows per expert  {shape.rows_per_expert:g}, the busiest {benchmark.largest_load}",
        f"  dense            {milliseconds(benchmark.dense.seconds.median)} ms   {shape.dtype}   "
        f"{_where(benchmark.device, shape.threads)}   {plural(benchmark.rounds, 'round')}",
    ]


def layer_table(benchmark: LayerBenchmark) -> Table:
    """Returns the table of efficiencies, the best candidate first."""
    table = _table("layer", "efficiency", "min - max", "ms", "saved MiB")
    for result in sorted(benchmark.results, key=lambda result: -result.efficiency.median):
        table.add_row(
            result.name,
            f"{result.efficiency.median:.2f}",
            _range(result.efficiency, "{:.2f}"),
            milliseconds(result.seconds.median),
            f"{result.saved_bytes / 2**20:.1f}",
        )
    return table


def step_heading(benchmark: StepBenchmark) -> list[str]:
    """Returns the lines above a table: the model and the batch."""
    config, model = benchmark.config, benchmark.config.model
    return [
        f"{config.expert} experts, {config.k} chosen   {model.num_layers} layers   d_model {model.d_model}   "
        f"d_expert {model.d_expert}   context {model.context_length}",
        f"  batch {config.train.batch_size}   {count(benchmark.results[0].num_params)} parameters   "
        f"{_where(benchmark.device, benchmark.threads)}   "
        f"{plural(benchmark.rounds, 'round')}   Mixtral: transformers' MixtralForCausalLM",
    ]


def step_table(benchmark: StepBenchmark) -> Table:
    """Returns the table of tokens per second, the fastest candidate first."""
    table = _table("training step", "tok/s", "min - max", f"x {benchmark.baseline}", "min - max")
    for result in sorted(benchmark.results, key=lambda result: -result.ratio.median):
        rate = result.tokens_per_second
        table.add_row(
            result.name,
            count(rate.median),
            f"{count(rate.min)} - {count(rate.max)}",
            f"{result.ratio.median:.2f}",
            _range(result.ratio, "{:.2f}"),
        )
    return table


def optimizer_heading(benchmark: OptimizerBenchmark) -> list[str]:
    """Returns the lines above a table: the model and the batch."""
    config, model = benchmark.config, benchmark.config.model
    return [
        f"optim={config.optim.name}   {model.num_layers} layers   d_model {model.d_model}   d_ff {model.d_ff}   "
        f"context {model.context_length}",
        f"  batch {config.train.batch_size}   {_where(benchmark.device, benchmark.threads)}   "
        f"{plural(benchmark.rounds, 'round')}   milliseconds of a step",
    ]


def optimizer_table(benchmark: OptimizerBenchmark) -> Table:
    """Returns the table of pass and update by number of experts; the first row is what `x first` refers to."""
    table = _table("experts", "k", "period", "pass", "update", "share", "min - max", "x first", "min - max")
    for result in benchmark.results:
        table.add_row(
            str(result.experts),
            str(result.top_k),
            str(result.period),
            milliseconds(result.pass_seconds.median),
            milliseconds(result.update_seconds.median),
            f"{100 * result.share.median:.0f} %",
            f"{100 * result.share.min:.0f} - {100 * result.share.max:.0f}",
            f"{result.ratio.median:.2f}",
            _range(result.ratio, "{:.2f}"),
        )
    return table


def sweep_heading(benchmark: SweepBenchmark) -> list[str]:
    """Returns the lines above a table: the number of runs, and their settings."""
    counts = (plural(benchmark.runs, "run"), f"{benchmark.jobs} at a time", plural(len(benchmark.rounds), "round"))
    return ["   ".join(counts), *wrap_lines(" ".join(benchmark.settings), 80, indent="  ")]


def sweep_table(benchmark: SweepBenchmark) -> Table:
    """Returns the table of runs per hour, and of the parts of the time of a worker for each run."""
    table = _table("sweep", "median", "min - max")
    rate = benchmark.runs_per_hour
    table.add_row("runs per hour", f"{rate.median:,.0f}", f"{rate.min:,.0f} - {rate.max:,.0f}")
    for name, seconds in (
        ("seconds of a worker per run", benchmark.worker_seconds),
        ("  training steps", benchmark.training_seconds),
        ("  overhead", benchmark.overhead_seconds),
        ("    data, evaluations, files", benchmark.evaluation_seconds),
        ("    plan, processes, waiting", benchmark.sweep_seconds),
    ):
        table.add_row(name, f"{seconds.median:.2f}", _range(seconds, "{:.2f}"))
    return table


def skipped_lines(skipped: Mapping[str, str]) -> list[str]:
    """Returns a line for each reason, with the candidates it concerns."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in skipped.items():
        by_reason.setdefault(reason, []).append(name)
    return [f"left out: {'; '.join(names)}: {reason}" for reason, names in by_reason.items()]


def milliseconds(seconds: float) -> str:
    """Formats with three significant digits."""
    value = 1000 * seconds
    return f"{value:.0f}" if value >= 99.95 else f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"


def _where(device: str, threads: int) -> str:
    return device if device.startswith("cuda") else plural(threads, "thread")


def _range(values: Spread, form: str) -> str:
    return f"{form.format(values.min)} - {form.format(values.max)}"


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(first, no_wrap=False)
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table
