"""Settings of the task: one class for each, selected by `name`."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar, Literal

from moe_cli.config.settings import Settings, setting
from moe_cli.errors import ConfigError


@dataclass(frozen=True)
class _Task(Settings):
    group: ClassVar[str] = "task"


@dataclass(frozen=True)
class CausalLM(_Task):
    """Guess the next token."""

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

    # The mask, which no text holds.
    special_tokens: ClassVar[int] = 1
    name: Literal["masked_lm"] = "masked_lm"
    mask_prob: float = setting(between=(0.01, 0.99))
    mask_token_prob: float = setting(between=(0, 1))
    random_token_prob: float = setting(between=(0, 1))
    pseudo_perplexity_tokens: int = setting(between=(0, 2**20))

    def check(self) -> None:
        if self.mask_token_prob + self.random_token_prob > 1:
            raise ConfigError(
                f"task.mask_token_prob={self.mask_token_prob:g} and task.random_token_prob={self.random_token_prob:g} are shares of what is masked: together at most 1."
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
        """Returns the sentinels, and the token before the first of the decoder."""
        return self.num_sentinels + 1

    def spans(self, window: int) -> tuple[int, int]:
        """Returns the number of tokens removed from a window, rounded and at least one, and of their spans."""
        taken = max(1, round(self.noise_density * window))
        return taken, max(1, min(round(taken / self.mean_noise_span_length), window - taken))

    def lengths(self, window: int) -> tuple[int, int]:
        """Tokens of the encoder and of the decoder for a window, always the same, so that nothing is padded."""
        taken, number = self.spans(window)
        return window - taken + number, taken + number + 1

    def check_sentinels(self, window: int) -> None:
        """Raises ConfigError if a window has more spans than sentinels."""
        number = self.spans(window)[1]
        if number >= self.num_sentinels:
            raise ConfigError(
                f"task.num_sentinels={self.num_sentinels} is too few: windows of model.context_length={window} have {number} spans, "
                f"and the end needs one. Use task.num_sentinels={number + 1}"
            )


@dataclass(frozen=True)
class ImageTask(_Task):
    """Tell the class of an image."""

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


TaskConfig = CausalLM | MaskedLM | SpanCorruption | ImageTask | RatingTask
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
# The models that can do a task, and the data it can be done with; the first of these is taken where none is named.
MODELS_OF = {
    "causal_lm": ("gpt", "lstm"),
    "masked_lm": ("bert",),
    "span_corruption": ("t5",),
    "images": ("vit",),
    "ratings": ("mmoe",),
}
DATA_OF = {
    "causal_lm": TEXTS,
    "masked_lm": TEXTS,
    "span_corruption": TEXTS,
    "images": ("digits", "mnist5k", "fashion_mnist", "image_folder"),
    "ratings": ("ratings", "movielens"),
}


# Those whose guesses must not depend on later tokens (of t5, in the decoder).
CAUSAL_MODELS = (*MODELS_OF["causal_lm"], *MODELS_OF["span_corruption"])
TEXT_TASKS = tuple(task for task, data in DATA_OF.items() if data is TEXTS)

# Choices that a model selects unless they are given.
WITH_MODEL = {
    "lstm": {"router": "noisy_topk", "balance": "importance+load"},
    "mmoe": {"optim": "adamw", "train": "ratings"},
}


def what_follows(model: str, task: str, data: str, given: Collection[str]) -> dict[str, str]:
    """Returns the names of model, task and data.

    Choices that are not `given` and do not fit are inferred from the others.
    """
    if "task" not in given:
        if data not in DATA_OF.get(task, (data,)) and "data" in given and "model" not in given:
            task = next(name for name, kinds in DATA_OF.items() if data in kinds)
        elif model not in MODELS_OF.get(task, (model,)):
            task = next((name for name, models in MODELS_OF.items() if model in models), task)
    if "model" not in given and model not in MODELS_OF.get(task, (model,)):
        model = MODELS_OF[task][0]
    if "data" not in given and data not in DATA_OF.get(task, (data,)):
        data = DATA_OF[task][0]
    return {"model": model, "task": task, "data": data}


def check_task(task: TaskConfig, model: str, data: str) -> None:
    """Raises ConfigError where the task cannot be done by the model, or with the data."""
    if data not in DATA_OF[task.name]:
        raise ConfigError(
            f"task={task.name} cannot be done with data={data}. Use one of data={', '.join(DATA_OF[task.name])}"
        )
    if model in MODELS_OF[task.name]:
        return
    own = next(name for name, models in MODELS_OF.items() if model in models)
    raise ConfigError(
        f"model={model} cannot do task={task.name}. Use model={' or '.join(MODELS_OF[task.name])}, or task={own}"
    )
