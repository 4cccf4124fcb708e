"""The registry of metrics: heading, unit, better direction, format and definition of each measured quantity.

Tables, exports, charts, the page, `moe runs show` and `diff`, search objectives and docs/reference/metrics.md use
these facts.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from moe_cli.formatting import count, format_bytes, percent

# Kinds of metrics. Those of TRAINING are in metrics.jsonl alone; the report computes COMPARISON and DERIVED; all others
# are in summary.json.
SIZE, LOSS, SPEED, ROUTING, TEXT_REFERENCE, TASK = "size", "loss", "speed", "routing", "text reference", "task"
TRAINING, COMPARISON, DERIVED = "training", "comparison", "derived"
# An expert with less than this share of a fair load over an evaluation counts as dead.
DEAD_BELOW = 0.01


@dataclass(frozen=True)
class Metric:
    """One measured quantity.

    Attributes:
        key: its name in summary.json and as a column; its key in metrics.jsonl if it is only there.
        label: the heading of its column.
        title: its name on an axis or in a list.
        unit: its unit in the result of `load_runs`.
        direction: -1: lower is better; 1: higher is better; 0: neither.
        format: `number` with `digits` after the point, `count` (24.1k), `bytes` (24.1 kB), `percent` or
            `signed percent`.
        log_scale: whether its axis is logarithmic.
        whole: whether it is an integer.
        curve_key: its key in metrics.jsonl; the value there is an estimate on part of the validation split.
        range: its least and largest value, or its unit, for the documents.
        description: its definition and interpretation, for the documents; empty if another metric's description covers
            it.
    """

    key: str
    label: str
    title: str
    unit: str
    kind: str
    direction: int = 0
    format: str = "number"
    digits: int = 3
    log_scale: bool = False
    whole: bool = False
    curve_key: str | None = None
    range: str = ""
    description: str = ""

    def write(self, value: float) -> str:
        if self.format == "count":
            return count(value)
        if self.format == "bytes":
            return format_bytes(value)
        if self.format.endswith("percent"):
            return percent(value, signed=self.format == "signed percent")
        return f"{value:z,.{self.digits}f}"


_NATS, _PARAMETERS, _FLOPS = "nats per token, or per answer of the task", "parameters", "FLOPs"
_ENTROPY, _ASSIGNMENTS, _CHOICES = "share of the largest possible", "share of assignments", "share of the final choices"

METRICS = (
    Metric("params", "params", "parameters", _PARAMETERS, SIZE, -1, "count", log_scale=True, whole=True,
           range="count", description="all trained parameters"),
    Metric("active_params", "active params", "active parameters", _PARAMETERS, SIZE, -1, "count", log_scale=True,
           whole=True, range="count", description="parameters that one token uses, with embedding and head"),
    Metric("non_embedding_params", "params w/o embedding", "parameters without embeddings and head", _PARAMETERS, SIZE,
           -1, "count", log_scale=True, whole=True, range="count",
           description="`params` without tables of token ids and positions, and without the head (the N of Kaplan et "
           "al., arXiv:2001.08361)"),
    Metric("active_non_embedding_params", "active w/o embedding", "active parameters without embeddings and head",
           _PARAMETERS, SIZE, -1, "count", log_scale=True, whole=True, range="count",
           description="`active_params` without them"),
    Metric("flops_per_token", "FLOP/token", "training FLOP per token, model and optimizer",
           "FLOP per training token, of model and optimizer", SIZE, -1, "count", log_scale=True, range=_FLOPS,
           description="training FLOPs of one token: `model_flops_per_token` plus its share of "
           "`optimizer_flops_per_step`"),
    Metric("val_loss", "val loss", "validation, nats", _NATS, LOSS, -1, curve_key="val/loss",
           range="nats per token (image, ...)",
           description="mean cross-entropy over the whole validation split; dropless unless `eval.capacity` is set"),
    Metric("val_bpb", "bits/byte", "validation, bits per byte", "bits per byte", LOSS, -1, curve_key="val/bpb",
           range="bits per byte",
           description="the same loss in bits per byte of text; lower is better; null with `data=tokens`"),
    Metric("tokens_per_second", "tok/s", "tokens per second", "tokens per second", SPEED, 1, "count",
           curve_key="tokens_per_second", range="tokens/s",
           description="training steps only, without evaluation and saving"),
    Metric("max_violation", "MaxVio", "MaxVio, largest load above the mean", "share above the mean load", ROUTING, -1,
           "signed percent", curve_key="val/max_violation", range="0 to E - 1",
           description="(largest load - mean) / mean: 0 is best, all experts are chosen equally often. If every token "
           "has K assignments, it is at most E / K - 1: all choose the same K"),
    Metric("dropped_fraction", "dropped", "dropped, share of assignments", _ASSIGNMENTS, ROUTING, -1, "percent",
           curve_key="val/dropped_fraction", range="0 to 1",
           description="share of assignments that exceed an expert's capacity: 0 is best, and always 0 if dropless"),
    Metric("dead_experts", "dead", "dead experts, share", "share of experts", ROUTING, -1, "percent",
           curve_key="val/dead_experts", range="0 to 1",
           description="share of experts with less than 1 % of a fair load over the evaluation"),
    Metric("forward_flops_per_token", "forward FLOP/token", "forward FLOP per token", "FLOP per token", SIZE, -1,
           "count", log_scale=True),
    Metric("model_flops_per_token", "model FLOP/token", "training FLOP per token of the model",
           "FLOP per training token, forward and backward", SIZE, -1, "count", log_scale=True, range=_FLOPS,
           description="forward and backward: 3 forward passes, every matrix product counted, at even load"),
    Metric("optimizer_flops_per_step", "optimizer FLOP/step", "FLOP of the optimizer per step", "FLOP per step", SIZE,
           -1, "count", log_scale=True, range=_FLOPS, description="matrix products of Muon; 0 for AdamW and SGD"),
    Metric("val_perplexity", "perplexity", "validation, perplexity", "perplexity per token", LOSS, -1, digits=2,
           range="1 to vocabulary", description="exp(`val_loss`)"),
    Metric("vocab_size", "vocabulary", "vocabulary size", "tokens", SIZE, 0, "count", whole=True),
    Metric("val_tokens", "val tokens", "validation tokens", "tokens", SIZE, 0, "count", whole=True),
    Metric("val_bytes", "val bytes", "validation bytes", "bytes", SIZE, 0, "bytes", whole=True),
    Metric("capacity_val_loss", "loss @ capacity", "validation at the training capacity, nats", _NATS, LOSS, -1,
           range="nats per token",
           description="`val_loss` with the training capacity; null when that is dropless. `dropped_fraction` is "
           "of the same pass; `capacity_val_drop` is its drop rule: `causal` for a causal model"),
    Metric("eval_context", "context", "mean context of a validation token", "tokens", SIZE, 0, digits=1, range="tokens",
           description="mean number of earlier tokens from which `causal_lm` predicts a validation token; a separator "
           "before a document counts; null for other tasks"),
    Metric("train_loss", "train loss", "training loss, nats", _NATS, LOSS, -1, curve_key="train/loss"),
    Metric("loss_gap", "loss gap", "validation loss minus training loss, nats", _NATS, LOSS, -1, range="nats per token",
           description="`val_loss` - `train_loss`: above 0 the model fits its training data better than new data. "
           "`train_loss` is the last recorded one, of one batch, so a single run is noisy"),
    Metric("routing_entropy", "entropy", "routing entropy, share of the largest possible", _ENTROPY, ROUTING,
           curve_key="val/routing_entropy", range="0 to 1",
           description="mean entropy of a token's routing probabilities / ln E: 0 if one expert has probability 1, 1 "
           "if all are equally likely; null experts count as experts"),
    Metric("mean_routing_entropy", "mean entropy", "entropy of the mean routing probabilities", _ENTROPY, ROUTING,
           curve_key="val/mean_routing_entropy", range="0 to 1",
           description="entropy of the mean probabilities / ln E: 1 when all experts are equally likely; null experts "
           "count as experts"),
    Metric("load_cv", "load CV", "coefficient of variation of the load", "standard deviation over mean load", ROUTING,
           -1, curve_key="val/load_cv", range="0 to sqrt(E - 1)",
           description="standard deviation of the load / mean, averaged over layers: the unevenness of all experts, "
           "where MaxVio is that of the busiest"),
    Metric("token_specialisation", "token spec.", "specialisation by token", _ENTROPY, ROUTING,
           curve_key="val/token_specialisation", range="0 to 1",
           description="mutual information between the input token and the chosen expert, divided by its upper bound "
           "(the smaller of both entropies): 0 if they are independent, 1 if the token determines the expert"),
    Metric("domain_specialisation", "domain spec.", "specialisation by domain", _ENTROPY, ROUTING,
           curve_key="val/domain_specialisation", range="0 to 1",
           description="the same for the domain (top-level folder) of the token; null when the text is one domain"),
    Metric("null_fraction", "null", "assignments to null experts, share", _ASSIGNMENTS, ROUTING,
           curve_key="val/null_fraction", range="0 to 1",
           description="share of assignments to null experts; null without `router.null_experts`"),
    Metric("router_saturation", "saturation", "router saturation", _CHOICES, ROUTING, range="0 to 1",
           description="share of the final router's choices on 256 fixed validation tokens that the router also made "
           "at the evaluation nearest to half the steps, averaged over layers (OLMoE, arXiv:2409.02060): K / E is the "
           "expected value of random choices, 1 means that no choice changed. A random router draws the same experts "
           "at every evaluation, so its value is 1"),
    Metric("steps", "steps", "training steps", "steps", SIZE, 0, "count", whole=True, curve_key="step"),
    Metric("tokens", "tokens", "training tokens", "tokens", SIZE, -1, "count", log_scale=True, whole=True,
           curve_key="tokens"),
    Metric("epochs", "epochs", "epochs of the training split", "training tokens over those of the split", SIZE, 0,
           digits=2, range="above 0",
           description="training tokens divided by the tokens of the training split (pairs of ratings, images x "
           "patches); above 1 data repeat"),
    Metric("tokens_per_expert", "tokens/expert", "training tokens of an expert", "tokens", SIZE, 0, "count",
           log_scale=True, range="tokens",
           description="training tokens that an expert is trained on at even load: `tokens` x k / experts for a "
           "dropless router of k experts; all tokens in a dense model"),
    Metric("seconds", "seconds", "seconds of training", "seconds", SPEED, -1, digits=1, curve_key="seconds"),
    Metric("peak_memory_bytes", "peak memory", "peak memory, bytes", "bytes", SPEED, -1, "bytes", log_scale=True),
    Metric("bigram_bpb", "bigram", "of a bigram model, bits per byte", "bits per byte", TEXT_REFERENCE, -1),
    Metric("gzip_bpb", "gzip -9", "of gzip -9, bits per byte", "bits per byte", TEXT_REFERENCE, -1),
    Metric("val_accuracy", "accuracy", "validation accuracy", "share of answers", TASK, 1, "percent",
           curve_key="val/accuracy", range="0 to 1",
           description="share of right answers: images, masked tokens, or tokens of spans; of a probe, answers whose "
           "tokens are all right"),
    Metric("val_calibration_error", "calibration error", "calibration error", "share", TASK, -1, "percent",
           curve_key="val/calibration_error"),
    Metric("val_rmse", "RMSE", "root mean squared error", "rating", TASK, -1, curve_key="val/rmse"),
    Metric("val_auc", "AUC", "area under the ROC curve", "share of pairs", TASK, 1, curve_key="val/auc"),
    Metric("val_pseudo_perplexity", "pseudo-perplexity", "pseudo-perplexity", "perplexity per token", TASK, -1,
           curve_key="val/pseudo_perplexity"),
    Metric("train/aux_loss", "balancing loss", "balancing loss", "loss", TRAINING, curve_key="train/aux_loss"),
    Metric("train/grad_norm", "gradient norm", "norm of the gradient", "norm", TRAINING, curve_key="train/grad_norm"),
    Metric("moe/max_violation", "MaxVio", "MaxVio in training", "share above the mean load", TRAINING, -1,
           "signed percent", curve_key="moe/max_violation"),
    Metric("moe/dropped_fraction", "dropped", "dropped in training, share of assignments", _ASSIGNMENTS, TRAINING, -1,
           "percent", curve_key="moe/dropped_fraction"),
    Metric("train/loss_before", "loss before", "training loss before a spike, nats", _NATS, TRAINING,
           curve_key="train/loss_before"),
    Metric("train/loss_spike", "spike", "training loss of a spike, nats", _NATS, TRAINING,
           curve_key="train/loss_spike"),
    Metric("train/skipped", "skipped", "skipped steps", "steps", TRAINING, whole=True, curve_key="train/skipped"),
    Metric("lr", "learning rate", "learning rate", "learning rate", TRAINING, curve_key="lr"),
    Metric("vs_baseline", "vs baseline", "difference to the baseline", "share of the baseline's bits per byte",
           COMPARISON, -1, "signed percent", range="share",
           description="relative difference in `val_bpb` (where that is null, in `val_loss`) to the baseline (dense, "
           "what the sweep's file or `--baseline` says, or the lowest), paired by seed; negative is better"),
    Metric("shared_seeds", "shared seeds", "seeds shared with the baseline", "seeds", COMPARISON, 1, whole=True),
    Metric("equal_time", "equal time", "difference to the baseline at equal training time",
           "share of the baseline's bits per byte", COMPARISON, -1, "signed percent", range="share",
           description="as `vs_baseline`, at equal training time instead of equal tokens: that of the baseline's run "
           "of the same seed, or, if differences are to the lowest, that of the shortest run of the seed. Both losses "
           "are interpolated on the curves of the runs; null for a run that ended earlier or on another machine"),
    Metric("compute_multiplier", "compute x", "compute multiplier", "times the tokens", COMPARISON, 1, digits=2,
           range="above 0",
           description="times the tokens that the baseline needs for the same loss, interpolated between its runs at "
           "several budgets; outside of them, and with one budget, there are only the bounds "
           "`compute_multiplier_low` and `_high`"),
    Metric("relative_speed", "speed x", "relative speed", "share of the baseline's tokens/s", COMPARISON, 1, digits=2,
           range="above 0",
           description="`tokens_per_second` over that of the baseline, on one machine: below 1 a token takes longer"),
    Metric("effective_speedup", "speedup", "effective speedup", "times", COMPARISON, 1, digits=2, range="above 0",
           description="`compute_multiplier` x `relative_speed`: the training time of the baseline for this loss over "
           "that of the configuration; above 1 the configuration reaches it first"),
    Metric("sparsity", "sparsity", "sparsity, 1 - k / experts", "share", DERIVED),
    Metric("active_flops", "active FLOP", "forward FLOP per token", "FLOP per token", DERIVED, -1, "count",
           log_scale=True),
    Metric("model_flops", "model FLOP", "training FLOP of the model", "FLOP", DERIVED, -1, "count", log_scale=True),
    Metric("optimizer_flops", "optimizer FLOP", "FLOP of the optimizer", "FLOP", DERIVED, -1, "count", log_scale=True),
    Metric("train_flops", "train FLOP", "training FLOP, model and optimizer", "FLOP", DERIVED, -1, "count",
           log_scale=True),
)  # fmt: skip
BY_KEY = {metric.key: metric for metric in METRICS}
BY_CURVE_KEY = {metric.curve_key: metric for metric in METRICS if metric.curve_key}
# The metrics that are measured for every layer at every evaluation.
LAYER_METRICS = tuple(metric.key for metric in METRICS if metric.kind == ROUTING and metric.curve_key)
# The metrics of the tasks, by their names without `val_`.
TASK_METRICS = {metric.key.removeprefix("val_"): metric for metric in METRICS if metric.kind == TASK}
# The curves that every display draws: the result that each estimates, and its key in metrics.jsonl. Runs on images,
# ratings or ready-made tokens have no bits per byte.
ESTIMATES = {key: BY_KEY[key].curve_key or "" for key in ("val_bpb", "val_loss")}
# The normalised load of an expert is a result of each expert, not of a run.
LOAD_RANGE = "0 to E / K"
LOAD_DESCRIPTION = (
    "an expert's assignments divided by the mean over experts: 1 is the fair share, 0 means that no token chose it, "
    "E / K that every token did"
)

# The unit of a task's loss: nats per ...
TARGETS = {
    "causal_lm": "token",
    "masked_lm": "masked token",
    "span_corruption": "target token",
    "images": "image",
    "ratings": "pair",
}
# The label and the format of results of trivial models on the same data, by their keys in summary.json. See
# `moe_cli.data.ratings.rating_baselines`.
TASK_REFERENCES = {
    "majority_accuracy": ("accuracy of the commonest class", "percent"),
    "commonest_accuracy": ("accuracy of the commonest token", "percent"),
    "chance_accuracy": ("accuracy by chance", "percent"),
    "chance_loss": ("nats by chance", "number"),
    "unigram_loss": ("nats by how frequent tokens are", "number"),
    "mean_rmse": ("RMSE of the mean", "number"),
    "biases_rmse": ("of user and item means", "number"),
    "best_rmse": ("at best", "number"),
    "best_auc": ("AUC at best", "number"),
}


def keys_of(*kinds: str) -> tuple[str, ...]:
    """Returns the keys of all metrics of these kinds."""
    return tuple(metric.key for metric in METRICS if metric.kind in kinds)


def validation_key(name: str) -> str:
    """Returns the key of an evaluation metric in metrics.jsonl: val/loss."""
    return f"val/{name}"


def layer_key(layer: int, name: str) -> str:
    """Returns a layer metric's key in metrics.jsonl, counted from 1 as tables do: moe/layer_03/max_violation for L3."""
    return f"moe/layer_{layer + 1:02d}/{name}"


