"""How are weights updated? By Muon for matrices and AdamW for the rest, or by AdamW or SGD.

E experts in a stack, N matrices of R rows and C columns.
"""

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.adamw import adamw

from moe_cli.config.layer_costs import NEWTON_SCHULZ_STEPS
from moe_cli.config.optim import AdamConfig, AdamWConfig, MuonConfig, OptimConfig, SGDConfig
from moe_cli.costs.processor import cpu_has_bfloat16
from moe_cli.distributed.collectives import rank, world_size
from moe_cli.moe.sparse_layer import moe_layers
from moe_cli.training.schedule import schedule

# Matrices that AdamW updates also with optim=muon: embeddings and heads, which do not map between hidden spaces;
# routers; and LSTMs, which store their four gates in one matrix.
_ADAM_SUFFIXES = ("embedding.weight", "ngrams.weight", "positions.weight", "head.weight", "shared_gate.weight")
_ADAM_PARTS = (".router.", ".lstm.")
NEWTON_SCHULZ_COEFFS = (3.4445, -4.7750, 2.0315)


def orthogonalise(matrices: Float[Tensor, "N R C"]) -> Float[Tensor, "N R C"]:
    """Moves the singular values of each matrix near 1 by Newton-Schulz iterations (Muon, Jordan et al., 2024).

    The iterations end in about [0.7, 1.2], which is close enough to U V^T for a descent direction. A zero matrix stays
    zero.
    """
    a, b, c = NEWTON_SCHULZ_COEFFS
    x: Tensor = matrices / (matrices.flatten(1).norm(dim=1).clamp(min=1e-7)[:, None, None])
    x = x.to(_product_dtype(x))
    is_tall = x.shape[1] > x.shape[2]
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = torch.bmm(x.mT, x) if is_tall else torch.bmm(x, x.mT)
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, x, factor, beta=a) if is_tall else torch.baddbmm(x, factor, x, beta=a)
    return x.to(matrices.dtype)


def _product_dtype(x: Tensor) -> torch.dtype:
    """Returns bfloat16 for float32 matrices if the device multiplies it, which takes a third of the time."""
    has_bfloat16 = x.is_cuda or cpu_has_bfloat16()
    return torch.bfloat16 if has_bfloat16 and x.dtype == torch.float32 else x.dtype


# The experts of each stacked parameter that a step updates, in ascending order. Without an entry all are updated.
ActiveExperts = Mapping[Tensor, Sequence[int]]


class Muon(torch.optim.Optimizer):
    """Updates matrices by their orthogonalised Nesterov momentum (Muon, Jordan et al., 2024).

    The last two dimensions of a weight are a matrix, leading dimensions a stack of matrices. Matrices of equal shape
    are orthogonalised together, experts of all layers included. The step is lr * sqrt(max(1, rows / columns)); weight
    decay is decoupled, as in AdamW. Inactive experts keep weights and momentum, and take no time.

    The experts of a layer are updated in every `expert_period`-th step, the layers in turn, because orthogonalising all
    experts would take longer than the rest of a step (block-periodic, as MuonBP, arXiv:2510.16981). Their momentum is
    updated in every step, their step is sqrt(expert_period) times as long, and their weight decay expert_period times.

    Args:
        expert_layers: the stacked parameters of each layer with experts.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        momentum: float,
        weight_decay: float,
        expert_layers: Sequence[Sequence[Tensor]] = (),
        expert_period: int = 1,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.expert_period = expert_period
        self._layer_of = {param: layer for layer, params in enumerate(expert_layers) for param in params}

    @torch.no_grad()
    def step(self, closure: Any = None, active: ActiveExperts | None = None, number: int = 0) -> None:  # type: ignore[override]
        """Updates the weights in the step with this number, counted from 0."""
        assert closure is None
        for group in self.param_groups:
            runs = [run for param in group["params"] for run in self._runs(param, (active or {}).get(param))]
            _update_momentum(runs, group["momentum"])
            due = [run for run in runs if (number - self._layer_of.get(run.param, 0)) % self._period(run.param) == 0]
            by_shape: dict[torch.Size, list[_Direction]] = defaultdict(list)
            for run, nesterov in zip(due, _nesterov(due, group["momentum"]), strict=True):
                direction = _Direction(run.weights, _gather_rows(nesterov, run.param), self._period(run.param))
                by_shape[run.param.shape[-2:]].append(direction)
            for (rows, columns), directions in by_shape.items():
                steps = orthogonalise(torch.cat([direction.matrices for direction in directions]))
                scale = group["lr"] * math.sqrt(max(1, rows / columns))
                sizes = [len(direction.matrices) for direction in directions]
                for direction, step in zip(directions, steps.split(sizes), strict=True):
                    weights, period = direction.weights, direction.period
                    weights.mul_(1 - group["lr"] * group["weight_decay"] * period)
                    weights.add_(_local_rows(step, weights), alpha=-scale * math.sqrt(period))

    def _period(self, param: Tensor) -> int:
        return self.expert_period if param in self._layer_of else 1

    def _runs(self, param: Tensor, experts: Sequence[int] | None) -> list["_Run"]:
        """Returns the runs of active matrices of a parameter; none without a gradient."""
        if param.grad is None:
            return []
        state = self.state[param]
        if not state:
            state["momentum"] = torch.zeros_like(param)
        stacks = [_as_stack(local_part(tensor)) for tensor in (param, param.grad, state["momentum"])]
        if experts is None:
            return [_Run(param, *stacks)]
        return [_Run(param, *(stack[run] for stack in stacks)) for run in _contiguous_runs(experts)]


@dataclass(frozen=True)
class _Run:
    """Neighbouring matrices of a parameter, or of this process's part of it, which a step updates."""

    param: Tensor
    weights: Float[Tensor, "N R C"]
    gradients: Float[Tensor, "N R C"]
    momentum: Float[Tensor, "N R C"]


