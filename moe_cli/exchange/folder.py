"""Reads and writes Hugging Face folders. Only JSON and safetensors are read, and no link is followed."""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from moe_cli.errors import ConfigError
from moe_cli.exchange.tensors import Shards
from moe_cli.files.reading import Unreadable, open_regular, parse_object, read_bytes
from moe_cli.files.tensor_file import NewTensor, TensorFile, write_tensors
from moe_cli.files.writing import delete, is_inside_outputs, replaced, write_text
from moe_cli.formatting import foreign_name, sanitise

CONFIG, TOKENIZER, WEIGHTS, INDEX = "config.json", "tokenizer.json", "model.safetensors", "model.safetensors.index.json"
# The largest part of the weights in one file.
SHARD_BYTES = 4 * 10**9
MAX_SHARDS, MAX_INDEX_BYTES = 512, 2**26
# Endings of files of weights that may execute code when they are read.
UNSAFE = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_SHARD = re.compile(r"[A-Za-z0-9_][\w.-]*\.safetensors")
_OURS = re.compile(r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?")


def check_folder(folder: Path) -> Path:
    """Returns the folder to import. Raises ConfigError if it does not exist."""
    if folder.is_file():
        raise ConfigError(
            f"{sanitise(str(folder))} is a file. Give the folder of a model: config.json and safetensors."
        )
    if not folder.is_dir():
        raise ConfigError(
            f"there is no folder {sanitise(str(folder))}. Give the folder of a model: config.json and safetensors.\n"
            "From the hub: moe import OWNER/NAME, or hf download OWNER/NAME --local-dir FOLDER"
        )
    return folder


def file_in(folder: Path, name: str) -> Path | None:
    """Returns a regular file of the folder; None if it is absent. Raises ConfigError for a link or a special file."""
    path = folder / name
    if not os.path.lexists(path):
        return None
    if path.is_symlink():
        raise ConfigError(f"{sanitise(str(path))} is a link. Links are not followed: copy the files, with cp -rL.")
    if not path.is_file():
        raise ConfigError(f"{sanitise(str(path))} is not a file.")
    return path


def read_object(folder: Path, name: str, max_bytes: int = 2**24) -> dict[str, Any] | None:
    """Returns the JSON object in a file of the folder; None if it is absent. Raises ConfigError."""
    path = file_in(folder, name)
    try:
        return None if path is None else parse_object(read_bytes(path, max_bytes))
    except Unreadable as problem:
        raise ConfigError(f"{sanitise(str(path))} {problem}.") from None


def hash_weights(folder: Path) -> str:
    """Returns the SHA-256 of the safetensors files that `open_weights` opens, in the order of their names.

    Raises ConfigError for files that cannot be used.
    """
    digest = hashlib.sha256()
    for name in weight_files(folder)[0]:
        with _weights(folder, name) as path, open_regular(path) as file:
            hashlib.file_digest(file, lambda: digest)  # which updates it
    return digest.hexdigest()


@contextmanager
def _weights(folder: Path, name: str) -> Iterator[Path]:
    """Returns a context to open a file of weights in. Raises ConfigError if it is missing or cannot be used."""
    path = file_in(folder, name)
    if path is None:
        raise _no_weights(folder, name)
    try:
        yield path
    except Unreadable as problem:
        raise ConfigError(f"{sanitise(str(path))} {problem}.") from None


def weights_state(folder: Path) -> list[list[Any]]:
    """Returns the name, size and time of change of each file of weights, by which the same weights are recognised."""
    found = [(name, os.lstat(folder / name)) for name in weight_files(folder)[0] if os.path.lexists(folder / name)]
    return [[name, state.st_size, state.st_mtime_ns] for name, state in found]


def weight_files(folder: Path) -> tuple[list[str], dict[str, str] | None]:
    """Returns the names of the safetensors files of a folder, and the file of each tensor if there is an index.

    Raises ConfigError for an index that cannot be used.
    """
    index = read_object(folder, INDEX, MAX_INDEX_BYTES)
    place = None if index is None else _weight_map(index)
    return sorted({WEIGHTS} if place is None else set(place.values())), place


@contextmanager
def open_weights(folder: Path) -> Iterator[Shards]:
    """Opens the safetensors files of a folder. Raises ConfigError for files that cannot be used."""
    names, place = weight_files(folder)
    with ExitStack() as stack:
        files: dict[str, TensorFile] = {}
        for name in names:
            with _weights(folder, name) as path:
                files[name] = stack.enter_context(TensorFile(path))
        if place is None:
            place = dict.fromkeys(files[WEIGHTS].entries, WEIGHTS)
        for tensor, name in place.items():
            if tensor not in files[name].entries:
                raise ConfigError(f"{INDEX} has the tensor {foreign_name(tensor)} in {name}, which lacks it.")
        yield Shards(files, place)


def _weight_map(index: dict[str, Any]) -> dict[str, str]:
    """Returns the file of each tensor. Raises ConfigError for a name that is not that of a file in the folder."""
    found = index.get("weight_map")
    if not isinstance(found, dict) or not found:
        raise ConfigError(f"{INDEX} has no weight_map.")
    for name in found.values():
        if not isinstance(name, str) or not _SHARD.fullmatch(name):
            raise ConfigError(
                f"{INDEX} names the file {foreign_name(repr(name))}: only safetensors files of the folder are read."
            )
    if len(set(found.values())) > MAX_SHARDS:
        raise ConfigError(f"{INDEX} names more than {MAX_SHARDS} files.")
    return found


def _no_weights(folder: Path, name: str) -> ConfigError:
    unsafe = sorted(entry.name for entry in folder.iterdir() if entry.suffix in UNSAFE)
    if unsafe:
        return ConfigError(
            f"{sanitise(str(folder))} has {sanitise(unsafe[0])}, whose format can execute code when it is read, and "
            f"no {name}.\nSave the model as safetensors where you trust it: model.save_pretrained(FOLDER)"
        )
    return ConfigError(f"{sanitise(str(folder))} has no {name}.")


def check_target(folder: Path, force: bool) -> None:
    """Raises ConfigError where an export cannot be written: a file, a folder with files, or a folder of runs."""
    shown = sanitise(str(folder))
    if os.path.lexists(folder) and not folder.is_dir():
        raise ConfigError(f"{shown} is not a folder. Name one that is empty or does not exist.")
    if is_inside_outputs(folder / CONFIG):
        raise ConfigError(f"{shown} is in a folder of runs, and would be taken for a run. Name another folder.")
    if folder.is_dir() and any(folder.iterdir()) and not force:
        raise ConfigError(f"{shown} is not empty. Name another folder, or write into it with --force.")


def write_weights(
    folder: Path, tensors: Sequence[NewTensor], shard_bytes: int, on_bytes: Callable[[int], object]
) -> list[Path]:
    """Writes the weights, in several files with an index if they have more than `shard_bytes`; returns the files."""
    shards = group_shards(tensors, shard_bytes)
    names = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    names = names if len(shards) > 1 else [WEIGHTS]
    for name, shard in zip(names, shards, strict=True):
        with replaced(folder / name) as file:
            write_tensors(file, shard, on_bytes)
    written = [folder / name for name in names]
    if len(shards) > 1:
        place = {tensor.name: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        total = {"total_size": sum(tensor.num_bytes for tensor in tensors)}
        written.append(write_object(folder / INDEX, {"metadata": total, "weight_map": place}))
    for entry in folder.iterdir():  # of an earlier export
        if _OURS.fullmatch(entry.name) and entry not in written:
            delete(entry)
    return written


def group_shards(tensors: Sequence[NewTensor], shard_bytes: int) -> list[list[NewTensor]]:
    """Returns the tensors in groups of at most `shard_bytes`, or of one larger tensor."""
    shards: list[list[NewTensor]] = [[]]
    size = 0
    for tensor in tensors:
        if shards[-1] and size + tensor.num_bytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.num_bytes
    return shards


def write_object(path: Path, content: Any) -> Path:
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    return path
