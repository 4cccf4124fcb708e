"""Hints on overrides of Hydra, and on names of papers and other libraries: what to type instead."""

import re

from moe_cli.config.bounds import shortened
from moe_cli.config.build import did_you_mean, names_of
from moe_cli.config.folders import GROUPS
from moe_cli.config.schema import RunConfig

# Settings by their names in papers and other libraries.
OTHER_NAMES = {
    "num_experts": "expert",
    "n_experts": "expert",
    "experts": "expert",
    "n_routed_experts": "expert",
    "num_local_experts": "expert",
    "top_k": "k",
    "topk": "k",
    "num_experts_per_tok": "k",
    "num_experts_per_token": "k",
    "moe_top_k": "k",
    "capacity_factor": "capacity",
    "drop_policy": "drop",
    "aux_loss_coef": "balance.weight",
    "router_aux_loss_coef": "balance.weight",
    "moe_aux_loss_coeff": "balance.weight",
    "load_balancing_loss_coef": "balance.weight",
    "router_z_loss_coef": "balance.z.weight, with balance=switch+z",
    "gating": "router",
    "norm_topk_prob": "router.renormalise",
    "routed_scaling_factor": "router.scale",
    "n_group": "router.groups",
    "topk_group": "router.top_groups",
    "learning_rate": "optim.lr",
    "optimizer": "optim",
    "scheduler": "optim.schedule",
    "lr_scheduler": "optim.schedule",
    "warmup_steps": "optim.warmup_fraction, a fraction of the budget",
    "max_grad_norm": "optim.grad_clip",
    "hidden_size": "model.d_model",
    "n_embd": "model.d_model",
    "intermediate_size": "model.d_ff",
    "moe_intermediate_size": "model.d_expert",
    "num_hidden_layers": "model.num_layers",
    "n_layer": "model.num_layers",
    "n_layers": "model.num_layers",
    "layers": "model.num_layers",
    "num_attention_heads": "model.num_heads",
    "n_head": "model.num_heads",
    "num_key_value_heads": "model.num_kv_heads",
    "moe_every": "model.moe_layer_freq",
    "moe_layer_frequency": "model.moe_layer_freq",
    "expert_interval": "model.moe_layer_freq",
    "coef": "balance.weight",
    "n_shared_experts": "model.shared_experts",
    "num_shared_experts": "model.shared_experts",
    "shared_expert_intermediate_size": "model.d_shared",
    "first_k_dense_replace": "model.first_k_dense",
    "block_size": "model.context_length",
    "seq_len": "model.context_length",
    "max_seq_len": "model.context_length",
    "max_position_embeddings": "model.context_length",
    "sequence_length": "model.context_length",
    "rope_theta": "model.rope_base",
    "dataset": "data",
    "epochs": "train.steps, or train.tokens, train.flops or train.minutes",
    "num_epochs": "train.steps, or train.tokens, train.flops or train.minutes",
    "max_steps": "train.steps",
    "max_iters": "train.steps",
    "iterations": "train.steps",
    "gradient_accumulation_steps": "train.grad_accumulation",
    "dtype": "train.precision",
    "bf16": "train.precision",
    "amp": "train.precision",
    "gpus": "launch.num_processes",
    "devices": "launch.num_processes",
    "world_size": "launch.num_processes",
    "nproc_per_node": "launch.num_processes",
    "ep_size": "launch.expert_parallel_size",
    "logger": "log",
    "wandb": "log=wandb",
    "outputs": "an option: --outputs DIR",
    "output_dir": "an option: --outputs DIR",
    "preset": "a word of named sweeps: moe sweep sparsity preset=cluster",
    "seeds": "seed, or for moe sweep an option: --seeds 3",
}
# Options of Hydra's command line, and their short forms.
HYDRA_OPTIONS = {
    "--multirun": "several values are a command of their own. Type: moe sweep expert=1,8",
    "--cfg": "the configuration is printed by a command. Type: moe config SETTING=VALUE",
    "--info": "choices and settings are listed by a command. Type: moe config --groups, or moe config",
    "--resolve": "moe config prints every setting resolved. Type: moe config SETTING=VALUE",
    "--package": "moe config prints every setting. Type: moe config SETTING=VALUE",
    "--config-name": "there is one config.yaml. Choose a file of conf/experiment: experiment=NAME",
    "--config-path": "your own files are added to the packaged ones. Type: --config-dir DIR",
    "-cd": "the option has no short form. Type: --config-dir DIR",
    "--run": "the command trains without it. Leave it out",
    "--hydra-help": "Hydra's own options are not used. Type: moe train --help",
    "--experimental-rerun": "a run continues by its name. Type: moe train --resume RUN",
    "--shell-completion": "completion is installed once. Type: moe --install-completion",
}
SHORT_OPTIONS = {"-m": "--multirun", "-c": "--cfg", "-p": "--package", "-n": "--config-name", "-cn": "--config-name"}
SHORT_OPTIONS |= {"-cp": "--config-path", "-r": "--run", "-sc": "--shell-completion"}
# Settings of Hydra itself, by their beginnings.
HYDRA_SETTINGS = {
    "hydra/launcher": "runs of a sweep are carried out by an executor. Type: moe sweep --executor slurm",
    "hydra.launcher": "runs of a sweep are carried out by an executor. Type: moe sweep --executor slurm",
    "hydra/sweeper": "a search is part of moe sweep. Type: moe sweep --sampler tpe",
    "hydra.sweeper": "a search is part of moe sweep. Type: moe sweep --sampler tpe",
    "hydra.run": "the folder of runs is an option. Type: --outputs DIR",
    "hydra.sweep": "the folder of a sweep is an option. Type: --outputs DIR --name NAME",
    "hydra": "the words follow Hydra's grammar, but Hydra's runtime is not used. Leave it out",
}


