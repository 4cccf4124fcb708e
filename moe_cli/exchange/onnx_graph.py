"""Traces a model as an ONNX graph whose batch and length are free, and whose experts have fixed shapes.

B sequences, L positions, D width, H hidden width.
"""

import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field
from io import StringIO
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from moe_cli.config.data import ImageData
from moe_cli.config.model import BERTConfig, MMoEConfig, PluginModel, T5Config, TransformerConfig, ViTConfig
from moe_cli.config.routers import ExpertChoiceConfig, PluginRouter, RandomConfig, SoftConfig
from moe_cli.config.schema import RunConfig
from moe_cli.errors import ConfigError
from moe_cli.formatting import sanitise
from moe_cli.moe.backends.all_experts import all_experts
from moe_cli.moe.routing import RoutingPolicy
from moe_cli.moe.sparse_layer import moe_layers

OUTPUT = "logits"
# The sizes of the traced example. No two are equal and none is 1, so that none is taken for a constant.
BATCH, LENGTH, DECODER_LENGTH = 3, 5, 7
# protobuf holds at most 2 GiB; the rest is for the graph itself.
MAX_BYTES = 2**31 - 2**25
# Loggers of the libraries, which remark on other libraries and on their own code.
_LOGGERS = ("torch.onnx", "torch.export", "torch.fx.experimental.symbolic_shapes", "onnxscript", "onnx_ir")


@dataclass(frozen=True)
class Input:
    """An input of the graph.

    Attributes:
        example: a tensor with which the model is traced.
        sizes: the names of its free dimensions, by their index; an upper bound follows the name, if there is one.
    """

    name: str
    example: Tensor
    sizes: Mapping[int, tuple[str, int | None]] = field(default_factory=dict)


def check_exportable(config: RunConfig, num_bytes: int) -> None:
    """Raises ConfigError for a model that no ONNX file can hold or repeat.

    Args:
        num_bytes: those of the weights.
    """
    if isinstance(config.model, PluginModel):
        raise ConfigError(f"model={config.model.name} comes from a plug-in, whose inputs are not known here.")
    if not config.dense and isinstance(config.router, RandomConfig):
        raise ConfigError("router=random draws the experts of each token, which an ONNX graph cannot repeat.")
    if not config.dense and isinstance(config.router, ExpertChoiceConfig):
        raise ConfigError(
            "router=expert_choice takes a number of tokens that depends on the batch, which no fixed graph can express."
        )
    if num_bytes > MAX_BYTES:
        raise ConfigError(
            f"the weights have {num_bytes / 1e9:,.1f} GB, and one ONNX file holds {MAX_BYTES / 1e9:.1f} GB. "
            "Export a folder of Hugging Face's format: moe export RUN FOLDER"
        )


def inputs_of(config: RunConfig, vocab_size: int) -> list[Input]:
    """Returns the inputs of the graph of a configuration: see docs/howto/export-onnx.md."""
    model = config.model
    generator = torch.Generator().manual_seed(0)

    def ids(length: int) -> Tensor:
        return torch.randint(vocab_size, (BATCH, length), generator=generator)

    if isinstance(model, ViTConfig):
        assert isinstance(config.data, ImageData)
        size = (BATCH, config.data.channels, config.data.image_size, config.data.image_size)
        return [Input("images", torch.randn(size, generator=generator), {0: ("batch", None)})]
    if isinstance(model, MMoEConfig):
        return [Input("pairs", ids(2), {0: ("batch", None)})]
    longest = model.context_length if isinstance(model, TransformerConfig) else None
    length = LENGTH if longest is None else min(LENGTH, longest)
    sizes: dict[int, tuple[str, int | None]] = {0: ("batch", None)}
    if longest is None or longest > LENGTH:
        sizes[1] = ("length", longest)
    tokens = Input("tokens", ids(length), sizes)
    if isinstance(model, T5Config):
        return [tokens, Input("decoder_tokens", ids(DECODER_LENGTH), {0: sizes[0], 1: ("decoder_length", None)})]
    if isinstance(model, BERTConfig) and not isinstance(config.router, SoftConfig):
        mask = torch.ones(BATCH, length, dtype=torch.bool)
        mask[0, -1] = False
        return [tokens, Input("mask", mask, sizes)]
    return [tokens]


class _Graph(nn.Module):
    """The model with the logits as its only output. Subclasses name the inputs."""

    def __init__(self, model: nn.Module, policy: RoutingPolicy) -> None:
        super().__init__()
        self.model = model
        self.policy = policy


class _OneInput(_Graph):
    def forward(self, tokens: Tensor) -> Tensor:
        return self.model(tokens, policy=self.policy)[0]  # type: ignore[no-any-return]


class _Windowed(_Graph):
    def forward(self, tokens: Int[Tensor, "B L"]) -> Float[Tensor, "B L V"]:
        # With documents the mask of the window does not depend on a comparison with L.
        documents = torch.zeros_like(tokens)
        return self.model(tokens, documents=documents, policy=self.policy)[0]  # type: ignore[no-any-return]