def _update_momentum(runs: list[_Run], momentum: float) -> None:
    if runs:
        torch._foreach_lerp_([run.momentum for run in runs], [run.gradients for run in runs], 1 - momentum)


def _nesterov(runs: list[_Run], momentum: float) -> Sequence[Tensor]:
    """Returns the Nesterov momentum of each run."""
    if not runs:
        return ()
    return torch._foreach_lerp([run.gradients for run in runs], [run.momentum for run in runs], momentum)


@dataclass(frozen=True)
class _Direction:
    """The direction of an update, before it is orthogonalised, and the weights that it updates.

    Attributes:
        period: steps since the last update.
    """

    weights: Float[Tensor, "N R C"]
    matrices: Float[Tensor, "N all C"]
    period: int


class ExpertAdamW(torch.optim.Optimizer):
    """AdamW (arXiv:1711.05101) over stacked experts [E, R, C], with a step count for each expert.

    An inactive expert keeps its weights, moments and step count. An active one is updated as torch.optim.AdamW updates
    a separate parameter with the same gradients.
    """

    def __init__(self, params: Iterable[Tensor], lr: float, betas: tuple[float, float], weight_decay: float) -> None:
        # `fused` also tells torch to load the counts as float32 on the parameter's device.
        defaults = {"lr": lr, "betas": betas, "weight_decay": weight_decay, "eps": 1e-8, "fused": True}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Any = None, active: ActiveExperts | None = None) -> None:  # type: ignore[override]
        assert closure is None
        for group in self.param_groups:
            lists: list[list[Tensor]] = [[], [], [], [], []]
            for param in group["params"]:
                if param.grad is not None:
                    experts = (active or {}).get(param, range(len(param)))
                    for rows, tensor in zip(lists, (param, param.grad, *self._state(param)), strict=True):
                        by_expert = tensor.unbind(0)
                        rows += [by_expert[expert] for expert in experts]
            params, grads, averages, squares, steps = lists
            beta1, beta2 = group["betas"]
            if params:
                adamw(
                    params,
                    grads,
                    averages,
                    squares,
                    [],
                    steps,
                    fused=True,
                    amsgrad=False,
                    beta1=beta1,
                    beta2=beta2,
                    lr=group["lr"],
                    weight_decay=group["weight_decay"],
                    eps=group["eps"],
                    maximize=False,
                )

    def _state(self, param: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        state = self.state[param]
        if not state:
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(param), torch.zeros_like(param)
            state["step"] = torch.zeros(len(param), device=param.device)
        return state["exp_avg"], state["exp_avg_sq"], state["step"]


class ExpertSGD(torch.optim.Optimizer):
    """torch.optim.SGD over stacked experts [E, R, C]; an inactive expert keeps its weights and its momentum."""

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None, active: ActiveExperts | None = None) -> None:  # type: ignore[override]
        assert closure is None
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is None:
                    continue
                state = self.state[param]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(param)
                stacks = [_as_stack(tensor) for tensor in (param, param.grad, state["momentum_buffer"])]
                experts = (active or {}).get(param)
                for run in [slice(None)] if experts is None else _contiguous_runs(experts):
                    weight, grad, average = (stack[run] for stack in stacks)
                    average.mul_(group["momentum"]).add_(grad.add(weight, alpha=group["weight_decay"]))
                    weight.add_(average, alpha=-group["lr"])


