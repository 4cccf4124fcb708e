"""How does an image classifier use experts? A vision transformer with some sparse blocks (V-MoE, arXiv:2106.05974).

B images of H x W pixels and C channels, P patches of S x S pixels, D width, G classes.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from moe_cli.config.data import ImageData
from moe_cli.config.model import ViTConfig
from moe_cli.config.schema import RunConfig
from moe_cli.models.transformer import Transformer
from moe_cli.moe.experts import init_matrix
from moe_cli.moe.routing import Routing, RoutingPolicy


class ViT(Transformer):
    """A vision transformer: a linear patch embedding, blocks without causal mask, a norm, the mean, and a head.

    Args:
        config: a resolved configuration.
        vocab_size: G.
    """

    def make_embedding(self, config: RunConfig, vocab_size: int) -> nn.Module:
        assert isinstance(config.model, ViTConfig)
        assert isinstance(config.data, ImageData)
        self.patch_size = config.model.patch_size
        return nn.Linear(self.patch_size**2 * config.data.channels, config.model.d_model, bias=False)

    def reset_embedding(self, generator: torch.Generator) -> None:
        init_matrix(self.embedding.get_parameter("weight"), generator)

    def forward(  # type: ignore[override]
        self, images: Float[Tensor, "B C H W"], policy: RoutingPolicy | None = None
    ) -> tuple[Float[Tensor, "B G"], list[Routing]]:
        """Returns the logits of the classes, and the routing of every sparse block, whose tokens are the patches."""
        dtype = self.embedding.get_parameter("weight").dtype
        x, routings = self.run_blocks(self.embedding(self.patchify(images.to(dtype))), policy=policy)
        assert self.head is not None
        return self.cap_logits(self.head(x.mean(1))), routings

    def patchify(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B P S2C"]:
        """Returns the patches of each image row by row; the pixels of a patch are row by row, channels last."""
        size = self.patch_size
        rows = images.unfold(2, size, size).unfold(3, size, size)  # B C H/S W/S S S
        return rows.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)