def curve_title(curve_key: str) -> str:
    """Returns the title of a curve of metrics.jsonl."""
    part = " (part of the split)" if curve_key.startswith("val/") else ""
    return BY_CURVE_KEY[curve_key].title + part


def target_name(config: Mapping[str, Any]) -> str:
    """Returns the name of the run's prediction target, such as a token or an image, from its config.json."""
    task = config.get("task")
    return target_name_of_task(task.get("name") if isinstance(task, dict) else None)


def target_name_of_task(task: Any) -> str:
    """Returns the name of the task's prediction target. Runs older than the task setting predict tokens."""
    return TARGETS.get(task or "causal_lm", "target") if isinstance(task, str | None) else "target"


def eval_windows(settings: Mapping[str, Any]) -> tuple[Any, ...] | None:
    """Returns the settings that determine how much context a validation token has, from settings by their dotted names.

    They are the tokens of a window, the tokens from one window to the next, and the packing of documents. None means
    that the data are not text.
    """
    if settings.get("task.name") in ("images", "ratings"):
        return None
    length = settings.get("eval.context_length") or settings.get("model.context_length")
    return (length, settings.get("eval.stride") or length, settings.get("data.packing") or "concat")


def sees_later_tokens(drop: str) -> str:
    """Returns the warning on the capacity-limited loss of a causal model where `drop` is not `causal`."""
    return (
        f"drop={drop} sees later tokens: experts have room for the whole batch, so a token may lose its place to one "
        "after it. drop=causal does not"
    )


