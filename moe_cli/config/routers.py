"""Settings of the routers. `k` is top_k."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from moe_cli.config.settings import PluginSettings, Settings, setting
from moe_cli.errors import ConfigError


@dataclass(frozen=True)
class _Router(Settings):
    group: ClassVar[str] = "router"


@dataclass(frozen=True)
class GateConfig(_Router):
    """Settings of routers with a gate.

    Attributes:
        init_scale: factor of the scores that the initial weights give.
    """

    init_scale: float = setting(above=0, at_most=1e6)


@dataclass(frozen=True)
class TokenChoiceConfig(GateConfig):
    """Settings of routers in which each token chooses its experts by scores."""

    score: Literal["linear", "cosine", "mlp", "activation"] = setting()
    temperature: float = setting(above=0)
    null_experts: int = setting(at_least=0, at_most=2**20)

    def check(self) -> None:
        if self.score == "activation" and self.null_experts:
            raise ConfigError(
                f"router.null_experts={self.null_experts} with router.score=activation: an expert that computes "
                "nothing has no activation to score it by. Use another score."
            )
        largest = COSINE_TEMPERATURE / MIN_COSINE_TEMPERATURE
        if self.score == "cosine" and self.init_scale > largest:
            raise ConfigError(
                f"router.init_scale={self.init_scale:g}: with router.score=cosine at most {largest:g}, where the "
                f"temperature is the least, {MIN_COSINE_TEMPERATURE:g}. Lower it, or use router.score=linear"
            )


@dataclass(frozen=True)
class TopKConfig(TokenChoiceConfig):
    name: Literal["topk"] = "topk"
    renormalise: bool | None = setting()


@dataclass(frozen=True)
class SwitchConfig(TokenChoiceConfig):
    name: Literal["switch"] = "switch"
    jitter: float = setting(fraction=True)


@dataclass(frozen=True)
class NoisyTopKConfig(TokenChoiceConfig):
    name: Literal["noisy_topk"] = "noisy_topk"


@dataclass(frozen=True)
class SigmoidConfig(TokenChoiceConfig):
    """Sigmoid scores. A token may use `top_groups` of the `groups` of neighbouring experts; 1 of 1 means no limit."""

    name: Literal["sigmoid"] = "sigmoid"
    renormalise: bool | None = setting()
    scale: float = setting(above=0)
    groups: int = setting(at_least=1, at_most=2**20)
    top_groups: int = setting(at_least=1, at_most=2**20)

    def check(self) -> None:
        super().check()
        if self.top_groups > self.groups:
            raise ConfigError(f"router.top_groups={self.top_groups} is more than router.groups={self.groups}.")
        if self.groups > 1 and self.null_experts:
            raise ConfigError("router.null_experts belong to no group. Use router.groups=1 or router.null_experts=0.")


@dataclass(frozen=True)
class SinkhornConfig(TokenChoiceConfig):
    name: Literal["sinkhorn"] = "sinkhorn"
    iterations: int = setting(at_least=1, at_most=10_000)


@dataclass(frozen=True)
class ReluConfig(GateConfig):
    """`l1` is where the coefficient starts; each step multiplies or divides it by `l1_rate`."""

    name: Literal["relu"] = "relu"
    l1: float = setting(above=0)
    l1_rate: float = setting(above=1)


@dataclass(frozen=True)
class HashConfig(GateConfig):
    name: Literal["hash"] = "hash"
    weights: Literal["learned", "constant"] = setting()

    @property
    def learned(self) -> bool:
        return self.weights == "learned"


@dataclass(frozen=True)
class ExpertChoiceConfig(GateConfig):
    name: Literal["expert_choice"] = "expert_choice"


@dataclass(frozen=True)
class SoftConfig(GateConfig):
    name: Literal["soft"] = "soft"
    slots: int = setting(at_least=1, at_most=2**16)


@dataclass(frozen=True)
class RandomConfig(_Router):
    name: Literal["random"] = "random"


@dataclass(frozen=True)
class PluginRouter(PluginSettings, _Router):
    """Base of the settings of a router that a plug-in brings. With TokenChoiceConfig as second base, it has those too.

    Attributes:
        causal: whether the choice for a token does not depend on later tokens.
        bias_methods: the balancing methods (loss_free, quantile) whose bias moves the choice; those of GatedRouter's
            `select_experts` are both.
        takes_one: whether the router sends each token to one expert, so that k must be 1.
    """

    causal: ClassVar[bool] = True
    bias_methods: ClassVar[tuple[str, ...]] = ()
    takes_one: ClassVar[bool] = False
    name: str = ""

    def gate_params(self, d_model: int, num_experts: int) -> int:
        """Returns the number of trained parameters; here of the gate of a GatedRouter.

        Args:
            num_experts: number of scored experts, null experts included.
        """
        score = self.score if isinstance(self, TokenChoiceConfig) else "linear"
        return _score_params(score, d_model, num_experts)

    def gate_flops(self, d_model: int, num_experts: int) -> int:
        """Returns the FLOPs of the matrix products that score one token."""
        return 2 * (self.gate_params(d_model, num_experts) - (getattr(self, "score", "") == "cosine"))

    def sums_to_one(self, top_k: int) -> bool:
        """Returns whether the weights of every token's experts sum to 1."""
        return False