def _as_stack(matrices: Tensor) -> Float[Tensor, "N R C"]:
    return matrices.unsqueeze(0) if matrices.ndim == 2 else matrices.flatten(0, -3)


def local_part(tensor: Tensor) -> Tensor:
    """Returns this process's part of a sharded tensor; any other tensor unchanged."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _gather_rows(direction: Float[Tensor, "N R C"], param: Tensor) -> Float[Tensor, "N all C"]:
    """Returns all rows of the direction of a sharded matrix, because orthogonalisation needs the full matrix.

    The direction of a sharded stack is returned unchanged, because each of its matrices is in one process.
    """
    if not isinstance(param, DTensor) or param.ndim == 3:
        return direction
    sharded = DTensor.from_local(
        direction[0], param.device_mesh, param.placements, run_check=False, shape=param.shape, stride=param.stride()
    )
    return sharded.full_tensor().unsqueeze(0)


def _local_rows(step: Float[Tensor, "N all C"], weight: Float[Tensor, "N R C"]) -> Float[Tensor, "N R C"]:
    """Returns the rows of a full matrix that belong to `weight`, this process's part of the matrix."""
    if step.shape == weight.shape:
        return step
    rows_per_process = math.ceil(step.shape[1] / world_size())
    first = rows_per_process * rank()
    return step[:, first : first + weight.shape[1]]


def _contiguous_runs(experts: Sequence[int]) -> list[slice]:
    """Returns the runs of neighbours among the active experts, in ascending order, so that few operations suffice."""
    active = set(experts)
    firsts = [expert for expert in experts if expert - 1 not in active]
    lasts = [expert for expert in experts if expert + 1 not in active]
    return [slice(first, last + 1) for first, last in zip(firsts, lasts, strict=True)]


