"""The plan that moe train prints before it starts. Without torch, unless a capacity limits experts."""

import sys

from rich.console import Console
from rich.markup import escape

from moe_cli.cli.console import print_lines
from moe_cli.cli.runs.show import wrap_labelled
from moe_cli.config.ranges import format_setting
from moe_cli.data.load import data_notes
from moe_cli.execution.estimate import RunEstimate
from moe_cli.execution.memory import PROCESS_BYTES, memory_bytes
from moe_cli.execution.precision import planned_precision
from moe_cli.formatting import count, duration, format_bytes, format_flops, percent, plural


def model_label(estimate: RunEstimate) -> str:
    """Returns the model's label: gpt 8x2, gpt dense."""
    config = estimate.config
    return f"{config.model.name} {config.shape}"


def print_estimate(
    console: Console, estimate: RunEstimate, folder: str | None, step: int = 0, precision: str | None = None
) -> None:
    """Prints parameters, sparsity, cost, expected time after a step and the run's folder before the start.

    Args:
        precision: the precision of the run; None means that it is decided here, unless a GPU decides it later.
    """
    config, costs = estimate.config, estimate.cost
    precision = precision or planned_precision(config)
    console.print(
        f"[bold]{model_label(estimate)}[/]   {escape(estimate.corpus.describe())}   seed {config.seed}", highlight=False
    )
    active = percent(costs.num_active_params / costs.num_params)
    parameters = f"{count(costs.num_params)} total   {count(costs.num_active_params)} active ({active})"
    if not config.dense:
        parameters += f"   sparsity {percent(1 - config.mean_k / config.expert)}"
    rows = [("parameters", parameters)]
    if not config.dense:
        rows.append(("routing", _routing_line(estimate)))
    tokens, minutes = plural(config.tokens_per_step, "token"), config.train.minutes
    length = (
        f"{plural(estimate.steps, 'step')} x {tokens}"
        if estimate.steps is not None
        else f"{minutes:g} minute{'' if minutes == 1 else 's'}, {tokens} a step"
    )
    time = f"about {duration(estimate.seconds_after(step))}" + (" more" if step else "")
    optimizer = percent(costs.optimizer_flops_per_step / costs.flops_per_step)
    flops = f"{format_flops(costs.flops_per_token)}/token" + (
        f", optimizer {optimizer}" if costs.optimizer_flops_per_step else ""
    )
    rows.append(
        (
            "training",
            f"{length}   {flops}   {time} on {plural(estimate.threads, 'thread')}"
            + (f" in {precision}" if precision else ""),
        )
    )
    rows.append(
        (
            "memory",
            f"about {format_bytes(memory_bytes(costs))}: "
            f"{format_bytes(costs.state_bytes)} weights, gradients and optimizer   "
            f"{format_bytes(costs.activation_bytes)} activations   {format_bytes(PROCESS_BYTES)} torch",
        )
    )
    if folder:
        rows.append(("run", folder))
    rows += [("data", remark) for remark in data_notes(estimate.corpus, config)]
    print_rows(console, rows)


def print_rows(console: Console, rows: list[tuple[str, str]]) -> None:
    """Prints each text after its label; on a terminal long texts wrap between words."""
    for label, text in rows:
        print_lines(
            console, wrap_labelled(label, text.split("   "), console.width if console.is_terminal else sys.maxsize)
        )


def _routing_line(estimate: RunEstimate) -> str:
    config = estimate.config
    balance = config.balance.name if config.balance else "none"
    dropping = "dropless"
    if config.capacity is not None:
        from moe_cli.config.capacity import expert_capacity
        from moe_cli.config.layer_costs import capacity_tokens

        within = capacity_tokens(config, config.model.context_length)
        rooms = sorted({expert_capacity(within, config.expert, k, config.capacity) for k in config.k_values})
        room = " to ".join(f"{number:,}" for number in dict.fromkeys((rooms[0], rooms[-1])))
        dropping = f"capacity {config.capacity:g} = {room} of {within:,} tokens per expert"
        dropping += f", drop by {config.drop}" if config.drop else ""
    if config.trains_on_later_tokens:
        dropping += " (training sees later tokens, evaluation does not)"
    name = config.router.name if config.router else "none"
    return f"{name}, balance {balance}, {dropping}, d_expert {format_setting(config.model.d_expert)}"
