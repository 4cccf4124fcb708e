"""A GPU that is not there: tensors on the CPU that say they are on `cuda`, for the checks that need no GPU.

Fake tensors do not help: autograd asks torch's C++ registry for the device guard of `cuda`, which a build without CUDA
does not have. Here every tensor is real, so that routing by values works, and two modes keep the book on places:

- The function mode sees the calls of Python. It replaces the device of factories and moves by the CPU, remembers the
  place of what they return, and answers `tensor.device`.
- The dispatch mode sees the operators, those of autograd's backward included. An operator that mixes places raises an
  error, as on a GPU; tensors of no dimension may be on the CPU. What an operator returns is where its operands are.

Reads are operators for which the CPU waits for the GPU: values, and sizes that depend on values.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
# Functions of Python that read values, with one wait whatever they do on the CPU.
VALUES = ("item", "tolist", "__bool__", "__float__", "__int__", "__index__", "__complex__")
# Operators whose result has a size that depends on values, or that return a value.
READS = (
    "_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_consecutive", "unique_dim", "bincount",
    "equal", "is_nonzero",
)  # fmt: skip
INDEXED = ("index", "index_put", "index_put_", "_index_put_impl_")


class WrongDevice(RuntimeError):
    """An operator got tensors of two devices."""


class Places:
    """The device of each storage. A storage that is not known is on the CPU."""

    def __init__(self) -> None:
        # Weak references keep the addresses from being used again.
        self._known: dict[int, tuple[StorageWeakRef, torch.device | None]] = {}
        self.reads: Counter[str] = Counter()

    def of(self, tensor: Tensor) -> torch.device | None:
        """Returns the device; None for what torch itself made on the way, which goes where it is used."""
        if tensor.layout != torch.strided:
            return None
        return self._known.get(tensor.untyped_storage()._cdata, (None, CPU))[1]

    def put(self, values: Any, device: torch.device | None) -> None:
        for tensor in tensors_in(values):
            if tensor.layout == torch.strided:
                storage = tensor.untyped_storage()
                self._known[storage._cdata] = StorageWeakRef(storage), device

    def has(self, values: Any) -> bool:
        """Returns whether one of these tensors is on the GPU."""
        return any(self.of(tensor) == CUDA for tensor in tensors_in(values))


class Operators(TorchDispatchMode):
    """Checks and records the places of every operator."""

    def __init__(self, places: Places) -> None:
        super().__init__()
        self.places = places

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        places, inputs = self.places, tensors_in((args, kwargs))
        name = func.overloadpacket.__name__
        on_gpu = places.has(inputs)
        if on_gpu:
            others = [tensor for tensor in inputs if tensor.dim() and places.of(tensor) == CPU]
            if others and name not in ("copy_", "_foreach_copy_"):
                raise WrongDevice(f"{func} mixes cuda and cpu: {[tuple(tensor.shape) for tensor in inputs]}")
            self._count(name, args, kwargs or {})
        result = func(*args, **(kwargs or {}))
        if on_gpu:
            places.put([tensor for tensor in (*inputs, *tensors_in(result)) if places.of(tensor) is None], CUDA)
            new = {id(tensor) for tensor in inputs}
            places.put([tensor for tensor in tensors_in(result) if id(tensor) not in new], CUDA)
        elif all(places.of(tensor) is None for tensor in inputs):
            places.put(result, None)
        return result

    def _count(self, name: str, args: Any, kwargs: Any) -> None:
        is_read = name in READS
        if name == "repeat_interleave":
            is_read = kwargs.get("output_size") is None
        if name in INDEXED:
            is_read = any(index.dtype in (torch.bool, torch.uint8) for index in tensors_in(args[1]))
        if name in ("copy_", "_foreach_copy_"):
            is_read = self.places.of(tensors_in(args[0])[0]) == CPU
        if is_read:
            self.places.reads[name] += 1


class Functions(TorchFunctionMode):
    """Replaces the pretended device in calls of Python."""

    def __init__(self, places: Places) -> None:
        super().__init__()
        self.places = places

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        places = self.places
        if name == "__get__":
            owner = getattr(func, "__self__", None)
            if owner is Tensor.device:
                return places.of(args[0]) or CPU
            if owner in (Tensor.is_cuda, Tensor.is_cpu):
                return (places.of(args[0]) == CUDA) == (owner is Tensor.is_cuda)
            return func(*args, **kwargs)
        if name in VALUES and places.has(args[:1]):
            places.reads[name] += 1
            with _disable_current_modes():
                return func(*args, **kwargs)
        if func is Tensor.backward:
            return self._backward(*args)
        if name == "numpy" and places.has(args[:1]):
            raise WrongDevice("numpy cannot read a tensor on cuda")
        if name in ("to", "cpu", "cuda") and isinstance(args[0], Tensor):
            return self._move(name, args[0], args[1:], kwargs)
        if kwargs.get("device") is not None:
            return self._make(func, args, kwargs)
        result = func(*args, **kwargs)
        if not tensors_in((args, kwargs)):
            places.put(result, CPU)
        return result

    def _backward(self, loss: Tensor) -> None:
        """Runs the backward pass of a loss in this mode, which `torch.autograd.backward` would leave."""
        run = torch.autograd.Variable._execution_engine.run_backward
        with self:
            run((loss,), (torch.ones_like(loss),), False, False, (), allow_unreachable=True, accumulate_grad=True)

    def _make(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Calls a factory, and puts what it returns on the device of its keyword."""
        result = func(*args, **{**kwargs, "device": "cpu"})
        self.places.put(result, placed(kwargs["device"]))
        return result

    def _move(self, name: str, tensor: Tensor, args: Any, kwargs: Any) -> Tensor:
        """Carries out `to`, `cpu` and `cuda`. A tensor that changes its device is copied."""
        before = self.places.of(tensor) or CPU
        words, options = list(args), dict(kwargs)
        after = {"cpu": CPU, "cuda": CUDA}.get(name, before)
        if name == "to":
            device = options.pop("device", None)
            if words and isinstance(words[0], Tensor):
                other = words.pop(0)
                device, words = self.places.of(other) or CPU, [other.dtype, *words]
            elif words and isinstance(words[0], str | int | torch.device):
                device = words.pop(0)
            after = before if device is None else placed(device)
        else:
            words = []
        options.pop("non_blocking", None)
        dtype = options.pop("dtype", None) or (
            words[0] if words and isinstance(words[0], torch.dtype) else tensor.dtype
        )
        if after == before:
            return tensor if dtype == tensor.dtype and not options.get("copy") else tensor.to(dtype)
        if after == CPU:
            self.places.reads[name] += 1
        moved = tensor.to(dtype, copy=True)
        self.places.put(moved, after)
        return moved


