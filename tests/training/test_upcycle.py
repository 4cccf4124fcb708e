"""A sparse model that starts from a dense run: the same function at first, its own experts later."""

from pathlib import Path
from typing import Any

import pytest
import torch

from moe_cli.config.routers import SwitchConfig
from moe_cli.execution.run import run_one
from moe_cli.execution.trained_model import load_trained
from moe_cli.models.registry import make_model
from moe_cli.moe.sparse_layer import moe_layers
from moe_cli.runs.folder import Run, create_run
from moe_cli.training.upcycle import upcycle
from tests.tiny import finish, tiny_config

TOKENS = torch.randint(32, 127, (4, 16), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def dense(text_file: Path, tmp_path: Path) -> Run:
    return finish(tiny_config(text_file, expert=1, k=1, train={"steps": 20}), tmp_path)


def upcycled(text_file: Path, dense: Run, **changes: Any) -> torch.nn.Module:
    model = {"d_expert": 32, **changes.pop("model", {})}
    config = tiny_config(text_file, model=model, train={"upcycle_from": dense.id}, **changes)
    network = make_model(config, 256)
    upcycle(network, dense)
    return network.eval()


@pytest.mark.parametrize("changes", [{}, {"model": {"moe_layer_freq": 2}}])
def test_the_model_starts_as_the_dense_one(
    text_file: Path, tmp_path: Path, dense: Run, changes: dict[str, Any]
) -> None:
    """Weights that sum to 1 over equal experts give the dense model's logits, shared experts being silent at first."""
    expected = load_trained(dense, tmp_path).model(TOKENS)[0]
    assert expected.abs().max() > 0.1
    model = upcycled(text_file, dense, **changes)
    assert moe_layers(model)
    assert torch.allclose(expected, model(TOKENS)[0], atol=1e-5)


def test_switch_starts_weaker(text_file: Path, tmp_path: Path, dense: Run) -> None:
    """One expert weighted with its probability is not the dense network: what the identity above rests on."""
    model = upcycled(text_file, dense, router=SwitchConfig(), k=1)
    assert not torch.allclose(load_trained(dense, tmp_path).model(TOKENS)[0], model(TOKENS)[0], atol=1e-3)


def test_routers_are_new(text_file: Path, dense: Run) -> None:
    """The gate is drawn from the seed, as without a source."""
    config = tiny_config(text_file, model={"d_expert": 32})
    fresh = make_model(config, 256)
    for ours, theirs in zip(moe_layers(upcycled(text_file, dense)), moe_layers(fresh), strict=True):
        assert torch.equal(ours.router.gate.weight, theirs.router.gate.weight)


def test_training_goes_on_from_there(text_file: Path, tmp_path: Path, dense: Run) -> None:
    """The run's first loss is far below that of a fresh model, experts part ways, and a dense run goes on too."""
    fits = {"model": {"d_expert": 32}, "train": {"steps": 4}}
    first = {}
    for source in (None, dense.id):
        run = finish(tiny_config(text_file, **{**fits, "train": {"steps": 4, "upcycle_from": source}}), tmp_path)
        first[source] = run.metrics()[0]["train/loss"]
    assert first[dense.id] < first[None] - 0.5
    experts = moe_layers(load_trained(run, tmp_path).model)[0].experts.w_in
    assert not torch.equal(experts[0], experts[1])
    control = finish(tiny_config(text_file, expert=1, k=1, train={"steps": 4, "upcycle_from": dense.id}), tmp_path)
    assert control.metrics()[0]["train/loss"] == pytest.approx(first[dense.id], abs=1e-4)


def test_a_resumed_run_does_not_start_over(text_file: Path, tmp_path: Path, dense: Run) -> None:
    """2n steps equal n steps, a stop and the rest, although the source is gone by then."""
    config = tiny_config(
        text_file, model={"d_expert": 32}, train={"steps": 4, "checkpoint_every": 2, "upcycle_from": dense.id}
    )
    whole = finish(config, tmp_path)
    halfway = sorted(whole.checkpoints())[0]
    other = create_run(tmp_path / "again", "runs", config)
    (other.path / "checkpoints").mkdir()
    halfway.rename(other.path / "checkpoints" / halfway.name)
    resumed = run_one(other, tmp_path / "again")
    assert whole.summary()["val_loss"] == resumed.summary()["val_loss"]
