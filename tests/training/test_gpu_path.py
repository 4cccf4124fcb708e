"""The path of a GPU, on a pretended one: no tensor on the wrong device, and few reads of values from the device."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from moe_cli.config.routers import ExpertChoiceConfig, SoftConfig
from moe_cli.config.schema import RunConfig
from moe_cli.models.registry import make_model
from moe_cli.runs.folder import create_run
from moe_cli.runs.recorder import NullRecorder
from moe_cli.training.distributed_model import DistributedModel
from moe_cli.training.evaluate import eval_policy, evaluate, probe_routing
from moe_cli.training.optimizers import make_optimizers
from moe_cli.training.trainer import Trainer
from tests.pretended_device import CUDA, WrongDevice, pretended_cuda
from tests.tiny import TINY, tiny_config, tiny_task
from tests.training.test_resume import KINDS, QUICK_KINDS

pytestmark = pytest.mark.usefixtures("unchecked_shapes")
BERT: dict[str, Any] = TINY["bert"]
CASES: dict[str, dict[str, Any]] = {
    **KINDS,
    **TINY,
    "dense": {"expert": 1, "k": 1},
    "expert_choice": {**BERT, "router": ExpertChoiceConfig(), "capacity": 1.0},
    "soft": {**BERT, "router": SoftConfig(), "k": 1},
    "float32": {"train": {"precision": "float32"}},
    "loop": {"model": {"dispatch": "loop"}},
    "einsum": {"model": {"dispatch": "einsum"}},
    "idle experts": {"optim": {"skip_idle_experts": True}},
    "accumulated": {"train": {"grad_accumulation": 2}},
}
# The loss, and the gradient's norm with the counts. Further reads, per sparse layer where there are two:
ALWAYS = 2
MORE_READS = {
    "float32": 2,  # the loop needs the number of rows of each expert
    "loop": 2,
    "einsum": 2,  # the largest load
    "relu": 2,  # as many assignments as are positive
    "null experts": 2,  # as many as are not null
    "random drops": 2,  # as many as are kept
    "accumulated": 1,  # the loss of another batch
}


def trainer_on_gpu(config: RunConfig, outputs: Path) -> Trainer:
    """Returns the trainer that a run on the device `cuda` has."""
    task = tiny_task(config, outputs)
    model = make_model(config, task.vocab_size).to("cuda")
    recorder = NullRecorder(create_run(outputs, "runs", config))
    optimizers = make_optimizers(config.optim, model)
    distributed_model = DistributedModel(config.launch, model, False)
    return Trainer(config, distributed_model, task, optimizers, recorder, config.train.steps, lambda report: None)


def evaluate_on_gpu(trainer: Trainer) -> float:
    config = trainer.config
    probe_routing(trainer.model, trainer.task, precision=config.train.precision)
    return evaluate(
        trainer.model,
        trainer.task,
        config.train.batch_size,
        max_tokens=config.train.eval_tokens,
        policy=eval_policy(config.eval),
        precision=config.train.precision,
    ).loss


class MadeOnCPU(torch.autograd.Function):
    """Doubles x; its backward pass makes a tensor without saying where."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * torch.full(grad.shape, 2.0)


@pytest.mark.parametrize(
    "mistake",
    [
        lambda x: x + torch.ones(3),
        lambda x: torch.ones(3).add_(x),
        lambda x: x[torch.tensor([0, 2])],
        lambda x: x.index_select(0, torch.arange(3)),
        lambda x: torch.cat([x, torch.zeros(3)]),
        lambda x: torch.arange(3) * x.sum(),
        lambda x: x @ torch.ones_like(x, device="cpu"),
        lambda x: x * x.detach().cpu(),
        lambda x: MadeOnCPU.apply(x).sum().backward(),
        lambda x: x.detach().numpy(),
    ],
)
def test_a_tensor_on_the_wrong_device_is_found(mistake: Callable[[Tensor], Any]) -> None:
    """Operands, indices and what a backward pass makes must be on the GPU."""
    with pretended_cuda():
        x = torch.ones(3, device="cuda", requires_grad=True)
        with pytest.raises(WrongDevice):
            mistake(x)


def test_what_a_gpu_allows_is_allowed() -> None:
    """Numbers, tensors of no dimension, copies to the device, and what torch makes on the way of a backward pass."""
    with pretended_cuda() as gpu:
        x = torch.ones(4, 3).to("cuda").requires_grad_()
        y = (2 * x + torch.tensor(1.0)).masked_fill(torch.eye(4, 3, device=x.device) > 0, 0.0)
        y = torch.cat([y[1], y.new_zeros(2), y.max(0).values, torch.zeros_like(y)[0]])
        y.sum().backward()
        assert x.grad is not None
        buffer = torch.empty(2, 4, 3, device="cuda")
        buffer[1].copy_(torch.ones(4, 3))
        found = (x, x.grad, y, buffer[0], nn.Linear(3, 2).to("cuda").weight, torch.randn(2, device="cuda:0"))
        assert {CUDA} == {each.device for each in found}
        assert all(each.is_cuda and not each.is_cpu for each in found)
        assert torch.device("cpu") == torch.ones(3).device == x.cpu().device
        assert Counter(cpu=1) == gpu.reads


@pytest.mark.parametrize(
    ("read", "name"),
    [
        (lambda x: x.sum().item(), "item"),
        (lambda x: x.tolist(), "tolist"),
        (lambda x: bool(x.any()), "__bool__"),
        (lambda x: float(x[0]), "__float__"),
        (lambda x: range(x.sum().int()), "__index__"),
        (lambda x: x.cpu(), "cpu"),
        (lambda x: x.to("cpu", torch.float64), "to"),
        (lambda x: torch.empty(3).copy_(x), "copy_"),
        (lambda x: x.nonzero(), "nonzero"),
        (lambda x: x[x > 0], "index"),
        (lambda x: x.masked_select(x > 0), "masked_select"),
        (lambda x: torch.bincount(x.int()), "bincount"),
        (lambda x: torch.equal(x, x + 1), "equal"),
        (lambda x: x.repeat_interleave(x.int()), "repeat_interleave"),
        (lambda x: x.repeat_interleave(x.int(), output_size=3), ""),
        (lambda x: x.to(torch.float64), ""),
    ],
)
def test_a_read_is_counted_once(read: Callable[[Tensor], Any], name: str) -> None:
    """Values, and sizes that depend on values, count; conversions on the device do not."""
    with pretended_cuda() as gpu:
        read(torch.ones(3, device="cuda"))
        assert Counter([name] if name else []) == gpu.reads


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=pytest.mark.slow) if case in KINDS.keys() - QUICK_KINDS else case for case in CASES],
)
def test_every_kind_trains_and_evaluates_on_one_device(case: str, text_file: Path, tmp_path: Path) -> None:
    """A step of every model, router, balance, optimizer and back end mixes no devices and reads twice; so an evaluation."""
    config = tiny_config(text_file, **CASES[case])
    config = replace(config, model=replace(config.model, d_expert=16))  # a width that grouped products take
    with pretended_cuda() as gpu:
        trainer = trainer_on_gpu(config, tmp_path)
        gpu.reads.clear()
        trainer.step()
        assert ALWAYS + MORE_READS.get(case, 0) == gpu.reads.total(), gpu.reads
        assert {CUDA} == {tensor.device for tensor in trainer.model.state_dict().values()}
        evaluate_on_gpu(trainer)
