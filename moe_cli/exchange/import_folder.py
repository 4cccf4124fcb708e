"""Makes a run of a Hugging Face folder: its settings, its weights as a checkpoint, and an evaluation.

Nothing of the folder is executed: settings are JSON, weights are safetensors, and the tokenizer is a tokenizer.json.
"""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from moe_cli.config.axes import single_values
from moe_cli.config.compose import Composer
from moe_cli.config.overrides import parse_overrides
from moe_cli.config.resolve import Resolved
from moe_cli.config.schema import RunConfig
from moe_cli.config.training import is_execution
from moe_cli.data.load import Data
from moe_cli.errors import ConfigError
from moe_cli.exchange import folder as files
from moe_cli.exchange.settings import TheirConfig, has_interleaved_rotations, to_our_settings
from moe_cli.exchange.tensors import our_tensors
from moe_cli.execution.data import load_run_data, model_vocab_size
from moe_cli.execution.machine import describe_environment
from moe_cli.files.tensor_file import NewTensor, running_total, write_tensors
from moe_cli.files.writing import delete, replaced, write_json
from moe_cli.runs.folder import IMPORTED, Run, create_run
from moe_cli.runs.locks import claim_run
from moe_cli.runs.lookup import list_runs
from moe_cli.runs.recorder import Recorder

# The folder of imported runs.
SWEEP = "imported"
# The context of a model that could read a longer one, which costs memory and time; model.context_length sets another.
MAX_CONTEXT = 2048
# Settings that the folder does not decide.
FREE = ("data", "eval", "train.batch_size", "train.precision", "model.context_length", "model.dispatch")


def import_folder(
    folder: Path,
    outputs: Path,
    overrides: Sequence[str] = (),
    *,
    on_bytes: Callable[[int, int], object] = lambda done, total: None,
) -> tuple[Run, tuple[str, ...]]:
    """Makes a run with the model of a folder, not yet evaluated; returns it and notes for the user.

    Args:
        overrides: settings of data, evaluation and execution.
        on_bytes: called with the bytes of weights written so far, and all of them.

    Raises:
        ConfigError: the model has no counterpart, or the folder has files that cannot be used.
        DataError: the data, or the tokenizer, cannot be read.
    """
    resolved = imported_config(files.check_folder(folder), overrides)
    config = resolved.config
    with files.open_weights(folder) as shards:
        theirs = _their_config(folder)
        if len(shards.names) < config.model.num_layers:
            raise ConfigError(f"the folder has {len(shards.names)} tensors for {config.model.num_layers} layers.")
        vocab_size = config.model.vocab_size or 0
        shapes, interleaved = _shapes(config, vocab_size), has_interleaved_rotations(theirs)
        tensors = our_tensors(config, theirs.family, shapes, shards, interleaved=interleaved)
        corpus = load_run_data(config, outputs)
        model_vocab_size(config, corpus)
        run = create_run(outputs, SWEEP, config)
        try:
            _write(run, corpus, folder, theirs, tensors, on_bytes)
        except BaseException:
            delete(run.path)
            raise
    return run, resolved.notes


def imported_before(folder: Path, outputs: Path, overrides: Sequence[str] = ()) -> Run | None:
    """Returns the run that an earlier import of the unchanged folder with these settings made; None without one."""
    config = imported_config(files.check_folder(folder), overrides).config
    source = _source(folder)
    for run in list_runs(outputs / SWEEP) if (outputs / SWEEP).is_dir() else ():
        imported = run.meta().get("imported")
        if isinstance(imported, dict) and {**imported, **source} == imported and run.config_dict() == config.to_dict():
            return run
    return None


def _source(folder: Path) -> dict[str, Any]:
    return {"folder": os.path.abspath(folder), "weights": files.weights_state(folder)}


def imported_config(folder: Path, overrides: Sequence[str] = ()) -> Resolved:
    """Returns the configuration of the run of a folder. Raises ConfigError."""
    settings = to_our_settings(_their_config(folder))
    own = single_values(parse_overrides(overrides), "import")
    for key in own:
        if not any(key == free or key.startswith(f"{free}.") for free in FREE) and not is_execution(key):
            raise ConfigError(f"'{key}' cannot be set: the folder of the model decides all but {', '.join(FREE)}.")
    notes, longest, wanted = [], settings["model.context_length"], own.get("model.context_length", 0)
    if not wanted and longest > MAX_CONTEXT:
        settings["model.context_length"] = MAX_CONTEXT
        notes.append(
            f"the model could read {longest:,} tokens, and is given {MAX_CONTEXT:,}. "
            f"For more: model.context_length={longest}"
        )
    elif isinstance(wanted, int) and wanted > longest:
        raise ConfigError(f"model.context_length={wanted} is more than the model's {longest:,}.")
    if own.get("data") != "tokens" and "data.tokenizer" not in own:
        tokenizer = files.file_in(folder, files.TOKENIZER)
        if tokenizer is None:
            raise ConfigError(
                f"{folder} has no {files.TOKENIZER}. Add data.tokenizer=FILE, or data=tokens and the path of files."
            )
        settings["data.tokenizer"] = os.path.abspath(tokenizer)
    point = Composer().point({"train.precision": "float32", **settings, **own})
    return Resolved(point.config, (*notes, *(note for note in point.notes if any(key in note for key in own))))


def _their_config(folder: Path) -> TheirConfig:
    values = files.read_object(folder, files.CONFIG)
    if values is None:
        raise ConfigError(f"{folder} has no {files.CONFIG}: it is no folder of a model.")
    return TheirConfig(values)


def _shapes(config: RunConfig, vocab_size: int) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the tensors of a model, which is built without memory for its weights."""
    import torch

    from moe_cli.models.registry import MODELS

    with torch.device("meta"):
        model = MODELS[config.model.name](config, vocab_size)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _write(
    run: Run,
    corpus: Data,
    folder: Path,
    theirs: TheirConfig,
    tensors: Sequence[NewTensor],
    on_bytes: Callable[[int, int], object],
) -> None:
    """Writes the checkpoint and the records of an imported run."""
    from moe_cli.training.checkpoint_writer import save_imported

    total = sum(tensor.num_bytes for tensor in tensors)

    def write_model(path: Path) -> None:
        with replaced(path) as file:
            write_tensors(file, tensors, running_total(lambda done: on_bytes(done, total)))

    with claim_run(run):
        save_imported(run, write_model, {"corpus_sha256": corpus.meta["sha256"], "digest": run.config().digest})
        source = {**_source(folder), "architecture": theirs.family.architecture}
        write_json(run.path / "meta.json", {**describe_environment(corpus), "imported": source, "machine": None})
        Recorder(run).status(IMPORTED, imported=time.time())


def evaluate_imported(run: Run, outputs: Path) -> Mapping[str, Any]:
    """Evaluates an imported run on its validation split, records the results and the routing, and returns them."""
    from moe_cli.execution.summary import summarise
    from moe_cli.execution.trained_model import load_trained
    from moe_cli.moe.sparse_layer import moe_layers
    from moe_cli.training.state import TrainState

    trained = load_trained(run, outputs)
    with claim_run(run):
        recorder = Recorder(run)
        evaluated = SimpleNamespace(
            config=trained.config,
            model=trained.model,
            task=trained.task,
            recorder=recorder,
            state=TrainState(),
            layers=moe_layers(trained.model),
        )
        results = {**summarise(run, trained.config, trained.task.dataset, evaluated), "status": IMPORTED}
        recorder.complete(results)
    return results
