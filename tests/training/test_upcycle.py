"""A sparse model that starts from a dense run: the same function at first, its own experts later."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from moe_cli.config.routers import NoisyTopKConfig, SwitchConfig, TopKConfig
from moe_cli.errors import ConfigError
from moe_cli.execution.run import run_one
from moe_cli.execution.trained_model import load_trained
from moe_cli.execution.upcycling import check_upcycle
from moe_cli.models.registry import make_model
from moe_cli.moe.experts import Experts
from moe_cli.moe.sparse_layer import moe_layers
from moe_cli.runs.folder import Run, create_run
from moe_cli.training.upcycle import upcycle, vary_experts
from tests.tiny import finish, tiny_config

TOKENS = torch.randint(32, 127, (4, 16), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def trained(text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A dense run. Not to be changed: `dense` is a copy of it."""
    return finish(tiny_config(text_file, expert=1, k=1, train={"steps": 20}), tmp_path_factory.mktemp("dense"))


@pytest.fixture
def dense(trained: Run, tmp_path: Path) -> Run:
    shutil.copytree(trained.path.parents[1], tmp_path, dirs_exist_ok=True)
    return Run(tmp_path / "runs" / trained.id)


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
    varied = {"upcycle_from": dense.id, "upcycle_noise": 0.1, "upcycle_drop": 0.5}
    config = tiny_config(text_file, model={"d_expert": 32}, train={"steps": 4, "checkpoint_every": 2, **varied})
    whole = finish(config, tmp_path)
    halfway = sorted(whole.checkpoints())[0]
    other = create_run(tmp_path / "again", "runs", config)
    (other.path / "checkpoints").mkdir()
    halfway.rename(other.path / "checkpoints" / halfway.name)
    resumed = run_one(other, tmp_path / "again")
    assert whole.summary()["val_loss"] == resumed.summary()["val_loss"]


def copies(ffn_type: str, width: int = 200) -> Experts:
    """Three equal experts whose matrices have a mean and a deviation of their own."""
    experts = Experts(3, 30, width, 30, ffn_type=ffn_type)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        w_in = torch.randn(experts.w_in.shape[1:], generator=generator) * 0.3 + 2
        w_in[width:] = w_in[width:] * 4 - 10  # the up projection
        experts.w_in.copy_(w_in)
        experts.w_out.copy_(torch.randn(experts.w_out.shape[1:], generator=generator) * 0.05 - 1)
    return experts


def matrices(experts: Experts) -> torch.Tensor:
    """The weights [E, matrices, F, D], with one row for each hidden unit."""
    width = experts.w_out.shape[2]
    return torch.cat([experts.w_in.unflatten(1, (-1, width)), experts.w_out.mT[:, None]], 1).detach()


@pytest.mark.parametrize("ffn_type", ["glu", "mlp"])
def test_dropped_units_get_new_weights_with_their_moments(ffn_type: str) -> None:
    """A share r of whole units is new in all matrices, other units in each expert; mean and deviation stay."""
    experts = copies(ffn_type)
    before = matrices(experts)
    vary_experts(experts, torch.Generator().manual_seed(0), noise=0.0, drop=0.29)
    after = matrices(experts)
    changed = (before != after).all(3)
    assert torch.equal(changed, (before != after).any(3))  # whole units
    assert torch.equal(changed, changed[:, :1].expand_as(changed))  # the same in all matrices
    assert [58] * 3 == changed[:, 0].sum(1).tolist()
    assert 3 == len({tuple(row.tolist()) for row in changed[:, 0]})
    for old, new, units in zip(before.flatten(0, 1), after.flatten(0, 1), changed.flatten(0, 1), strict=True):
        error = old[units].std() / (58 * 30) ** 0.5  # of a mean of as many draws
        assert abs(new[units].mean() - old[units].mean()) < 5 * error
        assert abs(new[units].std() - old[units].std()) < 5 * error


def test_noise_is_relative_and_seeded() -> None:
    """Its deviation is a multiple of that of each matrix; experts differ, and a seed determines them."""
    experts, again, other = copies("glu"), copies("glu"), copies("glu")
    before = matrices(experts)
    for network, seed in ((experts, 0), (again, 0), (other, 1)):
        vary_experts(network, torch.Generator().manual_seed(seed), noise=0.1, drop=0.0)
    noise = matrices(experts) - before
    assert torch.allclose(noise.std((2, 3)), 0.1 * before.std((2, 3)), rtol=0.05)
    assert torch.equal(experts.w_in, again.w_in)
    assert not torch.equal(experts.w_in, other.w_in)
    assert not torch.equal(experts.w_in[0], experts.w_in[1])


def test_the_seed_of_the_run_decides_the_dropped_units(text_file: Path, dense: Run) -> None:
    """The settings reach the model of a run: the same for a seed, and another for another one."""
    models = [upcycled(text_file, dense) for _ in range(3)]
    for model, seed in zip(models, (0, 0, 1), strict=True):
        upcycle(model, dense, seed, drop=0.5)
    first, same, another = (moe_layers(model)[0].experts.w_in for model in models)
    assert torch.equal(first, same)
    assert not torch.equal(first, another)


def test_a_run_starts_from_varied_experts(text_file: Path, tmp_path: Path, dense: Run) -> None:
    """Noise and dropped units change the first loss of a run, each in its own way."""
    losses = set()
    for varied in ({}, {"upcycle_noise": 0.5}, {"upcycle_drop": 0.5}):
        words = {"steps": 1, "upcycle_from": dense.id, **varied}
        run = finish(tiny_config(text_file, model={"d_expert": 32}, train=words), tmp_path)
        losses.add(run.metrics()[0]["train/loss"])
    assert 3 == len(losses)


@pytest.mark.parametrize(
    "changes",
    [{"k": 1}, {"expert": 5}, {"router": NoisyTopKConfig()}, {"router": TopKConfig(score="cosine")},
     {"router": TopKConfig(renormalise=False)}, {"eval": {"k": 1}}],
)  # fmt: skip
def test_parts_that_cannot_act_as_copies_are_refused(
    text_file: Path, tmp_path: Path, dense: Run, changes: dict[str, Any]
) -> None:
    """Experts of half the width need even numbers, and a router that chooses and weighs both halves alike."""
    half = {"model": {"d_expert": 16}, "train": {"upcycle_from": dense.id}}
    assert check_upcycle(tiny_config(text_file, **half), tmp_path) is not None
    with pytest.raises(ConfigError, match=r"are 1/2 of a network, and need .* multiples of 2, .*d_expert=32$"):
        check_upcycle(tiny_config(text_file, **half, **changes), tmp_path)