def explain_word(word: str) -> str | None:
    """Returns why a word of Hydra's grammar is not used here, and what to type; None for other words."""
    key, equals, value = word.partition("=")
    plain = key.lstrip("+~").partition("@")[0]
    for beginning, reason in HYDRA_SETTINGS.items():
        if plain == beginning or plain.startswith((f"{beginning}.", f"{beginning}/")):
            return f"'{shortened(word)}': {reason}"
    if re.match(r"~[\w.@]+$", key):
        return f"'{shortened(word)}': no setting can be removed. {_instead_of_removal(plain)}"
    if key.startswith("+"):
        known = [*names_of(RunConfig), *GROUPS]
        if plain not in known:
            return f"'{shortened(word)}': no setting can be added with +, and there is {unknown_setting(plain, known)}"
        meant = _near_choice(plain, value) if plain in GROUPS else value
        return f"'{shortened(word)}': every setting exists already, so none is added with +. Write: {plain}={meant}"
    if "@" in key and equals:
        return f"'{shortened(word)}': a group has one place in the configuration. Write: {plain}={value}"
    if key == "sweep" and equals:
        return f"'{shortened(word)}': a sweep is not part of a run. Type: moe sweep {value}"
    if key in GROUPS and value.startswith("[") and value.endswith("]"):
        return f"'{shortened(word)}': {key} takes one choice. {_instead_of_list(key, value[1:-1])}"
    return None


def _near_choice(group: str, value: str) -> str:
    """Returns the only choice of a group whose name contains the value, else the value."""
    from moe_cli.config.compose import Composer

    choices = Composer().choices(group)
    near = [name for name in choices if value in name]
    return near[0] if value not in choices and len(near) == 1 else value


def _instead_of_removal(key: str) -> str:
    if key == "experiment":
        return "Leave experiment=NAME out."
    if key == "balance":
        return "Write: balance=none"
    return f"Choose another: {key}=NAME" if key in GROUPS else f"Give it another value: {key}=VALUE"


def _instead_of_list(key: str, values: str) -> str:
    names = ",".join(name.strip() for name in values.split(","))
    both = f"Combine them: balance={names.replace(',', '+')}. " if key == "balance" else ""
    return f"{both}Compare them: moe sweep {key}={names}"


def explain_option(option: str, value: str = "VALUE") -> str | None:
    """Returns what to type instead of an option that no command has: one of Hydra, or a setting with dashes."""
    whole = SHORT_OPTIONS.get(option, option)
    if whole in HYDRA_OPTIONS:
        reason = HYDRA_OPTIONS[whole]
        if whole == "--multirun" and "=" in value:
            reason = reason.replace("expert=1,8", value)
        return f"{option} is Hydra's: {reason}"
    name = option.lstrip("-").partition("=")[0].replace("-", "_")
    known = [*names_of(RunConfig), *GROUPS]
    last_parts = {key.rpartition(".")[2]: key for key in reversed(known)}
    meant = name if name in known else OTHER_NAMES.get(name) or last_parts.get(name)
    if meant is None or not option.startswith("--"):
        return None
    return f"no option {option}. Settings have no dashes: {meant if ' ' in meant else f'{meant}={value}'}"


def unknown_setting(key: str, known: list[str]) -> str:
    """Returns the error about an unknown setting, with the name that is meant where one is near."""
    other = OTHER_NAMES.get(key.rpartition(".")[2])
    hint = f" Here it is {other}." if other and " " in other else f" Here it is '{other}'." if other else ""
    return f"no setting '{key}'.{hint or did_you_mean(key, known) or ' All settings: moe config'}"
