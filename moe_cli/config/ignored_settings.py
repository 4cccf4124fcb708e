"""Settings without effect in a configuration, and the notes on those that the user gave."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

ROUTING_AT_EVALUATION = ("eval.k", "eval.capacity", "eval.drop")
# Settings and groups that have no effect without experts.
SPARSE_ONLY = (
    "k",
    "match",
    "router",
    "balance",
    "capacity",
    "drop",
    *ROUTING_AT_EVALUATION,
    "renormalise_after_drop",
    "model.d_expert",
    "model.shared_experts",
    "model.d_shared",
    "model.moe_layer_freq",
    "model.first_k_dense",
    "model.moe_layers",
    "model.expert_dropout",
    "model.expert_init_scale",
    "model.shared_gate",
    "model.dispatch",
    "optim.skip_idle_experts",
    "optim.router_lr",
    "optim.expert_period",
    "launch.expert_parallel_size",
    "train.upcycle_noise",
    "train.upcycle_drop",
)


def is_in_group(name: str, keys: Collection[str]) -> bool:
    """Returns whether a setting is one of `keys`, or belongs to a group that is."""
    return any(name == key or name.startswith(key + ".") for key in keys)


@dataclass
class Notes:
    """Notes on the settings that the user gave.

    Attributes:
        user_keys: the keys of these settings.
    """

    user_keys: Collection[str]
    lines: list[str] = field(default_factory=list)

    def ignored(self, reason: str, *keys: str, renamed: Mapping[str, str] | None = None) -> None:
        """Adds a note on the settings that the user gave among `keys`, or in groups among them, if there are any.

        Args:
            renamed: names to show instead of those that the user gave.
        """
        names = [(renamed or {}).get(name, name) for name in self.user_keys]
        if found := sorted(name for name in names if is_in_group(name, keys)):
            self.lines.append(f"{reason}: {', '.join(found)} ignored.")

    def changed(self, key: str, note: str) -> None:
        """Adds a note if the user gave the setting."""
        if key in self.user_keys:
            self.lines.append(note)