RouterConfig = (
    TopKConfig
    | SwitchConfig
    | NoisyTopKConfig
    | SigmoidConfig
    | SinkhornConfig
    | ReluConfig
    | HashConfig
    | ExpertChoiceConfig
    | SoftConfig
    | RandomConfig
    | PluginRouter
)
# Their choice for one token depends on the others, later ones included.
NOT_CAUSAL = (ExpertChoiceConfig, SoftConfig)


# Settings of an evaluation that mean nothing to a router.
IDLE_AT_EVALUATION = {"soft": ("eval.k", "eval.capacity", "eval.drop"), "expert_choice": ("eval.drop",)}


def null_experts(router: RouterConfig | None) -> int:
    """Returns the number of experts that compute nothing, in addition to `expert`."""
    return router.null_experts if isinstance(router, TokenChoiceConfig) else 0


# Rows of an expert's first matrix that score=activation reads.
ACTIVATION_WIDTH = 16
# The initial and the least temperature of score=cosine (X-MoE, arXiv:2204.09179).
COSINE_TEMPERATURE = 0.5
MIN_COSINE_TEMPERATURE = 0.01


def gate_params(router: RouterConfig | None, d_model: int, num_experts: int) -> int:
    """Returns the number of trained parameters of a router."""
    if router is None or isinstance(router, RandomConfig) or (isinstance(router, HashConfig) and not router.learned):
        return 0
    if isinstance(router, SoftConfig):
        return num_experts * router.slots * d_model + 1
    columns = num_experts + null_experts(router)
    if isinstance(router, PluginRouter):
        return router.gate_params(d_model, columns)
    if not isinstance(router, TokenChoiceConfig):
        return columns * d_model
    noise = columns * d_model if isinstance(router, NoisyTopKConfig) else 0
    return _score_params(router.score, d_model, columns) + noise


def _score_params(score: str, d_model: int, columns: int) -> int:
    linear, width = columns * d_model, cosine_width(columns)
    scores = {"linear": linear, "cosine": width * (d_model + columns) + 1, "mlp": d_model**2 + linear, "activation": 0}
    return scores[score]


def gate_flops(router: RouterConfig | None, d_model: int, num_experts: int, expert_rows: int = ACTIVATION_WIDTH) -> int:
    """Returns the FLOPs of the matrix products that score one token; a multiply-add is 2.

    For router=soft, those that mix tokens into slots and slot outputs into tokens are included.

    Args:
        expert_rows: rows of an expert's first matrix; score=activation reads all of them if they are few.
    """
    if isinstance(router, SoftConfig):
        return 3 * 2 * num_experts * router.slots * d_model
    if isinstance(router, PluginRouter) and getattr(router, "score", "") != "activation":
        return router.gate_flops(d_model, num_experts + null_experts(router))
    products = gate_params(router, d_model, num_experts)
    if isinstance(router, TokenChoiceConfig) and router.score == "cosine":
        products -= 1  # the temperature
    if isinstance(router, TokenChoiceConfig) and router.score == "activation":
        products += min(ACTIVATION_WIDTH, expert_rows) * num_experts * d_model
    return 2 * products


