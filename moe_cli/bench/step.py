"""`moe bench step`: a whole training step of our GPT against transformers' Mixtral of the same size.

A step is forward, loss, backward, clipping and AdamW, on random tokens. B sequences, L positions.
"""

from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from moe_cli.bench.timing import Spread, interleave, ratios, skip_reason, spread, synchronise, torch_threads
from moe_cli.config.model import GPTConfig
from moe_cli.config.schema import AdamWConfig, RunConfig
from moe_cli.errors import ConfigError
from moe_cli.models.registry import make_model
from moe_cli.moe.balance import auxiliary_losses
from moe_cli.training.optimizers import make_optimizers
from moe_cli.training.precision import autocast

VOCAB_SIZE = 256
BASELINE = "Mixtral"
OURS = "moe"


@dataclass(frozen=True)
class StepCandidate:
    """A model in training.

    Attributes:
        step: one whole training step on tokens [B, L + 1].
    """

    num_params: int
    step: Callable[[Int[Tensor, "B L1"]], None]


@dataclass(frozen=True)
class StepBenchResult:
    """The result of one candidate.

    Attributes:
        tokens_per_second: of whole training steps.
        ratio: tokens per second over those of the yardstick, round by round.
    """

    name: str
    num_params: int
    tokens_per_second: Spread
    ratio: Spread


@dataclass(frozen=True)
class StepBenchmark:
    """All candidates on one configuration."""

    config: RunConfig
    device: str
    threads: int
    rounds: int
    baseline: str
    results: list[StepBenchResult]
    skipped: dict[str, str]


def check_comparable(config: RunConfig) -> None:
    """Raises ConfigError for a model that Mixtral has no counterpart of."""
    model = config.model
    if not isinstance(model, GPTConfig):
        raise ConfigError(f"model={model.name} has no counterpart in transformers' Mixtral: leave it out.")
    for wrong, setting in (
        (not isinstance(config.optim, AdamWConfig), f"optim={config.optim.name}"),
        (config.dense, "expert=1"),
        (model.ffn_type != "glu", f"model.ffn_type={model.ffn_type}"),
        (model.activation != "silu", f"model.activation={model.activation}"),
        (model.shared_experts > 0, f"model.shared_experts={model.shared_experts}"),
        (model.expert_dropout > 0, f"model.expert_dropout={model.expert_dropout}"),
        (model.moe_layer_freq > 1, f"model.moe_layer_freq={model.moe_layer_freq}"),
        (model.first_k_dense > 0, f"model.first_k_dense={model.first_k_dense}"),
        (model.norm != "rms", f"model.norm={model.norm}"),
        (model.position_encoding != "rope", f"model.position_encoding={model.position_encoding}"),
        (model.sliding_window is not None, f"model.sliding_window={model.sliding_window}"),
        (model.logit_softcap is not None, f"model.logit_softcap={model.logit_softcap}"),
        (config.capacity is not None, f"capacity={config.capacity}"),
        (model.dropout > 0, f"model.dropout={model.dropout}"),
    ):
        if wrong:
            raise ConfigError(f"{setting}: Mixtral has no counterpart to compare with. Leave it out of moe bench step.")


def unused_settings_note(keys: Collection[str]) -> tuple[str, ...]:
    """Returns a note on the settings given that say nothing about a step on random tokens with AdamW."""
    used = ("train.batch_size", "train.threads", "train.device", "train")
    groups = ("data", "optim", "eval", "train")
    idle = sorted(key for key in keys if key.split(".")[0] in groups and key not in used)
    return (f"a step on random tokens with AdamW: {', '.join(idle)} set aside.",) if idle else ()


def step_builders(config: RunConfig, compiled: bool, bf16: bool, device: str) -> dict[str, Callable[[], StepCandidate]]:
    """Builders by name: Mixtral as it comes and with fused AdamW, and our GPT; on request also compiled and under bfloat16."""
    builders: dict[str, Callable[[], StepCandidate]] = {BASELINE: partial(make_mixtral, config, device, fused=False)}
    for precision in ("float32", "bfloat16") if bf16 else ("float32",):
        for compile_it in (False, True) if compiled else (False,):
            tuning = (", bf16" if precision == "bfloat16" else "") + (", compiled" if compile_it else "")
            theirs = partial(make_mixtral, config, device, fused=True)
            builders[f"{BASELINE}, fused{tuning}"] = partial(theirs, precision=precision, compiled=compile_it)
            builders[f"{OURS}{tuning}"] = partial(make_moe, config, device, precision, compile_it)
    return builders