def format_task_metrics(values: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Returns the task's own metrics among the values, such as `accuracy 31 %`."""
    known = {metric: values.get(prefix + name) for name, metric in TASK_METRICS.items()}
    return [
        f"{metric.label} {metric.write(value)}" for metric, value in known.items() if isinstance(value, int | float)
    ]


def format_references(values: Mapping[str, Any]) -> list[str]:
    """Returns the references of the task among the values, such as `RMSE of the mean 0.931`."""
    return [
        f"{label} {percent(values[name]) if form == 'percent' else format(values[name], 'z.3f')}"
        for name, (label, form) in TASK_REFERENCES.items()
        if isinstance(values.get(name), int | float)
    ]


# Sizes and FLOPs within this factor count as equal, because widths of experts are rounded.
MATCH_TOLERANCE_FACTOR = 1.02


def unequal_flops(
    trainings: Iterable[tuple[float | None, float | None, float | None]], *, can_match: bool
) -> str | None:
    """Returns a note if trainings of equal active parameters and tokens differ in FLOPs, else None.

    Args:
        trainings: for each, its active parameters, its tokens (None means a time budget) and its FLOPs per token, of
            model and optimizer.
        can_match: whether match=flops would change the size of some experts.
    """
    known = sorted((tokens or 0, size, flops) for size, tokens, flops in trainings if size and flops)
    alike: list[list[tuple[float, float, float]]] = []
    for cost in known:
        first = alike[-1][0] if alike else None
        if first and first[0] == cost[0] and cost[1] <= MATCH_TOLERANCE_FACTOR * first[1]:
            alike[-1].append(cost)
        else:
            alike.append([cost])
    spans = [(min(flops), max(flops)) for group in alike if (flops := [cost[2] for cost in group])]
    least, most = max(spans, key=lambda span: span[1] / span[0], default=(1.0, 1.0))
    if most <= MATCH_TOLERANCE_FACTOR * least:
        return None
    return (
        f"equal active parameters are not equal FLOPs: a training token costs {count(least)} to {count(most)} "
        f"({most / least:.2g}x), optimizer included{'. For equal FLOPs: match=flops' if can_match else ''}"
    )
