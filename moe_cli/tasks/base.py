"""The base of a task, as training and evaluation use it: batches, the loss, and metrics of the outputs.

T routed tokens: positions of a text, patches of an image, or pairs of user and item.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from moe_cli.data.dataset import Dataset
from moe_cli.moe.routing import Routing


class Batch(ABC):
    """Examples for training or evaluation: a frozen dataclass of tensors.

    Attributes:
        num_bytes: the bytes of text of the targets; None means that they are not text, or of unknown size.
    """

    num_bytes: int | None

    @property
    @abstractmethod
    def num_examples(self) -> int:
        """Returns the number of sequences, images or pairs: the units of a balancing loss of scope `sequence`."""

    @property
    @abstractmethod
    def num_targets(self) -> int:
        """Returns the number of targets: the loss is the mean over them."""

    def to(self, device: torch.device) -> Any:
        """Returns the batch on a device."""
        batch: Any = self
        return replace(batch, **{key: item.to(device) for key, item in vars(self).items() if isinstance(item, Tensor)})


@dataclass(frozen=True)
class EvalBatchResult:
    """The result of a batch at evaluation.

    Attributes:
        loss: mean over its targets.
        routings: of the sparse layers.
        sums: the sums from which the task's metrics are computed; those of batches are added.
    """

    loss: Float[Tensor, ""]
    routings: list[Routing]
    sums: Mapping[str, Tensor] = field(default_factory=dict)


# Key of `EvalBatchResult.sums`: for each domain the sum of its losses and the number of its targets, [2, G].
BY_DOMAIN = "by_domain"
# Key of `EvalBatchResult.sums`: the number of earlier tokens that a causal model predicts from, summed over targets.
CONTEXT = "context"


def sum_by_domain(losses: Float[Tensor, " N"], domains: Int[Tensor, " N"], num_domains: int) -> Float[Tensor, "2 G"]:
    """Returns the losses of N targets summed by domain, and their number."""
    sums = torch.zeros(2, num_domains, dtype=torch.float64, device=losses.device)
    domains = domains.to(losses.device)
    sums[0].index_add_(0, domains, losses.double())
    sums[1].index_add_(0, domains, torch.ones_like(losses, dtype=torch.float64))
    return sums


class Task(ABC):
    """A data set, cut into batches by the seed and an index, with the loss and metrics of a model on them.

    Attributes:
        vocab_size: the number of ids of routed tokens (tokens, positions of patches, items).
    """

    vocab_size: int

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    @property
    def domains(self) -> Sequence[str]:
        """Returns the names of the groups that examples belong to."""
        return self.dataset.meta["domains"]  # type: ignore[no-any-return]

    @property
    def meta(self) -> Mapping[str, Any]:
        """Returns the metadata of the data set, with the task's baselines as `references`."""
        return self.dataset.meta

    @abstractmethod
    def train_batch(self, index: int, size: int, part: int = 0, parts: int = 1) -> Batch:
        """Returns the `part`-th of `parts` equal parts of the `index`-th batch of `size` examples.

        It depends on the seed and the index alone, so that any step can be repeated.
        """

    @abstractmethod
    def val_batches(self, size: int, max_tokens: int | None = None) -> Iterator[Batch]:
        """Yields the validation split in batches, the same for every seed; or about `max_tokens`, evenly spread."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Any) -> tuple[Float[Tensor, ""], list[Routing]]:
        """Returns the loss to minimise, and the routings of the model's sparse layers."""

    @abstractmethod
    def score(self, model: nn.Module, batch: Any) -> EvalBatchResult:
        """Returns the loss and the sums of the task's metrics."""

    def metrics(self, sums: Mapping[str, Tensor], num_targets: int) -> dict[str, float]:
        """Returns the task's own metrics from the sums over batches, by their names in summary.json without `val_`."""
        return {}

    @abstractmethod
    def routed_ids_and_domains(self, batch: Any) -> list[tuple[Int[Tensor, " T"], Int[Tensor, " T"]]]:
        """Returns the id and the domain of each routed token, in each stack. Stacks have equally many sparse layers."""

    def routed_documents(self, batch: Any) -> list[Int[Tensor, " T"]] | None:
        """Returns the document of each routed token, in each stack; None if each example of a batch is one."""
        return None

    @abstractmethod
    def id_texts(self, ids: Sequence[int]) -> dict[int, str]:
        """Returns the text of each id, where it is known."""

    def pseudo_perplexity_task(self) -> "Task | None":
        """Returns the task of the final pseudo-perplexity, a slower evaluation of the same task; None means none."""
        return None
