"""Loads the model of a run from a checkpoint, for evaluation and sampling."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from moe_cli.config.schema import RunConfig
from moe_cli.errors import ConfigError
from moe_cli.execution.data import check_same_data, load_data_read_only, model_vocab_size
from moe_cli.execution.machine import pick_device
from moe_cli.execution.other_data import load_other_data
from moe_cli.execution.precision import decide_precision
from moe_cli.runs.folder import Run


def with_decided_precision(run: Run, config: RunConfig, device: Any) -> RunConfig:
    """Returns the configuration with a decided precision. A run keeps the precision of its first start.

    The configuration in the run folder keeps `auto`, because a sweep names its runs before their devices are known.
    """
    precision: Any = config.train.precision
    if precision == "auto" and run.checkpoints():
        precision = run.meta().get("precision", "auto")
    if precision == "auto":
        precision = decide_precision(config, device)
    return replace(config, train=replace(config.train, precision=precision))


@dataclass(frozen=True)
class TrainedModel:
    """A model from a checkpoint, in evaluation mode, with its task."""

    run_id: str
    config: RunConfig
    model: Any
    task: Any
    step: int

    @property
    def tokenizer(self) -> Any:
        """Returns the tokenizer of the data. Raises ConfigError if the tokens came without one."""
        if self.task.dataset.tokenizer is None:
            raise ConfigError(f"{self.run_id} learned from ready-made tokens (data=tokens), whose text is unknown.")
        return self.task.dataset.tokenizer


def load_trained(
    run: Run,
    outputs: Path,
    which: str = "latest",
    split: str = "val",
    device: str | None = None,
    data: Mapping[str, Any] | None = None,
) -> TrainedModel:
    """Loads the model of a run from a checkpoint: `latest`, `best` or that of a step.

    Args:
        split: the split for its evaluation, `val` or `test`.
        device: auto, cpu, cuda or cuda:N; None means `train.device` of the run.
        data: settings of other data for the task, such as {"data": "python"}, see `load_other_data`; None or empty
            means the data of the run.

    Raises:
        CheckpointError: no such checkpoint exists, or it is damaged.
        ConfigError: the run's tokenizer cannot read the other data.
        DataError: its data are missing, or have no test split.
    """
    from moe_cli.models.registry import make_model
    from moe_cli.tasks.registry import make_task
    from moe_cli.training.checkpoint import find_checkpoint

    checkpoint = find_checkpoint(run, which)
    place = pick_device(run.config().train.device) if device is None else pick_device(device, "device=")
    config = with_decided_precision(run, run.config(), place)
    corpus = load_data_read_only(config.data, config.model.context_length, outputs)
    check_same_data(run, checkpoint.state, corpus)
    model = make_model(config, model_vocab_size(config, corpus))
    checkpoint.load_model(model)
    if data:
        config, corpus = load_other_data(run.id, config, corpus, data, outputs)
    task = make_task(config, corpus.with_test_split() if split == "test" else corpus)
    return TrainedModel(run.id, config, model.to(place).eval(), task, checkpoint.state["step"])
