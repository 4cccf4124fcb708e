"""Balancing losses and bias updates, as free functions. T tokens, E experts, K chosen.

Losses count assignments before drops. A model's loss is the mean of its layers' losses. Counts are never pooled over
layers, because two layers that collapse onto different experts would then look balanced. With several processes, sums
over the batch include the batches of all processes. Every loss is defined without tokens (an empty batch, or padding
only) and for E = 1; the bias is then not updated. The losses call their collectives in these cases too, because other
processes wait for them.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial, reduce
from operator import add

import torch
from jaxtyping import Float, Int
from torch import Tensor

from moe_cli.config.balances import (
    BalanceConfig,
    BiasMethod,
    LossFreeBalance,
    LossMethod,
    PluginBalance,
    QuantileBalance,
    SwitchBalance,
    methods_of,
)
from moe_cli.distributed.collectives import all_reduce_mean, all_reduce_sum
from moe_cli.moe.routing import Routing
from moe_cli.plugins import plugin_of


def load_balancing_loss(
    routing: Routing, *, num_sequences: int = 1, assigned_counts: Int[Tensor, " E"] | None = None
) -> Float[Tensor, ""]:
    """Computes the Switch auxiliary loss, eq. 4 of arXiv:2101.03961, scaled to 1 when balanced, for every K.

    It is (E / K) * sum_i f_i P_i. f_i is the number of assignments to expert i per token, before drops and without
    gradient. P_i is the mean routing probability of expert i.

    Args:
        num_sequences: number of consecutive sequences of equal length; f and P are computed per sequence, and the
            losses are averaged (DeepSeek-V3, arXiv:2412.19437, eq. 17-20). 1 means over the whole batch.
        assigned_counts: counts for f instead of those of `routing`. Give the counts summed over the step's
            micro-batches so far for the global-batch loss of Qwen (arXiv:2501.11873). Only the last micro-batch then
            uses all counts of the step.
    """
    num_sequences = max(1, num_sequences)
    length = routing.num_tokens // num_sequences
    counts = _counts_per_sequence(routing, num_sequences) if assigned_counts is None else assigned_counts.unsqueeze(0)
    fraction = counts.to(routing.probs.dtype) / counts.sum(-1, keepdim=True).clamp(min=1)
    mean_probs = routing.probs.view(num_sequences, length, routing.num_experts).sum(1) / max(1, length)
    return routing.num_experts * (fraction * mean_probs).sum(-1).mean()


def _counts_per_sequence(routing: Routing, num_sequences: int) -> Int[Tensor, "S E"]:
    """Counts the assignments to each expert in each sequence."""
    length, num_experts = routing.num_tokens // num_sequences, routing.num_experts
    assert num_sequences * length == routing.num_tokens, "sequences of equal length"
    index = routing.token_ids // max(1, length) * num_experts + routing.expert_ids
    return torch.bincount(index, minlength=num_sequences * num_experts).view(num_sequences, num_experts)


def router_z_loss(logits: Float[Tensor, "T E"]) -> Float[Tensor, ""]:
    """Computes the mean squared log-sum-exp of the gate's logits, eq. 5 of ST-MoE, arXiv:2202.08906.

    For zero logits it is (ln E)^2.
    """
    return _mean_over_tokens(logits.logsumexp(-1).square())


def _mean_over_tokens(values: Float[Tensor, "T *rest"]) -> Float[Tensor, "*rest"]:
    """Returns the mean over the first dimension; 0 without tokens."""
    return values.sum(0) / max(1, len(values))


def importance_loss(routing: Routing) -> Float[Tensor, ""]:
    """Computes the CV^2 of the experts' importance, the sum of their weights: eq. 6-7 of Shazeer, arXiv:1701.06538.

    Even importance gives 0, K equally important experts E / K - 1, a single one the maximum E - 1. The variance is that
    of the population.
    """
    importance = routing.weights.new_zeros(routing.num_experts)
    return squared_cv(importance.index_add(0, routing.expert_ids, routing.weights))


def load_loss(
    clean_logits: Float[Tensor, "T E"], noisy_logits: Float[Tensor, "T E"], noise_std: Float[Tensor, "T E"], top_k: int
) -> Float[Tensor, ""]:
    """Computes the CV^2 of a smooth estimate of the experts' load: Shazeer, arXiv:1701.06538, eq. 8-11 (appendix A).

    The load of expert i is sum_t Phi((clean_ti - threshold_ti) / std_ti): its expected number of tokens if only its own
    noise were sampled again. threshold_ti is the K-th largest noisy logit among the other experts. The variance is that
    of the population. For K = E the loss is 0. It is then averaged too, because all processes must call the same
    collectives.
    """
    if top_k == clean_logits.shape[-1]:
        return squared_cv(clean_logits.new_zeros(top_k))
    top = noisy_logits.topk(top_k + 1, dim=-1).values
    selected = noisy_logits > top[:, top_k:]
    threshold = torch.where(selected, top[:, top_k:], top[:, top_k - 1 : top_k])
    return squared_cv(torch.special.ndtr((clean_logits - threshold) / noise_std).sum(0))


def squared_cv(values: Float[Tensor, " E"]) -> Float[Tensor, ""]:
    """Computes the squared coefficient of variation of the values, averaged over processes; 0 if all are zero."""
    values = all_reduce_mean(values)
    return values.var(correction=0) / values.mean().square().clamp(min=torch.finfo(values.dtype).tiny)


def entropy_loss(probs: Float[Tensor, "T E"]) -> Float[Tensor, ""]:
    """Computes -H(mean of p over tokens) / ln E: -1 if all experts are equally likely, 0 if one has probability 1."""
    return -_entropy(all_reduce_mean(_mean_over_tokens(probs))) / math.log(max(2, probs.shape[-1]))


def mutual_information_loss(probs: Float[Tensor, "T E"]) -> Float[Tensor, ""]:
    """Computes -MI(token; expert) / ln E = -(H(mean p) - mean H(p)) / ln E.

    It is -1 if every token is certain and all experts are equally likely on average, and 0 if all tokens have the same
    probabilities. Source: Mod-Squad, arXiv:2212.08066, for one task.
    """
    mean_entropy = _mean_over_tokens(_entropy(probs))
    return -(_entropy(all_reduce_mean(_mean_over_tokens(probs))) - mean_entropy) / math.log(max(2, probs.shape[-1]))


def _entropy(probs: Float[Tensor, "*rows E"]) -> Float[Tensor, "*rows"]:
    # The clamp keeps the derivative finite at p = 0; an infinite one times the softmax's derivative of 0 would be NaN.
    return -(probs * probs.clamp(min=torch.finfo(probs.dtype).tiny).log()).sum(-1)


def loss_free_bias(bias: Float[Tensor, " E"], tokens_per_expert: Int[Tensor, " E"], rate: float) -> Float[Tensor, " E"]:
    """Returns the bias after a step of loss-free balancing: b_i + rate * sign(mean load - load_i).

    Source: arXiv:2408.15664, algorithm 1.
    """
    load = tokens_per_expert.double()
    return bias + rate * torch.sign(load.mean() - load).to(bias.dtype)


def quantile_bias(
    bias: Float[Tensor, " E"], probs: Float[Tensor, "T E"], top_k: int, iterations: int
) -> Float[Tensor, " E"]:
    """Returns the bias that makes the choices of these tokens nearly even: quantile balancing, kexue.fm/archives/11619.

    The most probable assignment with K experts per token and T K / E tokens per expert is a linear programme. Its dual
    is solved by `iterations` of two alternating steps, which start from the given bias. First, the threshold of each
    token is set between its K-th and its (K+1)-th largest p_ti + b_i. Second, the bias of each expert is set to a
    quantile, such that p_ti + b_i is above the threshold for T K / E tokens. At the end the bias is shifted to a mean
    of 0, which changes no choice.
    """
    num_tokens, num_experts = probs.shape
    per_expert = min(max(1, round(num_tokens * top_k / num_experts)), num_tokens - 1)
    if top_k == num_experts or per_expert < 1:
        return bias
    for _ in range(iterations):
        top = (probs + bias).topk(top_k + 1, dim=-1).values
        threshold = (top[:, top_k - 1] + top[:, top_k]) / 2
        margin = (probs - threshold[:, None]).topk(per_expert + 1, dim=0).values
        bias = -(margin[per_expert - 1] + margin[per_expert]) / 2
    return bias - bias.mean()


def next_bias(
    balance: BiasMethod,
    bias: Float[Tensor, " E"],
    tokens_per_expert: Int[Tensor, " E"],
    probs: Sequence[Float[Tensor, "_T E"]],
    top_k: int,
) -> Float[Tensor, " E"]:
    """Returns the bias after an optimizer step.

    Args:
        tokens_per_expert: assignments to each expert in the step; used by loss_free.
        probs: routing probabilities of each batch of the step; used by quantile.
    """
    if isinstance(balance, LossFreeBalance):
        return loss_free_bias(bias, tokens_per_expert, balance.bias_update_rate)
    return quantile_bias(bias, torch.cat(list(probs)), top_k, balance.iterations)


def bias_method(balance: BalanceConfig | None) -> BiasMethod | None:
    """Returns the method that sets the routing bias; None without one. A configuration has at most one."""
    methods = (method for method in methods_of(balance) if isinstance(method, LossFreeBalance | QuantileBalance))
    return next(methods, None)


def _routing_load_loss(routing: Routing) -> Tensor:
    assert routing.clean_logits is not None, "balance=load needs a router with noise, in training"
    assert routing.noise_std is not None
    top_k = max(1, len(routing.expert_ids) // max(1, routing.num_tokens))
    return load_loss(routing.clean_logits, routing.logits, routing.noise_std, top_k)


LOSSES: dict[str, Callable[[Routing], Tensor]] = {
    "importance": importance_loss,
    "load": _routing_load_loss,
    "z": lambda routing: router_z_loss(routing.logits),
    "entropy": lambda routing: entropy_loss(routing.probs),
    "mutual_information": lambda routing: mutual_information_loss(routing.probs),
}


def plugin_loss(method: PluginBalance) -> Callable[[Routing], Tensor]:
    """Returns the loss of a plug-in, which gets the routing of a layer and the settings."""
    plugin = plugin_of(method)
    assert plugin is not None
    return partial(plugin.code(), config=method)


def auxiliary_losses(
    balance: BalanceConfig | None,
    routings: Sequence[Routing],
    *,
    batch_counts: Sequence[Int[Tensor, " E"]] | None = None,
    step_counts: Sequence[Int[Tensor, " E"]] | None = None,
    num_sequences: int = 1,
) -> dict[LossMethod, Tensor]:
    """Computes each balancing loss of the configuration: unweighted, averaged over layers; empty without losses.

    Args:
        batch_counts: per layer, the assignments to each expert in the batch of all processes, for scope `batch`; None
            means that they are counted here.
        step_counts: per layer, the same counts over the optimizer step so far, this batch included, for scope `global`;
            None means those of the batch.
        num_sequences: sequences in the batch, for scope `sequence`.
    """
    if batch_counts is None:
        batch_counts = [all_reduce_sum(routing.tokens_per_expert) for routing in routings]
    scopes = {"batch": batch_counts, "global": batch_counts if step_counts is None else step_counts}
    losses: dict[LossMethod, Tensor] = {}
    for method in methods_of(balance) if routings else ():
        if isinstance(method, LossFreeBalance | QuantileBalance):
            continue
        if isinstance(method, SwitchBalance) and method.scope == "sequence":
            layers = [load_balancing_loss(routing, num_sequences=num_sequences) for routing in routings]
        elif isinstance(method, SwitchBalance):
            layers = [
                load_balancing_loss(routing, assigned_counts=counts)
                for routing, counts in zip(routings, scopes[method.scope], strict=True)
            ]
        else:
            loss = plugin_loss(method) if isinstance(method, PluginBalance) else LOSSES[method.name]
            layers = [loss(routing) for routing in routings]
        losses[method] = torch.stack(layers).mean()
    return losses


def total_loss(loss: Tensor, aux_losses: Mapping[LossMethod, Tensor], routings: Sequence[Routing]) -> Tensor:
    """Computes the task's loss plus the weighted balancing losses and the mean of the routers' own losses."""
    if aux_losses:
        loss = loss + reduce(add, [method.weight * aux_loss for method, aux_loss in aux_losses.items()])
    router_losses = [routing.router_loss for routing in routings if routing.router_loss is not None]
    return loss + torch.stack(router_losses).mean() if router_losses else loss
