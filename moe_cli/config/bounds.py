"""The largest accepted numbers: of any setting, of a sweep, and of every command option.

The range of a single setting is given with its field (see `moe_cli.config.settings`).
"""

from moe_cli.errors import BadValue

# MAX_WHOLE: integers up to it are exact as floats. MAX_NUMBER: float32 can still hold its square.
MAX_WHOLE, MAX_NUMBER = 2**53, 1e15
THREADS, PROCESSES = 1024, 1024
# Of a sweep: the values of one setting, the configurations, and the runs.
VALUES, CONFIGURATIONS, RUNS = 10_000, 20_000, 100_000
# Options of commands.
SEEDS, JOBS, RETRIES, TRIALS, SEARCH_SEED = 10_000, 10_000, 10_000, 100_000, 2**32 - 1
SAMPLE_TOKENS, TOP_K, GPUS = 1_000_000, 2**32, 2**20
SECONDS = 1e6
BENCH = {"tokens": 2**24, "experts": 2**16, "k": 2**16, "d_model": 2**16, "d_expert": 2**18, "threads": THREADS}


def check_most(key: str, value: float, most: float) -> None:
    """Raises BadValue when a number is farther from 0 than `most`."""
    if not abs(value) <= most:
        edge, size = ("large", "most") if value > 0 else ("small", "least")
        raise BadValue(f"{key}={shortened(value)} is too {edge}: the {size} is {most if value > 0 else -most}.")


def shortened(value: object, most: int = 160) -> str:
    """Returns a value as an error shows it: within two lines of a terminal."""
    text = str(value)
    return text if len(text) <= most else f"{text[: most - 40]}... ({len(text)} characters)"
