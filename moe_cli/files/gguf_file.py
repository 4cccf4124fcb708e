"""Writes GGUF files, version 3, a part of a tensor at a time: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md

Numbers are little-endian. Tensors are float32 or float16, and start at multiples of 32 bytes.
"""

import math
import struct
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import BinaryIO

import numpy as np

from moe_cli.files.tensor_file import NewTensor

VERSION, ALIGNMENT = 3, 32
# Numbers of the types of metadata.
_UINT32, _INT32, _FLOAT32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9
# The types of tensors, and the bytes of a value.
_F32, _F16 = 0, 1
_WIDTHS = {_F32: 4, _F16: 2}

Value = bool | int | float | str | Sequence[str] | Sequence[int]


class NotFinite(ValueError):
    """A value is infinite or not a number in the type that is written."""


def write_gguf(
    file: BinaryIO,
    metadata: Mapping[str, Value],
    tensors: Sequence[NewTensor],
    halved: Collection[str] = (),
    on_bytes: Callable[[int], object] = lambda n: n,
) -> None:
    """Writes a file.

    Args:
        halved: names of the tensors that are written as float16.
        on_bytes: called with the number of bytes after each part.

    Raises:
        NotFinite: a value cannot be written.
    """
    kinds = [_F16 if tensor.name in halved else _F32 for tensor in tensors]
    header = b"GGUF" + struct.pack("<IQQ", VERSION, len(tensors), len(metadata))
    header += b"".join(_text(key) + _value(value) for key, value in metadata.items())
    offset = 0
    for tensor, kind in zip(tensors, kinds, strict=True):
        sizes = tensor.shape[::-1]  # the row comes first
        header += _text(tensor.name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, kind, offset)
        offset += _padded(math.prod(tensor.shape) * _WIDTHS[kind])
    file.write(header + bytes(_padded(len(header)) - len(header)))
    for tensor, kind in zip(tensors, kinds, strict=True):
        written = 0
        for values in tensor.chunks():
            with np.errstate(over="ignore"):
                content = np.ascontiguousarray(values, "<f2" if kind == _F16 else "<f4")
            if not np.isfinite(content).all():
                raise NotFinite(tensor.name)
            file.write(content.data)
            written += content.nbytes
            on_bytes(content.nbytes)
        assert written == math.prod(tensor.shape) * _WIDTHS[kind], tensor.name
        file.write(bytes(_padded(written) - written))


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _text(text: str) -> bytes:
    content = text.encode()
    return struct.pack("<Q", len(content)) + content


def _value(value: Value) -> bytes:
    """Returns type and content of a value. Arrays are of texts or of int32."""
    if isinstance(value, bool):
        return struct.pack("<IB", _BOOL, value)
    if isinstance(value, int):
        return struct.pack("<II", _UINT32, value)
    if isinstance(value, float):
        return struct.pack("<If", _FLOAT32, value)
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _text(value)
    texts = [item for item in value if isinstance(item, str)]
    if len(texts) == len(value):
        return struct.pack("<IIQ", _ARRAY, _STRING, len(value)) + b"".join(map(_text, texts))
    return struct.pack(f"<IIQ{len(value)}i", _ARRAY, _INT32, len(value), *value)
