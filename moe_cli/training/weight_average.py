"""A running average of the weights, which may replace them in an evaluation."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from moe_cli.training.optimizers import local_part


class WeightAverage:
    """A running average of a model's parameters (Polyak averaging): average = d * average + (1 - d) * weights.

    d is min(decay, n / (9 + n)) in step n = 1, 2, ..., so that the initial weights soon have no influence.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self._params = dict(model.named_parameters())
        self.tensors = {name: param.detach().clone() for name, param in self._params.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Updates the average after optimizer step `step`, which is counted from 1."""
        weight = 1 - min(self.decay, step / (9 + step))
        averages, params = (
            [local_part(tensor) for tensor in tensors.values()] for tensors in (self.tensors, self._params)
        )
        torch._foreach_lerp_(averages, params, weight)

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Returns a context in which the model has the average as its weights."""
        weights = {name: param.detach().clone() for name, param in self._params.items()}
        self._set(self.tensors)
        try:
            yield
        finally:
            self._set(weights)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        for name, tensor in self.tensors.items():
            tensor.copy_(tensors[name])

    @torch.no_grad()
    def _set(self, tensors: Mapping[str, Tensor]) -> None:
        for name, param in self._params.items():
            param.copy_(tensors[name])
