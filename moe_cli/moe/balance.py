"""Balancing of the experts: auxiliary losses and bias updates, as free functions. T tokens, E experts, K chosen.

Losses count assignments before drops. A model's loss is the mean over its layers and is never pooled, because two
layers that collapse onto different experts must not look balanced. With several processes, sums over the batch are sums
over the batch of all processes. Without tokens (an empty batch, or all padding) and without a choice (E = 1) every loss
is defined, and no bias is updated; the collective calls do not depend on it.
"""

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from moe_cli.config.balances import (
    BalanceConfig,
    BiasBalance,
    LossBalance,
    LossFreeBalance,
    QuantileBalance,
    SwitchBalance,
    methods_of,
)
from moe_cli.distributed.collectives import all_reduce_mean, all_reduce_sum
from moe_cli.moe.routing import Routing


def load_balancing_loss(
    routing: Routing, *, num_sequences: int = 1, assigned_counts: Int[Tensor, " E"] | None = None
) -> Float[Tensor, ""]:
    """Computes the Switch auxiliary loss, eq. 4 of arXiv:2101.03961, scaled to 1 when balanced, for every K.

    (E / K) * sum_i f_i P_i, with f_i the assignments to expert i per token (before drops; no gradient) and P_i
    the mean routing probability of expert i.

    Args:
        num_sequences: f and P are taken over each of this number of consecutive sequences of equal length, and the
            losses averaged (DeepSeek-V3, arXiv:2412.19437, eq. 17-20); 1 means over the whole batch.
        assigned_counts: counts for f in place of the batch's own: with those of all micro-batches of a step so far,
            this is the global-batch loss of Qwen, arXiv:2501.11873, exact for the last micro-batch.
    """
    num_sequences = max(1, num_sequences)
    length = routing.num_tokens // num_sequences
    counts = _counts_per_sequence(routing, num_sequences) if assigned_counts is None else assigned_counts.unsqueeze(0)
    fraction = counts.to(routing.probs.dtype) / counts.sum(-1, keepdim=True).clamp(min=1)
    mean_probs = routing.probs.view(num_sequences, length, routing.num_experts).sum(1) / max(1, length)
    return routing.num_experts * (fraction * mean_probs).sum(-1).mean()


def _counts_per_sequence(routing: Routing, num_sequences: int) -> Int[Tensor, "S E"]:
    """Counts the assignments to each expert in each of the sequences."""
    length, num_experts = routing.num_tokens // num_sequences, routing.num_experts
    assert num_sequences * length == routing.num_tokens, "sequences of equal length"
    index = routing.token_ids // max(1, length) * num_experts + routing.expert_ids
    return torch.bincount(index, minlength=num_sequences * num_experts).view(num_sequences, num_experts)


def router_z_loss(logits: Float[Tensor, "T E"]) -> Float[Tensor, ""]:
    """Computes the mean squared log-sum-exp of the gate's logits, eq. 5 of ST-MoE, arXiv:2202.08906.

    It is (ln E)^2 for zero logits.
    """
    return _mean_over_tokens(logits.logsumexp(-1).square())


def _mean_over_tokens(values: Float[Tensor, "T *rest"]) -> Float[Tensor, "*rest"]:
    """Returns the mean over the first dimension; 0 without tokens."""
    return values.sum(0) / max(1, len(values))


def importance_loss(routing: Routing) -> Float[Tensor, ""]:
    """Computes CV^2 of the experts' importance, the sum of weights over tokens: eq. 6-7 of Shazeer, arXiv:1701.06538.

    0 when even, E / K - 1 when K experts share all weight alike, E - 1 at most; population variance.
    """
    importance = routing.weights.new_zeros(routing.num_experts)
    return squared_cv(importance.index_add(0, routing.expert_ids, routing.weights))


def load_loss(
    clean_logits: Float[Tensor, "T E"], noisy_logits: Float[Tensor, "T E"], noise_std: Float[Tensor, "T E"], top_k: int
) -> Float[Tensor, ""]:
    """Computes CV^2 of a smooth estimate of the experts' load: appendix A of Shazeer, arXiv:1701.06538, eq. 8-11.

    The load of expert i is sum_t Phi((clean_ti - threshold_ti) / std_ti), the expected number of tokens if its own
    noise alone were drawn again; the threshold is the K-th largest noisy logit among the other experts. Population
    variance. 0 when all experts are chosen.
    """
    if top_k == clean_logits.shape[-1]:
        return clean_logits.new_zeros(())
    top = noisy_logits.topk(top_k + 1, dim=-1).values
    chosen = noisy_logits > top[:, top_k:]
    threshold = torch.where(chosen, top[:, top_k:], top[:, top_k - 1 : top_k])
    return squared_cv(torch.special.ndtr((clean_logits - threshold) / noise_std).sum(0))


def squared_cv(values: Float[Tensor, " E"]) -> Float[Tensor, ""]:
    values = all_reduce_mean(values)
    # Without assignments the load is even.
    return values.var(correction=0) / values.mean().square().clamp(min=torch.finfo(values.dtype).tiny)


