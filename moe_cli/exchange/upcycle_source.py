"""Imports the dense model of train.upcycle_from=hf:FOLDER, and replaces that setting by the name of the imported run.

The run is kept in outputs/imported under a hash of its weights, with its own copy of the tokenizer. So a model is
copied only once, its folder may be deleted afterwards, and the configuration of a run that starts from it names the
weights.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from moe_cli.config.axes import Axis
from moe_cli.config.compose import Composer
from moe_cli.config.data import TOKENIZERS, CorpusConfig
from moe_cli.config.overrides import parse_override
from moe_cli.config.ranges import format_setting
from moe_cli.config.schema import RunConfig
from moe_cli.config.start_config import fewest_settings, split_path
from moe_cli.config.training import FOREIGN_MODEL
from moe_cli.data.bpe import hash_tokenizer_file
from moe_cli.errors import ConfigError
from moe_cli.exchange import folder as files
from moe_cli.exchange.hub import find_model
from moe_cli.exchange.import_folder import SWEEP, import_folder, imported_config
from moe_cli.files.reading import read_bytes
from moe_cli.files.writing import delete, rename, write_bytes, write_json
from moe_cli.formatting import sanitise
from moe_cli.runs.folder import TAKEN, Run, rewrite_config

_KEY = "train.upcycle_from"
_MAX_TOKENIZER_BYTES = 2**28
_HASH_DIGITS = 16


def import_upcycle_source(
    overrides: Sequence[str],
    outputs: Path,
    *,
    may_import: bool = True,
    like: str | None = None,
    on_bytes: Callable[[int, int], object] = lambda done, total: None,
) -> list[str]:
    """Returns the words of a command with the run of the imported model in place of train.upcycle_from=hf:FOLDER.

    The settings of the dense model, its tokenizer and experts of its width are added, unless the words have others.
    Words without such a source are returned as they are.

    Args:
        may_import: False for a dry run, which writes nothing.
        like: the run whose settings the command starts from.
        on_bytes: called with the bytes of weights written so far, and all of them.

    Raises:
        ConfigError: the model cannot be imported, or is not dense.
        DataError: the data, or the tokenizer, cannot be read.
    """
    source = _foreign_source(overrides)
    if source is None:
        return list(overrides)
    option = f"{_KEY}={FOREIGN_MODEL}{sanitise(source)}"
    file, settings = split_path(overrides)
    if start := file or (f"--like {like}" if like else None):
        raise ConfigError(f"{start} and {option} both give the model to start from: give one.")
    user_settings = {word.partition("=")[0]: word for word in settings if "=" in word}
    own = [_first_value(parse_override(word)) for key, word in user_settings.items() if _is_of_import(key)]
    folder = find_model(source, outputs) if may_import else files.check_folder(Path(source).expanduser())
    config = imported_config(folder, own).config
    if not config.dense:
        raise ConfigError(f"{option} is itself sparse ({config.shape}). Give a Llama, Qwen2 or Qwen3")
    run = _imported_run(folder, outputs, config, own, on_bytes if may_import else None)
    if run is None:
        raise ConfigError(
            f"{option}: a dry run imports no model. Import it with moe import FOLDER --no-eval, then: "
            "moe train --like RUN train.upcycle_from=RUN --dry-run"
        )
    added = {key: value for key, value in _settings(run.config()).items() if not _is_given(key, user_settings)}
    kept = [word for word in overrides if word.partition("=")[0] != _KEY]
    return [*kept, f"{_KEY}={SWEEP}/{run.path.name}", *(f"{key}={_quoted(value)}" for key, value in added.items())]


def _foreign_source(overrides: Sequence[str]) -> str | None:
    """Returns the model of train.upcycle_from=hf:MODEL; None without such a word. Raises ConfigError for several."""
    found = [word for word in overrides if word.partition("=")[0] == _KEY]
    sources = parse_override(found[-1]).values if found else ()
    if not any(isinstance(source, str) and source.startswith(FOREIGN_MODEL) for source in sources):
        return None
    if len(sources) > 1:
        raise ConfigError(
            f"{found[-1]} names several models, whose settings may differ. Give one, or import them and name their "
            "runs: moe import FOLDER --no-eval"
        )
    source: str = sources[0].removeprefix(FOREIGN_MODEL)
    return source


def _is_of_import(key: str) -> bool:
    return key in ("data", "model.context_length") or key.startswith("data.")


def _first_value(axis: Axis) -> str:
    """Returns the word for the first of several values: the tokenizer alone decides which data fit a model."""
    return f"{axis.key}={_quoted(axis.values[0])}"


def _quoted(value: Any) -> str:
    if not isinstance(value, str) or value.isidentifier():
        return format_setting(value)
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _is_given(key: str, settings: Mapping[str, str]) -> bool:
    """Returns whether the settings decide another one: `match` decides the width of experts too."""
    return key in settings or (key == "model.d_expert" and "match" in settings)


def _settings(config: RunConfig) -> dict[str, Any]:
    """Returns the settings of a sparse run that starts from a dense one: its model, its tokenizer, experts as wide."""
    model = {key: value for key, value in fewest_settings(Composer(), config).items() if key.startswith("model")}
    tokenizer = {"data.tokenizer": config.data.tokenizer} if _has_tokenizer_file(config) else {}
    return {**model, **tokenizer, "match": "none", "model.d_expert": config.model.d_ff}


def _has_tokenizer_file(config: RunConfig) -> bool:
    return isinstance(config.data, CorpusConfig) and config.data.tokenizer not in TOKENIZERS


def _imported_run(
    folder: Path,
    outputs: Path,
    config: RunConfig,
    own: Sequence[str],
    on_bytes: Callable[[int, int], object] | None,
) -> Run | None:
    """Returns the run with the weights of a folder. Imports them if there is none, or returns None without on_bytes.

    The name of the run has a hash of its weights, its settings, and its tokenizer or, without one, its data. The run
    appears when everything is written.
    """
    values, sha256 = config.to_dict(), files.hash_weights(folder)
    tokens = hash_tokenizer_file(config.data.tokenizer) if _has_tokenizer_file(config) else values["data"]
    identity = json.dumps([sha256, values["model"], tokens], sort_keys=True)
    name = f"{config.model.name}-{hashlib.sha256(identity.encode()).hexdigest()[:_HASH_DIGITS]}"
    run = Run((outputs / SWEEP / name).absolute())
    if run.path.is_dir() or on_bytes is None:
        return run if run.path.is_dir() else None
    made, _ = import_folder(folder, outputs, own, on_bytes=on_bytes)
    try:
        _complete(made, run, sha256)
        rename(made.path, run.path)
    except OSError as error:
        delete(made.path)
        if error.errno not in TAKEN:  # by another process, which has imported the same model
            raise
    except BaseException:
        delete(made.path)
        raise
    return run


def _complete(made: Run, final: Run, sha256: str) -> None:
    """Copies the tokenizer into the run, and records the hash of the weights."""
    config = made.config()
    if _has_tokenizer_file(config):
        assert isinstance(config.data, CorpusConfig)
        content = read_bytes(Path(config.data.tokenizer), _MAX_TOKENIZER_BYTES)
        write_bytes(made.path / files.TOKENIZER, content)
        data = replace(config.data, tokenizer=str(final.path / files.TOKENIZER))
        rewrite_config(made, replace(config, data=data))
    meta = made.meta()
    write_json(made.path / "meta.json", {**meta, "imported": {**meta["imported"], "sha256": sha256}})
