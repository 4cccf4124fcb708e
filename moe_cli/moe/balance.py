"""Even use of the experts: auxiliary losses and the bias update, as free functions. T tokens, E experts, K chosen."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from moe_cli.config.balances import BalanceConfig, LossFreeBalance, NoBalance, SwitchBalance, ZBalance
from moe_cli.moe.routing import Routing
from moe_cli.moe.stats import tokens_per_expert


def load_balancing_loss(routing: Routing) -> Float[Tensor, ""]:
    """Switch auxiliary loss, eq. 4 of arXiv:2101.03961, scaled to 1 when balanced, for every K.

    (E / K) * sum_i f_i P_i, with f_i the assignments asked of expert i per token (before drops; no gradient) and P_i
    the mean routing probability of expert i over the tokens of the batch.
    """
    asked = tokens_per_expert(routing)
    share = asked.to(routing.probs.dtype) / asked.sum().clamp(min=1)
    return routing.num_experts * (share * routing.probs.mean(0)).sum()


def router_z_loss(logits: Float[Tensor, "T E"]) -> Float[Tensor, ""]:
    """Mean squared log-sum-exp of the gate's logits, eq. 5 of ST-MoE, arXiv:2202.08906; (ln E)^2 for zero logits."""
    return logits.logsumexp(-1).square().mean()


def update_expert_bias(
    bias: Float[Tensor, " E"], tokens_per_expert: Int[Tensor, " E"], rate: float
) -> Float[Tensor, " E"]:
    """The bias after a step of loss-free balancing: b_i + rate * sign(mean load - load_i); arXiv:2408.15664, alg. 1."""
    load = tokens_per_expert.double()
    return bias + rate * torch.sign(load.mean() - load).to(bias.dtype)


LOSSES: dict[type, Callable[[Routing], Tensor]] = {
    SwitchBalance: load_balancing_loss,
    ZBalance: lambda routing: router_z_loss(routing.logits),
}


def auxiliary_loss(balance: BalanceConfig | None, routings: Sequence[Routing]) -> Tensor | None:
    """The balancing loss averaged over layers, before its weight; None when there is none to add."""
    if balance is None or isinstance(balance, NoBalance | LossFreeBalance) or not routings:
        return None
    return torch.stack([LOSSES[type(balance)](routing) for routing in routings]).mean()
