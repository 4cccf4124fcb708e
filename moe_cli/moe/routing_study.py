"""The results of a study of routing on a text with domains: plain records, without torch.

E experts, K chosen per token, G domains.
"""

from collections.abc import Mapping
from dataclasses import dataclass

# The draws of each control.
NUM_SHUFFLES = 199
NUM_RANDOM_ROUTERS = 5


@dataclass(frozen=True)
class Control:
    """A measure under a control.

    Attributes:
        mean: the mean of the control's values.
        low, high: the range of its values: the central 95 % of shuffles, or the smallest and largest random router.
        excess: the measured value minus the mean.
    """

    mean: float
    low: float
    high: float
    excess: float


@dataclass(frozen=True)
class DomainSpecialisation:
    """The specialisation by domain of one layer, and of its controls; see `moe_cli.moe.specialisation_controls`.

    Attributes:
        measured: mutual information of domain and expert, divided by its upper bound, 0 to 1.
        shuffled: the same with the domain labels of documents shuffled.
        p_value: of the measured value under these shuffles.
        num_units: documents, or groups of documents of one domain, that change labels together.
        random: the same with random routers on the same hidden states; None if it was not measured.
        random_max_violation: the mean MaxVio of the random routers, which should be near that of the layer.
    """

    measured: float
    shuffled: Control
    p_value: float
    num_units: int
    random: Control | None
    random_max_violation: float | None


@dataclass(frozen=True)
class ExpertPair:
    """Two experts that were chosen together.

    Attributes:
        experts: their indices, from 0.
        tokens: tokens that chose both.
        expected: tokens that would have, were the experts of a token independent.
    """

    experts: tuple[int, int]
    tokens: int
    expected: float


@dataclass(frozen=True)
class CoActivation:
    """The pairs of experts that tokens choose.

    Attributes:
        dependence: the share of pairs that would have to change to make them independent, 0 to 1.
        pairs: those most above expectation in tokens, at most `MAX_PAIRS`.
    """

    dependence: float
    pairs: tuple[ExpertPair, ...]


@dataclass(frozen=True)
class Repeats:
    """Assignments whose expert one of the `distance` tokens before was also assigned to, as a share.

    Attributes:
        share: None if the text is shorter.
        shuffled: the same with the tokens in random order.
    """

    distance: int
    share: float | None
    shuffled: float | None


@dataclass(frozen=True)
class Locality:
    """How soon experts are used again; see `moe_cli.moe.locality`.

    Attributes:
        hit_rates: for c = 1 to E, the share of assignments that find their expert among the c most recently used.
        shuffled_hit_rates: the same with the tokens in random order.
    """

    repeats: tuple[Repeats, ...]
    hit_rates: tuple[float, ...]
    shuffled_hit_rates: tuple[float, ...]


@dataclass(frozen=True)
class Saturation:
    """The share of the choices of the studied model that an earlier one makes on the same tokens.

    Attributes:
        earlier: the name of the earlier checkpoint or run.
        share: 0 to 1.
        by_chance: the share to expect of independent routers of these loads.
    """

    earlier: str
    share: float
    by_chance: float


@dataclass(frozen=True)
class LayerStudy:
    """One sparse layer.

    Attributes:
        layer: its index among the sparse layers, from 0.
        load: per expert, its fraction of all assignments divided by 1 / E: 1 is even.
        load_by_domain: the same for the tokens of each domain that occurs.
        specialisation: None if the text is of one domain.
        co_activation: None if tokens have one expert, or there are too many experts for a table.
    """

    layer: int
    load: tuple[float, ...]
    max_violation: float
    load_by_domain: Mapping[str, tuple[float, ...]]
    specialisation: DomainSpecialisation | None
    co_activation: CoActivation | None
    locality: Locality
    saturation: tuple[Saturation, ...]


@dataclass(frozen=True)
class RoutingStudy:
    """A model's routing on one split.

    Attributes:
        data: the name of the data.
        top_k: mean assignments per token, null experts not counted.
        loss: nats per target.
        domain_tokens: the routed tokens of each domain that occurs.
        domain_losses: nats per target of each domain, where the task has them.
        notes: limits of this study.
    """

    run: str
    step: int
    data: str
    split: str
    num_tokens: int
    top_k: float
    loss: float
    bits_per_byte: float | None
    domain_tokens: Mapping[str, int]
    domain_losses: Mapping[str, float]
    layers: tuple[LayerStudy, ...]
    notes: tuple[str, ...] = ()
