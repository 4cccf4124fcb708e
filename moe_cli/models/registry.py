"""All model families by name, and the model of a configuration."""

from torch import nn

from moe_cli.config.schema import RunConfig
from moe_cli.models.lstm import LSTMModel
from moe_cli.models.mmoe import MMoE
from moe_cli.models.t5 import T5
from moe_cli.models.transformer import Transformer
from moe_cli.models.vit import ViT
from moe_cli.plugins import plugin_of

MODELS: dict[str, type[nn.Module]] = {
    "gpt": Transformer,
    "bert": Transformer,
    "lstm": LSTMModel,
    "vit": ViT,
    "t5": T5,
    "mmoe": MMoE,
}


def make_model(config: RunConfig, vocab_size: int) -> nn.Module:
    """Builds the model of a resolved configuration, initialised from its seed.

    Args:
        vocab_size: number of token ids; of classes for images; of users and items for ratings.
    """
    plugin = plugin_of(config.model)
    model = plugin.code()(config, vocab_size) if plugin else MODELS[config.model.name](config, vocab_size)
    model.reset_parameters(config.seed)  # type: ignore[operator]
    return model