def make_moe(config: RunConfig, device: str, precision: str = "float32", compiled: bool = False) -> StepCandidate:
    """Builds our GPT with the optimizer and the balancing loss of training."""
    model = make_model(config, VOCAB_SIZE).to(device)
    optimizers = make_optimizers(config.optim, model)
    network = torch.compile(model) if compiled else model

    def loss(tokens: Tensor) -> Tensor:
        logits, routings = network(tokens[:, :-1])
        aux_losses = auxiliary_losses(config.balance, routings, num_sequences=len(tokens))
        return next_token_loss(logits, tokens) + sum(
            method.weight * aux_loss for method, aux_loss in aux_losses.items()
        )

    def update() -> None:
        optimizers.step(0.5)
        optimizers.zero_grad()

    return StepCandidate(count_params(model), partial(_step, model, loss, update, precision, device))


def make_mixtral(
    config: RunConfig, device: str, *, fused: bool, precision: str = "float32", compiled: bool = False
) -> StepCandidate:
    """Builds transformers' MixtralForCausalLM of the same size, with its own choice of back end."""
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
    """Builds Mixtral with the layers, widths, heads and experts of a configuration, and our GPT's parameter count."""
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
    """Measures the tokens per second of all candidates, side by side for about `seconds` after warming up (compiling is not counted).

    Raises:
        ConfigError: Mixtral has no counterpart, or no candidate is left.
    """
    check_comparable(config)
    with torch_threads(threads):
        candidates, skipped = _warm_up(config, builders, device)
        if not candidates:
            raise ConfigError(
                "no candidate could take a step: " + "; ".join(f"{n}: {why}" for n, why in skipped.items())
            )
        calls = {name: candidate.step for name, candidate in candidates.items()}
        times = interleave(calls, lambda number: _tokens(config, number + 1, device), seconds)
    baseline = BASELINE if BASELINE in candidates else next(iter(candidates))
    per_step = config.train.batch_size * config.model.context_length
    results = [
        StepBenchResult(
            name,
            candidate.num_params,
            spread([per_step / taken for taken in times[name]]),
            ratios(times[baseline], times[name]),
        )
        for name, candidate in candidates.items()
    ]
    return StepBenchmark(config, device, threads, len(times[baseline]), baseline, results, skipped)


def _warm_up(
    config: RunConfig, builders: Mapping[str, Callable[[], StepCandidate]], device: str
) -> tuple[dict[str, StepCandidate], dict[str, str]]:
    candidates: dict[str, StepCandidate] = {}
    skipped: dict[str, str] = {}
    for name, build in builders.items():
        try:
            candidate = build()
            for number in range(2):  # the second step meets the optimizer's state and compiled code
                candidate.step(_tokens(config, -number, device))
        except Exception as error:  # an error of a library must not stop the others
            skipped[name] = skip_reason(error)
        else:
            candidates[name] = candidate
    return candidates, skipped


def _tokens(config: RunConfig, seed: int, device: str) -> Tensor:
    generator = torch.Generator().manual_seed(seed + 1)
    size = (config.train.batch_size, config.model.context_length + 1)
    return torch.randint(VOCAB_SIZE, size, generator=generator).to(device)


def step_to_dicts(benchmark: StepBenchmark) -> list[dict[str, object]]:
    """Returns the scores with plain keys, one object each."""
    return [
        {
            "candidate": result.name,
            "params": result.num_params,
            "threads": benchmark.threads,
            "device": benchmark.device,
            "rounds": benchmark.rounds,
            "tokens_per_second": result.tokens_per_second.median,
            "tokens_per_second_min": result.tokens_per_second.min,
            "tokens_per_second_max": result.tokens_per_second.max,
            "baseline": benchmark.baseline,
            "ratio": result.ratio.median,
            "ratio_min": result.ratio.min,
            "ratio_max": result.ratio.max,
        }
        for result in benchmark.results
    ]
