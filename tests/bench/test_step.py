"""moe bench step without its clock: equal sizes, real training steps, and what is said."""

import json
from collections.abc import Callable

import pytest
import torch

from moe_cli.bench import step as bench_step
from moe_cli.bench.step import (
    BASELINE,
    OURS,
    StepCandidate,
    make_mixtral,
    make_moe,
    mixtral,
    next_token_loss,
    random_tokens,
    run_step_benchmark,
    step_builders,
    unused_settings_note,
)
from moe_cli.cli.app import app
from moe_cli.config.compose import load_config
from moe_cli.config.schema import RunConfig
from moe_cli.errors import ConfigError
from moe_cli.models.registry import make_model
from moe_cli.moe.sparse_layer import moe_layers
from tests.cli.conftest import TINY
from tests.runner import CliRunner

pytestmark = pytest.mark.peers
# A width that torch's grouped product, transformers' own choice, can take.
SIZES = [word for word in TINY if word.startswith(("model.", "train.batch_size", "train.threads"))]
SIZES += ["match=none", "model.d_expert=8"]


def tiny(*words: str) -> RunConfig:
    return load_config([*SIZES, "optim=adamw", *words]).config


@pytest.mark.parametrize("words", [(), ("expert=4", "k=1"), ("model.tie_embeddings=true", "model.num_layers=3")])
def test_both_models_have_the_same_parameters(words: tuple[str, ...]) -> None:
    """As many numbers, in matrices of the same shapes, however they are stacked."""
    config = tiny(*words)
    assert make_moe(config, "cpu").num_params == make_mixtral(config, "cpu", fused=True).num_params
    theirs = dict(mixtral(config).named_parameters())
    ours = dict(make_model(config, bench_step.VOCAB_SIZE).named_parameters())
    for mine, other in (
        ("ffn.experts.w_in", "mlp.experts.gate_up_proj"),
        ("ffn.experts.w_out", "mlp.experts.down_proj"),
    ):
        assert theirs[f"model.layers.1.{other}"].shape == ours[f"blocks.1.{mine}"].shape


