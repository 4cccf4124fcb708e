"""The most that a number may be: of every setting, and of every option of a command.

A setting that is not listed has the most of its type. What is refused here never reaches a loop, an array or a process.
"""

from moe_cli.errors import BadValue

# Whole numbers up to here are exact as floats; of numbers up to here float32 holds the square.
MOST_WHOLE, MOST_NUMBER = 2**53, 1e15
WIDTH, THREADS, PROCESSES = 2**20, 1024, 1024
MOST: dict[str, float] = {
    "expert": 2**20,
    "k": 2**20,
    "capacity": 1e6,
    "seed": 2**63 - 1,
    "model.num_layers": 10_000,
    "model.d_model": WIDTH,
    "model.d_ff": 2**24,
    "model.d_expert": 2**24,
    "model.shared_experts": 2**16,
    "model.context_length": 2**24,
    "model.vocab_size": 2**32,
    "model.num_heads": 2**16,
    "model.num_kv_heads": 2**16,
    "model.d_head": WIDTH,
    "model.kv_lora_rank": WIDTH,
    "model.q_lora_rank": WIDTH,
    "model.qk_rope_head_dim": WIDTH,
    "model.relative_attention_num_buckets": 2**16,
    "model.d_tower": WIDTH,
    "model.mf_dim": WIDTH,
    "router.null_experts": 2**20,
    "router.groups": 2**20,
    "router.top_groups": 2**20,
    "router.iterations": 10_000,
    "router.slots": 2**16,
    "balance.iterations": 10_000,
    "train.steps": 10**12,
    "train.tokens": 10**18,
    "train.flops": 1e29,
    "train.minutes": 1e7,
    "train.batch_size": 2**24,
    "train.grad_accumulation": 2**20,
    "train.threads": THREADS,
    "eval.k": 2**20,
    "eval.capacity": 1e6,
    "launch.num_processes": PROCESSES,
    "launch.expert_parallel_size": PROCESSES,
    "launch.max_restarts": 10_000,
    "executor.cpus": 2**16,
    "executor.gpus": 2**16,
    "executor.array_parallelism": 10**6,
    "executor.save_seconds": 10**7,
}
# Of a sweep: the values of one setting, the configurations, and the runs.
VALUES, CONFIGURATIONS, RUNS = 10_000, 20_000, 100_000
# Options of commands.
SEEDS, JOBS, RETRIES, TRIALS, SEARCH_SEED = 10_000, 10_000, 10_000, 100_000, 2**32 - 1
SAMPLE_TOKENS, TOP_K, GPUS = 1_000_000, 2**32, 2**20
SECONDS = 1e6
BENCH = {"tokens": 2**24, "experts": 2**16, "k": 2**16, "d_model": 2**16, "d_expert": 2**18, "threads": THREADS}


def most_of(key: str, whole: bool) -> float:
    """The most that a setting may be; `balance.switch.weight`, one of several methods, as `balance.weight`."""
    group, _, rest = key.partition(".")
    for name in (key, f"{group}.{rest.rpartition('.')[2]}"):
        if name in MOST:
            return MOST[name]
    return MOST_WHOLE if whole else MOST_NUMBER


def check_most(key: str, value: float, most: float) -> None:
    """Raises BadValue when a number is farther from 0 than `most`."""
    if not abs(value) <= most:
        edge, size = ("large", "most") if value > 0 else ("small", "least")
        raise BadValue(f"{key}={shortened(value)} is too {edge}: the {size} is {most if value > 0 else -most}.")


def shortened(value: object, most: int = 160) -> str:
    """A value as an error shows it: within two lines of a terminal."""
    text = str(value)
    return text if len(text) <= most else f"{text[: most - 40]}... ({len(text)} characters)"