def placed(device: Any) -> torch.device:
    """Returns the device with its number: there is one GPU."""
    found = torch.device(device)
    assert found.type in ("cpu", "cuda"), device
    return CUDA if found.type == "cuda" else CPU


def tensors_in(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


@contextmanager
def pretended_cuda() -> Iterator[Places]:
    """Gives torch a GPU of compute capability 9.0 while the context lasts."""
    places = Places()
    with ExitStack() as stack:
        # oneDNN has no LSTM in bfloat16 on a processor that cannot multiply it.
        stack.callback(torch._C._set_mkldnn_enabled, torch._C._get_mkldnn_enabled())
        torch._C._set_mkldnn_enabled(False)
        for target, replacement in REPLACED.items():
            stack.enter_context(patch(target, replacement))
        for target in GROUPING:
            stack.enter_context(patch(target, grouping(places)))
        stack.enter_context(Operators(places))
        stack.enter_context(Functions(places))
        yield places


class Autocast(torch.autocast):
    """The autocast of the CPU under the name of the GPU's."""

    def __init__(self, device_type: str, *args: Any, **kwargs: Any) -> None:
        super().__init__("cpu", *args, **kwargs)


def of_cpu(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function of a device's name that always gets the CPU's."""
    return lambda device_type="cpu": function("cpu")


REPLACED: dict[str, Any] = {
    "torch.autocast": Autocast,
    "torch.is_autocast_enabled": of_cpu(torch.is_autocast_enabled),
    "torch.get_autocast_dtype": of_cpu(torch.get_autocast_dtype),
    "torch.backends.cudnn.is_acceptable": lambda tensor: False,
    "torch.cuda.get_device_capability": lambda device=None: (9, 0),
    "torch.cuda.get_rng_state": lambda device=None: torch.get_rng_state(),
    "torch.cuda.set_rng_state": lambda state, device=None: None,
}
GROUPING = (
    "torch.nn.utils.clip_grad._group_tensors_by_device_and_dtype",
    "torch.optim.optimizer._group_tensors_by_device_and_dtype",
)


def grouping(places: Places) -> Callable[..., Any]:
    """Returns torch's grouping of tensors by device, which asks C++ for the device, with the pretended one."""
    from torch.utils._foreach_utils import _group_tensors_by_device_and_dtype as original

    def group(lists: Any, with_indices: bool = False) -> Any:
        found = original(lists, with_indices)
        return {
            (places.of(tensors[0][0]) or CPU, dtype): (tensors, where) for (_, dtype), (tensors, where) in found.items()
        }

    return group
