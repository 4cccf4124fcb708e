"""One model in the hands of several processes: data parallel, sharded, experts divided. Through torch's own engines.

Data parallel (DDP): every process has the whole model. Sharded (FSDP2, `fully_shard`): each has a part of every
parameter, and of its gradient and optimizer state, and gathers a block's parameters while it computes that block.
Experts divided: see `moe_cli.moe.expert_parallel`. Alone, all of it does nothing.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from moe_cli.config.launch import LaunchConfig
from moe_cli.distributed import collectives
from moe_cli.distributed.collectives import ExpertGroup, make_expert_group
from moe_cli.moe.sparse_layer import moe_layers


class DistributedModel:
    """Distributes a model over the processes, and gathers its tensors.

    Attributes:
        model: the given module, with its parameters replaced by this process's parts.
        forward: the module to call in training, which averages gradients over processes; compiled if requested.
        experts: the expert parallelism; None means that every process has all experts.
    """

    def __init__(self, config: LaunchConfig, model: nn.Module, compiled: bool = False) -> None:
        self.model = model
        self.forward: nn.Module = torch.compile(model) if compiled else model  # type: ignore[assignment]
        self.experts: ExpertGroup | None = None
        self._expert_params: dict[str, nn.Parameter] = {}
        if collectives.world_size() == 1:
            return
        device = next(model.parameters()).device
        layers = moe_layers(model)
        if config.expert_parallel_size > 1 and layers:
            self.experts = make_expert_group(device.type, config.expert_parallel_size)
            for layer in layers:
                layer.shard_experts(self.experts)
            members = {param for layer in layers for param in layer.experts.parameters()}
            self._expert_params = {name: param for name, param in model.named_parameters() if param in members}
        if config.data_parallel == "fsdp":
            self._shard(device.type)
        else:
            # Buffers are equal on all processes: their updates, such as that of the balancing bias, use the load of
            # all.
            ignored = [*self._expert_params, *(name for name, _ in model.named_buffers())]
            DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, ignored)
            devices = [device.index] if device.type == "cuda" else None
            self.forward = DistributedDataParallel(model, device_ids=devices)

    def _shard(self, device: str) -> None:
        """Shards the parameters, except divided experts, whose rows are used outside of their own forward pass.

        The outermost parameters are also freed after a forward pass. Otherwise those of an evaluation would be reused
        in training, after the weights have changed.
        """
        mesh = init_device_mesh(device, (collectives.world_size(),))
        ignored = set(self._expert_params.values())
        for block in getattr(self.model, "blocks", ()):
            fully_shard(block, mesh=mesh, ignored_params=ignored)
        fully_shard(self.model, mesh=mesh, ignored_params=ignored, reshard_after_forward=True)

    def grad_sync(self, last: bool) -> AbstractContextManager[None]:
        """Averages gradients over processes only with the last batch of a step."""
        if isinstance(self.forward, DistributedDataParallel) and not last:
            return self.forward.no_sync()
        return nullcontext()

    @torch.no_grad()
    def reduce_expert_gradients(self) -> None:
        """Averages the gradients of divided experts, which have seen the tokens of M processes, over all N."""
        if self.experts is None:
            return
        replicas = self.experts.mesh["replicas"]
        for param in self._expert_params.values():
            if param.grad is not None:
                if replicas.size() > 1:
                    dist.all_reduce(param.grad, group=replicas.get_group())
                param.grad.div_(collectives.world_size())

    @torch.no_grad()
    def gradient_norm(self) -> Tensor:
        """Returns the norm of the full gradient over all processes."""
        grads = {name: param.grad for name, param in self.model.named_parameters() if param.grad is not None}
        shared = nn.utils.get_total_norm([grad for name, grad in grads.items() if name not in self._expert_params])
        if self.experts is None:
            return full_tensor(shared)
        own = nn.utils.get_total_norm([grads[name] for name in self._expert_params if name in grads]).square()
        dist.all_reduce(own, group=self.experts.group)
        return (full_tensor(shared).square() + own).sqrt()

    def local_counts(self, load: Sequence[Tensor]) -> list[Tensor]:
        """Returns, per layer, the counts of the experts whose parameters are on this process, without null experts."""
        real = [counts[: layer.num_experts] for layer, counts in zip(moe_layers(self.model), load, strict=True)]
        return real if self.experts is None else [self.experts.local_shard(counts) for counts in real]

    def to_full(self, tensor: Tensor, name: str) -> Tensor:
        """Returns the full tensor of a parameter, or of its optimizer state; `name` is the parameter's."""
        tensor = full_tensor(tensor.detach())
        divided = name in self._expert_params and self.experts is not None and tensor.ndim
        return self.experts.gather(tensor) if divided and self.experts else tensor

    def to_local(self, tensor: Tensor, name: str, like: Tensor) -> Tensor:
        """Returns the inverse of `to_full`: this process's part, shaped and placed as `like`."""
        if name in self._expert_params and self.experts is not None and tensor.ndim:
            tensor = self.experts.local_shard(tensor)
        if isinstance(like, DTensor):
            return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)
        return tensor


def full_tensor(tensor: Tensor) -> Tensor:
    """Returns a sharded tensor put together; any other as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
