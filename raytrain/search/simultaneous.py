"""How wide intervals must be when several finalists are compared at once. No torch, no ray.

Of four equal finalists the best looks better than one that it is compared with more often than
either of two would. So an interval is widened by the number of comparisons.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtr
from scipy.stats import chi2, norm

# Nodes of the two integrals: over the score of a control, and over the estimate of the noise.
_SCORES = np.linspace(-8.0, 8.0, 161)
_CHANCES = (np.arange(500) + 0.5) / 500
# Quantiles at more degrees of freedom are those of the normal distribution to three digits.
_MOST_DF = 1000.0
# No quantile that is asked for lies beyond: at one degree of freedom it is below 100.
_WIDEST = 1e4


@cache
def quantile(share: float, finalists: int, controls: int, df: float) -> float:
    """Returns how many standard errors the best finalist may lie above any control by chance.

    Scores of equal finalists are drawn from one normal distribution. Its deviation is estimated
    with `df` degrees of freedom. The statistic is the largest difference of a finalist and a
    control, in standard errors of a difference. With one control this is the one-sided test of
    C. W. Dunnett 1955, "A Multiple Comparison Procedure for Comparing Several Treatments with a
    Control". If all finalists are controls, it is the studentized range over √2.

    Args:
        share: of the searches in which the statistic stays below the quantile.
        finalists: number of finalists, at least 2, controls included.
        controls: number of those that all others are compared with, at least 1.
        df: degrees of freedom of the noise; above 1000 counts as 1000.
    """
    deviation = np.sqrt(chi2.ppf(_CHANCES, min(df, _MOST_DF)) / min(df, _MOST_DF))

    def excess(width: float) -> float:
        return _share_within(width * deviation, finalists, controls) - share

    in_deviations = brentq(excess, 0.0, _WIDEST)
    # A difference of two scores has √2 times the deviation of one.
    return float(in_deviations / np.sqrt(2))


def _share_within(
    widths: np.ndarray[tuple[int], np.dtype[np.float64]], finalists: int, controls: int
) -> float:
    """The chance that no finalist lies more than a width above the lowest control.

    For k controls among n finalists it is the integral over the lowest control z of
    k φ(z) Φ(z + w)^(n - k) (Φ(z + w) - Φ(z))^(k - 1): the others lie below z + w, and the other
    controls above z too.

    Args:
        widths: w in deviations of a score, (M,); the mean over them is returned.
        finalists: n.
        controls: k.
    """
    below = ndtr(_SCORES + widths[:, None])
    between = below - ndtr(_SCORES)
    density = controls * norm.pdf(_SCORES)
    values = density * below ** (finalists - controls) * between ** (controls - 1)
    step = _SCORES[1] - _SCORES[0]
    return float(values.sum(axis=1).mean() * step)
