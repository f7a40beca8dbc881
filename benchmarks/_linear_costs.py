"""What generic protocols would need for the same fits: counted operations times constants that were measured earlier.

None of it is measured by a benchmark here. The constants are of MP-SPDZ 0.4.2 (a snapshot of June 2026, 128-bit primes,
all parties on one machine of two hyperthreads that did nothing else); those of four parties are scaled from two.

* SGD in MASCOT: two products of a batch with d columns a step, 2·128·d triples (23,040 at d = 90; the compiler counted
  23.3 thousand, and 55.3 thousand random bits), one epoch. Measured at two parties: 22.3 CPU seconds and 2.8 GB in
  every further step; scaled to four by the ratio of a step alone, 160.4/28.5, and 19.0/3.17 of its traffic.
* ADMM as Helen's, in LowGear: 4 blocks of d × d, 10 rounds, a threshold a coordinate. Measured at two parties and
  d = 90: 372 CPU seconds, 4.06 GB, without proofs of inputs, 455 thousand triples of which 4·10·d² are the blocks'.
  Six pairs instead of one at four parties are six times the work: an estimate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["HELEN_S", "Cost", "admm", "sgd"]

HELEN_S = 3 * 3600
"""Helen's published time is under this: four parties in four regions of EC2, d = 90 (Zheng et al., IEEE S&P 2019)."""

BATCH = 128
SGD_STEP = {2: (22.3, 2.8e9), 4: (22.3 * 160.4 / 28.5, 2.8e9 * 19.0 / 3.17)}
ADMM = {2: (372.0, 4.06e9), 4: (6 * 372.0, 6 * 4.06e9)}
MEASURED_FEATURES, ADMM_TRIPLES, THREADS = 90, 455_000, 2


@dataclass(frozen=True)
class Cost:
    """Of all parties.

    Attributes:
        triples: Counted.
        cpu_s: These times the constant.
        wall_s: On the machine of the constants, whose two hyperthreads all parties share.
        bytes: Sent by all.
    """

    triples: int
    cpu_s: float
    wall_s: float
    bytes: float


def sgd(rows: int, features: int, parties: int) -> Cost:
    """One epoch of stochastic gradient descent in MASCOT; 2 or 4 parties.

    >>> round(sgd(400_000, 90, 4).wall_s / 86400, 1)
    2.3
    """
    steps = math.ceil(rows / BATCH)
    cpu_s, sent = SGD_STEP[parties]
    scale = steps * features / MEASURED_FEATURES
    return Cost(2 * BATCH * features * steps, cpu_s * scale, cpu_s * scale / THREADS, sent * scale)


def admm(features: int, parties: int) -> Cost:
    """ADMM of ten rounds in LowGear, as if every party gave an honest inverse; 2 or 4 parties."""
    blocks = 40 * MEASURED_FEATURES**2
    triples = 40 * features**2 + (ADMM_TRIPLES - blocks) * features // MEASURED_FEATURES
    cpu_s, sent = ADMM[parties]
    scale = triples / ADMM_TRIPLES
    return Cost(triples, cpu_s * scale, cpu_s * scale / THREADS, sent * scale)
