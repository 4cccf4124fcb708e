"""How do experts compute with shapes that do not depend on the routing? Every expert processes every token.

An exported graph needs that. It takes E / K times the products of the other back ends, so no setting selects it.
T tokens, E experts, D widths, F hidden width, H = 2F (gated) or F.
"""

from jaxtyping import Float
from torch import Tensor

from moe_cli.moe.experts import Experts, expert_activation
from moe_cli.moe.routing import Routing


def all_experts(
    experts: Experts, x: Float[Tensor, "T D_in"], routing: Routing, dropout_mask: Float[Tensor, "A F"] | None = None
) -> Float[Tensor, "T D_out"]:
    """Computes y as two products: x by the first matrices of all experts, and the weighted hidden values by the second.

    The hidden values of an expert that a token did not choose have weight 0. Not for training with expert dropout.
    """
    assert dropout_mask is None, "the hidden values belong to no assignment"
    weights = (routing.weights if routing.is_dropless else routing.weights * routing.kept).to(x.dtype)
    combine = x.new_zeros(x.shape[0], experts.num_experts)
    combine = combine.index_put((routing.token_ids, routing.expert_ids), weights, accumulate=True)
    pre = (x @ experts.w_in.flatten(0, 1).T).unflatten(1, (experts.num_experts, -1))
    act = expert_activation(pre, experts.ffn_type, experts.activation) * combine.unsqueeze(-1)
    return act.flatten(1) @ experts.w_out.transpose(1, 2).flatten(0, 1)
