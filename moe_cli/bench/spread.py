"""Median and range of many measurements."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class Spread:
    """Median, minimum and maximum of many measurements."""

    median: float
    min: float
    max: float

    def to_dict(self, name: str) -> dict[str, float]:
        """Returns the three values under the keys name, name_min and name_max."""
        return {name: self.median, f"{name}_min": self.min, f"{name}_max": self.max}


def spread(values: Sequence[float]) -> Spread:
    return Spread(median(values), min(values), max(values))
