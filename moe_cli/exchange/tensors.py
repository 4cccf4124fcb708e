"""How do the tensors of a run become those of a family, and back? Ours has the rows of theirs, one below the other.

Both directions copy ranges of values between files, so that the memory needed does not depend on the model.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from moe_cli.config.model import TransformerConfig
from moe_cli.config.schema import RunConfig
from moe_cli.errors import ConfigError
from moe_cli.exchange.families import DEEPSEEK_V3, FUSED, THEIR_LAYER, TOP, Family
from moe_cli.files.tensor_file import NewTensor, TensorFile, Values, chunk_ranges
from moe_cli.formatting import foreign_name

Shapes = Mapping[str, tuple[int, ...]]
_LAYER = re.compile(r"blocks\.(\d+)\.(.+)")
# A tensor of ours that theirs need not have: zero, and left out, unless a family has a name for it.
EXPERT_BIAS = "ffn.router.expert_bias"
# The matrices of latent attention with rotary rows.
_ROTARY = ("attention.q_up.weight", "attention.kv_down.weight")


@dataclass(frozen=True)
class Piece:
    """One tensor of theirs: the values of ours from `first` on."""

    theirs: str
    shape: tuple[int, ...]
    first: int

    @property
    def count(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Mapped:
    """One tensor of ours, and those of theirs that it consists of, in order.

    Attributes:
        fused: their name where one tensor has all experts; None for other tensors.
    """

    ours: str
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]
    fused: str | None = None


def map_tensors(config: RunConfig, family: Family, shapes: Shapes) -> Iterator[Mapped]:
    """Yields each tensor of a run with its counterparts; those without any have no pieces.

    Args:
        shapes: those of the run's tensors, by their names.
    """
    for name, shape in shapes.items():
        layer = _LAYER.fullmatch(name)
        if layer is None:
            yield Mapped(name, shape, (Piece(TOP[name], shape, 0),))
            continue
        prefix, local = THEIR_LAYER.format(i=layer[1]), layer[2]
        names = _their_names(family, local, config)
        fused = None
        if local in FUSED and names:
            fused = prefix + names[0].partition("experts.")[0] + FUSED[local]
        yield Mapped(name, shape, tuple(_pieces(config, local, shape, [prefix + their for their in names])), fused)


def _their_names(family: Family, local: str, config: RunConfig) -> list[str]:
    if local == "attention.q_up.weight" and getattr(config.model, "q_lora_rank", None) is None:
        return ["self_attn.q_proj.weight"]
    names = family.layer.get(local)
    if names is None:
        if local == EXPERT_BIAS:
            return []
        raise ConfigError(f"the weights {local} have no counterpart in {family.title}.")
    experts = range(config.expert) if "{e}" in names[0] else range(1)
    return [name.format(e=expert) for expert in experts for name in names]


def _pieces(config: RunConfig, local: str, shape: tuple[int, ...], names: Sequence[str]) -> Iterator[Piece]:
    """Yields the tensors that a tensor of ours consists of: queries, keys and values, or tensors of equal height."""
    if not names:
        return
    num_rows, row = (math.prod(shape[:-1]), shape[-1:]) if len(shape) > 1 else (shape[0], ())
    first = 0
    for name, height in zip(names, row_heights(config, local, num_rows, len(names)), strict=True):
        piece = Piece(name, (height, *row), first)
        yield piece
        first += piece.count


def row_heights(config: RunConfig, local: str, num_rows: int, number: int) -> list[int]:
    """Returns the rows of each of the tensors that one of ours consists of: queries, keys, values, or equal parts."""
    heights = [num_rows // number] * number
    model = config.model
    if local.startswith("attention.qkv"):
        assert isinstance(model, TransformerConfig)
        heights = [(heads or 1) * (model.d_head or 1) for heads in (model.num_heads, *[model.num_kv_heads] * 2)]
    assert sum(heights) == num_rows, local
    return heights


def their_tensors(
    config: RunConfig, family: Family, shapes: Shapes, read: Callable[[str, int, int], Values]
) -> Iterator[NewTensor]:
    """Yields the tensors of theirs to write, in the order of ours.

    Args:
        read: returns `count` values from `first` of a tensor of ours: read(name, first, count).
    """
    for mapped in map_tensors(config, family, shapes):
        if not mapped.pieces and read(mapped.ours, 0, math.prod(mapped.shape)).any():
            raise ConfigError(
                f"balance={config.balance.name if config.balance else None} with router="
                f"{config.router.name if config.router else None} has learned biases of experts, which {family.title} "
                "lacks. Exportable: balance=loss_free with router=sigmoid and latent attention (DeepSeek-V3)."
            )
        for piece in mapped.pieces:
            yield NewTensor(piece.theirs, piece.shape, partial(read_range, read, mapped.ours, piece.first, piece.count))
    yield from _extra_tensors(config, family)


def read_range(read: Callable[[str, int, int], Values], name: str, first: int, count: int) -> Iterator[Values]:
    """Yields `count` values from `first` of a tensor of ours, a part at a time."""
    for start, number in chunk_ranges(first, count):
        yield read(name, start, number)


def _extra_tensors(config: RunConfig, family: Family) -> Iterator[NewTensor]:
    """Yields tensors that theirs need and ours lacks: norm weights of 1, and empty shared experts."""
    model = config.model
    assert isinstance(model, TransformerConfig)
    extra: list[tuple[str, tuple[int, ...]]] = []
    if family.has_unit_norms and model.qk_norm_weights == "none":
        extra += [(f"self_attn.{letter}_norm.weight", (model.d_head or 1,)) for letter in "qk"]
    empty = family is DEEPSEEK_V3 and not model.shared_experts
    for layer in range(model.num_layers):
        shared = _EMPTY_EXPERTS if empty and layer in config.sparse_layers else {}
        for name, shape in (*extra, *((name, shape(model.d_model)) for name, shape in shared.items())):
            yield NewTensor(THEIR_LAYER.format(i=layer) + name, shape, partial(ones, shape))


_EMPTY_EXPERTS = {
    "mlp.shared_experts.gate_proj.weight": lambda width: (0, width),
    "mlp.shared_experts.up_proj.weight": lambda width: (0, width),
    "mlp.shared_experts.down_proj.weight": lambda width: (width, 0),
}


def ones(shape: tuple[int, ...]) -> Iterator[Values]:
    """Yields the values of a tensor of ones."""
    yield np.ones(shape, np.float32)


class Shards:
    """The open files of a foreign folder, as one set of tensors by name."""

    def __init__(self, files: Mapping[str, TensorFile], place: Mapping[str, str]) -> None:
        self._files, self._place = files, place

    def __contains__(self, name: str) -> bool:
        return name in self._place

    @property
    def names(self) -> set[str]:
        return set(self._place)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._files[self._place[name]].entries[name].shape

    def read(self, name: str, first: int, count: int) -> Values:
        return self._files[self._place[name]].read(name, first, count)


def our_tensors(
    config: RunConfig, family: Family, shapes: Shapes, shards: Shards, *, interleaved: bool = False
) -> list[NewTensor]:
    """Returns the tensors of ours to write, read from theirs.

    Args:
        interleaved: whether their rotary pairs are next to each other; rows of latent attention then change places.

    Raises:
        ConfigError: a tensor is missing, has another shape, or has no place.
    """
    unused, tensors = shards.names, []
    for mapped in map_tensors(config, family, shapes):
        found = _found(mapped, family, shards)
        for piece in found:
            _check_shape(piece, shards)
        unused -= {piece.theirs for piece in found}
        values = partial(_values, found, mapped.shape, shards)
        if interleaved and mapped.ours.endswith(_ROTARY):
            values = partial(_rows_of_halves, values, config, mapped)
        tensors.append(NewTensor(mapped.ours, mapped.shape, values))
    if unused := {name for name in unused if not _is_ignored(name, config)}:
        raise ConfigError(f"the tensor {foreign_name(min(unused))} has no place in a model with this config.json.")
    return tensors


def _rows_of_halves(values: Callable[[], Iterator[Values]], config: RunConfig, mapped: Mapped) -> Iterator[Values]:
    """Yields a matrix with its rotary rows 0, 1, 2, 3, ... in the order 0, 2, ..., 1, 3, ...

    In the matrix of queries they are the last rows of each head, in that of keys and values the last ones of all.
    """
    model = config.model
    assert isinstance(model, TransformerConfig)
    assert model.qk_rope_head_dim
    assert model.d_head
    is_query = mapped.ours.endswith("q_up.weight")
    height = model.d_head + model.qk_rope_head_dim if is_query else mapped.shape[0]
    first = height - model.qk_rope_head_dim
    order = np.concatenate((np.arange(first), np.arange(first, height, 2), np.arange(first + 1, height, 2)))
    block, size = np.empty(0, np.float32), height * mapped.shape[1]
    for part in values():
        block = np.concatenate((block, part))
        while len(block) >= size:
            yield block[:size].reshape(height, -1)[order].reshape(-1)
            block = block[size:]


def _found(mapped: Mapped, family: Family, shards: Shards) -> tuple[Piece, ...]:
    """Returns the pieces that the folder has: one for each expert, or one for all of them."""
    if mapped.fused is not None and mapped.pieces[0].theirs not in shards:
        for name in (mapped.fused, mapped.fused.replace(".block_sparse_moe.", ".mlp.")):
            if name in shards:
                return (Piece(name, mapped.shape, 0),)
    names = {piece.theirs: piece for piece in mapped.pieces}
    if family.model_type == "mixtral" and mapped.pieces and mapped.pieces[0].theirs not in shards:
        names = {piece.theirs.replace(".block_sparse_moe.", ".mlp."): piece for piece in mapped.pieces}
    for name, piece in names.items():
        if name not in shards:
            raise ConfigError(f"the tensor {foreign_name(piece.theirs)} is missing.")
    return tuple(Piece(name, piece.shape, piece.first) for name, piece in names.items())


def _check_shape(piece: Piece, shards: Shards) -> None:
    if (shape := shards.shape(piece.theirs)) != piece.shape:
        raise ConfigError(
            f"the tensor {foreign_name(piece.theirs)} has shape {list(shape)}; config.json says {list(piece.shape)}."
        )


def _is_ignored(name: str, config: RunConfig) -> bool:
    """Returns whether a tensor repeats another: the head of tied embeddings, rates of rotary positions, empty ones."""
    tied = getattr(config.model, "tie_embeddings", False)
    empty = config.model.shared_experts == 0 and ".shared_experts." in name
    return name.endswith("rotary_emb.inv_freq") or (tied and name == TOP["head.weight"]) or empty


def _values(pieces: Sequence[Piece], shape: tuple[int, ...], shards: Shards) -> Iterator[Values]:
    if not pieces:
        yield np.zeros(shape, np.float32)
    for piece in pieces:
        for start, number in chunk_ranges(0, piece.count):
            values = shards.read(piece.theirs, start, number)
            if not np.isfinite(values).all():
                raise ConfigError(f"the tensor {foreign_name(piece.theirs)} has values that are not finite.")
            yield values