class Optimizers:
    """One or two torch optimizers with one schedule.

    Args:
        experts: with optim.skip_idle_experts, the stacked parameters of each sparse layer; else empty.
        blocks: `Experts.blocks` of each sparse layer; empty means None for all.
    """

    def __init__(
        self,
        config: OptimConfig,
        optimizers: list[torch.optim.Optimizer],
        experts: Sequence[Sequence[Tensor]] = (),
        blocks: Sequence[tuple[int, ...] | None] = (),
    ) -> None:
        self.blocks = blocks
        self.config = config
        self.optimizers = optimizers
        self.experts = experts
        self._peak = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]

    def step(
        self, number: int, progress: float, load: Sequence[Int[Tensor, " E"]] = (), after: float | None = None
    ) -> float:
        """Applies one update; returns the factor of the schedule.

        Args:
            number: number of the step, counted from 0.
            progress: fraction of the budget spent before this step, in [0, 1).
            load: for each sparse layer, the assignments to each expert in all batches of the step, before drops. With
                optim.skip_idle_experts the experts without assignments are skipped. An expert with assignments keeps at
                least one, because a capacity is at least 1. Gradients do not show which experts are idle: in the first
                step, when second matrices are zero, those of first matrices are zero for all experts.
            after: fraction of the budget spent after this step; see `schedule`.
        """
        active: ActiveExperts = {
            param: counts.nonzero().flatten().tolist()
            for params, counts in zip(self.experts, self._by_block(load) if self.experts else (), strict=True)
            for param in params
        }
        factor = schedule(self.config, progress, after)
        for optimizer, peaks in zip(self.optimizers, self._peak, strict=True):
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * factor
            if isinstance(optimizer, Muon):
                optimizer.step(active=active, number=number)
            elif isinstance(optimizer, ExpertAdamW | ExpertSGD):
                optimizer.step(active=active)
            else:
                optimizer.step()
        return factor

    def _by_block(self, load: Sequence[Int[Tensor, " E"]]) -> list[Int[Tensor, " _"]]:
        """Returns the assignments to each stacked network: those to its expert, see `Experts.blocks`."""
        return [
            counts if blocks is None else counts.repeat_interleave(torch.tensor(blocks, device=counts.device))
            for counts, blocks in zip(load, self.blocks or [None] * len(load), strict=True)
        ]

    def zero_grad(self) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)

    def params(self) -> dict[str, nn.Parameter]:
        """Returns the parameters by the prefix of their keys in `state_tensors`: optimizer.parameter."""
        return {
            f"{number}.{index}": param
            for number, optimizer in enumerate(self.optimizers)
            for index, param in enumerate(param for group in optimizer.param_groups for param in group["params"])
        }

    def state_tensors(self) -> dict[str, Tensor]:
        """Returns the tensors of the optimizers' state by stable keys: optimizer.parameter.entry."""
        return {
            f"{number}.{index}.{entry}": value
            for number, optimizer in enumerate(self.optimizers)
            for index, state in optimizer.state_dict()["state"].items()
            for entry, value in state.items()
        }

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Loads the tensors of `state_tensors`."""
        states: list[dict[int, dict[str, Tensor]]] = [defaultdict(dict) for _ in self.optimizers]
        for name, value in tensors.items():
            number, index, entry = name.split(".", 2)
            states[int(number)][int(index)][entry] = value
        for optimizer, state in zip(self.optimizers, states, strict=True):
            optimizer.load_state_dict({"state": dict(state), "param_groups": optimizer.state_dict()["param_groups"]})


def make_optimizers(config: OptimConfig, model: nn.Module) -> Optimizers:
    """Builds the optimizers of a model's parameters. Vectors have no weight decay."""
    named = [(name, param) for name, param in model.named_parameters() if param.requires_grad]
    layers = moe_layers(model)
    expert_layers = [list(layer.experts.parameters()) for layer in layers]
    blocks = [layer.experts.blocks for layer in layers]
    gates = {id(param) for layer in layers for param in layer.router.parameters()}
    experts = expert_layers if config.skip_idle_experts else []
    if isinstance(config, MuonConfig):
        matrices = [param for name, param in named if _is_for_muon(name, param)]
        others = [param for name, param in named if not _is_for_muon(name, param)]
        period = config.expert_period or 1
        muon = Muon(matrices, config.lr, config.momentum, config.weight_decay, expert_layers, period)
        return Optimizers(config, [muon, _adamw(config, config.adam_lr, others, gates)], experts, blocks)
    stacked = [param for params in experts for param in params]
    rest = [param for _, param in named if all(param is not other for other in stacked)]
    main: torch.optim.Optimizer
    of_experts: torch.optim.Optimizer | None = None
    if isinstance(config, SGDConfig):
        groups = _param_groups(config, rest, gates)
        main = torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, **_impl_kwargs(rest))
        if stacked:
            of_experts = ExpertSGD(stacked, config.lr, config.momentum, config.weight_decay)
    else:
        assert isinstance(config, AdamWConfig)
        main = _adamw(config, config.lr, rest, gates)
        if stacked:
            of_experts = ExpertAdamW(stacked, config.lr, (config.beta1, config.beta2), config.weight_decay)
    return Optimizers(config, [main] if of_experts is None else [main, of_experts], experts, blocks)


def _is_for_muon(name: str, param: Tensor) -> bool:
    """Returns True for a matrix, or a stack of matrices, that maps between hidden spaces."""
    return param.ndim >= 2 and not name.endswith(_ADAM_SUFFIXES) and not any(part in f".{name}" for part in _ADAM_PARTS)


def _adamw(config: AdamConfig, lr: float, params: list[nn.Parameter], gates: Collection[int]) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        _param_groups(config, params, gates), lr=lr, betas=(config.beta1, config.beta2), **_impl_kwargs(params)
    )


def _impl_kwargs(params: list[nn.Parameter]) -> dict[str, bool]:
    """Returns the arguments for a fused update, which torch does not support if only some parameters are sharded."""
    is_mixed = len({isinstance(param, DTensor) for param in params}) > 1
    return {"foreach": False} if is_mixed else {"fused": True}


def _param_groups(config: OptimConfig, params: list[nn.Parameter], gates: Collection[int]) -> list[dict[str, Any]]:
    """Returns two parameter groups, matrices with weight decay, and vectors without, and those of the gates last.

    Args:
        gates: the ids of the gates' parameters, which have groups of their own with optim.router_lr.
    """
    own = {id(param) for param in params if config.router_lr is not None and id(param) in gates}
    groups = _by_decay(config, [param for param in params if id(param) not in own])
    gate_groups = _by_decay(config, [param for param in params if id(param) in own])
    return groups + [group | {"lr": config.router_lr} for group in gate_groups if group["params"]]


def _by_decay(config: OptimConfig, params: list[nn.Parameter]) -> list[dict[str, Any]]:
    return [
        {"params": [param for param in params if param.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [param for param in params if param.ndim < 2], "weight_decay": 0.0},
    ]
