"""What the difference between the real noise and the ideal one costs.

The engine adds a *discrete* Gaussian to an integer sum; the accountants know the continuous one. Between them:

1. Rounding the continuous mechanism's output is post-processing, and for an integer sum ``x`` and any ``z`` is
   ``round(x + z) = x + round(z)``. So adding the *rounded* Gaussian r(k) = ∫_{k-1/2}^{k+1/2} φ_σ is as private as the
   Gaussian mechanism, whatever x is.
2. The discrete Gaussian p(k) = φ_σ(k)/Θ, Θ = Σ φ_σ(j), is close to r. With b = k/σ²,
   r(k)/φ_σ(k) = ∫_{-1/2}^{1/2} e^(-u²/2σ²) cosh(bu) du. By Jensen and log cosh x ≥ x²/2 - x⁴/12 its logarithm is at
   least -1/24σ² + k²/24σ⁴ - k⁴/960σ⁸. By Poisson's summation, Θ = 1, E_p k² = σ² and E_p k⁴ = 3σ⁴, each within a
   relative 2000 σ⁴ e^(-2π²σ²). Hence KL(p‖r) = E_p log(p/r) ≤ 1/320σ⁴ + that, which for σ ≥ 2 is below 1/288σ⁴.
3. Divergences add over independent coordinates and, by the chain rule, over adaptive steps: n draws in all give
   n/288σ⁴. By Pinsker the transcripts' total variation distance is at most √(n/576)/σ² = √n / 24σ².
4. A sampler that is itself within distance t of p for one draw adds n·t.

With distance S for each of two neighbours, P' ≤ P + S ≤ e^ε Q + δ + S ≤ e^ε Q' + δ + (1 + e^ε) S on every event: an
(ε, δ) guarantee of the ideal mechanism is (ε, δ + (1 + e^ε) S) of the real one. That is :func:`with_slack`.

Sources: Canonne, Kamath and Steinke, "The Discrete Gaussian for Differential Privacy" (2020), for p; Pinsker's
inequality. The constants are ours, and tests hold them against exact sums.
"""

from __future__ import annotations

import math
from fractions import Fraction

from cloister.errors import InputError
from cloister.ledger._numbers import float_up, significant_up

__all__ = ["noise_slack", "with_slack"]


def noise_slack(*, sigma: Fraction, draws: int, sampler_distance: Fraction) -> str:
    """The slack of integer noise, as decimal text rounded up.

    Args:
        sigma: The discrete Gaussian's parameter on the integer grid, at least 2 (the engine's is at least 2^24).
        draws: Coordinates times steps, at least 1.
        sampler_distance: Total variation distance of one draw from the discrete Gaussian.

    >>> noise_slack(sigma=Fraction(2**24), draws=467_000 * 23_437, sampler_distance=Fraction(1, 2**90))
    '0.00000000001549'

    Raises:
        InputError: 2801 when an argument is out of range.
    """
    if sigma < 2 or draws < 1 or not 0 <= sampler_distance <= 1:
        raise InputError(2801, "this noise is not described", expected="sigma at least 2, at least one draw")
    root = Fraction(math.isqrt(draws * 10**12) + 1, 10**6)  # above the square root
    slack = root / (24 * sigma**2) + draws * sampler_distance
    return significant_up(min(slack, Fraction(1)))


def with_slack(*, epsilon: Fraction, delta: float, slack: Fraction) -> float:
    """The real mechanism's δ at ``epsilon``, from the ideal one's and the distance between them; at most 1."""
    if slack == 0:
        return min(1.0, delta)
    if epsilon > 700:
        return 1.0
    growth = math.exp(float_up(epsilon)) * (1 + 2.0**-40)
    return min(1.0, (delta + (1 + growth) * float_up(slack)) * (1 + 2.0**-40))
