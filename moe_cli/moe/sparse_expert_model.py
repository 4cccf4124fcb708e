"""A model of one sparse layer, whose output may have another width than its input.

E experts, D_in and D_out widths.
"""

from jaxtyping import Float
from torch import Tensor, nn

from moe_cli.config.ranges import check_whole
from moe_cli.moe.backends.dispatch import BACKENDS
from moe_cli.moe.experts import Experts
from moe_cli.moe.layer import resolve_router_config
from moe_cli.moe.routers.registry import make_router


class SparseExpertModel(nn.Module):
    """A model of one sparse layer: each input row is sent to `k` of `num_experts` feed-forward networks.

    The gate gets its gradient through the weights. Only the chosen experts are computed and get a gradient.

    Args:
        num_experts: E.
        input_dim: width D_in of an input row.
        output_dim: width D_out of an output row.
        k: experts chosen per row.

    Raises:
        ConfigError: a number is not an integer of at least 1, or k is more than num_experts.
    """

    def __init__(self, num_experts: int, input_dim: int, output_dim: int, k: int) -> None:
        super().__init__()
        config = resolve_router_config("topk", num_experts, k)
        check_whole("input_dim", input_dim)
        check_whole("output_dim", output_dim)
        self.router = make_router(config, input_dim, num_experts, k)
        self.experts = Experts(num_experts, input_dim, input_dim, output_dim, ffn_type="mlp", activation="gelu")
        self.router.reset_parameters()
        self.experts.reset_parameters()

    def forward(self, x: Float[Tensor, "*batch D_in"]) -> Float[Tensor, "*batch D_out"]:
        rows = x.reshape(-1, x.shape[-1])
        y = BACKENDS["auto"](self.experts, rows, self.router(rows))
        return y.view(*x.shape[:-1], y.shape[-1])
