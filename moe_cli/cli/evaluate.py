"""moe eval."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moe_cli.cli.options import AsJson, Checkpoint, Outputs, Overrides, PluginFiles, RunName, print_json, trained_run
from moe_cli.config.ranges import format_setting

if TYPE_CHECKING:
    from moe_cli.config.schema import RunConfig
    from moe_cli.config.training import EvalConfig
    from moe_cli.execution.trained_model import TrainedModel
    from moe_cli.report.render.terminal import TextColumn
    from moe_cli.training.evaluate import Evaluation

DEFAULT_CAPACITY = 1.25
# Settings eval.NAME that a trained model can be evaluated with: routing, and windows.
EVAL_OVERRIDES = ("k", "capacity", "drop")
WINDOWS = ("context_length", "stride")
# Splits, and the prefixes of their keys in JSON.
SPLITS = {"validation": "val", "test": "test"}
Split = Annotated[str, typer.Option("--split", metavar="validation|test", help="Split to evaluate.")]
Domains = Annotated[
    bool, typer.Option("--domains", help="Also print the loss of each domain, or of each class of images.")
]


def evaluate(
    run: RunName,
    overrides: Overrides = None,
    checkpoint: Checkpoint = "latest",
    outputs: Outputs = None,
    plugin: PluginFiles = None,
    split: Split = "validation",
    domains: Domains = False,
    as_json: AsJson = False,
) -> None:
    """Evaluate a trained model on its validation or test split.

    The whole split is read. Routing may differ from training: experts per token, capacity, drops. So may the text.

    Examples:
        moe eval latest
        moe eval latest eval.k=1,2,4 --json
        moe eval latest data=text data.path=notes.txt --domains
    """
    from moe_cli.config.build import check_choice
    from moe_cli.runs.folder import outputs_folder

    check_choice("--split", split, list(SPLITS))
    folder = outputs_folder(outputs)
    found = trained_run(folder, run)
    config = found.config()
    data, overrides = data_settings(overrides or [], "moe eval")
    policies = _policies(config, overrides)

    from moe_cli.cli.console import CommandConsole, print_lines, table_width
    from moe_cli.execution.trained_model import load_trained
    from moe_cli.metrics import sees_later_tokens, target_name
    from moe_cli.report.render.terminal import table_lines

    trained = load_trained(found, folder, checkpoint, SPLITS[split], data=data)
    screen = CommandConsole(stderr=True)
    results = []
    for number, policy in enumerate(policies, 1):
        with screen.status(f"evaluation {number} of {len(policies)}: {_policy_label(config, policy)}"):
            results.append((policy, _evaluate(trained, policy)))
    rows = [_row(config, policy, result, domains) for policy, result in results]
    if as_json:
        named = [{re.sub("^val_", f"{SPLITS[split]}_", key): value for key, value in row.items()} for row in rows]
        name = trained.config.data.name
        print_json({"run": found.id, "step": trained.step, "data": name, "split": split, "evaluations": named})
        return
    unit = target_name(found.config_dict())
    console = CommandConsole(emoji=False)
    contexts = {row["eval_context"] for row in rows}
    context = f", mean context {rows[0]['eval_context']:z.1f}" if len(contexts) == 1 and None not in contexts else ""
    size = f"{rows[0]['val_tokens']:,} {split} {unit}s"
    console.print(
        f"[bold]{found.id}[/]   step {trained.step:,}   {size}"
        f"{f' of data={trained.config.data.name}' if data else ''}, the whole split{context}",
        highlight=False,
        soft_wrap=True,
    )
    tables = [_table(rows, unit), *([_domain_table(rows)] if domains else [])]
    for table in tables:
        print_lines(console, table_lines(table, table_width(console)))
        if table is not tables[-1]:
            console.print()
    for drop in dict.fromkeys(row["drop"] for row in rows if row["sees_later_tokens"]):
        console.print(f"[yellow]{sees_later_tokens(drop)}[/]", highlight=False, soft_wrap=True)


def data_settings(overrides: list[str], command: str) -> tuple[dict[str, Any], list[str]]:
    """Returns the settings of other data, such as data=text data.path=notes.txt, and the other overrides.

    Raises ConfigError: a setting has several values.
    """
    from moe_cli.config.overrides import parse_overrides
    from moe_cli.errors import ConfigError

    of_data = [override for override in overrides if re.match(r"data[.=]", override)]
    values = {}
    for axis in parse_overrides(of_data):
        if len(axis.values) > 1:
            raise ConfigError(f"{axis.key} has {len(axis.values)} values: {command} takes one.")
        values[axis.key] = axis.values[0]
    return values, [override for override in overrides if override not in of_data]


def _policies(config: "RunConfig", overrides: list[str]) -> "list[EvalConfig]":
    """Returns every combination of the values; each k dropless too, and only that if nothing names a capacity."""
    from moe_cli.config.routers import SoftConfig

    values = eval_overrides(config, overrides, (*EVAL_OVERRIDES, *WINDOWS))
    one_way = config.dense or isinstance(config.router, SoftConfig)
    trained = config.eval.capacity or config.capacity
    only_k = "k" in values and "drop" not in values
    limits = values.get("capacity", [trained] if trained else [] if only_k else [DEFAULT_CAPACITY])
    return [
        eval_config(config, k=k, capacity=capacity, drop=drop, context_length=length, stride=stride)
        for length in values.get("context_length", [config.eval.context_length])
        for stride in values.get("stride", [config.eval.stride])
        for k in values.get("k", [config.eval.k])
        for capacity in ([None] if one_way else dict.fromkeys([None, *limits]))
        for drop in (values.get("drop", [config.eval.drop]) if capacity is not None else [None])
    ]


def eval_overrides(
    config: "RunConfig", overrides: list[str], names: Sequence[str] = EVAL_OVERRIDES
) -> dict[str, list[Any]]:
    """Returns the values of each eval.NAME. Raises ConfigError for other settings, which are fixed by training."""
    from moe_cli.config.axes import Interval
    from moe_cli.config.build import did_you_mean
    from moe_cli.config.foreign_names import OTHER_NAMES
    from moe_cli.config.overrides import parse_overrides
    from moe_cli.config.routers import IDLE_AT_EVALUATION
    from moe_cli.errors import ConfigError

    values: dict[str, list[Any]] = {}
    taken = [f"eval.{name}" for name in names]
    for axis in parse_overrides(overrides):
        group, _, name = axis.key.partition(".")
        if group != "eval" or name not in names:
            meant = OTHER_NAMES.get(axis.key, axis.key)
            if group == "eval":
                reason = f"'{axis.key}' is no setting of this command.{did_you_mean(axis.key, taken)}"
            elif meant in names:
                reason = f"'{axis.key}' is fixed once a model is trained. Did you mean 'eval.{meant}'?"
            else:
                reason = f"'{axis.key}' is fixed once a model is trained."
            raise ConfigError(f"{reason} This command takes {', '.join(taken[:-1])} and {taken[-1]}.")
        if config.dense and name in EVAL_OVERRIDES:
            raise ConfigError(f"'{axis.key}' has no effect on a dense model (expert=1).")
        if config.router is not None and axis.key in IDLE_AT_EVALUATION.get(config.router.name, ()):
            raise ConfigError(f"'{axis.key}' has no effect with router={config.router.name}. Leave it out.")
        if any(isinstance(value, Interval) for value in axis.values):
            ends = next(value for value in axis.values if isinstance(value, Interval))
            raise ConfigError(f"'{axis}' is an interval, and eval takes values: {axis.key}={ends.low:g},{ends.high:g}")
        values[name] = list(axis.values)
    return values


def one_policy(
    config: "RunConfig", overrides: list[str], command: str, names: Sequence[str] = EVAL_OVERRIDES, **fixed: None
) -> "EvalConfig":
    """Returns the evaluation settings of the run, with the `fixed` ones and then the overrides, one value each."""
    from moe_cli.errors import ConfigError

    values: dict[str, Any] = {**fixed}
    for name, found in eval_overrides(config, overrides, names).items():
        if len(found) > 1:
            raise ConfigError(f"eval.{name} has {len(found)} values: {command} takes one.")
        values[name] = found[0]
    return eval_config(config, **values)


def eval_config(config: "RunConfig", **values: Any) -> "EvalConfig":
    """Returns the evaluation settings of a run with other values. Raises ConfigError for values that it cannot have."""
    from dataclasses import asdict, replace

    from moe_cli.config.build import build
    from moe_cli.config.training import EvalConfig

    policy: EvalConfig = build(EvalConfig, {**asdict(config.eval), **values}, "eval.")
    return replace(config, eval=policy).eval


def _evaluate(trained: "TrainedModel", policy: "EvalConfig") -> "Evaluation":
    from dataclasses import replace

    from moe_cli.tasks.registry import make_task
    from moe_cli.training.evaluate import eval_policy
    from moe_cli.training.evaluate import evaluate as evaluate_model

    config = trained.config
    task = make_task(replace(config, eval=policy), trained.task.dataset)
    size, precision = config.train.batch_size, config.train.precision
    return evaluate_model(trained.model, task, size, policy=eval_policy(policy), precision=precision)


def _policy_label(config: "RunConfig", policy: "EvalConfig") -> str:
    if config.dense:
        return "dense"
    return f"k={format_setting(policy.k or config.k)} " + (
        "dropless" if policy.capacity is None else f"capacity={policy.capacity:g}"
    )


def _row(config: "RunConfig", policy: "EvalConfig", result: "Evaluation", domains: bool) -> dict[str, Any]:
    from dataclasses import replace

    from moe_cli.metrics import LAYER_METRICS

    config = replace(config, eval=policy)
    limited = policy.capacity is not None
    use = result.routing_metrics() or {}
    routing = "dense" if config.dense else "dropless" if policy.capacity is None else "limited"
    return {
        "routing": routing,
        "k": policy.k or config.k,
        "capacity": policy.capacity,
        "drop": config.eval_drop if limited else None,
        "sees_later_tokens": limited and config.sees_later_tokens,
        "context_length": config.eval_length,
        "stride": config.eval_stride,
        "eval_context": result.mean_context,
        "val_loss": result.loss,
        **{f"val_{key}": value for key, value in result.measures.items()},
        "val_bpb": result.bits_per_byte,
        "val_perplexity": result.perplexity,
        "val_tokens": result.num_tokens,
        **{key: use.get(key) for key in LAYER_METRICS},
        **({"domains": result.domain_losses} if domains else {}),
    }


def _table(rows: list[dict[str, Any]], unit: str) -> "list[TextColumn]":
    from moe_cli.formatting import or_dash
    from moe_cli.metrics import BY_KEY, TASK, keys_of
    from moe_cli.report.render.terminal import TextColumn

    def metric(name: str, leaves: int) -> TextColumn:
        found = BY_KEY[name]
        return TextColumn(found.label, ["-" if row[name] is None else found.write(row[name]) for row in rows], leaves)

    measures = [metric(name, 1) for name in keys_of(TASK) if name in rows[0]]
    bits = [or_dash(row["val_bpb"], 4) for row in rows] if rows[0]["val_bpb"] is not None or not measures else []
    return [
        TextColumn("routing", [row["routing"] for row in rows], align_left=True, drop_order=4),
        TextColumn("k", [format_setting(row["k"]) for row in rows]),
        TextColumn("capacity", ["-" if row["capacity"] is None else f"{row['capacity']:g}" for row in rows]),
        *([TextColumn("drop", [row["drop"] or "-" for row in rows], align_left=True)] if len(_drops(rows)) > 1 else []),
        *(
            [TextColumn("context", [or_dash(row["eval_context"], 1) for row in rows])]
            if len(_windows(rows)) > 1
            else []
        ),
        TextColumn(f"nats/{unit}", [f"{row['val_loss']:z.4f}" for row in rows]),
        *([TextColumn("bits/byte", bits)] if bits else []),
        *measures,
        metric("dropped_fraction", 2),
        metric("max_violation", 3),
        metric("dead_experts", 5),
    ]


def _drops(rows: list[dict[str, Any]]) -> set[str]:
    return {row["drop"] for row in rows if row["drop"]}


def _windows(rows: list[dict[str, Any]]) -> set[tuple[int, int]]:
    return {(row["context_length"], row["stride"]) for row in rows}


def _domain_table(rows: list[dict[str, Any]]) -> "list[TextColumn]":
    """Returns a row for each domain, the hardest first, a column for each evaluation."""
    from moe_cli.report.render.terminal import TextColumn

    names = sorted(rows[0]["domains"], key=lambda name: -rows[0]["domains"][name])

    def heading(row: dict[str, Any]) -> str:
        if row["routing"] == "dense" and len(_windows(rows)) == 1:
            return "dense"
        limit = "" if row["capacity"] is None else f" C={row['capacity']:g}"
        drop = f" {row['drop']}" if row["drop"] and len(_drops(rows)) > 1 else ""
        window = f" {row['context_length']}/{row['stride']}" if len(_windows(rows)) > 1 else ""
        return f"k={format_setting(row['k'])}{limit}{drop}{window}"

    return [
        TextColumn("domain", names, align_left=True, min_width=12),
        *(
            TextColumn(heading(row), [f"{row['domains'][name]:z.4f}" for name in names], drop_order=place)
            for place, row in enumerate(rows)
        ),
    ]
