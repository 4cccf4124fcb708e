"""Tries a tokenizer.json on texts that are hard for its patterns, in a process with a bound on its processor time.

python -m moe_cli.data.tokenizer_probe < tokenizer.json
"""

import json
import re
import resource
import subprocess
import sys
from typing import Any

from moe_cli.data.tokenizer_check import MAX_PATTERN, patterns_in, tokenizers_library

# Seconds of processor time. Published tokenizers take 0.3.
PROBE_SECONDS = 2
# Seconds after which a probe without processor time is abandoned without a result.
WAIT_SECONDS = 120.0
# A text repeats a character or a word of a pattern up to this length.
TEXT_LENGTH, MAX_TEXTS = 2_000, 200
# A character of each class that patterns name.
SAMPLES = "aA0_ -.\n\r\u00e9\u4e2d"
# Part of the library's error after a match with too many steps; and the exit code for it.
RETRY_LIMIT, TOO_MANY_STEPS = "retry-limit", 3


def probe(text: str) -> str | None:
    """Returns why a tokenizer may not be used; None if its patterns end on all texts that are tried."""
    if not any(patterns_in(json.loads(text))):
        return None
    command = [sys.executable, "-m", __name__]
    try:
        done = subprocess.run(command, input=text.encode(), capture_output=True, timeout=WAIT_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode in (0, 1):
        return None
    return f"its patterns take too long on a text of {TEXT_LENGTH:,} characters that repeats a part of them"


def hard_texts(patterns: list[str]) -> list[str]:
    """Returns texts on which patterns that backtrack take long: a part repeated, then a mismatch, then all the parts.

    The parts come last because the library skips a text that lacks a character which every match needs.
    """
    parts = dict.fromkeys(part for pattern in patterns for part in re.findall(r"\w+|[^\w\s]", pattern))
    characters = dict.fromkeys(character for word in parts for character in word)
    units, end = [*dict.fromkeys([*SAMPLES, *parts, *characters])], "".join(characters)[:MAX_PATTERN]
    return [unit * (TEXT_LENGTH // len(unit) + 1) + "\x01" + end for unit in units[:MAX_TEXTS]]


def main() -> int:
    resource.setrlimit(resource.RLIMIT_CPU, (PROBE_SECONDS, PROBE_SECONDS))
    text = sys.stdin.buffer.read().decode()
    tokenizer: Any = tokenizers_library().Tokenizer.from_str(text)
    for hard in hard_texts(list(patterns_in(json.loads(text)))):
        try:
            tokenizer.encode_batch_fast([hard], add_special_tokens=False)
        except BaseException as error:  # a panic in the library is not an Exception
            if RETRY_LIMIT in str(error):
                return TOO_MANY_STEPS
    return 0


if __name__ == "__main__":
    sys.exit(main())
