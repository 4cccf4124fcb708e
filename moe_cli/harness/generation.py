"""Options for generated text, as tasks of lm-evaluation-harness write them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from moe_cli.errors import ConfigError
from moe_cli.training.generate import SamplingParams

# Names of the largest number of tokens; the first that is present counts.
MAX_TOKENS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
DEFAULT_MAX_TOKENS = 256
KNOWN = {*MAX_TOKENS, "until", "do_sample", "temperature", "top_k", "top_p"}


@dataclass(frozen=True)
class Generation:
    """Options for one generated text.

    Attributes:
        max_tokens: number of tokens after which it ends.
        stops: texts at which it ends, and which are not part of it.
        sampling: temperature 0 means greedy.
    """

    max_tokens: int
    stops: tuple[str, ...]
    sampling: SamplingParams

    def cut(self, text: str) -> str:
        """Returns the text before the first stop."""
        return text[: min((place for stop in self.stops if (place := text.find(stop)) >= 0), default=len(text))]


def read_generation(options: Mapping[str, Any]) -> Generation:
    """Returns the options of a task. Without `temperature`, or with `do_sample: false`, generation is greedy.

    Raises ConfigError for an option that is unknown or out of range.
    """
    unknown = sorted(set(options) - KNOWN)
    if unknown:
        raise ConfigError(f"generation_kwargs has {', '.join(unknown)}. Known are {', '.join(sorted(KNOWN))}.")
    numbers = [options[name] for name in MAX_TOKENS if options.get(name) is not None]
    max_tokens = int(numbers[0]) if numbers else DEFAULT_MAX_TOKENS
    if max_tokens < 1:
        raise ConfigError(f"max_gen_toks={max_tokens} must be at least 1.")
    temperature = float(options.get("temperature") or 0.0)
    if not math.isfinite(temperature) or temperature < 0:
        raise ConfigError(f"temperature={temperature} must be a number that is not below 0.")
    if temperature == 0 and options.get("do_sample"):
        raise ConfigError("do_sample=true needs a temperature above 0, such as temperature=1.")
    until = options.get("until") or ()
    stops = (until,) if isinstance(until, str) else tuple(until)
    greedy = options.get("do_sample") is False or temperature == 0
    return Generation(max_tokens, tuple(filter(None, stops)), SamplingParams(0.0) if greedy else _sampling(options))


def _sampling(options: Mapping[str, Any]) -> SamplingParams:
    top_k, top_p = options.get("top_k"), options.get("top_p")
    if top_p is not None and not 0 < float(top_p) <= 1:
        raise ConfigError(f"top_p={top_p} must be above 0 and at most 1.")
    if top_k is not None and int(top_k) < 0:
        raise ConfigError(f"top_k={top_k} must be at least 1; 0 or none: all tokens.")
    return SamplingParams(
        float(options["temperature"]), int(top_k) if top_k else None, 1.0 if top_p is None else float(top_p)
    )
