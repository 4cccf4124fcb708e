"""How does a recurrent language model use experts? Between its LSTM layers (Shazeer, arXiv:1701.06538, appendix C).

B sequences, L positions, D width, V tokens.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from moe_cli.config.model import LSTMConfig
from moe_cli.config.schema import RunConfig
from moe_cli.costs.processor import cpu_has_bfloat16
from moe_cli.models.blocks import init_embedding, make_dense_layer, output_logits, run_ffn, sparse_layer_from_config
from moe_cli.models.decoding_cache import DecodingCache, LayerCache
from moe_cli.moe.routing import Routing, RoutingPolicy


class LSTMBlock(nn.Module):
    """x + LSTM(x), then x + feed-forward(x), which is dense or sparse; all positions are routed together."""

    def __init__(self, config: RunConfig, sparse: bool, vocab_size: int) -> None:
        super().__init__()
        model = config.model
        assert isinstance(model, LSTMConfig)
        self.lstm = make_lstm(model.d_model)
        self.ffn = sparse_layer_from_config(config, vocab_size) if sparse else make_dense_layer(model)
        self.sigmoid = model.sigmoid
        self.dropout = nn.Dropout(model.dropout)

    def reset_parameters(self, generator: torch.Generator) -> None:
        reset_lstm(self.lstm, generator)
        self.ffn.reset_parameters(generator)

    def forward(
        self,
        x: Float[Tensor, "B L D"],
        token_ids: Int[Tensor, "B L"],
        mask: Bool[Tensor, "B L"] | None = None,
        layer_cache: LayerCache | None = None,
        policy: RoutingPolicy | None = None,
    ) -> tuple[Float[Tensor, "B L D"], list[Routing]]:
        """Returns the block's output, and a list of its routing, which is empty for a dense block.

        Args:
            mask: False for padding, which is at the end of a sequence and is not routed.
        """
        x = x + self.dropout(run_lstm(self.lstm, x, layer_cache))
        y, routings = run_ffn(self.ffn, x, token_ids, mask, policy)
        return x + self.dropout(y.sigmoid() if self.sigmoid else y), routings


class LSTMModel(nn.Module):
    """An embedding, alternating LSTM and feed-forward layers, a last LSTM, and a head, all with residual connections.

    Args:
        config: a resolved configuration.
        vocab_size: V.
    """

    def __init__(self, config: RunConfig, vocab_size: int) -> None:
        super().__init__()
        model = config.model
        assert isinstance(model, LSTMConfig)
        self.embedding = nn.Embedding(vocab_size, model.d_model)
        self.dropout = nn.Dropout(model.dropout)
        self.blocks = nn.ModuleList(
            LSTMBlock(config.at_layer(layer), layer in config.sparse_layers, vocab_size)
            for layer in range(model.num_layers)
        )
        self.lstm = make_lstm(model.d_model)
        self.head = None if model.tie_embeddings else nn.Linear(model.d_model, vocab_size, bias=False)

    def reset_parameters(self, seed: int) -> None:
        """Initialises the weights, which depend on the seed only.

        An untied head starts at zero, so that the first prediction is uniform.
        """
        generator = torch.Generator().manual_seed(seed)
        init_embedding(self.embedding, self.head, generator)
        for block in self.blocks:
            block.reset_parameters(generator)  # type: ignore[operator]
        reset_lstm(self.lstm, generator)
        if self.head is not None:
            nn.init.zeros_(self.head.weight)

    def forward(
        self,
        tokens: Int[Tensor, "B L"],
        mask: Bool[Tensor, "B L"] | None = None,
        cache: DecodingCache | None = None,
        policy: RoutingPolicy | None = None,
    ) -> tuple[Float[Tensor, "B L V"], list[Routing]]:
        """Returns the logits of the next token at every position, and the routing of every sparse layer.

        Args:
            mask: False for padding at the end of a sequence.
            cache: the states after the earlier tokens, which are updated; not with `mask`.
        """
        layer_caches = [cache.layers[layer] if cache else None for layer in range(len(self.blocks) + 1)]
        x = self.dropout(self.embedding(tokens))
        routings: list[Routing] = []
        for block, layer_cache in zip(self.blocks, layer_caches, strict=False):
            x, new = block(x, tokens, mask, layer_cache, policy)
            routings += new
        x = x + self.dropout(run_lstm(self.lstm, x, layer_caches[-1]))
        if cache:
            cache.length += tokens.shape[1]
        return output_logits(x, self.embedding, self.head), routings


def run_lstm(lstm: nn.LSTM, x: Float[Tensor, "B L D"], layer_cache: LayerCache | None) -> Float[Tensor, "B L D"]:
    """Computes the output at each position from the cached state, and replaces that state.

    On a processor that cannot multiply bfloat16, for which oneDNN has no such LSTM, it is computed in float32.
    """
    states = (layer_cache.tensors,) if layer_cache and layer_cache.tensors else ()
    if x.is_cpu and torch.is_autocast_enabled("cpu") and not cpu_has_bfloat16():
        with torch.autocast("cpu", enabled=False):
            result = lstm(x.float(), *states)
    else:
        result = lstm(x, *states)
    if layer_cache is not None:
        layer_cache.tensors = result[1]
    return result[0]  # type: ignore[no-any-return]


def make_lstm(width: int) -> nn.LSTM:
    return nn.LSTM(width, width, batch_first=True)


def reset_lstm(lstm: nn.LSTM, generator: torch.Generator) -> None:
    """Initialises weights uniformly within 1 / sqrt(D) and biases with 0, except the forget gates' bias, which is 1.

    The cells then keep their state at first (Jozefowicz et al., ICML 2015).
    """
    width = lstm.hidden_size
    for name, param in lstm.named_parameters():
        nn.init.uniform_(param, -(width**-0.5), width**-0.5, generator=generator)
        if name.startswith("bias"):
            nn.init.zeros_(param)
    with torch.no_grad():
        lstm.get_parameter("bias_ih_l0")[width : 2 * width] = 1.0
