"""How much does a training on many GPUs cost? Parameters, FLOPs, time and memory in one record."""

from dataclasses import asdict
from typing import Any

from moe_cli.config.schema import RunConfig
from moe_cli.costs.model import estimate_cost, training_steps
from moe_cli.costs.multi_gpu import Gpu, per_gpu_costs, seconds_on


def training_cost(config: RunConfig, vocab_size: int, gpus: int, gpu: Gpu, mfu: float) -> dict[str, Any]:
    """Returns the cost of a training as a record of plain values; times are in seconds, sizes in bytes.

    Args:
        vocab_size: number of token ids.
        gpus: number of GPUs.
        mfu: model FLOPs utilisation, the fraction of their peak that the GPUs reach, with the optimizer's FLOPs.
    """
    costs = estimate_cost(config, vocab_size)
    steps = training_steps(config, vocab_size)
    flops = None if steps is None else steps * costs.flops_per_step
    return {
        "expert": config.expert,
        "k": config.k,
        "vocab_size": vocab_size,
        "context_length": config.model.context_length,
        "params": costs.num_params,
        "active_params": costs.num_active_params,
        "non_embedding_params": costs.non_embedding_params,
        "active_non_embedding_params": costs.active_non_embedding_params,
        "expert_params": costs.num_expert_params,
        "forward_flops_per_token": costs.forward_flops_per_token,
        "flops_per_token": costs.flops_per_token,
        "model_flops_per_token": costs.model_flops_per_token,
        "optimizer_flops_per_step": costs.optimizer_flops_per_step,
        "steps": steps,
        "tokens_per_step": costs.tokens_per_step,
        "tokens": None if steps is None else steps * costs.tokens_per_step,
        "training_flops": flops,
        "model_flops": None if steps is None else steps * costs.tokens_per_step * costs.model_flops_per_token,
        "optimizer_flops": None if steps is None else steps * costs.optimizer_flops_per_step,
        "gpus": gpus,
        "gpu": asdict(gpu),
        "mfu": mfu,
        "seconds": None if flops is None else seconds_on(gpu, flops, gpus, mfu),
        "tokens_per_second": gpus * gpu.flops * mfu / costs.flops_per_token,
        "shares": [
            {**asdict(share), "memory_bytes": share.memory_bytes, "fits": share.memory_bytes <= gpu.memory_bytes}
            for share in per_gpu_costs(config, costs, gpus)
        ],
    }
