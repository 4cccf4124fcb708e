"""Options of generated text mean what lm-evaluation-harness says."""

import pytest

from moe_cli.errors import ConfigError
from moe_cli.harness.generation import read_generation
from moe_cli.training.generate import SamplingParams


def test_generation_is_greedy_by_default() -> None:
    """Only a temperature above 0 samples, and do_sample=false overrules it."""
    greedy = [{}, {"temperature": 0.0}, {"temperature": 0.7, "do_sample": False}]
    assert [SamplingParams(0.0)] * 3 == [read_generation(options).sampling for options in greedy]
    sampled = read_generation({"temperature": 0.7, "do_sample": True, "top_k": 5, "top_p": 0.9})
    assert SamplingParams(0.7, 5, 0.9) == sampled.sampling


def test_text_ends_before_the_first_stop() -> None:
    """Stops are one text or several, and the one that comes first in the text counts."""
    assert "a b" == read_generation({"until": "\n"}).cut("a b\nc")
    options = read_generation({"until": ["", "z", "b"], "max_new_tokens": 7})
    assert ("a ", 7) == (options.cut("a bz"), options.max_tokens)
    assert "a c" == options.cut("a c")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 4}, "generation_kwargs has num_beams. Known are"),
        ({"do_sample": True}, "do_sample=true needs a temperature above 0"),
        ({"temperature": -1}, "temperature=-1.0 must be a number that is not below 0"),
        ({"temperature": 1, "top_p": 2}, "top_p=2 must be above 0 and at most 1"),
        ({"max_gen_toks": 0}, "max_gen_toks=0 must be at least 1"),
    ],
)
def test_options_without_effect_are_refused(options: dict[str, object], message: str) -> None:
    """An option that would be ignored is an error of one line."""
    with pytest.raises(ConfigError, match=message) as raised:
        read_generation(options)
    assert "\n" not in str(raised.value)
