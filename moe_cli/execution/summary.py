"""Computes summary.json, the results of a run, from an evaluation of the whole validation split."""

import math
from dataclasses import replace
from functools import partial
from typing import Any

from moe_cli.config.layer_costs import rows_per_expert
from moe_cli.config.schema import RunConfig
from moe_cli.costs.model import estimate_cost, tokens_per_expert
from moe_cli.data.load import Data
from moe_cli.errors import TrainingError
from moe_cli.execution.data import model_vocab_size, training_split_tokens
from moe_cli.execution.machine import peak_memory_bytes
from moe_cli.files.reading import number_in
from moe_cli.runs.folder import Run


def summarise(run: Run, config: RunConfig, corpus: Data, training: Any) -> dict[str, Any]:
    """Computes the results: an evaluation of the whole validation split, and the cost of the training."""
    from moe_cli.distributed import collectives
    from moe_cli.metrics import ESTIMATES, LAYER_METRICS
    from moe_cli.training.evaluate import eval_policy, evaluate

    size = config.train.batch_size
    model, task, state = training.model, training.task, training.state
    policy = eval_policy(config.eval)
    eval_with = partial(evaluate, model, precision=config.train.precision)
    result = eval_with(task, size, policy=policy)
    routing: dict[str, float | None] = {**dict.fromkeys(LAYER_METRICS), **(result.routing_metrics() or {})}
    limited = eval_with(task, size, policy=replace(policy, capacity_factor=config.capacity)) if config.drops else None
    pseudo_perplexity_task = task.pseudo_perplexity_task()
    pseudo = eval_with(pseudo_perplexity_task, size, policy=policy).perplexity if pseudo_perplexity_task else None
    if not math.isfinite(result.loss):
        raise TrainingError(f"the validation loss is {result.loss} at the end of training. Try a lower optim.lr.")
    if limited:  # tokens are dropped at the training capacity, while val_loss is dropless
        routing["dropped_fraction"] = (limited.routing_metrics() or {})["dropped_fraction"]
    # The curve ends with an estimate on the same tokens as its other points, so that curves compare at any time.
    estimate = eval_with(task, size, max_tokens=config.train.eval_tokens, policy=policy)
    estimates = {ESTIMATES["val_loss"]: estimate.loss, ESTIMATES["val_bpb"]: estimate.bits_per_byte}
    place = {"step": state.step, "seconds": round(state.seconds, 3), "final": True}
    training.recorder.metrics({**place, **estimates})
    routing["router_saturation"] = _record_final_routing(run, training, result)
    vocab_size = model_vocab_size(config, corpus)
    costs = estimate_cost(config, vocab_size)
    train_loss = None
    for record in run.read_metrics():
        train_loss = number_in(record.get("train/loss", train_loss))
    return {
        "run": run.id,
        "status": "completed",
        "expert": config.expert,
        "k": config.k,
        "capacity": config.capacity,
        "router": config.router.name if config.router else None,
        "balance": config.balance.name if config.balance else None,
        "seed": config.seed,
        "vocab_size": vocab_size,
        "params": costs.num_params,
        "active_params": costs.num_active_params,
        "non_embedding_params": costs.non_embedding_params,
        "active_non_embedding_params": costs.active_non_embedding_params,
        "flops_per_token": costs.flops_per_token,
        "forward_flops_per_token": costs.forward_flops_per_token,
        "model_flops_per_token": costs.model_flops_per_token,
        "optimizer_flops_per_step": costs.optimizer_flops_per_step,
        "val_loss": result.loss,
        "val_bpb": result.bits_per_byte,
        "val_perplexity": result.perplexity,
        **{f"val_{key}": value for key, value in result.measures.items()},
        **({"val_pseudo_perplexity": pseudo} if pseudo else {}),
        "val_tokens": result.num_tokens,
        "val_bytes": result.num_bytes,
        "dispatch": backend_used(config, training.layers, bool(run.meta().get("compile"))),
        "precision": config.train.precision,
        "capacity_val_loss": limited.loss if limited else None,
        "capacity_val_drop": config.eval_drop if limited else None,
        "eval_context": result.mean_context,
        "train_loss": train_loss,
        "loss_gap": None if train_loss is None else result.loss - train_loss,
        **routing,
        "skipped_steps": state.skipped,
        "rewinds": state.rewinds,
        "loss_spikes": state.spikes,
        "steps": state.step,
        "tokens": state.tokens,
        "epochs": state.tokens / training_split_tokens(config, corpus),
        "tokens_per_expert": tokens_per_expert(config, state.tokens),
        "seconds": round(state.seconds, 3),
        "tokens_per_second": round(state.tokens / state.seconds, 1) if state.seconds else None,
        "machine": run.meta().get("machine"),
        "peak_memory_bytes": int(collectives.all_reduce_max(peak_memory_bytes())),
        "bigram_bpb": corpus.meta["bigram_bpb"],
        "gzip_bpb": corpus.meta["gzip_bpb"],
        "corpus": corpus.name,
        "corpus_sha256": corpus.meta["sha256"],
        **task.meta.get("references", {}),
    }


def backend_used(config: RunConfig, layers: Any, compiled: bool) -> str | None:
    """Returns the back end of the training; with dispatch=auto, the one chosen."""
    import torch

    from moe_cli.moe.backends.dispatch import backend_query, choose_backend

    if not layers or config.model.dispatch != "auto":
        return config.model.dispatch if layers else None
    experts = layers[0].experts
    query = backend_query(experts, getattr(torch, config.train.precision), rows_per_expert(config))
    return choose_backend(replace(query, compiling=compiled))


def _record_final_routing(run: Run, training: Any, result: Any) -> float | None:
    """Records each layer's routing over the whole split.

    Returns the router saturation at half the steps; None if it is unknown.
    """
    from moe_cli.training.evaluate import probe_routing, saturations

    step = training.state.step
    config = training.config
    final = probe_routing(training.model, training.task, config.eval.k, config.train.precision)
    layer_saturations = saturations(run.read_routing(), final)
    for record, saturation in zip(result.layer_records(tables=True), layer_saturations, strict=True):
        if "top_tokens" in record:
            ids = sorted({entry[0] for expert in record["top_tokens"] for entry in expert})
            record["token_texts"] = {str(token): text for token, text in training.task.id_texts(ids).items()}
        training.recorder.routing({"step": step, "whole_split": True, **record, "saturation": saturation})
    known = set(layer_saturations[0]).intersection(*layer_saturations) if layer_saturations else set()
    if not known:
        return None
    halfway = min(known, key=lambda other: abs(other - step / 2))
    return sum(layer[halfway] for layer in layer_saturations) / len(layer_saturations)