class _Masked(_Graph):
    def forward(self, tokens: Int[Tensor, "B L"], mask: Bool[Tensor, "B L"]) -> Float[Tensor, "B L V"]:
        # Padding is another document: text does not attend to it, and routing, which is per token, may include it.
        return self.model(tokens, documents=mask.long(), policy=self.policy)[0]  # type: ignore[no-any-return]


class _EncoderDecoder(_Graph):
    def forward(self, tokens: Int[Tensor, "B L"], decoder_tokens: Int[Tensor, "B M"]) -> Float[Tensor, "B M V"]:
        return self.model(tokens, decoder_tokens, policy=self.policy)[0]  # type: ignore[no-any-return]


class _OnnxLSTM(nn.Module):
    """An LSTM as ONNX's operator, because torch traces one as a loop over a fixed number of positions.

    ONNX orders the gates input, output, forget, cell; torch: input, forget, cell, output.
    """

    def __init__(self, lstm: nn.LSTM) -> None:
        super().__init__()
        self.width = lstm.hidden_size

        def reorder(name: str) -> Tensor:
            gates = lstm.get_parameter(name).detach().chunk(4)
            return torch.cat([gates[index] for index in (0, 3, 1, 2)]).unsqueeze(0)

        self.weight, self.recurrence = nn.Parameter(reorder("weight_ih_l0")), nn.Parameter(reorder("weight_hh_l0"))
        self.bias = nn.Parameter(torch.cat([reorder("bias_ih_l0"), reorder("bias_hh_l0")], dim=1))

    def forward(self, x: Float[Tensor, "B L D"]) -> tuple[Float[Tensor, "B L H"], None]:
        rows = torch.onnx.ops.symbolic(
            "LSTM",
            [x.transpose(0, 1), self.weight, self.recurrence, self.bias],
            {"hidden_size": self.width},
            dtype=x.dtype,
            shape=[x.shape[1], 1, x.shape[0], self.width],
            version=14,
        )
        return rows.squeeze(1).transpose(0, 1), None


def trace(model: nn.Module, config: RunConfig, inputs: list[Input], metadata: Mapping[str, Any]) -> bytes:
    """Returns the ONNX file of a model in evaluation mode, which this changes.

    Nothing is dropped, whatever the capacity, as when the run writes text.

    Args:
        metadata: is added to the file, each value as JSON.

    Raises:
        ConfigError: a plug-in's code cannot be traced.
    """
    for layer in moe_layers(model):
        layer.backend = all_experts
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.LSTM):
                setattr(module, name, _OnnxLSTM(child))
    graph = _graph_class(config, inputs)(model, RoutingPolicy(config.eval.k)).eval()
    try:
        with _quiet(), torch.no_grad():
            program = torch.export.export(
                graph,
                tuple(source.example for source in inputs),
                dynamic_shapes=_free_sizes(inputs),
                strict=False,
                prefer_deferred_runtime_asserts_over_guards=True,
            )
            proto = _to_onnx(program, inputs)
    except Exception as error:
        if not isinstance(config.router, PluginRouter):
            raise
        reason = sanitise(str(error).strip().partition("\n")[0])
        raise ConfigError(f"router={config.router.name} cannot be traced by torch.export: {reason:.200}") from None
    if drawn := {node.op_type for node in proto.graph.node if node.op_type.startswith(("Random", "Bernoulli"))}:
        raise ConfigError(f"the model draws random numbers ({', '.join(drawn)}), which an ONNX graph cannot repeat.")
    for node in proto.graph.node:  # among them the paths of the source files
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    proto.graph.ClearField("doc_string")
    for key, value in metadata.items():
        proto.metadata_props.add(key=key, value=json.dumps(value))
    content: bytes = proto.SerializeToString()
    return content


def _graph_class(config: RunConfig, inputs: list[Input]) -> type[_Graph]:
    names = [source.name for source in inputs]
    if "mask" in names:
        return _Masked
    if "decoder_tokens" in names:
        return _EncoderDecoder
    return _Windowed if names == ["tokens"] and getattr(config.model, "sliding_window", None) else _OneInput


def _free_sizes(inputs: list[Input]) -> tuple[dict[int, Any], ...]:
    free: dict[str, Any] = {}
    for source in inputs:
        for name, bound in source.sizes.values():
            free.setdefault(name, torch.export.Dim(name, min=1, max=bound))
    return tuple({index: free[name] for index, (name, _) in source.sizes.items()} for source in inputs)


def _to_onnx(program: Any, inputs: list[Input]) -> Any:
    """Returns the model as a protobuf message."""
    made = torch.onnx.export(
        program, input_names=[source.name for source in inputs], output_names=[OUTPUT], dynamo=True, verbose=False
    )
    assert made is not None
    return made.model_proto


@contextmanager
def _quiet() -> Iterator[None]:
    """Leaves out what the libraries remark on themselves."""
    levels = {name: logging.getLogger(name).level for name in _LOGGERS}
    try:
        for name in levels:
            logging.getLogger(name).setLevel(logging.ERROR)
        with warnings.catch_warnings(), redirect_stderr(StringIO()):  # torch prints the graph where it fails
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
