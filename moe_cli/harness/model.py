"""The model `moe` of lm-evaluation-harness: a run that answers the requests of its tasks."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.utils import simple_parse_args_string
from tqdm import tqdm

from moe_cli.cli.options import print_notes, trained_run
from moe_cli.errors import ConfigError
from moe_cli.execution.trained_model import load_trained
from moe_cli.harness.generation import read_generation
from moe_cli.harness.text_model import TextModel
from moe_cli.metrics import sees_later_tokens
from moe_cli.runs.folder import outputs_folder

# The device that lm-eval names by default.
LM_EVAL_DEVICE = "cuda:0"


class MoELM(TemplateLM):  # type: ignore[misc]  # lm_eval has no types
    """A run as a model of lm-evaluation-harness: `--model moe --model_args run=latest`.

    Args:
        run: a run id, its beginning, a folder, or `latest`.
        outputs: the folder of runs; None means $MOE_OUTPUTS, else ./outputs.
        checkpoint: `latest`, `best` or a step.
        batch_size: windows in one forward pass; `auto` means `train.batch_size` of the run.
        max_batch_size: the largest batch size if it is `auto`.
        device: auto, cpu, cuda or cuda:N; None means `train.device` of the run. So does cuda:0 without a GPU, because
            lm-eval says it where its user says nothing.

    Raises:
        MoeError: the run cannot be found or loaded, or an argument is unknown or out of range.
    """

    def __init__(
        self,
        run: object = "latest",
        outputs: object = None,
        checkpoint: object = "latest",
        batch_size: object = 1,
        max_batch_size: object = None,
        device: object = None,
        **unknown: object,
    ) -> None:
        super().__init__()
        if unknown:
            raise ConfigError(
                f"--model_args has {', '.join(sorted(unknown))}. "
                "Known are run, outputs, checkpoint, batch_size and device."
            )
        folder = outputs_folder(None if outputs is None else Path(str(outputs)))
        found = trained_run(folder, str(run))
        trained = load_trained(found, folder, str(checkpoint), device=_device(device))
        config = trained.config
        self.run = TextModel(trained, _batch_size(batch_size, config.train.batch_size, max_batch_size))
        if config.eval.capacity is not None and config.sees_later_tokens:
            print_notes((sees_later_tokens(config.eval_drop),))
        self._device = next(trained.model.parameters()).device

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: Mapping[str, Any], additional_config: Mapping[str, Any] | None = None
    ) -> "MoELM":
        """Returns the model of `--model_args`, which come before the options --batch_size and --device."""
        options = {name: value for name, value in (additional_config or {}).items() if value is not None}
        return cls(**{**options, **arg_dict})

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: Mapping[str, Any] | None = None) -> "MoELM":
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    @property
    def eot_token_id(self) -> int:
        """Returns the token before a text without a context: that between documents, see `TextModel`."""
        return self.run.prefix

    @property
    def max_length(self) -> int:
        return self.run.length

    @property
    def batch_size(self) -> int:
        return self.run.batch_size

    @property
    def tokenizer_name(self) -> str:
        return str(self.run.tokenizer.name)

    def get_model_info(self) -> dict[str, Any]:
        """Returns what the file of results says on the model."""
        trained, config = self.run.trained, self.run.config
        return {
            "run": trained.run_id,
            "step": trained.step,
            "context_length": self.run.length,
            "stride": self.run.stride,
            "k": None if config.dense else config.eval.k or config.k,
            "capacity": config.eval.capacity,
        }

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **options: Any) -> list[int]:
        return self.run.encode(string)

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
        **options: Any,
    ) -> list[tuple[float, bool]]:
        """Scores tokens; a context that is text is read as the beginning of a document."""
        pairs = [
            (self.run.encode_context(context) if texts[0] else context, continuation)
            for texts, context, continuation in requests
        ]
        with _progress("loglikelihood", disable_tqdm) as on_windows:
            return [(score.log_prob, score.is_greedy) for score in self.run.score(pairs, on_windows)]

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """Returns the log-likelihood of each text. Each token is predicted once, the first one too."""
        pairs = [([self.prefix_token_id], self.run.encode(*request.args)) for request in requests]
        with _progress("loglikelihood_rolling", disable_tqdm) as on_windows:
            return [score.log_prob for score in self.run.score(pairs, on_windows)]

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Continues each text. The random state of torch, which `lm-eval --seed` sets, gives the seeds."""
        prompts = [request.args[0] for request in requests]
        options = [read_generation(request.args[1]) for request in requests]
        seeds = torch.randint(2**31, (len(requests),)).tolist()
        rows = tqdm([*zip(prompts, options, seeds, strict=True)], "generate_until", disable=disable_tqdm)
        return [self.run.generate(*row) for row in rows]


def _device(name: object) -> str | None:
    return None if name is None or (name == LM_EVAL_DEVICE and not torch.cuda.is_available()) else str(name)


def _batch_size(size: object, of_run: int, at_most: object) -> int:
    """Returns the number of windows in a batch. Raises ConfigError if it is no whole number above 0."""
    text = str(size)
    if text == "auto" or text.startswith("auto:"):
        return min(of_run, int(str(at_most))) if at_most else of_run
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"batch_size={text:.40} must be auto or a whole number above 0.")
    return int(text)


@contextmanager
def _progress(label: str, is_silent: bool) -> Iterator[Callable[[int, int], object]]:
    """Yields what moves a progress bar on."""
    with tqdm(desc=label, disable=is_silent) as bar:

        def advance(number: int, total: int) -> None:
            bar.total = total
            bar.update(number)

        yield advance
