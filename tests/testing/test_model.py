"""The kit for models of tokens: it passes what is built in, and names each planted fault."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from moe_cli.config.model import PluginModel
from moe_cli.config.schema import RunConfig
from moe_cli.models.blocks import sparse_layer_from_config
from moe_cli.moe.routing import Routing
from moe_cli.plugins import Plugin
from moe_cli.testing import check_model

pytestmark = pytest.mark.usefixtures("unchecked_shapes")


@pytest.mark.parametrize("name", ["gpt", "bert", "lstm"])
def test_every_model_of_tokens_passes(name: str) -> None:
    check_model(name)


@dataclass(frozen=True)
class AverageConfig(PluginModel):
    """An embedding, the mean of the tokens so far, layers with experts, and a head."""

    name: str = "kit_average"

    def backbone(self, vocab_size: int) -> Mapping[str, float]:
        size = vocab_size * self.d_model
        values = {"num_params": 2 * size, "matmul_params": size, "flops_per_token": 0}
        return {**values, "saved_values_per_token": self.d_model, "logits_per_token": vocab_size}


CONF = """
defaults: [_layers, _self_]
name: kit_average
num_layers: 2
d_model: 32
d_ff: 64
ffn_type: glu
activation: silu
"""


class Average(nn.Module):
    def __init__(self, config: RunConfig, vocab_size: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, config.model.d_model)
        self.layers = nn.ModuleList(sparse_layer_from_config(config, vocab_size) for _ in config.sparse_layers)
        self.head = nn.Linear(config.model.d_model, vocab_size, bias=False)

    def reset_parameters(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for layer in self.layers:
            layer.reset_parameters(generator)  # type: ignore[operator]
        for weight in (self.embedding.weight, self.head.weight):
            nn.init.normal_(weight, std=0.1, generator=generator)

    def mix(self, x: Tensor) -> Tensor:
        return x.cumsum(1) / torch.arange(1, x.shape[1] + 1).unsqueeze(1)

    def forward(
        self, tokens: Tensor, mask: Tensor | None = None, documents: Tensor | None = None, policy: Any = None
    ) -> tuple[Tensor, list[Routing]]:
        x, routings = self.mix(self.embedding(tokens)), []
        for layer in self.layers:
            y, routing = layer(x, tokens, mask, policy)
            x = x + y
            routings.append(routing)
        return self.head(x), routings


def plugin_of(model: type[nn.Module]) -> Plugin:
    return Plugin(build=model, config=AverageConfig, conf=CONF)


def test_a_plug_in_passes() -> None:
    check_model(plugin_of(Average))


class Pooled(Average):
    def mix(self, x: Tensor) -> Tensor:
        return x + x.mean(1, keepdim=True)


class OverTheBatch(Average):
    def mix(self, x: Tensor) -> Tensor:
        return super().mix(x) - x.mean(0)


class Dropping(Average):
    def mix(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(super().mix(x), 0.1, training=True)


class NoPolicy(Average):
    def forward(self, tokens: Tensor, mask: Any = None, documents: Any = None, policy: Any = None) -> Any:
        return super().forward(tokens, mask, documents)


class NoMask(Average):
    def forward(self, tokens: Tensor, mask: Any = None, documents: Any = None, policy: Any = None) -> Any:
        return super().forward(tokens, None, documents, policy)


class NoDocuments(Average):
    def forward(self, tokens: Tensor, mask: Any = None) -> Any:  # type: ignore[override]
        return super().forward(tokens, mask)


class Unseeded(Average):
    def reset_parameters(self, seed: int) -> None:
        super().reset_parameters(seed)
        nn.init.normal_(self.head.weight)


class OneSeed(Average):
    def reset_parameters(self, seed: int) -> None:
        super().reset_parameters(0)


class Idle(Average):
    def __init__(self, config: RunConfig, vocab_size: int) -> None:
        super().__init__(config, vocab_size)
        self.idle = nn.Parameter(torch.ones(3))


class Larger(Average):
    def __init__(self, config: RunConfig, vocab_size: int) -> None:
        super().__init__(config, vocab_size)
        self.scale = nn.Parameter(torch.ones(config.model.d_model))

    def mix(self, x: Tensor) -> Tensor:
        return super().mix(x) * self.scale


class OneRouting(Average):
    def forward(self, tokens: Tensor, mask: Any = None, documents: Any = None, policy: Any = None) -> Any:
        logits, routings = super().forward(tokens, mask, documents, policy)
        return logits, routings[:1]


class Squared(Average):
    def mix(self, x: Tensor) -> Tensor:
        return super().mix(x) + 0 * (x @ self.head.weight.T).sum(-1, keepdim=True)


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (Pooled, "logits depend on later tokens"),
        (OverTheBatch, "depend on other sequences"),
        (Dropping, "evaluation is not deterministic"),
        (NoPolicy, "does not reach the layers with experts"),
        (NoMask, "padding is routed"),
        (NoDocuments, "forward(tokens, policy) raises TypeError"),
        (Unseeded, "does not draw all weights from its seed"),
        (OneSeed, "the same weights for every seed"),
        (Idle, "no gradient reaches idle"),
        (Larger, "parameters are stated"),
        (OneRouting, "1 routings of 2 layers with experts"),
        (Squared, "FLOPs are stated, and torch counts"),
    ],
)
def test_a_fault_is_named(model: type[nn.Module], sentence: str) -> None:
    with pytest.raises(AssertionError) as error:
        check_model(plugin_of(model))
    assert str(error.value).startswith("kit_average: ")
    assert sentence in str(error.value)
