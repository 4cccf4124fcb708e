"""Fetches a model of the hub of Hugging Face: its JSON files, tokenizer and safetensors, and nothing that is code.

`moe_cli.data.hub` reads data sets by the library `datasets`. Both are of the extra `hf`.
"""

import re
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from moe_cli.config.data import is_local
from moe_cli.errors import ConfigError
from moe_cli.exchange import folder as files
from moe_cli.exchange.settings import TheirConfig
from moe_cli.files.writing import guard, make_folder
from moe_cli.formatting import sanitise
from moe_cli.runs.cleanup import HUB

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
GENERATION_CONFIG = "generation_config.json"
_REASON_LENGTH = 200
_REVISION_DIGITS = 12


def find_model(name: str, outputs: Path, on_file: Callable[[str], object] = lambda name: None) -> Path:
    """Returns the folder of a model: a local one, or that of a name of the hub, which is fetched.

    A local folder comes first. What was fetched stays in outputs/.cache/hub, so that an interrupted fetch continues.

    Args:
        on_file: called with the name of each file before it is fetched.

    Raises:
        ConfigError: there is neither a folder nor such a model, or the hub cannot be reached.
    """
    local = Path(name).expanduser()
    if is_local(name) or not is_hub_name(name):
        return files.check_folder(local)
    library = _library(name)
    try:
        return _fetch(library, name, outputs, on_file)
    except ConfigError:
        raise
    except Exception as error:  # the network, the disk and the library all raise their own errors
        raise _unreachable(name, error) from None


def is_hub_name(name: str) -> bool:
    """Returns whether a name has the form of those of the hub: OWNER/NAME."""
    return _NAME.fullmatch(name) is not None and ".." not in name


def _library(name: str) -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise ConfigError(
            f"there is no folder {name}, and models of the hub need the library huggingface_hub.\n"
            "Install it: pip install 'moe-cli[hf]'\n"
            f"Or download the model by hand: hf download {name} --local-dir FOLDER, and then: moe import FOLDER"
        ) from None
    utils: Any = import_module("huggingface_hub.utils")
    utils.disable_progress_bars()
    return huggingface_hub


def _unreachable(name: str, error: Exception) -> ConfigError:
    lines = str(error).strip().splitlines() or [""]
    reason = sanitise(f"{type(error).__name__}: {lines[0]}"[:_REASON_LENGTH])
    return ConfigError(
        f"there is no folder {name}, and the hub gives no model of that name: {reason}\n"
        f"Where a network exists, download it by hand: hf download {name} --local-dir FOLDER\n"
        "Then: moe import FOLDER"
    )


def _fetch(library: Any, name: str, outputs: Path, on_file: Callable[[str], object]) -> Path:
    """Fetches the files of one commit. The settings come first, so that an unknown family costs no weights."""
    info = library.HfApi().model_info(name)
    there = {entry.rfilename for entry in info.siblings or ()}
    folder = make_folder(guard(outputs) / ".cache" / HUB / f"{name.replace('/', '--')}-{info.sha[:_REVISION_DIGITS]}")

    def fetch(*wanted: str) -> None:
        for file in wanted:
            on_file(file)
            library.hf_hub_download(name, file, revision=info.sha, local_dir=folder)

    if files.CONFIG not in there:
        raise ConfigError(f"{name} on the hub has no {files.CONFIG}: it is no model of transformers.")
    fetch(files.CONFIG)
    TheirConfig(files.read_object(folder, files.CONFIG) or {})
    fetch(*(file for file in (files.TOKENIZER, GENERATION_CONFIG, files.INDEX) if file in there))
    weights = files.weight_files(folder)[0]
    if missing := sorted(set(weights) - there):
        raise ConfigError(
            f"{name} on the hub has no {missing[0]}. Only safetensors are read: other formats can execute code."
        )
    fetch(*weights)
    return folder
