"""All settings of a run: one frozen dataclass per group of conf/, and the rules between settings of several groups.

The names that users type (`expert`, `k`, `capacity`, `balance`) meet the field's terms here: `expert` is num_experts,
`k` is top_k, `capacity` is capacity_factor. Group classes with a `name` are variants: the name picks the class, so a
setting that belongs to another variant is refused as unknown.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

from moe_cli.config.balances import BalanceConfig, CombinedBalance, SwitchBalance, methods_of
from moe_cli.config.build import build
from moe_cli.config.capacity import Drop
from moe_cli.config.data import CorpusConfig, DataConfig, PluginCorpus
from moe_cli.config.identity import canonical_json, digest_of_text
from moe_cli.config.launch import LaunchConfig, check_launch
from moe_cli.config.loggers import check_log
from moe_cli.config.model import ModelConfig
from moe_cli.config.optim import AdamWConfig, MuonConfig, SGDConfig
from moe_cli.config.probes import ProbeConfig
from moe_cli.config.ranges import format_setting
from moe_cli.config.routers import (
    ExpertChoiceConfig,
    HashConfig,
    ReluConfig,
    RouterConfig,
    SinkhornConfig,
    SoftConfig,
    check_router,
    check_task_router,
)
from moe_cli.config.settings import (
    PluginSettings,
    Settings,
    fields_of,
    read_choice,
    read_conf,
    replace_unchecked,
    setting,
)
from moe_cli.config.tasks import OWN_TEXT, TEXT_TASKS, TaskConfig, check_task
from moe_cli.config.training import EvalConfig, TrainConfig
from moe_cli.errors import ConfigError
from moe_cli.formatting import plural
from moe_cli.plugins import origin_of

# The most blocks of an expert where widths are unequal: each is a row of its own.
MAX_BLOCKS = 64
DEFAULT_TOP_K = 2
Match = Literal["active", "total", "flops", "model_flops", "active+total+flops", "none"]


@dataclass(frozen=True)
class RunConfig(Settings):
    """All settings of one run. In a resolved configuration, every derivable setting has a value.

    Attributes:
        k: experts per token; a list has one value for each sparse layer, the first layer's first.
    """

    group: ClassVar[str] = ""
    expert: int = setting(at_least=1, at_most=2**20)
    k: int | tuple[int, ...] | None = setting(at_least=1, at_most=2**20)
    capacity: float | None = setting(above=0, at_most=1e6)
    drop: Drop | None = setting()
    renormalise_after_drop: bool = setting()
    match: Match = setting()
    seed: int = setting(at_least=0, at_most=2**63 - 1)
    log: str | None = setting()
    log_project: str | None = setting()
    model: ModelConfig = setting()
    router: RouterConfig | None = setting()
    balance: BalanceConfig | None = setting()
    task: TaskConfig = setting()
    data: DataConfig = setting()
    optim: MuonConfig | AdamWConfig | SGDConfig = setting()
    train: TrainConfig = setting()
    eval: EvalConfig = setting()
    launch: LaunchConfig = setting()

    @classmethod
    def from_conf(cls, name: str) -> dict[str, Any]:
        values = read_conf("config")
        choices = {
            group: choice
            for default in values.pop("defaults")
            if default != "_self_"
            for group, choice in default.items()
        }
        groups = {group: read_choice(group, choice) for group, choice in choices.items() if choice is not None}
        return dict(vars(build(cls, values | groups)))

    def check(self) -> None:
        data = OWN_TEXT if isinstance(self.data, PluginCorpus) else self.data.name
        check_task(self.task, self.model.name, data, getattr(self.model, "task", None))
        self.check_choice()
        check_launch(self.launch, self.train.batch_size, 1 if self.dense else self.expert)
        check_log(self.log, self.log_project)
        self._check_shards()
        self._check_packing()
        self._check_windows()

    def check_choice(self) -> None:
        """Raises ConfigError where the router cannot choose k experts."""
        if self.dense:
            return
        if isinstance(self.k, tuple) and len(self.k) != (number := len(self.sparse_layers)):
            raise ConfigError(
                f"k={format_setting(self.k)} has {plural(len(self.k), 'value')}, and the model {number} sparse "
                f"layer{'' if number == 1 else 's'}: give {number}, the first layer's first, or one number for all."
            )
        for key, k in (*(("k", k) for k in self.k_values), ("eval.k", self.eval.k)):
            if k is not None and k > self.expert:
                raise ConfigError(
                    f"{key}={k} is more than expert={self.expert}: a token cannot choose more experts than there are."
                )
        self._check_widths()
        if self.k is not None:
            if isinstance(self.router, HashConfig) and self.task.name == "images":
                raise ConfigError("router=hash needs token ids, and patches of images have none. Use router=topk")
            if self.task.name == "ratings":
                check_task_router(self.router)
            for k in {*self.k_values, max(*self.k_values, self.eval.k or 1)}:
                check_router(self.router, self.expert, k, causal=self.model.causal)

    def _check_widths(self) -> None:
        """Raises ConfigError for experts of unequal widths that cannot be."""
        widths = self.model.d_expert
        if not isinstance(widths, tuple):
            return
        shown = f"model.d_expert={format_setting(widths)}"
        if len(widths) != self.expert:
            raise ConfigError(
                f"{shown} has {plural(len(widths), 'width')}, and expert={self.expert}: give one for each expert, "
                "or one number for all."
            )
        if max(widths) > MAX_BLOCKS * self.model.block_width:
            raise ConfigError(
                f"{shown} is computed in blocks of the greatest common divisor, {self.model.block_width}: at most "
                f"{MAX_BLOCKS} fit in an expert. Use multiples of a larger number, such as 16."
            )
        refused = [
            (
                self.model.shared_experts and self.model.d_shared is None,
                "model.shared_experts",
                "Add: model.d_shared=64",
            ),
            (
                getattr(self.router, "score", None) == "activation",
                "router.score=activation",
                "Use router.score=linear",
            ),
            (
                self.launch.expert_parallel_size > 1,
                f"launch.expert_parallel_size={self.launch.expert_parallel_size}",
                "Use launch.expert_parallel_size=1",
            ),
        ]
        for wrong, other, instead in refused:
            if wrong:
                raise ConfigError(f"{shown}: {other} needs experts of one width. {instead}")

    def _check_shards(self) -> None:
        if self.train.compile == "on" and self.launch.num_processes > 1:
            raise ConfigError("train.compile=on is for one process. Use train.compile=off, or launch.num_processes=1")
        if self.launch.data_parallel == "fsdp" and self.optim.skip_idle_experts and not self.dense:
            raise ConfigError(
                "optim.skip_idle_experts=true updates single experts, and launch.data_parallel=fsdp shards them. Use "
                "launch.data_parallel=dp"
            )
        if (
            self.launch.expert_parallel_size > 1
            and getattr(self.router, "score", None) == "activation"
            and not self.dense
        ):
            raise ConfigError(
                "router.score=activation asks every expert, and launch.expert_parallel_size has some elsewhere. "
                "Use launch.expert_parallel_size=1"
            )

    def _check_packing(self) -> None:
        packing = self.data.packing if isinstance(self.data, CorpusConfig) else "concat"
        scopes = [method.scope for method in methods_of(self.balance) if isinstance(method, SwitchBalance)]
        router = None if self.dense else self.router
        refused = [
            (
                packing != "concat" and self.task.name == "span_corruption",
                "spans are removed from whole windows",
                "concat",
            ),
            (packing == "isolate" and self.model.name == "lstm", "model=lstm has no attention to isolate", "pad"),
            (
                packing != "concat" and isinstance(router, SoftConfig),
                "router=soft mixes all tokens of a window",
                "concat",
            ),
            (packing == "pad" and isinstance(router, ReluConfig), "router=relu assumes full windows", "isolate"),
            (
                packing == "pad" and not self.dense and "sequence" in scopes,
                "balance.scope=sequence needs windows of equal length",
                "isolate",
            ),
            (
                packing == "pad" and self.train.grad_accumulation > 1,
                "train.grad_accumulation averages windows of equal length",
                "isolate",
            ),
            (
                packing == "pad" and self.launch.num_processes > 1,
                "launch.num_processes divides windows of equal length",
                "isolate",
            ),
        ]
        for wrong, why, instead in refused:
            if wrong:
                raise ConfigError(f"data.packing={packing}: {why}. Use data.packing={instead}")

    def _check_windows(self) -> None:
        for key, tasks in (("context_length", TEXT_TASKS), ("stride", ("causal_lm",))):
            if getattr(self.eval, key) is not None and self.task.kind not in tasks:
                raise ConfigError(
                    f"eval.{key}={getattr(self.eval, key)} has no effect on task={self.task.name}. It is for "
                    f"task={', '.join(tasks)}."
                )
            if getattr(self.eval, key) is not None and isinstance(self.data, ProbeConfig):
                raise ConfigError(
                    f"eval.{key}={getattr(self.eval, key)} has no effect on data={self.data.name}, whose questions are "
                    "read whole. Leave it out."
                )
        if self.eval_length > self.model.context_length:
            raise ConfigError(
                f"eval.context_length={self.eval_length} is more than "
                f"model.context_length={self.model.context_length}, the most that the model can read."
            )
        if self.eval_stride > self.eval_length:
            raise ConfigError(
                f"eval.stride={self.eval_stride} is more than the {self.eval_length} tokens of a validation window: "
                "some tokens would not be scored."
            )

    @property
    def drops(self) -> bool:
        """Returns whether training drops assignments: experts have a capacity, and the router is not expert choice."""
        return self.capacity is not None and not isinstance(self.router, ExpertChoiceConfig)

    @property
    def eval_drop(self) -> str:
        """Returns the drop rule at evaluation; of an encoder and decoder, that of the decoder."""
        return self.eval.drop or ("causal" if self.model.causal else self.drop or "position")

    @property
    def sees_later_tokens(self) -> bool:
        """Returns whether, with a capacity at evaluation, a causal model's prediction depends on later tokens."""
        return self.model.causal and self.eval_drop != "causal"

    @property
    def trains_on_later_tokens(self) -> bool:
        """Returns whether the routing of a causal model's token in training depends on later tokens."""
        by_drop = self.capacity is not None and self.drop != "causal"
        return self.model.causal and not self.dense and (by_drop or isinstance(self.router, SinkhornConfig))

    @property
    def eval_length(self) -> int:
        """Tokens of a validation window."""
        return self.eval.context_length or self.model.context_length

    @property
    def eval_stride(self) -> int:
        """Tokens from one validation window to the next."""
        return self.eval.stride or self.eval_length

    @property
    def dense(self) -> bool:
        """Returns whether this is the baseline without experts."""
        return self.expert == 1

    @property
    def sparse_layers(self) -> tuple[int, ...]:
        return () if self.dense else self.model.sparse_layers

    @property
    def k_values(self) -> tuple[int, ...]:
        """Returns k: one value for all sparse layers, or that of each one."""
        return self.k if isinstance(self.k, tuple) else (self.k or 1,)

    @property
    def top_ks(self) -> tuple[int, ...]:
        """Returns k of each sparse layer, the first layer's first; none in a dense model."""
        return () if self.dense else self.k if isinstance(self.k, tuple) else self.k_values * len(self.sparse_layers)

    @property
    def mean_k(self) -> float:
        """Returns the mean of k over the sparse layers, a whole number as such; 1 in a dense model."""
        mean = 1 if self.dense else sum(self.k_values) / len(self.k_values)
        return int(mean) if mean == int(mean) else mean

    def at_layer(self, layer: int) -> "RunConfig":
        """Returns the configuration as one layer, counted from 0, has it: with its own k."""
        if not isinstance(self.k, tuple) or layer not in self.sparse_layers:
            return self
        return replace_unchecked(self, k=self.k[self.sparse_layers.index(layer)])

    @property
    def tokens_per_step(self) -> int:
        return self.train.batch_size * self.train.grad_accumulation * self.model.context_length

    def to_dict(self) -> dict[str, Any]:
        values = _values(self)
        if isinstance(self.balance, CombinedBalance):
            values["balance"] = self.balance.to_dict()
        return values | ({"plugins": plugins} if (plugins := self.plugins()) else {})

    def plugins(self) -> dict[str, dict[str, str]]:
        """Returns where the plug-ins of this configuration come from, by group and name; they are part of its identity.

        An executor and a logger are not part of it.
        """
        found: dict[str, dict[str, str]] = {}
        for choice in (self.model, self.task, self.router, *methods_of(self.balance), self.data):
            if isinstance(choice, PluginSettings):
                origin = origin_of(choice.group, choice.name)
                found.setdefault(choice.group, {})[choice.name] = str(origin or "unknown")
        return found

    @cached_property
    def digest(self) -> str:
        """Returns eight hexadecimal digits that identify this configuration; equal for equal training anywhere."""
        return digest_of_text(canonical_json(self.to_dict(), self.sparse_layers))

    @property
    def shape(self) -> str:
        """Returns experts x chosen, such as 8x2, with the mean of k over layers: 8x2.25; or dense."""
        mean = self.mean_k
        return "dense" if self.dense else f"{self.expert}x{mean if isinstance(mean, int) else f'{mean:.4g}'}"

    @property
    def run_id(self) -> str:
        """Returns the id of the run, such as gpt-8x2-s0-3fa91c: model, experts x chosen, seed, digest."""
        return f"{self.model.name}-{self.shape}-s{self.seed}-{self.digest}"


_PLAIN = (int, float, str, bool, type(None))


def _values(config: Any) -> dict[str, Any]:
    """Converts like dataclasses.asdict, in a third of the time: settings are immutable plain values."""
    cls: Any = type(config)
    values = {name: getattr(config, name) for name in fields_of(cls)}
    for key, value in values.items():
        if type(value) not in _PLAIN:
            values[key] = list(value) if isinstance(value, tuple) else _values(value)  # lists, as JSON has them
    return values
