"""Settings of the task: one class for each, selected by `name`."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from moe_cli.config.probes import PROBE_CLASSES
from moe_cli.config.settings import PluginSettings, Settings, setting
from moe_cli.errors import ConfigError
from moe_cli.plugins import find, origin_of


@dataclass(frozen=True)
class _Task(Settings):
    group: ClassVar[str] = "task"
    name: str = ""

    @property
    def kind(self) -> str:
        """Returns the task of the program that is done with the same models and data."""
        return self.name


@dataclass(frozen=True)
class CausalLM(_Task):
    """Prediction of the next token."""

    special_tokens: ClassVar[int] = 0
    name: Literal["causal_lm"] = "causal_lm"


@dataclass(frozen=True)
class MaskedLM(_Task):
    """Prediction of masked tokens from both sides (BERT, arXiv:1810.04805, section 3.1).

    Attributes:
        mask_prob: fraction of the positions to predict.
        mask_token_prob, random_token_prob: fractions of these that are replaced by the mask token and by a random one;
            the rest is unchanged.
        pseudo_perplexity_tokens: validation tokens masked one at a time for the final pseudo-perplexity.
    """

    # The mask token, which does not occur in texts.
    special_tokens: ClassVar[int] = 1
    name: Literal["masked_lm"] = "masked_lm"
    mask_prob: float = setting(between=(0.01, 0.99))
    mask_token_prob: float = setting(between=(0, 1))
    random_token_prob: float = setting(between=(0, 1))
    pseudo_perplexity_tokens: int = setting(between=(0, 2**20))

    def check(self) -> None:
        if self.mask_token_prob + self.random_token_prob > 1:
            raise ConfigError(
                f"task.mask_token_prob={self.mask_token_prob:g} and "
                f"task.random_token_prob={self.random_token_prob:g} are shares of what is masked: together at most 1."
            )


@dataclass(frozen=True)
class SpanCorruption(_Task):
    """Prediction of the spans removed from a text (T5, arXiv:1910.10683, section 3.1.4).

    Attributes:
        noise_density: fraction of a window's tokens that are removed.
        mean_noise_span_length: mean length of the removed spans, in tokens.
        num_sentinels: number of sentinel tokens; each span of a window needs one, and the end needs one.
    """

    name: Literal["span_corruption"] = "span_corruption"
    noise_density: float = setting(between=(0.01, 0.5))
    mean_noise_span_length: float = setting(between=(1, 1000))
    num_sentinels: int = setting(between=(2, 2**20))

    @property
    def special_tokens(self) -> int:
        """Returns the number of sentinels, plus one for the start token of the decoder."""
        return self.num_sentinels + 1

    def spans(self, window: int) -> tuple[int, int]:
        """Returns the number of tokens removed from a window, rounded and at least one, and of their spans."""
        taken = max(1, round(self.noise_density * window))
        return taken, max(1, min(round(taken / self.mean_noise_span_length), window - taken))

    def lengths(self, window: int) -> tuple[int, int]:
        """Returns the tokens of encoder and decoder for a window. They are always equal, so that nothing is padded."""
        taken, number = self.spans(window)
        return window - taken + number, taken + number + 1

    def check_sentinels(self, window: int) -> None:
        """Raises ConfigError if a window has more spans than sentinels."""
        number = self.spans(window)[1]
        if number >= self.num_sentinels:
            raise ConfigError(
                f"task.num_sentinels={self.num_sentinels} is too few: windows of model.context_length={window} have "
                f"{number} spans, and the end needs one. Use task.num_sentinels={number + 1}"
            )


@dataclass(frozen=True)
class ImageTask(_Task):
    """Classification of images."""

    special_tokens: ClassVar[int] = 0
    name: Literal["images"] = "images"


@dataclass(frozen=True)
class RatingTask(_Task):
    """Prediction of the rating of an item by a user, and of a click on it.

    Attributes:
        l2: in training, the weight of the squares of a pair's biases and factors.
        l2_embedding: the same for its embeddings; larger, as the weights of experts can compensate small ones. None
            means a value that depends on the data.
    """

    special_tokens: ClassVar[int] = 0
    name: Literal["ratings"] = "ratings"
    l2: float = setting(at_least=0)
    l2_embedding: float | None = setting(at_least=0)


@dataclass(frozen=True)
class PluginTask(PluginSettings, _Task):
    """Base of the settings of a task on texts that a plug-in brings.

    Attributes:
        like: the task with the same models and data.
        special_tokens: the number of token ids after those of the data, such as a mask token.
    """

    like: ClassVar[Literal["causal_lm", "masked_lm"]] = "causal_lm"
    special_tokens: ClassVar[int] = 0

    @property
    def kind(self) -> str:
        return self.like


TaskConfig = CausalLM | MaskedLM | SpanCorruption | ImageTask | RatingTask | PluginTask
TEXTS = (
    "python",
    "text",
    "tokens",
    "torch_sources",
    "shakespeare",
    "tiny_shakespeare",
    "bible_kjv",
    "bible_asv",
    "corpora_mix",
    "hf",
)
IMAGES = ("digits", "mnist5k", "fashion_mnist", "image_folder")
RATINGS = ("ratings", "movielens")
# Generated questions, for models that write their answers.
PROBES = tuple(PROBE_CLASSES)
# The choices that probes select unless they are given.
PROBE_SELECTS = {"train": "probes"}


@dataclass(frozen=True)
class ModelUse:
    """The task of a model, its data, and the choices that it selects unless they are given.

    Attributes:
        data: the data of its task; the first is selected.
        own_data: the data that `data.path` alone selects.
        selects: choices of other groups.
    """

    task: str
    data: tuple[str, ...]
    own_data: str
    selects: Mapping[str, str] = field(default_factory=dict)


# The first model of a task is the one that the task selects.
MODELS = {
    "gpt": ModelUse("causal_lm", (*TEXTS, *PROBES), "text"),
    "lstm": ModelUse("causal_lm", (*TEXTS, *PROBES), "text", {"router": "noisy_topk", "balance": "importance+load"}),
    "bert": ModelUse("masked_lm", TEXTS, "text"),
    "t5": ModelUse("span_corruption", TEXTS, "text"),
    "vit": ModelUse("images", IMAGES, "image_folder"),
    "mmoe": ModelUse("ratings", RATINGS, "movielens", {"optim": "adamw", "train": "ratings"}),
}
# The choice of one's own texts. The texts of plug-ins fit the same tasks.
OWN_TEXT = "text"
TEXT_TASKS = tuple(dict.fromkeys(use.task for use in MODELS.values() if OWN_TEXT in use.data))
# Models whose predictions must not depend on later tokens (of t5, in the decoder).
CAUSAL_MODELS = tuple(name for name, use in MODELS.items() if use.task in ("causal_lm", "span_corruption"))


def model_use(model: str) -> ModelUse | None:
    """Returns the use of a model, that of a plug-in included; None for an unknown one."""
    if model in MODELS:
        return MODELS[model]
    plugin = find("model", model)
    return _use_of_task(getattr(plugin.config, "task", None)) if plugin else None


def _use_of_task(task: str | None) -> ModelUse | None:
    """Returns the use of a plug-in's model with this task of text; None for another task."""
    return MODELS["gpt"] if task == "causal_lm" else MODELS["bert"] if task == "masked_lm" else None


