"""moe eval."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from moe_cli.cli.options import AsJson, Checkpoint, Outputs, Overrides, RunName, print_json

if TYPE_CHECKING:
    from moe_cli.config.schema import EvalConfig, RunConfig
    from moe_cli.run import Trained
    from moe_cli.training.evaluate import Evaluation

DEFAULT_CAPACITY = 1.25
Domains = Annotated[bool, typer.Option("--domains", help="The loss of each domain (of images, of each class) as well.")]


def evaluate(
    run: RunName,
    overrides: Overrides = None,
    checkpoint: Checkpoint = "latest",
    outputs: Outputs = None,
    domains: Domains = False,
    as_json: AsJson = False,
) -> None:
    """Evaluate a trained model on its whole validation split. Example: moe eval latest eval.k=1,2,4"""
    from moe_cli.store import find_run, outputs_folder

    folder = outputs_folder(outputs)
    found = find_run(folder, run)
    config = found.config()
    policies = _policies(config, overrides or [])

    from rich.console import Console

    from moe_cli.measures import target
    from moe_cli.run import restore

    trained = restore(found, folder, checkpoint)
    results = [(policy, _evaluate(trained, policy)) for policy in policies]
    rows = [_row(config, policy, result, domains) for policy, result in results]
    if as_json:
        print_json({"run": found.id, "step": trained.step, "evaluations": rows})
        return
    unit = target(found.config_dict())
    console = Console(emoji=False)
    console.print(
        f"[bold]{found.id}[/]   step {trained.step:,}   {rows[0]['val_tokens']:,} validation {unit}s, the whole split",
        highlight=False,
    )
    console.print(_table(rows, unit))
    if domains:
        console.print()
        console.print(_domain_table(rows))


def _policies(config: "RunConfig", overrides: list[str]) -> "list[EvalConfig]":
    """Every combination of the values given, each k dropless too."""
    from moe_cli.config.schema import EvalConfig

    if config.dense and not overrides:
        return [EvalConfig()]
    values = policy_values(config, overrides)
    limits = values.get("capacity", [config.eval.capacity or config.capacity or DEFAULT_CAPACITY])
    return [
        make_policy(config, k, capacity)
        for k in values.get("k", [config.eval.k])
        for capacity in dict.fromkeys([None, *limits])
    ]


def policy_values(config: "RunConfig", overrides: list[str]) -> dict[str, list[Any]]:
    """The values given for eval.k and eval.capacity; anything else belongs to training and cannot change now."""
    from moe_cli.config.axes import Interval
    from moe_cli.config.load import parse_overrides
    from moe_cli.errors import ConfigError

    values: dict[str, list[Any]] = {}
    for axis in parse_overrides(overrides):
        group, _, name = axis.key.partition(".")
        if group != "eval" or name not in ("k", "capacity"):
            hint = f" Did you mean 'eval.{axis.key}'?" if axis.key in ("k", "capacity") else ""
            raise ConfigError(
                f"'{axis.key}' is fixed once a model is trained.{hint} eval takes eval.k and eval.capacity."
            )
        if config.dense:
            raise ConfigError(f"'{axis.key}' has no effect on a dense model (expert=1).")
        if any(isinstance(value, Interval) for value in axis.values):
            raise ConfigError(f"'{axis}' is an interval, and eval takes values: {axis.key}=1,2,4")
        values[name] = list(axis.values)
    return values


def make_policy(config: "RunConfig", k: Any, capacity: Any) -> "EvalConfig":
    """Raises ConfigError: it cannot be, of itself or with so many experts."""
    from dataclasses import replace

    from moe_cli.config.parse import build
    from moe_cli.config.schema import EvalConfig

    policy: EvalConfig = build(EvalConfig, {"k": k, "capacity": capacity}, "eval.")
    return replace(config, eval=policy).eval


def _evaluate(trained: "Trained", policy: "EvalConfig") -> "Evaluation":
    from moe_cli.training.evaluate import evaluate as evaluate_model

    config = trained.config
    return evaluate_model(
        trained.model, trained.task, config.train.batch_size, top_k=policy.k, capacity_factor=policy.capacity,
        precision=config.train.precision,
    )  # fmt: skip


def _row(config: "RunConfig", policy: "EvalConfig", result: "Evaluation", domains: bool) -> dict[str, Any]:
    from moe_cli.training.evaluate import MEASURES

    use = result.routing_metrics() or {}
    routing = "dense" if config.dense else "dropless" if policy.capacity is None else "limited"
    return {
        "routing": routing, "k": policy.k or config.k, "capacity": policy.capacity, "val_loss": result.loss,
        **{f"val_{key}": value for key, value in result.measures.items()},
        "val_bpb": result.bits_per_byte, "val_perplexity": result.perplexity, "val_tokens": result.num_tokens,
        **{key: use.get(key) for key in MEASURES},
        **({"domains": result.domain_losses} if domains else {}),
    }  # fmt: skip


def _table(rows: list[dict[str, Any]], unit: str) -> Any:
    from rich.table import Table

    from moe_cli.measures import MEASURES
    from moe_cli.numbers import known, percent

    def share(value: float | None, signed: bool = False) -> str:
        return "-" if value is None else percent(value, signed)

    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("routing")
    measures = {name: measure for name, measure in MEASURES.items() if f"val_{name}" in rows[0]}
    bits = [] if rows[0]["val_bpb"] is None and measures else ["bits/byte"]
    labels = [measure.label for measure in measures.values()]
    for name in ("k", "capacity", f"nats/{unit}", *bits, *labels, "dropped", "load", "dead"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            row["routing"], str(row["k"]), "-" if row["capacity"] is None else f"{row['capacity']:g}",
            f"{row['val_loss']:.4f}", *([known(row["val_bpb"], 4)] if bits else []),
            *(measure.write(row[f"val_{name}"]) for name, measure in measures.items()),
            share(row["dropped_fraction"]), share(row["max_violation"], signed=True), share(row["dead_experts"]),
        )  # fmt: skip
    return table


def _domain_table(rows: list[dict[str, Any]]) -> Any:
    """A row for each domain, the hardest first, a column for each evaluation."""
    from rich.table import Table
    from rich.text import Text

    from moe_cli.numbers import printable

    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("domain")
    for row in rows:
        limit = "" if row["capacity"] is None else f" C={row['capacity']:g}"
        table.add_column(
            "dense" if row["routing"] == "dense" else f"k={row['k']}{limit}", justify="right", no_wrap=True
        )
    for name in sorted(rows[0]["domains"], key=lambda name: -rows[0]["domains"][name]):
        table.add_row(Text(printable(name)), *(f"{row['domains'][name]:.4f}" for row in rows))
    return table
