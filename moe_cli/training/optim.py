"""Optimizers and schedules. Muon for matrices and stacked experts, AdamW for the rest; or AdamW for everything."""

import math
from collections import defaultdict
from collections.abc import Iterable
from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from moe_cli.config.schema import AdamWConfig, MuonConfig, OptimConfig
from moe_cli.models.cost import NEWTON_SCHULZ_STEPS

# Look-up tables, classifiers over tokens or experts, and vectors: no maps between hidden spaces, so not Muon's.
_ADAM_SUFFIXES = ("embedding.weight", "head.weight")
_ADAM_PARTS = ".router."
_QUINTIC = (3.4445, -4.7750, 2.0315)


def orthogonalise(matrices: Float[Tensor, "N R C"], steps: int = NEWTON_SCHULZ_STEPS) -> Float[Tensor, "N R C"]:
    """Each matrix with its singular values moved near 1, by Newton-Schulz iterations (Muon, Jordan et al. 2024).

    The quintic's fixed interval is about [0.7, 1.2]: close enough to U V^T for a descent direction. A zero stays zero.
    """
    a, b, c = _QUINTIC
    x: Tensor = matrices / (matrices.flatten(1).norm(dim=1).clamp(min=1e-7)[:, None, None])
    x = x.to(_product_dtype(x))
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT
    x = x.contiguous()
    for _ in range(steps):
        gram = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)


def _product_dtype(x: Tensor) -> torch.dtype:
    """bfloat16 for float32 matrices where the processor multiplies it: a third of the time, and the iteration forgives."""
    fast = x.is_cuda or _cpu_multiplies_bfloat16()
    return torch.bfloat16 if fast and x.dtype == torch.float32 else x.dtype


@cache
def _cpu_multiplies_bfloat16() -> bool:
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(capabilities.get("avx512_bf16"))


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised: every weight's last two dimensions are a matrix, leading dimensions a stack of them.

    Matrices of one shape are orthogonalised together, experts of all layers included. The step is
    lr * sqrt(max(1, rows / columns)), decoupled weight decay as in AdamW.
    """

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        assert closure is None
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for param in group["params"]:
                if param.grad is not None:
                    by_shape[param.shape[-2:]].append(param)
            for (rows, columns), params in by_shape.items():
                directions = [self._nesterov(param, group["momentum"]).view(-1, rows, columns) for param in params]
                steps = orthogonalise(torch.cat(directions)).split([len(direction) for direction in directions])
                scale = group["lr"] * math.sqrt(max(1, rows / columns))
                for param, step in zip(params, steps, strict=True):
                    param.mul_(1 - group["lr"] * group["weight_decay"])
                    param.add_(step.reshape(param.shape), alpha=-scale)

    def _nesterov(self, param: Tensor, momentum: float) -> Tensor:
        assert param.grad is not None
        state = self.state[param]
        if not state:
            state["momentum"] = torch.zeros_like(param)
        average: Tensor = state["momentum"].lerp_(param.grad, 1 - momentum)
        return param.grad.lerp(average, momentum)


class Optimizers:
    """One or two torch optimizers, stepped as one, with one schedule."""

    def __init__(self, config: OptimConfig, parts: list[torch.optim.Optimizer]) -> None:
        self.config = config
        self.parts = parts
        self._peak = [[group["lr"] for group in part.param_groups] for part in parts]

    def step(self, progress: float) -> float:
        """One update at the learning rate that the schedule gives at `progress` in [0, 1); returns that factor."""
        factor = schedule(self.config, progress)
        for part, peaks in zip(self.parts, self._peak, strict=True):
            for group, peak in zip(part.param_groups, peaks, strict=True):
                group["lr"] = peak * factor
            part.step()
        return factor

    def zero_grad(self) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none=True)

    def state_tensors(self) -> dict[str, Tensor]:
        """Every tensor of the optimizers' state under a stable name: part.parameter.entry."""
        return {
            f"{number}.{index}.{entry}": value
            for number, part in enumerate(self.parts)
            for index, state in part.state_dict()["state"].items()
            for entry, value in state.items()
        }

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of `state_tensors`."""
        states: list[dict[int, dict[str, Tensor]]] = [defaultdict(dict) for _ in self.parts]
        for name, value in tensors.items():
            number, index, entry = name.split(".", 2)
            states[int(number)][int(index)][entry] = value
        for part, state in zip(self.parts, states, strict=True):
            part.load_state_dict({"state": dict(state), "param_groups": part.state_dict()["param_groups"]})


def make_optimizers(config: MuonConfig | AdamWConfig, model: nn.Module) -> Optimizers:
    """The optimizers of a configuration over a model's parameters. Vectors are never decayed."""
    named = [(name, param) for name, param in model.named_parameters() if param.requires_grad]
    if isinstance(config, AdamWConfig):
        return Optimizers(config, [_adamw(config, config.lr, [param for _, param in named])])
    is_matrix = [
        param.ndim >= 2 and not name.endswith(_ADAM_SUFFIXES) and _ADAM_PARTS not in name for name, param in named
    ]
    matrices = [param for (_, param), matrix in zip(named, is_matrix, strict=True) if matrix]
    others = [param for (_, param), matrix in zip(named, is_matrix, strict=True) if not matrix]
    muon = Muon(matrices, config.lr, config.momentum, config.weight_decay)
    return Optimizers(config, [muon, _adamw(config, config.adam_lr, others)])


def _adamw(config: OptimConfig, lr: float, params: list[nn.Parameter]) -> torch.optim.AdamW:
    groups = [
        {"params": [param for param in params if param.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [param for param in params if param.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=(config.beta1, config.beta2), fused=True)


def schedule(config: OptimConfig, progress: float) -> float:
    """The learning rate as a share of its peak, at `progress` in [0, 1] of the budget.

    Linear warm-up over the first `warmup` share; then constant, linear or cosine to `final_lr`, or `wsd`: constant, and
    linear to `final_lr` over the last `decay` share (warm-up, stable, decay: arXiv:2404.06395).
    """
    if progress < config.warmup:
        return min(1.0, max(progress, 1e-3) / config.warmup)
    final = 1.0 if config.final_lr is None else config.final_lr
    length = config.decay if config.schedule == "wsd" and config.decay is not None else 1 - config.warmup
    done = min(1.0, max(0.0, 1 - (1 - progress) / length)) if length else 0.0
    if config.schedule == "constant":
        return 1.0
    if config.schedule == "cosine":
        return final + (1 - final) * (1 + math.cos(math.pi * done)) / 2
    return 1 - (1 - final) * done