def cosine_width(num_experts: int) -> int:
    """Returns the width that score=cosine projects tokens to: half the number of experts."""
    return max(2, num_experts // 2)


def check_router(router: RouterConfig | None, num_experts: int, top_k: int, causal: bool) -> None:
    """Raises ConfigError when the router cannot choose `top_k` of `num_experts` in such a model."""
    if causal and router is not None and not is_causal(router):
        raise ConfigError(
            f"router={router.name} looks at later tokens to place earlier ones: a causal model would read what it is "
            "to guess. Use router=topk, or a model that is not: model=bert, model=vit."
        )
    if takes_one(router) and top_k > 1 and router is not None:
        raise ConfigError(f"k={top_k}: router={router.name} sends each token to one expert. Use k=1, or router=topk.")
    if isinstance(router, TopKConfig | SigmoidConfig) and router.renormalise and top_k == 1:
        raise ConfigError(
            "k=1 with router.renormalise=true makes every weight 1 and leaves the gate without a gradient. "
            "Use router.renormalise=false."
        )
    if isinstance(router, NoisyTopKConfig) and top_k == 1:
        raise ConfigError(
            "k=1: router=noisy_topk takes the softmax over the chosen, which makes a single weight 1 and leaves the "
            "gate without a gradient. Use k=2, or router=switch."
        )
    if isinstance(router, SigmoidConfig) and router.groups > 1:
        _check_groups(router, num_experts, top_k)


def is_causal(router: RouterConfig) -> bool:
    """Returns whether the choice for a token does not depend on later tokens."""
    return router.causal if isinstance(router, PluginRouter) else not isinstance(router, NOT_CAUSAL)


def takes_one(router: RouterConfig | None) -> bool:
    """Returns whether the router sends each token to one expert."""
    return router.takes_one if isinstance(router, PluginRouter) else isinstance(router, SwitchConfig)


def sums_to_one(router: RouterConfig | None, top_k: int) -> bool:
    """Returns whether the weights of every token's experts sum to 1, so that equal experts act as one of them."""
    if null_experts(router):
        return False
    if isinstance(router, PluginRouter):
        return router.sums_to_one(top_k)
    if isinstance(router, TopKConfig | SigmoidConfig):
        renormalised = top_k > 1 if router.renormalise is None else router.renormalise
        return renormalised and (isinstance(router, TopKConfig) or router.scale == 1)
    if isinstance(router, HashConfig):
        return top_k > 1 or not router.learned
    return isinstance(router, RandomConfig | NoisyTopKConfig) or (isinstance(router, SinkhornConfig) and top_k > 1)


def check_task_router(router: RouterConfig | None) -> None:
    """Raises ConfigError for a router that cannot have a separate gate for each task."""
    if isinstance(router, HashConfig):
        raise ConfigError("router=hash needs token ids, and a pair of user and item has none. Use router=topk")
    if isinstance(router, SoftConfig):
        raise ConfigError(
            "router=soft mixes the tokens of an example, and those of a pair are the same pair for each task. Use "
            "router=topk"
        )
    if isinstance(router, TokenChoiceConfig) and router.score == "activation":
        raise ConfigError(
            "router.score=activation scores tokens by the experts, which are the same for each task. "
            "Use router.score=linear"
        )


def _check_groups(router: SigmoidConfig, num_experts: int, top_k: int) -> None:
    size, rest = divmod(num_experts, router.groups)
    if rest or size < 2:
        raise ConfigError(
            f"router.groups={router.groups} cannot divide expert={num_experts} into equal groups of at least 2."
        )
    if top_k > router.top_groups * size:
        raise ConfigError(
            f"k={top_k} is more than router.top_groups={router.top_groups} groups of {size} experts hold. "
            "Raise router.top_groups."
        )
