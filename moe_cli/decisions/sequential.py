"""Statistics of a decision's claims, which stay valid over looks and pairs: a test of equality, and prospects.

Losses are positive. Differences are relative and paired by seed. Legend: n seeds, d mean difference, s its standard
deviation, m margin of equality, a error rate.
"""

import math
from collections.abc import Mapping

from moe_cli.decisions.terms import EQUAL
from moe_cli.report.intervals import t_cdf, t_quantile
from moe_cli.report.significance import BETTER, WORSE, PairedSample, holm


def equality_p_value(sample: PairedSample, margin: float) -> float | None:
    """Returns the p-value of the two one-sided tests of |d| >= margin; None for one seed.

    The larger of both p-values is that at the nearer margin (Schuirmann, J. Pharmacokin. Biopharm. 15, 1987, 657-680).
    """
    if sample.deviation is None:
        return None
    room = margin - abs(sample.mean)
    if sample.deviation == 0:
        return 0.0 if room > 0 else 1.0
    return t_cdf(-room / sample.deviation * math.sqrt(sample.seeds), sample.seeds - 1)


def claims_at_look(
    samples: Mapping[str, PairedSample], margin: float, alpha: float, given_up: int = 0
) -> dict[str, str]:
    """Returns the claims of one look that hold at the error rate of the look: better, worse, or equal, by name.

    Differences and equalities are two families. Holm's procedure keeps the chance of a wrong claim in each family at
    most `alpha`, for any dependence of the pairs. A difference that is certain and certainly within the margin is an
    equality. `given_up` pairs are no longer tested and count all the same, because the data chose them.
    """
    names = [name for name, sample in samples.items() if sample.p_value is not None]
    differing = holm([samples[name].p_value or 0.0 for name in names] + [1.0] * given_up)
    equal = holm([equality_p_value(samples[name], margin) or 0.0 for name in names] + [1.0] * given_up)
    claims: dict[str, str] = {}
    for name, p_difference, p_equality in zip(names, differing, equal, strict=False):
        if p_equality < alpha:
            claims[name] = EQUAL
        elif p_difference < alpha:
            claims[name] = BETTER if samples[name].mean < 0 else WORSE
    return claims


def prospect(difference: float, spread: float, deviation: float, seeds: int, margin: float, alpha: float) -> float:
    """Returns the probability that a look decides a pair, if the mean difference will be N(difference, spread^2) then.

    `deviation` is that of a paired difference, `alpha` the error rate of the look for this pair. Decided means beyond
    the half-width of the two-sided test, or within the margin by that of the two one-sided tests.
    """
    error = deviation / math.sqrt(seeds)
    beyond = t_quantile(1 - alpha / 2, seeds - 1) * error
    within = margin - t_quantile(1 - alpha, seeds - 1) * error
    if spread <= 0:
        return float(abs(difference) > beyond or abs(difference) < within)

    def below(x: float) -> float:
        return 0.5 * (1 + math.erf((x - difference) / spread / math.sqrt(2)))

    decided = below(-beyond) + 1 - below(beyond)
    if within > 0:
        decided += below(min(within, beyond)) - below(-min(within, beyond))
    return decided
