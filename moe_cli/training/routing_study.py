"""How does a trained model route a text with domains, and how much of that is chance or geometry?

One evaluation of the split counts everything. Memory does not grow with the text: tables of counts, at most MAX_UNITS
units per layer, and samples of SAMPLE_TOKENS and CALIBRATION_TOKENS tokens.
T tokens, E experts, D width, U units (documents), G domains.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from moe_cli.formatting import listed
from moe_cli.moe.locality import DISTANCES, ExpertLocality, TokenSample
from moe_cli.moe.max_violation import max_violation
from moe_cli.moe.routing import Routing, RoutingPolicy, without_null_experts
from moe_cli.moe.routing_metrics import (
    assignment_mask,
    assignments_by_group,
    chance_saturation,
    co_activation_dependence,
    expected_co_activation,
    relative_load,
    router_saturation,
    specialisation,
)
from moe_cli.moe.routing_study import (
    NUM_RANDOM_ROUTERS,
    NUM_SHUFFLES,
    CoActivation,
    Control,
    DomainSpecialisation,
    ExpertPair,
    LayerStudy,
    Locality,
    Repeats,
    RoutingStudy,
    Saturation,
)
from moe_cli.moe.sparse_layer import SparseLayer, moe_layers
from moe_cli.moe.specialisation_controls import (
    RandomRouters,
    permutation_p_value,
    shuffled_specialisations,
)
from moe_cli.tasks.base import Batch, Task
from moe_cli.training.evaluate import Evaluation, LayerRoutingStats, evaluate, probe_routing
from moe_cli.training.explain import on_cpu

# Units whose labels are shuffled; more documents are grouped with their neighbours of the same domain.
MAX_UNITS = 2048
# Tokens whose order is shuffled, tokens by which random routers are balanced, and tokens of a saturation.
SAMPLE_TOKENS, CALIBRATION_TOKENS, SATURATION_TOKENS = 8192, 2048, 4096
# The windows that the calibration reads at least, so that it sees all domains.
CALIBRATION_WINDOWS = 32
# Pairs of experts that are listed.
MAX_PAIRS = 8
Observer = Callable[[Batch, list[Routing], list[tuple[Tensor, ...]]], None]


@dataclass(frozen=True)
class Earlier:
    """The choices of an earlier checkpoint, for each sparse layer, on the tokens of `saturation_choices`."""

    name: str
    choices: list[Bool[Tensor, "_T E"]]


def study_routing(  # noqa: PLR0913  (a setting each)
    model: nn.Module,
    task: Task,
    batch_size: int,
    window: int,
    *,
    names: Mapping[str, Any],
    policy: RoutingPolicy,
    precision: str,
    max_tokens: int | None = None,
    earlier: Sequence[Earlier] = (),
) -> RoutingStudy:
    """Returns the study of a model's routing on the validation split of its task.

    Args:
        window: tokens of a validation window.
        names: `run`, `step`, `data` and `split` of the result.
        policy: experts per token, and a capacity: assignments are counted before drops.
        max_tokens: read about this number of tokens; None means the whole split.
        earlier: the choices of earlier checkpoints, by `saturation_choices`.
    """
    layers = moe_layers(model)
    read = {"policy": policy, "precision": precision}
    random: list[RandomRouters | None] = [None for _ in layers]
    with recorded_inputs(layers) as inputs:
        if len(task.domains) > 1:
            sample = CalibrationObserver(inputs)
            wanted = max(CALIBRATION_TOKENS, CALIBRATION_WINDOWS * window)
            tokens = wanted if max_tokens is None else min(wanted, max_tokens)
            evaluate(model, task, batch_size, max_tokens=tokens, observer=sample, **read)  # type: ignore[arg-type]
            random = [sample.random_routers(layer) for layer in range(len(layers))]
        observer = StudyObserver(task, inputs, random)
        result = evaluate(
            model,
            task,
            batch_size,
            max_tokens=max_tokens,
            observer=observer,
            **read,  # type: ignore[arg-type]
        )
    final = saturation_choices(model, task, policy, precision) if earlier else []
    saturations = [
        tuple(
            Saturation(
                one.name, router_saturation(one.choices[layer], mask), chance_saturation(one.choices[layer], mask)
            )
            for one in earlier
        )
        for layer, mask in enumerate(final)
    ]
    num_tokens = result.layers[0].num_tokens
    return RoutingStudy(
        **names,
        num_tokens=num_tokens,
        top_k=result.layers[0].tokens_per_expert.sum().item() / max(1, num_tokens),
        loss=result.loss,
        bits_per_byte=result.bits_per_byte,
        domain_tokens=_by_name(result.domains, observer.domain_tokens),
        domain_losses=result.domain_losses,
        layers=tuple(
            _layer_study(number, stats, observer.layers[number], result, saturations[number] if saturations else ())
            for number, stats in enumerate(result.layers)
        ),
        notes=_notes(result, observer),
    )


def saturation_choices(
    model: nn.Module, task: Task, policy: RoutingPolicy, precision: str
) -> list[Bool[Tensor, "_T E"]]:
    """Returns, for each sparse layer, the choices of about SATURATION_TOKENS tokens, evenly spread over the split."""
    return probe_routing(model, task, policy.top_k, precision, SATURATION_TOKENS)


@contextmanager
def recorded_inputs(layers: Sequence[SparseLayer]) -> Iterator[list[Float[Tensor, "_T D"]]]:
    """Yields a list that has, after each forward pass, the tokens that the router of each layer read."""
    inputs: list[Any] = [torch.empty(0, 0) for _ in layers]

    def hook(number: int) -> Callable[[nn.Module, Any], None]:
        def record(_: nn.Module, values: Any) -> None:
            inputs[number] = values[0].detach()

        return record

    handles = [layer.router.register_forward_pre_hook(hook(number)) for number, layer in enumerate(layers)]
    try:
        yield inputs
    finally:
        for handle in handles:
            handle.remove()


class CalibrationObserver:
    """A sample of the hidden states of each layer, with the experts that its router chose."""

    def __init__(self, inputs: list[Float[Tensor, "_T D"]]) -> None:
        self._inputs = inputs
        self._samples: list[TokenSample] = []

    def __call__(self, batch: Batch, routings: list[Routing], stacks: list[tuple[Tensor, ...]]) -> None:
        self._samples = self._samples or [TokenSample(CALIBRATION_TOKENS) for _ in routings]
        for sample, tokens, routing in zip(self._samples, self._inputs, routings, strict=True):
            mask = assignment_mask(without_null_experts(routing))
            sample.add(torch.cat([tokens.reshape(len(mask), -1).float(), mask.float()], dim=1).cpu())
            self._num_experts = mask.shape[1]

    def random_routers(self, layer: int) -> RandomRouters | None:
        """Returns random routers with the load of a layer; None where the layer uses all experts or none."""
        rows = self._samples[layer].shuffled()
        tokens, mask = rows.split([rows.shape[1] - self._num_experts, self._num_experts], dim=1)
        mean = mask.sum(1).mean().item()
        top_k = max(1, round(mean))
        if not mean or top_k >= self._num_experts:
            return None
        routers = RandomRouters(tokens.shape[1], self._num_experts, top_k, seed=layer)
        routers.balance(tokens, mask.mean(0) * (top_k / mean))
        return routers


class UnitCounts:
    """The assignments of each document to each expert, or of groups of neighbouring documents of one domain.

    Groups double in size when there are more than MAX_UNITS.

    Attributes:
        keys: group * G + domain of each unit, in ascending order.
        counts: the assignments of each unit.
    """

    def __init__(self, num_domains: int, num_experts: int) -> None:
        self.num_domains = num_domains
        self.documents_per_unit = 1
        self.keys: Int[Tensor, " U"] = torch.empty(0, dtype=torch.int64)
        self.counts: Int[Tensor, "U E"] = torch.zeros(0, num_experts, dtype=torch.int64)

    @property
    def domains(self) -> Int[Tensor, " U"]:
        return self.keys % self.num_domains

    def add(self, routing: Routing, documents: Int[Tensor, " T"], domains: Int[Tensor, " T"]) -> None:
        """Adds the assignments of a batch, whose tokens are of these documents and domains."""
        keys = documents // self.documents_per_unit * self.num_domains + domains
        units, index = keys.unique(return_inverse=True)
        self._merge(torch.cat([self.keys, units]), [self.counts, assignments_by_group(routing, index, len(units))])
        while len(self.keys) > MAX_UNITS and self.keys[-1] >= self.num_domains:
            self.documents_per_unit *= 2
            groups = self.keys // self.num_domains // 2
            self._merge(groups * self.num_domains + self.domains, [self.counts])

    def _merge(self, keys: Int[Tensor, " N"], counts: list[Int[Tensor, "_ E"]]) -> None:
        self.keys, index = keys.unique(return_inverse=True)
        rows = torch.cat(counts)
        self.counts = torch.zeros(len(self.keys), rows.shape[1], dtype=torch.int64).index_add_(0, index, rows)


class LayerObserver:
    """The counts of one layer that `LayerRoutingStats` has not."""

    def __init__(self, num_experts: int, num_domains: int, random: RandomRouters | None) -> None:
        self.units = UnitCounts(num_domains, num_experts)
        self.random = random
        self.random_by_domain = torch.zeros(NUM_RANDOM_ROUTERS, num_domains * num_experts, dtype=torch.int64)
        self.locality = ExpertLocality(num_experts)
        self.sample = TokenSample(SAMPLE_TOKENS)

    def add(
        self, routing: Routing, tokens: Float[Tensor, "T D"], documents: Int[Tensor, " T"], domains: Int[Tensor, " T"]
    ) -> None:
        """Adds a batch: its routing without null experts, and its tokens with their documents and domains."""
        mask = assignment_mask(routing)
        self.locality.add(mask)
        self.sample.add(mask)
        if self.units.num_domains > 1:
            self.units.add(routing, documents, domains)
        if self.random is not None:
            size = self.random_by_domain.shape[1]
            experts = self.random.choose(tokens.reshape(len(mask), -1)).cpu()
            pairs = domains[:, None] * routing.num_experts + experts
            for counts, chosen_pairs in zip(self.random_by_domain, pairs, strict=True):
                counts += torch.bincount(chosen_pairs.flatten(), minlength=size)


class StudyObserver:
    """The counts of all layers over an evaluation.

    Attributes:
        domain_tokens: the routed tokens of each domain, in all stacks.
    """

    def __init__(self, task: Task, inputs: list[Float[Tensor, "_T D"]], random: Sequence[RandomRouters | None]) -> None:
        self._task, self._inputs, self._random = task, inputs, random
        self._num_examples = 0
        self.layers: list[LayerObserver] = []
        self.domain_tokens = torch.zeros(len(task.domains), dtype=torch.int64)

    def __call__(self, batch: Batch, routings: list[Routing], stacks: list[tuple[Tensor, ...]]) -> None:
        kept = [on_cpu(without_null_experts(routing)) for routing in routings]
        size = len(self._task.domains)
        self.layers = self.layers or [
            LayerObserver(routing.num_experts, size, random) for routing, random in zip(kept, self._random, strict=True)
        ]
        documents = self._documents(batch, stacks)
        domains = [stack[1].cpu() for stack in stacks]
        for found in domains:
            self.domain_tokens += torch.bincount(found, minlength=size)
        for number, (layer, routing) in enumerate(zip(self.layers, kept, strict=True)):
            stack = number * len(stacks) // len(kept)
            layer.add(routing, self._inputs[number], documents[stack], domains[stack])

    def _documents(self, batch: Batch, stacks: list[tuple[Tensor, ...]]) -> list[Int[Tensor, " T"]]:
        """Returns the document of each routed token, in each stack; without a record, each example is one."""
        if len(self._task.domains) < 2:
            return [torch.zeros(len(ids), dtype=torch.int64) for ids, *_ in stacks]
        known = self._task.routed_documents(batch)
        if known is not None:
            return known
        first, self._num_examples = self._num_examples, self._num_examples + batch.num_examples
        examples = torch.arange(first, self._num_examples)
        return [examples.repeat_interleave(len(ids) // batch.num_examples) for ids, *_ in stacks]


def _layer_study(
    number: int,
    stats: LayerRoutingStats,
    observed: LayerObserver,
    result: Evaluation,
    saturation: tuple[Saturation, ...],
) -> LayerStudy:
    return LayerStudy(
        number,
        relative_load(stats.tokens_per_expert),
        max_violation(stats.tokens_per_expert.tolist()),
        {
            name: relative_load(counts)
            for name, counts in zip(result.domains, stats.by_domain, strict=True)
            if int(counts.sum())
        },
        _specialisation(stats, observed),
        _co_activation(stats),
        _locality(observed),
        saturation,
    )


def _specialisation(stats: LayerRoutingStats, observed: LayerObserver) -> DomainSpecialisation | None:
    """Returns the specialisation with its controls; None if all tokens are of one domain."""
    if int(stats.by_domain.any(1).sum()) < 2:
        return None
    measured, units = specialisation(stats.by_domain), observed.units
    shuffled = shuffled_specialisations(units.counts, units.domains, units.num_domains)
    tail = round(0.025 * NUM_SHUFFLES)
    control = _control(measured, shuffled, shuffled[tail], shuffled[-1 - tail])
    p_value = permutation_p_value(measured, shuffled)
    if observed.random is None:
        return DomainSpecialisation(measured, control, p_value, len(units.keys), None, None)
    tables = observed.random_by_domain.view(NUM_RANDOM_ROUTERS, units.num_domains, -1)
    values = [specialisation(table) for table in tables]
    violations = [max_violation(table.sum(0).tolist()) for table in tables]
    return DomainSpecialisation(
        measured,
        control,
        p_value,
        len(units.keys),
        _control(measured, values, min(values), max(values)),
        sum(violations) / len(violations),
    )


def _control(measured: float, values: Sequence[float], low: float, high: float) -> Control:
    mean = sum(values) / len(values)
    return Control(mean, low, high, measured - mean)


def _co_activation(stats: LayerRoutingStats) -> CoActivation | None:
    pairs = stats.pairs
    if pairs is None or int(pairs.sum()) == int(pairs.diag().sum()):
        return None
    expected = expected_co_activation(pairs)
    upper = torch.triu_indices(len(pairs), len(pairs), 1)
    excess = (pairs - expected)[upper[0], upper[1]]
    order = excess.argsort(descending=True, stable=True)[:MAX_PAIRS]
    found = [(first, second) for first, second in upper[:, order[excess[order] > 0]].T.tolist()]
    return CoActivation(
        co_activation_dependence(pairs, expected),
        tuple(ExpertPair(pair, int(pairs[pair]), float(expected[pair])) for pair in found),
    )


def _locality(observed: LayerObserver) -> Locality:
    shuffled = ExpertLocality(observed.locality.num_experts)
    shuffled.add(observed.sample.shuffled())
    pairs = zip(DISTANCES, observed.locality.repeated(), shuffled.repeated(), strict=True)
    return Locality(
        tuple(Repeats(*values) for values in pairs),
        tuple(observed.locality.hit_rates()),
        tuple(shuffled.hit_rates()),
    )


def _by_name(names: Sequence[str], counts: Int[Tensor, " G"]) -> dict[str, int]:
    return {name: number for name, number in zip(names, counts.tolist(), strict=True) if number}


def _notes(result: Evaluation, observer: StudyObserver) -> tuple[str, ...]:
    """Returns the limits of this study."""
    if int((observer.domain_tokens > 0).sum()) < 2:
        return ("The text is of one domain, so there is no specialisation by domain.",)
    units = observer.layers[0].units
    few = [
        name
        for index, name in enumerate(result.domains)
        if observer.domain_tokens[index] and int((units.domains == index).sum()) < 2
    ]
    notes = []
    if few:
        notes.append(
            f"One document only of {listed(few, 4)}: shuffled labels cannot tell this domain from that document. "
            "More documents make the p-value stronger."
        )
    if units.documents_per_unit > 1:
        notes.append(f"Up to {units.documents_per_unit} neighbouring documents of a domain change labels together.")
    return tuple(notes)
