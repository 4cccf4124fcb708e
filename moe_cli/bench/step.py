"""How fast is a training step of our GPT compared with transformers' Mixtral of the same size?

A step is forward, loss, backward, clipping and AdamW, on random tokens. B sequences, L positions.
"""

from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from moe_cli.bench.spread import Spread, spread
from moe_cli.bench.timing import build_candidates, interleave, ratios, synchronise, torch_threads
from moe_cli.config.model import GPTConfig
from moe_cli.config.optim import AdamWConfig
from moe_cli.config.ranges import format_setting
from moe_cli.config.schema import RunConfig
from moe_cli.errors import ConfigError
from moe_cli.models.registry import make_model
from moe_cli.moe.balance import auxiliary_losses, total_loss
from moe_cli.training.optimizers import make_optimizers
from moe_cli.training.precision import autocast

VOCAB_SIZE = 256
BASELINE = "Mixtral"
OURS = "moe"


@dataclass(frozen=True)
class StepCandidate:
    """A model in training.

    Attributes:
        num_params: number of trained parameters.
        step: executes a training step on tokens [B, L + 1].
    """

    num_params: int
    step: Callable[[Int[Tensor, "B L1"]], None]


@dataclass(frozen=True)
class StepBenchResult:
    """The result of one candidate.

    Attributes:
        tokens_per_second: tokens per second of training steps.
        ratio: these divided by those of the baseline, by round.
    """

    name: str
    num_params: int
    tokens_per_second: Spread
    ratio: Spread


@dataclass(frozen=True)
class StepBenchmark:
    """The results of all candidates on one configuration.

    Attributes:
        rounds: number of measurements of each candidate.
        baseline: name of the candidate to which `StepBenchResult.ratio` refers.
        skipped: reasons for which candidates were not measured, by name.
    """

    config: RunConfig
    device: str
    threads: int
    rounds: int
    baseline: str
    results: list[StepBenchResult]
    skipped: dict[str, str]


def check_mixtral_has_settings(config: RunConfig) -> None:
    """Raises ConfigError for a setting that Mixtral does not have."""
    model = config.model
    if not isinstance(model, GPTConfig):
        raise ConfigError(f"model={model.name} has no counterpart in transformers' Mixtral: leave it out.")
    for is_set, setting in (
        (not isinstance(config.optim, AdamWConfig), f"optim={config.optim.name}"),
        (config.dense, "expert=1"),
        (model.ffn_type != "glu", f"model.ffn_type={model.ffn_type}"),
        (model.activation != "silu", f"model.activation={model.activation}"),
        (model.shared_experts > 0, f"model.shared_experts={model.shared_experts}"),
        (model.expert_dropout > 0, f"model.expert_dropout={model.expert_dropout}"),
        (model.moe_layer_freq > 1, f"model.moe_layer_freq={model.moe_layer_freq}"),
        (model.first_k_dense > 0, f"model.first_k_dense={model.first_k_dense}"),
        (model.moe_layers is not None, f"model.moe_layers={format_setting(model.moe_layers)}"),
        (model.norm != "rms", f"model.norm={model.norm}"),
        (model.position_encoding != "rope", f"model.position_encoding={model.position_encoding}"),
        (model.sliding_window is not None, f"model.sliding_window={model.sliding_window}"),
        (model.logit_softcap is not None, f"model.logit_softcap={model.logit_softcap}"),
        (isinstance(model.d_expert, tuple), f"model.d_expert={format_setting(model.d_expert)}"),
        (isinstance(config.k, tuple), f"k={format_setting(config.k)}"),
        (config.capacity is not None, f"capacity={config.capacity}"),
        (model.dropout > 0, f"model.dropout={model.dropout}"),
    ):
        if is_set:
            raise ConfigError(f"{setting}: Mixtral has no counterpart to compare with. Leave it out of moe bench step.")


def unused_settings_note(keys: Collection[str]) -> tuple[str, ...]:
    """Returns a note on the given settings that have no effect on a step on random tokens with AdamW."""
    used = ("train.batch_size", "train.threads", "train.device", "train")
    groups = ("data", "optim", "eval", "train")
    unused = sorted(key for key in keys if key.split(".")[0] in groups and key not in used)
    return (f"a step on random tokens with AdamW: {', '.join(unused)} ignored.",) if unused else ()


def step_builders(config: RunConfig, compiled: bool, bf16: bool, device: str) -> dict[str, Callable[[], StepCandidate]]:
    """Returns the builders by name: Mixtral with its defaults, Mixtral with fused AdamW, and our GPT.

    Args:
        compiled: True to add compiled variants.
        bf16: True to add bfloat16 variants.
    """
    builders: dict[str, Callable[[], StepCandidate]] = {BASELINE: partial(make_mixtral, config, device, fused=False)}
    for precision in ("float32", "bfloat16") if bf16 else ("float32",):
        for is_compiled in (False, True) if compiled else (False,):
            variant = (", bf16" if precision == "bfloat16" else "") + (", compiled" if is_compiled else "")
            builders[f"{BASELINE}, fused{variant}"] = partial(
                make_mixtral, config, device, fused=True, precision=precision, compiled=is_compiled
            )
            builders[f"{OURS}{variant}"] = partial(make_moe, config, device, precision, is_compiled)
    return builders