def is_built_in_task(task: str) -> bool:
    return any(use.task == task for use in MODELS.values())


def _kind_of_task(task: str) -> str:
    """Returns the task of the program with the models and data of a task; the name itself where it is unknown."""
    plugin = None if is_built_in_task(task) else find("task", task)
    return task if plugin is None else getattr(plugin.config, "like", task)


def models_of(task: str) -> list[str]:
    """Returns the models that can do a task."""
    return [name for name, use in MODELS.items() if use.task == task]


def data_of(task: str) -> tuple[str, ...]:
    """Returns the data that a task can be done with; none for an unknown task."""
    return next((use.data for use in MODELS.values() if use.task == task), ())


def _kind(data: str) -> str:
    """Returns the data, or `text` for that of a plug-in, which fits the same tasks."""
    is_known = any(data in use.data for use in MODELS.values())
    return OWN_TEXT if not is_known and origin_of("data", data) else data


def what_follows(model: str, task: str, data: str, explicit: Collection[str]) -> dict[str, str]:
    """Returns the names of model, task and data.

    Choices that are not `given` and do not fit are inferred from the others.
    """
    use, kind, of_task = model_use(model), _kind(data), _kind_of_task(task)
    if "task" not in explicit:
        if kind not in (data_of(of_task) or (kind,)) and "data" in explicit and "model" not in explicit:
            task = next(use.task for use in MODELS.values() if kind in use.data)
        elif use:
            task = use.task
        of_task = task
    if "model" not in explicit and use and use.task != of_task and models_of(of_task):
        model = models_of(of_task)[0]
    if "data" not in explicit and kind not in (data_of(of_task) or (kind,)):
        data = data_of(of_task)[0]
    return {"model": model, "task": task, "data": data}


def check_task(task: TaskConfig, model: str, data: str, own_task: str | None = None) -> None:
    """Raises ConfigError where the model does not do the task, or the data do not fit it.

    Args:
        own_task: the task of a plug-in's model.
    """
    if data not in data_of(task.kind):
        raise ConfigError(
            f"task={task.name} cannot be done with data={data}. Use one of data={', '.join(data_of(task.kind))}"
        )
    use = MODELS.get(model) or _use_of_task(own_task)
    if use is None:
        raise ConfigError(f"model={model} does not say its task: causal_lm or masked_lm.")
    if use.task != task.kind:
        raise ConfigError(
            f"model={model} cannot do task={task.name}. Use model={' or '.join(models_of(task.kind))}, "
            f"or task={use.task}"
        )
