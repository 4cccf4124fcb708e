"""How is one model trained by several processes? By DDP or FSDP of torch, and by expert parallelism.

With DDP every process has the whole model. With FSDP2 (`fully_shard`) every process has a part of each parameter, of
its gradient and of its optimizer state; it gathers the parameters of a block while it computes that block. Expert
parallelism is in `moe_cli.moe.expert_parallel`. With one process the model stays as it is.
M processes share one set of experts, N processes in all.
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
    """A model that is distributed over the processes.

    Attributes:
        model: the given module, whose parameters are replaced by this process's parts.
        forward: the module to call in training; it averages gradients over processes, and is compiled on request.
        expert_group: the processes that share one set of experts; None means that every process has all experts.
    """

    def __init__(self, config: LaunchConfig, model: nn.Module, compiled: bool = False) -> None:
        self.model = model
        self.forward: nn.Module = torch.compile(model) if compiled else model  # type: ignore[assignment]
        self.expert_group: ExpertGroup | None = None
        self.layers = moe_layers(model)
        self._expert_params: dict[str, nn.Parameter] = {}
        self._distribute(config)
        self._params = dict(model.named_parameters())

    def _distribute(self, config: LaunchConfig) -> None:
        model = self.model
        if collectives.world_size() == 1:
            return
        device = next(model.parameters()).device
        if config.expert_parallel_size > 1 and self.layers:
            self.expert_group = make_expert_group(device.type, config.expert_parallel_size)
            for layer in self.layers:
                layer.shard_experts(self.expert_group)
            members = {param for layer in self.layers for param in layer.experts.parameters()}
            self._expert_params = {name: param for name, param in model.named_parameters() if param in members}
        if config.data_parallel == "fsdp":
            self._shard(device.type)
        else:
            # Buffers are equal on all processes, because their updates use the load of all processes.
            ignored = [*self._expert_params, *(name for name, _ in model.named_buffers())]
            DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, ignored)
            devices = [device.index] if device.type == "cuda" else None
            self.forward = DistributedDataParallel(model, device_ids=devices)

    def _shard(self, device: str) -> None:
        """Shards the parameters, except those of experts that are divided among processes.

        The outermost parameters are also freed after a forward pass. Otherwise training would reuse those that an
        evaluation gathered, although the weights have changed since.
        """
        mesh = init_device_mesh(device, (collectives.world_size(),))
        ignored = set(self._expert_params.values())
        for block in getattr(self.model, "blocks", ()):
            fully_shard(block, mesh=mesh, ignored_params=ignored)
        fully_shard(self.model, mesh=mesh, ignored_params=ignored, reshard_after_forward=True)

    def grad_sync(self, last: bool) -> AbstractContextManager[None]:
        """Returns a context in which backward averages gradients over processes only in the `last` batch of a step."""
        if isinstance(self.forward, DistributedDataParallel) and not last:
            return self.forward.no_sync()
        return nullcontext()

    @torch.no_grad()
    def reduce_expert_gradients(self) -> None:
        """Averages the gradients of divided experts, which are sums over the tokens of M processes, over all N."""
        if self.expert_group is None:
            return
        replicas = self.expert_group.mesh["replicas"]
        for param in self._expert_params.values():
            if param.grad is not None:
                if replicas.size() > 1:
                    dist.all_reduce(param.grad, group=replicas.get_group())
                param.grad.div_(collectives.world_size())

    @torch.no_grad()
    def gradient_norm(self) -> Tensor:
        """Computes the norm of the full gradient over all processes."""
        grads = {name: param.grad for name, param in self._params.items() if param.grad is not None}
        replicated = nn.utils.get_total_norm([grad for name, grad in grads.items() if name not in self._expert_params])
        if self.expert_group is None:
            return full_tensor(replicated)
        divided = nn.utils.get_total_norm([grads[name] for name in self._expert_params if name in grads]).square()
        dist.all_reduce(divided, group=self.expert_group.group)
        return (full_tensor(replicated).square() + divided).sqrt()

    def local_counts(self, load: Sequence[Tensor]) -> Sequence[Tensor]:
        """Returns, per layer, the counts of this process's experts, from the counts of all but null experts."""
        return load if self.expert_group is None else [self.expert_group.local_shard(counts) for counts in load]

    def to_full(self, tensor: Tensor, name: str) -> Tensor:
        """Returns the full tensor of a parameter or of its optimizer state, from the parts of all processes.

        Args:
            name: name of the parameter.
        """
        tensor = full_tensor(tensor.detach())
        return self.expert_group.gather(tensor) if self.expert_group and self._is_divided(tensor, name) else tensor

    def to_local(self, tensor: Tensor, name: str, like: Tensor) -> Tensor:
        """Returns this process's part of a full tensor, distributed as `like`: the inverse of `to_full`."""
        if self.expert_group and self._is_divided(tensor, name):
            tensor = self.expert_group.local_shard(tensor)
        if isinstance(like, DTensor):
            return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)
        return tensor

    def _is_divided(self, tensor: Tensor, name: str) -> bool:
        """Returns True if each process has the rows of its experts only; step counts are single numbers."""
        return name in self._expert_params and tensor.ndim > 0


def full_tensor(tensor: Tensor) -> Tensor:
    """Returns the full tensor of a sharded one; any other tensor unchanged."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
