"""A model starts from the weights of a dense run: sparse upcycling, arXiv:2212.05055."""

import torch
from torch import nn

from moe_cli.store import Run
from moe_cli.training.checkpoint import latest_checkpoint


@torch.no_grad()
def upcycle(model: nn.Module, source: Run) -> None:
    """Every expert becomes a copy of the dense network in its place, and all else is taken over; routers stay new.

    Where the weights of a token's experts sum to 1, the model starts as the dense one's function.

    Args:
        model: of the source's shape, `d_expert` equal to its `d_ff`; see `moe_cli.run.check_upcycle`.

    Raises:
        CheckpointError: the source's checkpoint is damaged.
    """
    dense = latest_checkpoint(source).model_tensors()
    for name, param in model.named_parameters():
        weight = dense.get(name.replace(".ffn.experts.", ".ffn."))
        if weight is not None:  # a router, and experts that are shared, have no counterpart
            param.copy_(weight)  # one network to all experts, by broadcasting over E
