"""The loss of a text that does not depend on its tokens: bits per byte. Imports no torch."""

import math


def bits_per_byte(nats: float, num_bytes: float) -> float:
    """Computes the bits per byte of a text: its summed loss in nats, in bits, over the bytes of the text."""
    return nats / math.log(2) / num_bytes