def test_a_step_has_the_routers_own_losses() -> None:
    """A loss of the router is part of the step, as in training: one that is NaN makes the weights of the gate NaN."""
    config = tiny("router=relu", "balance=none")
    candidate = make_moe(config, "cpu")
    model = candidate.step.args[0]  # type: ignore[attr-defined]
    for layer in moe_layers(model):
        layer.router.get_buffer("l1").fill_(torch.nan)
    candidate.step(random_tokens(config, 0, "cpu"))
    for layer in moe_layers(model):
        assert all(param.isnan().any() for param in layer.router.parameters())


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("make", [make_moe, lambda *words, **options: make_mixtral(*words, fused=True, **options)])
def test_a_step_trains(make: Callable[..., StepCandidate], precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Repeated steps on one batch lower its loss: forward, backward, clipping and the update all happen."""
    losses, clipped = [], []
    original, clip = next_token_loss, torch.nn.utils.clip_grad_norm_

    def record(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        assert getattr(torch, precision) == logits.dtype
        loss = original(logits, tokens)
        losses.append(loss.item())
        return loss

    monkeypatch.setattr(bench_step, "next_token_loss", record)
    monkeypatch.setattr(
        bench_step.nn.utils, "clip_grad_norm_", lambda params, limit: clipped.append(limit) or clip(params, limit)
    )
    config = tiny()
    trainee = make(config, "cpu", precision=precision)
    for _ in range(8):
        trainee.step(random_tokens(config, 0, "cpu"))
    assert losses[-1] < losses[0] - 0.05
    assert [1.0] * 8 == clipped


def test_the_balancing_loss_is_part_of_our_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our step pays for the balancing loss that training adds, with its weight."""
    asked = []
    original = bench_step.auxiliary_losses
    monkeypatch.setattr(
        bench_step,
        "auxiliary_losses",
        lambda balance, routings, **options: asked.append(len(routings)) or original(balance, routings, **options),
    )
    config = tiny()
    make_moe(config, "cpu").step(random_tokens(config, 0, "cpu"))
    assert [config.model.num_layers] == asked


def test_everybody_asked_for_takes_part() -> None:
    """transformers as it comes is the baseline; tuned and ours once per precision and, where asked, compiled."""
    config = tiny()
    assert [BASELINE, f"{BASELINE}, fused", OURS] == list(step_builders(config, False, False, "cpu"))
    assert {", bf16", ", compiled", ", bf16, compiled", ""} == {
        name.removeprefix(OURS) for name in step_builders(config, True, True, "cpu") if name.startswith(OURS)
    }
    assert 9 == len(step_builders(config, True, True, "cpu"))


def test_without_transformers_ours_is_the_yardstick() -> None:
    """A peer that is not installed is left out, and what remains is measured."""

    def missing() -> StepCandidate:
        raise ModuleNotFoundError("No module named 'transformers'")

    config = tiny()
    found = {**step_builders(config, False, False, "cpu"), BASELINE: missing}
    match = run_step_benchmark(config, {BASELINE: missing, OURS: found[OURS]}, 0.0, 1)
    assert (OURS, {BASELINE: "not installed"}) == (match.baseline, match.skipped)
    assert [(OURS, 1.0)] == [(score.name, score.ratio.median) for score in match.results]
    with pytest.raises(ConfigError, match=r"no candidate could take a step: .*not installed"):
        run_step_benchmark(config, {BASELINE: missing}, 0.0, 1)


@pytest.mark.parametrize(
    "word",
    [
        "expert=1",
        "model.ffn_type=mlp",
        "model.activation=gelu",
        "model.shared_experts=1",
        "model.moe_layer_freq=2",
        "model.first_k_dense=1",
        "model.norm=layer",
        "model.position_encoding=learned",
        "model.logit_softcap=15.0",
        "capacity=1.0",
        "model.dropout=0.1",
        "optim=muon",
    ],
)
def test_what_mixtral_cannot_be_is_refused(word: str) -> None:
    """A setting without counterpart would compare different models."""
    with pytest.raises(ConfigError, match=f"^{word}: Mixtral has no counterpart"):
        run_step_benchmark(tiny(word), {}, 0.0, 1)


def test_the_optimizer_is_that_of_moe_train(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our model trains with optim=adamw as conf/ has it, whatever optimizer was typed."""
    used = []
    original = bench_step.make_optimizers
    monkeypatch.setattr(
        bench_step, "make_optimizers", lambda config, model: used.append(config) or original(config, model)
    )
    result = CliRunner().invoke(app, ["bench", "step", *SIZES, "optim=sgd", "optim.momentum=0.5", "--seconds", "0"])
    assert 0 == result.exit_code, result.output
    assert [load_config(["optim=adamw"]).config.optim] == used


def test_settings_without_effect_are_named() -> None:
    """Data, optimizer and budget say nothing about a step on random tokens; sizes do."""
    assert () == unused_settings_note(
        ["expert", "match", "model.d_model", "train.batch_size", "train.threads", "balance"]
    )
    assert "optim.lr, train.precision ignored" in unused_settings_note(["train.precision", "expert", "optim.lr"])[0]


def test_the_table_fits_80_columns() -> None:
    """Sizes in the heading, tokens per second and ratios below, the fastest first."""
    result = CliRunner().invoke(app, ["bench", "step", *SIZES, "--bf16", "--seconds", "0"], env={"COLUMNS": "80"})
    assert 0 == result.exit_code, result.output
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith("8 experts, 2 chosen   2 layers   d_model 16")
    assert {"moe", "moe, bf16", BASELINE, f"{BASELINE}, fused, bf16"} <= {line.split("  ")[0] for line in lines}


def test_json_is_a_list_of_plain_objects() -> None:
    """One object per candidate; ratios are to transformers as it comes, whose own is 1."""
    result = CliRunner().invoke(app, ["bench", "step", *SIZES, "optim=adamw", "--seconds", "0", "--json"])
    assert 0 == result.exit_code, result.output
    found = json.loads(result.stdout)
    assert [BASELINE, f"{BASELINE}, fused", OURS] == [entry["candidate"] for entry in found]
    assert 1.0 == found[0]["ratio"]
    assert 1 == len({entry["params"] for entry in found})
    assert {
        "candidate",
        "params",
        "threads",
        "device",
        "rounds",
        "tokens_per_second",
        "tokens_per_second_min",
        "tokens_per_second_max",
        "baseline",
        "ratio",
        "ratio_min",
        "ratio_max",
    } == set(found[2])
    assert "optim ignored" in result.stderr


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_compiled_steps_are_taken_by_both() -> None:
    """With --compile no candidate is left out; of one layer, because the compiler takes nearly all of the time."""
    config = tiny("model.num_layers=1")
    match = run_step_benchmark(config, step_builders(config, True, False, "cpu"), 0.0, 1)
    assert {} == match.skipped
    assert 5 == len(match.results)