def entropy_loss(probs: Float[Tensor, "T E"]) -> Float[Tensor, ""]:
    """Computes -H(mean over tokens of p) / ln E: -1 for equally likely experts, 0 when one has all probability."""
    return -_entropy(all_reduce_mean(_mean_over_tokens(probs))) / math.log(max(2, probs.shape[-1]))


def mutual_information_loss(probs: Float[Tensor, "T E"]) -> Float[Tensor, ""]:
    """Computes -MI(token; expert) / ln E = -(H(mean p) - mean H(p)) / ln E.

    It is -1 when each token's choice is certain and the mean is even, and 0 when every token has the same
    probabilities. Mod-Squad, arXiv:2212.08066, for one task.
    """
    among = _mean_over_tokens(_entropy(probs))
    return -(_entropy(all_reduce_mean(_mean_over_tokens(probs))) - among) / math.log(max(2, probs.shape[-1]))


def _entropy(probs: Float[Tensor, "*rows E"]) -> Float[Tensor, "*rows"]:
    # The slope at a probability of 0 must stay finite: times the softmax's own slope of 0 it would be NaN.
    return -(probs * probs.clamp(min=torch.finfo(probs.dtype).tiny).log()).sum(-1)


def update_expert_bias(
    bias: Float[Tensor, " E"], tokens_per_expert: Int[Tensor, " E"], rate: float
) -> Float[Tensor, " E"]:
    """Returns the bias after a step of loss-free balancing: b_i + rate * sign(mean load - load_i).

    Source: arXiv:2408.15664, alg. 1.
    """
    load = tokens_per_expert.double()
    return bias + rate * torch.sign(load.mean() - load).to(bias.dtype)


def quantile_bias(
    bias: Float[Tensor, " E"], probs: Float[Tensor, "T E"], top_k: int, iterations: int
) -> Float[Tensor, " E"]:
    """Returns the bias that makes these tokens' K choices nearly even: quantile balancing (kexue.fm/archives/11619).

    The most probable assignment that gives each token K experts and each expert T K / E tokens is a linear programme.
    Its dual is solved by alternating two steps, from the present bias. First, each token's threshold is set between its
    K-th and its (K+1)-th largest p_ti + b_i. Then each expert's bias is set to a quantile, so that exactly its share of
    the p_ti lies above the thresholds minus the bias. The bias is shifted to a mean of 0, which changes no choice.
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


def update_bias(
    balance: BiasBalance,
    bias: Float[Tensor, " E"],
    tokens_per_expert: Int[Tensor, " E"],
    probs: Sequence[Float[Tensor, "_T E"]],
    top_k: int,
) -> Float[Tensor, " E"]:
    """Returns the bias after an optimizer step, from all its counts (loss_free) or probabilities (quantile)."""
    if isinstance(balance, LossFreeBalance):
        return update_expert_bias(bias, tokens_per_expert, balance.bias_update_rate)
    return quantile_bias(bias, torch.cat(list(probs)), top_k, balance.iterations)


def bias_method(balance: BalanceConfig | None) -> BiasBalance | None:
    """Returns the method that sets the routing bias; None if there is none. A configuration has at most one."""
    found = [method for method in methods_of(balance) if isinstance(method, LossFreeBalance | QuantileBalance)]
    return found[0] if found else None


def _routing_load_loss(routing: Routing) -> Tensor:
    assert routing.clean_logits is not None, "a router with noise, in training"
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


def auxiliary_losses(
    balance: BalanceConfig | None,
    routings: Sequence[Routing],
    *,
    batch_counts: Sequence[Int[Tensor, " E"]] | None = None,
    step_counts: Sequence[Int[Tensor, " E"]] | None = None,
    num_sequences: int = 1,
) -> dict[LossBalance, Tensor]:
    """Computes each balancing loss of the configuration, averaged over layers, unweighted; empty without losses.

    Args:
        batch_counts: per layer, the assignments to each expert in the batch of all processes; for scope `batch`. By
            default counted here.
        step_counts: the same over the optimizer step so far, this batch included; for scope `global`. By default those
            of the batch.
        num_sequences: sequences in the batch; for scope `sequence`.
    """
    if batch_counts is None:
        batch_counts = [all_reduce_sum(routing.tokens_per_expert) for routing in routings]
    scopes = {"batch": batch_counts, "global": batch_counts if step_counts is None else step_counts}
    losses: dict[LossBalance, Tensor] = {}
    for method in methods_of(balance) if routings else ():
        if isinstance(method, LossFreeBalance | QuantileBalance):
            continue
        if isinstance(method, SwitchBalance) and method.scope == "sequence":
            layers = [load_balancing_loss(routing, num_sequences=num_sequences) for routing in routings]
        elif isinstance(method, SwitchBalance):
            counts = scopes[method.scope]
            layers = [
                load_balancing_loss(routing, assigned_counts=each)
                for routing, each in zip(routings, counts, strict=True)
            ]
        else:
            layers = [LOSSES[method.name](routing) for routing in routings]
        losses[method] = torch.stack(layers).mean()
    return losses
