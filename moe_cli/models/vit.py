"""A vision transformer with experts in some of its blocks (V-MoE, arXiv:2106.05974).

B images of H x W pixels and C channels, P patches of S x S pixels, D width, G classes.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from moe_cli.config.data import ImageData
from moe_cli.config.model import ViTConfig
from moe_cli.config.schema import RunConfig
from moe_cli.models.blocks import Block, make_norm, reset_normal, visible
from moe_cli.moe.experts import init_matrix
from moe_cli.moe.routing import Routing


class ViT(nn.Module):
    """Patches embedded by one matrix, blocks in which all see all, norm, the mean over patches, head.

    Args:
        config: a resolved configuration.
        num_classes: G.
    """

    def __init__(self, config: RunConfig, num_classes: int) -> None:
        super().__init__()
        model = config.model
        assert isinstance(model, ViTConfig)
        assert isinstance(config.data, ImageData)
        self.patch_size, self.window = model.patch_size, model.sliding_window
        self.init_std, self.expert_init_scale = model.init_std, model.expert_init_scale
        self.logit_softcap = model.logit_softcap
        self.patches = nn.Linear(model.patch_size**2 * config.data.channels, model.d_model, bias=False)
        learned = model.position_encoding == "learned"
        self.positions = nn.Embedding(model.context_length, model.d_model) if learned else None
        self.embedding_dropout = nn.Dropout(model.dropout)
        self.blocks = nn.ModuleList(
            Block(config, layer in config.sparse_layers, num_classes) for layer in range(model.num_layers)
        )
        self.norm = make_norm(model)
        self.head = nn.Linear(model.d_model, num_classes, bias=False)

    def reset_parameters(self, seed: int) -> None:
        """Initial weights, decided by the seed alone; residual branches and head start at zero: the first guess is uniform."""
        generator = torch.Generator().manual_seed(seed)
        init_matrix(self.patches.weight, generator)
        for block in self.blocks:
            block.reset_parameters(generator, 0.0)  # type: ignore[operator]
        nn.init.zeros_(self.head.weight)
        if self.positions is not None:
            nn.init.normal_(self.positions.weight, std=0.02, generator=generator)
        if self.init_std is not None:
            reset_normal(self, self.init_std, self.expert_init_scale, len(self.blocks), generator)

    def forward(self, images: Float[Tensor, "B C H W"]) -> tuple[Float[Tensor, "B G"], list[Routing]]:
        """Logits of the classes, and the routing of every sparse block: patches are its tokens."""
        x = self.patches(self.cut(images.to(self.patches.weight.dtype)))
        if self.positions is not None:
            x = x + self.positions.weight
        x = self.embedding_dropout(x)
        seen = visible(x.shape[1], False, self.window, None, None, x.device)
        routings = []
        for block in self.blocks:
            x, routing = block(x, seen=seen)
            if routing is not None:
                routings.append(routing)
        logits = self.head(self.norm(x).mean(1))
        return logits if self.logit_softcap is None else self.logit_softcap * torch.tanh(
            logits / self.logit_softcap
        ), routings

    def cut(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B P S2C"]:
        """The patches, row by row; of each its pixels row by row, channels last."""
        size = self.patch_size
        rows = images.unfold(2, size, size).unfold(3, size, size)  # B C H/S W/S S S
        return rows.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)
