"""moe eval."""

from typing import TYPE_CHECKING, Any

from moe_cli.cli.options import AsJson, Checkpoint, Outputs, Overrides, RunName, print_json

if TYPE_CHECKING:
    from moe_cli.config.schema import EvalConfig, RunConfig
    from moe_cli.run import Trained

DEFAULT_CAPACITY = 1.25


def evaluate(
    run: RunName,
    overrides: Overrides = None,
    checkpoint: Checkpoint = "latest",
    outputs: Outputs = None,
    as_json: AsJson = False,
) -> None:
    """Evaluate a trained model on its whole validation split. Example: moe eval latest eval.k=1"""
    from moe_cli.store import find_run, outputs_folder

    folder = outputs_folder(outputs)
    found = find_run(folder, run)
    config = found.config()
    policy = _eval_config(config, overrides or [])

    from rich.console import Console

    from moe_cli.run import restore

    trained = restore(found, folder, checkpoint)
    if config.dense:
        rows = [_row(trained, "dense", None, None)]
    else:
        capacity = policy.capacity or config.capacity or DEFAULT_CAPACITY
        rows = [_row(trained, "dropless", policy.k, None), _row(trained, "limited", policy.k, capacity)]
    if as_json:
        print_json({"run": found.id, "step": trained.step, "evaluations": rows})
        return
    console = Console()
    console.print(
        f"[bold]{found.id}[/]   step {trained.step:,}   {rows[0]['val_tokens']:,} validation tokens, the whole split",
        highlight=False,
    )
    console.print(_table(rows))


def _eval_config(config: "RunConfig", overrides: list[str]) -> "EvalConfig":
    """The run's eval settings with those given; anything else belongs to training and cannot change now."""
    from dataclasses import replace

    from moe_cli.config.axes import single_values
    from moe_cli.config.load import parse_overrides
    from moe_cli.config.parse import build
    from moe_cli.config.schema import EvalConfig
    from moe_cli.errors import ConfigError

    values = single_values(parse_overrides(overrides), "eval")
    for key in values:
        if key not in ("eval.k", "eval.capacity"):
            hint = f" Did you mean 'eval.{key}'?" if key in ("k", "capacity") else ""
            raise ConfigError(f"'{key}' is fixed once a model is trained.{hint} eval takes eval.k and eval.capacity.")
        if config.dense:
            raise ConfigError(f"'{key}' has no effect on a dense model (expert=1).")
    given = {key.split(".")[1]: value for key, value in values.items()}
    policy: EvalConfig = build(EvalConfig, {"k": config.eval.k, "capacity": config.eval.capacity, **given}, "eval.")
    replace(config, eval=policy)  # checks eval.k against the number of experts
    return policy


def _row(trained: "Trained", routing: str, top_k: int | None, capacity: float | None) -> dict[str, Any]:
    from moe_cli.training.evaluate import MEASURES
    from moe_cli.training.evaluate import evaluate as evaluate_model

    config = trained.config
    result = evaluate_model(
        trained.model, trained.task, config.train.batch_size, top_k=top_k, capacity_factor=capacity,
        precision=config.train.precision,
    )  # fmt: skip
    use = result.routing_metrics() or {}
    return {
        "routing": routing, "k": top_k or config.k, "capacity": capacity, "val_loss": result.loss,
        **{f"val_{key}": value for key, value in result.measures.items()},
        "val_bpb": result.bits_per_byte, "val_perplexity": result.perplexity, "val_tokens": result.num_tokens,
        **{key: use.get(key) for key in MEASURES},
    }  # fmt: skip


def _table(rows: list[dict[str, Any]]) -> Any:
    from rich.table import Table

    from moe_cli.numbers import known, percent

    def share(value: float | None, signed: bool = False) -> str:
        return "-" if value is None else percent(value, signed)

    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("routing")
    for name in ("k", "capacity", "nats/token", "bits/byte", "dropped", "load", "dead"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            row["routing"], str(row["k"]), "-" if row["capacity"] is None else f"{row['capacity']:g}",
            f"{row['val_loss']:.4f}", known(row["val_bpb"], 4),
            share(row["dropped_fraction"]), share(row["max_violation"], signed=True), share(row["dead_experts"]),
        )  # fmt: skip
    return table
