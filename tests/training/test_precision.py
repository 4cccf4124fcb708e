"""train.precision: what it means on each device, and that the forward pass alone obeys it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from moe_cli.cli.evaluate import _evaluate
from moe_cli.config.compose import load_config
from moe_cli.config.optim import MuonConfig
from moe_cli.config.resolve import resolve
from moe_cli.config.schema import RunConfig
from moe_cli.config.training import EvalConfig, TrainConfig
from moe_cli.costs.processor import cpu_has_bfloat16
from moe_cli.errors import CheckpointError
from moe_cli.execution.precision import decide_precision, planned_precision
from moe_cli.execution.run import run_one
from moe_cli.execution.trained_model import load_trained
from moe_cli.models.registry import make_model
from moe_cli.training.evaluate import evaluate
from moe_cli.training.optimizers import make_optimizers
from moe_cli.training.precision import autocast, pick_precision
from tests.tiny import finish, tiny_config, tiny_task
from tests.training.test_resume import assert_equal_runs, stop_at

FLAGS = {"": False, "flags : fpu avx512f": False, "flags : fpu avx512_bf16": True, "flags : amx_bf16 fpu": True}


@pytest.mark.parametrize(("cpuinfo", "expected"), FLAGS.items())
def test_a_processor_names_its_bfloat16_instructions(
    cpuinfo: str, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AVX-512 BF16 and AMX multiply bfloat16; a system without the list of flags has none."""
    file = tmp_path / "cpuinfo"
    monkeypatch.setattr("moe_cli.costs.processor.CPU_INFO", file)
    assert not cpu_has_bfloat16.__wrapped__()
    file.write_text(f"processor : 0\n{cpuinfo}\n")
    assert expected == cpu_has_bfloat16.__wrapped__()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "bfloat16"),
        (["expert=1"], "bfloat16"),
        (["expert=64"], "bfloat16"),
        (["expert=128"], "float32"),
        (["model.d_model=64", "model.d_ff=1024"], "float32"),
        (["model.d_model=64", "model.d_ff=1024", "expert=1"], "float32"),
        (["model.d_model=256", "model.d_ff=1024", "match=none", "model.d_expert=64"], "float32"),
        (["model.d_model=256", "model.d_ff=1024", "train.batch_size=1"], "float32"),
        (["expert=1", "train.batch_size=2"], "float32"),
        (["model=vit", "data=digits"], "float32"),
        (["model=bert"], "float32"),
        (["model=t5", "model.d_model=256", "model.d_ff=1024"], "float32"),
        (["model=lstm", "model.d_model=512"], "float32"),
        (["experiment=nanogpt_cpu"], "bfloat16"),
    ],
)
def test_auto_on_a_cpu_is_decided_by_sizes(words: list[str], expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """bfloat16 where it was measured to be faster, on a processor that multiplies it; a given precision is kept."""
    config = load_config(["data=python", *words]).config
    cpu = torch.device("cpu")
    for has_bfloat16 in (False, True):
        monkeypatch.setattr("moe_cli.execution.precision.cpu_has_bfloat16", lambda has=has_bfloat16: has)
        monkeypatch.setattr("moe_cli.execution.precision.visible_gpus", lambda: ())
        decided = expected if has_bfloat16 else "float32"
        assert decided == decide_precision(config, cpu) == planned_precision(config)
        for given in ("float32", "bfloat16"):
            fixed = replace(config, train=replace(config.train, precision=given))
            assert given == decide_precision(fixed, cpu) == planned_precision(fixed)
    monkeypatch.setattr("moe_cli.execution.precision.visible_gpus", lambda: ("0",))
    assert planned_precision(config) is None


@pytest.mark.parametrize(
    ("precision", "device", "capability", "expected"),
    [
        ("auto", "cpu", (0, 0), "float32"),
        ("auto", "cuda", (7, 5), "float32"),
        ("auto", "cuda", (8, 0), "bfloat16"),
        ("auto", "cuda", (9, 0), "bfloat16"),
        ("float32", "cuda", (9, 0), "float32"),
        ("bfloat16", "cpu", (0, 0), "bfloat16"),
    ],
)
def test_auto_is_bfloat16_where_a_gpu_multiplies_it(
    precision: str, device: str, capability: tuple[int, int], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only `auto` looks at the device; capability 8.0 is the first that has bfloat16."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert expected == pick_precision(precision, torch.device(device))


def test_the_context_is_on_for_bfloat16_alone() -> None:
    """On a CPU autocast is entered in bfloat16 and left out in float32."""
    for precision, expected in (("bfloat16", True), ("float32", False), ("auto", False)):
        with autocast(precision, torch.device("cpu")):
            assert expected == torch.is_autocast_enabled("cpu")


def test_precision_tells_runs_apart() -> None:
    """Another precision is another run."""
    digests = {
        resolve(RunConfig(train=TrainConfig(precision=precision))).config.digest
        for precision in ("auto", "float32", "bfloat16")
    }
    assert 3 == len(digests)


@pytest.mark.parametrize(("precision", "expected"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_training_and_evaluation_multiply_in_it(
    text_file: Path, tmp_path: Path, precision: Any, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Projections and experts answer in the precision; logits of the gate, weights and what is saved stay float32."""
    seen: dict[str, set[torch.dtype]] = {"qkv": set(), "ffn": set(), "gate": set()}
    backward: set[bool] = set()

    def watch(name: str, module: nn.Module) -> None:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            answer = output[0] if isinstance(output, tuple) else output
            seen[name].add(answer.dtype)
            if name == "ffn":
                seen["gate"].add(output[1].logits.dtype)
            if answer.requires_grad:
                answer.register_hook(lambda grad: backward.add(torch.is_autocast_enabled("cpu")))

        module.register_forward_hook(hook)

    def watched(config: RunConfig, vocab_size: int) -> nn.Module:
        model = make_model(config, vocab_size)
        watch("qkv", model.blocks[0].attention.qkv)
        watch("ffn", model.blocks[0].ffn)
        return model

    monkeypatch.setattr("moe_cli.models.registry.make_model", watched)
    run = finish(tiny_config(text_file, train={"precision": precision, "steps": 2}), tmp_path)
    assert {"qkv": {expected}, "ffn": {expected}, "gate": {torch.float32}} == seen
    assert {False} == backward
    trained = load_trained(run, tmp_path)
    assert {torch.float32} == {param.dtype for param in trained.model.parameters()}


def test_casts_follow_the_weights(text_file: Path) -> None:
    """After each optimizer step a pass in bfloat16 equals that of a new model with the float32 weights of that step."""
    config = tiny_config(text_file, expert=4, optim=MuonConfig())
    model, tokens = make_model(config, 256), torch.arange(64).view(4, 16)
    optimizers = make_optimizers(config.optim, model)
    before = None
    for step in range(3):
        with autocast("bfloat16", torch.device("cpu")):
            logits = model(tokens)[0]
            loss = nn.functional.cross_entropy(logits.float().flatten(0, 1), tokens.flatten())
        loss.backward()
        optimizers.step(step, 0.5)
        optimizers.zero_grad()
        copy = make_model(config, 256)
        copy.load_state_dict(model.state_dict())
        with autocast("bfloat16", torch.device("cpu")):
            after, expected = model(tokens)[0], copy(tokens)[0]
        assert torch.equal(expected, after)
        assert before is None or not torch.equal(before, after)
        before = after


def test_a_run_is_evaluated_as_it_was_trained(text_file: Path, tmp_path: Path) -> None:
    """`moe eval` of a bfloat16 run gives the summary's loss, which is near float32's and not the same."""
    run = finish(tiny_config(text_file, train={"precision": "bfloat16"}), tmp_path)
    expected = json.loads((run.path / "summary.json").read_text())["val_loss"]
    trained = load_trained(run, tmp_path)
    assert expected == _evaluate(trained, EvalConfig()).loss
    wide = evaluate(trained.model, trained.task, 4, precision="float32").loss
    assert expected == pytest.approx(wide, rel=0.02)
    assert expected != wide


def test_evaluation_obeys_the_precision(text_file: Path, tmp_path: Path) -> None:
    """The same model and text, another precision, another last digit."""
    config = tiny_config(text_file)
    task = tiny_task(config, tmp_path)
    model = make_model(config, task.vocab_size)
    nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(0))
    losses = {
        precision: evaluate(model, task, 4, precision=precision).loss for precision in ("auto", "float32", "bfloat16")
    }
    assert losses["auto"] == losses["float32"] != losses["bfloat16"]


def test_a_run_goes_on_in_the_precision_it_began_in(
    text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Begun where auto is float32, it is resumed and evaluated in float32 where a new run would take bfloat16."""
    config = tiny_config(text_file)
    whole = finish(config, tmp_path)
    stopped = finish(config, tmp_path, stop_at(3))
    monkeypatch.setattr("moe_cli.execution.precision.cpu_precision", lambda config: "bfloat16")
    resumed = run_one(stopped, tmp_path)
    assert_equal_runs(whole, resumed)
    assert ("float32", False, "cpu") == tuple(resumed.meta()[key] for key in ("precision", "compile", "device"))
    assert "float32" == load_trained(resumed, tmp_path).config.train.precision
    assert "bfloat16" == finish(replace(config, seed=1), tmp_path).meta()["precision"]


def test_a_checkpoint_is_not_continued_in_another_precision(
    text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the record of the decision, a machine that decides otherwise refuses."""
    stopped = finish(tiny_config(text_file), tmp_path, stop_at(3))
    (stopped.path / "meta.json").unlink()
    monkeypatch.setattr("moe_cli.execution.precision.cpu_precision", lambda config: "bfloat16")
    with pytest.raises(CheckpointError, match="started with other settings"):
        run_one(stopped, tmp_path)