def make_moe(config: RunConfig, device: str, precision: str = "float32", compiled: bool = False) -> StepCandidate:
    """Builds our GPT with the optimizer and the balancing loss of training."""
    model = make_model(config, VOCAB_SIZE).to(device)
    optimizers = make_optimizers(config.optim, model)
    network = torch.compile(model) if compiled else model

    def loss(tokens: Tensor) -> Tensor:
        logits, routings = network(tokens[:, :-1])
        aux_losses = auxiliary_losses(config.balance, routings, num_sequences=len(tokens))
        return total_loss(next_token_loss(logits, tokens), aux_losses, routings)

    numbers = count()

    def update() -> None:
        optimizers.step(next(numbers), 0.5)
        optimizers.zero_grad()

    return StepCandidate(count_params(model), partial(_step, model, loss, update, precision, device))


def make_mixtral(
    config: RunConfig, device: str, *, fused: bool, precision: str = "float32", compiled: bool = False
) -> StepCandidate:
    """Builds transformers' MixtralForCausalLM of the same size, which chooses its own back end."""
    model = mixtral(config).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True if fused else None)
    network: Any = torch.compile(model) if compiled else model

    def loss(tokens: Tensor) -> Tensor:
        return next_token_loss(network(input_ids=tokens[:, :-1], use_cache=False).logits, tokens)

    def update() -> None:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return StepCandidate(count_params(model), partial(_step, model, loss, update, precision, device))


def mixtral(config: RunConfig) -> nn.Module:
    """Builds a Mixtral with the layers, widths, heads and experts of a configuration."""
    from transformers import MixtralConfig, MixtralForCausalLM

    model = config.model
    assert isinstance(model, GPTConfig)
    torch.manual_seed(config.seed)
    sizes: dict[str, Any] = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": model.d_model,
        "intermediate_size": model.d_expert,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_heads,
        "num_key_value_heads": model.num_kv_heads,
        "head_dim": model.d_head,
        "max_position_embeddings": model.context_length,
        "num_local_experts": config.expert,
        "num_experts_per_tok": config.k,
        "tie_word_embeddings": model.tie_embeddings,
    }
    mixture: nn.Module = MixtralForCausalLM(MixtralConfig(**sizes))
    return mixture


def next_token_loss(logits: Float[Tensor, "B L V"], tokens: Int[Tensor, "B L1"]) -> Float[Tensor, ""]:
    """Computes the mean cross-entropy in nats, in float32."""
    return F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())


def count_params(model: nn.Module) -> int:
    return sum(param.numel() for param in model.parameters())


def _step(
    model: nn.Module,
    loss: Callable[[Tensor], Tensor],
    update: Callable[[], None],
    precision: str,
    device: str,
    tokens: Tensor,
) -> None:
    context: AbstractContextManager[Any] = autocast(precision, torch.device(device))
    with context:
        value = loss(tokens)
    value.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    update()
    synchronise(device)


def run_step_benchmark(
    config: RunConfig,
    builders: Mapping[str, Callable[[], StepCandidate]],
    seconds: float,
    threads: int,
    device: str = "cpu",
) -> StepBenchmark:
    """Measures the tokens per second of all candidates in alternation, for about `seconds` after a warm-up.

    The warm-up includes compilation.

    Raises:
        ConfigError: Mixtral does not have a setting, or no candidate is left.
    """
    check_mixtral_has_settings(config)
    with torch_threads(threads):

        def warm_up(name: str, candidate: StepCandidate) -> None:
            for number in range(2):  # in the second step the optimizer has its state, and code is compiled
                candidate.step(random_tokens(config, -number, device))

        candidates, skipped = build_candidates(builders, warm_up)
        if not candidates:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in skipped.items())
            raise ConfigError(f"no candidate could take a step: {reasons}")
        calls = {name: candidate.step for name, candidate in candidates.items()}
        times = interleave(calls, lambda number: random_tokens(config, number + 1, device), seconds)
    baseline = BASELINE if BASELINE in candidates else next(iter(candidates))
    per_step = config.train.batch_size * config.model.context_length
    results = [
        StepBenchResult(
            name,
            candidate.num_params,
            spread([per_step / seconds for seconds in times[name]]),
            ratios(times[baseline], times[name]),
        )
        for name, candidate in candidates.items()
    ]
    return StepBenchmark(config, device, threads, len(times[baseline]), baseline, results, skipped)


def random_tokens(config: RunConfig, seed: int, device: str) -> Int[Tensor, "B L1"]:
    generator = torch.Generator().manual_seed(seed + 1)
    size = (config.train.batch_size, config.model.context_length + 1)
    return torch.randint(VOCAB_SIZE, size, generator=generator).to(device)


def step_to_dicts(benchmark: StepBenchmark) -> list[dict[str, object]]:
    """Returns the results as records of plain values."""
    return [
        {
            "candidate": result.name,
            "params": result.num_params,
            "threads": benchmark.threads,
            "device": benchmark.device,
            "rounds": benchmark.rounds,
            **result.tokens_per_second.to_dict("tokens_per_second"),
            "baseline": benchmark.baseline,
            **result.ratio.to_dict("ratio"),
        }
        for result in benchmark.results
    ]
