"""Arithmetic of linear fits: the field F_p, its slots, and polynomials of ciphertexts, beside Python's integers.

    python benchmarks/linear_numbers.py --quick          polynomials of degree 1024, to see that it runs
    python benchmarks/linear_numbers.py --json F         degree 32768, as fits have it; also writes the numbers

Each operation is ours, compiled, in one thread, and as baselines the same on the same numbers in Python: integers in a
list, arrays of numpy that hold integers, and gmpy2's where it is installed. Baselines of transforms are the same
butterflies on arrays of integers. Results are compared first, all of them. A figure is the median of rounds that go
through all contenders in turn, of the thread's CPU time, so that a machine that drifts drifts for all.

Units: nanoseconds an element for the field's operations, milliseconds a polynomial for the rest; residues of all nine
primes count as one polynomial, a transform is of one prime.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from _machine import processor
from cloister.linear import _field as field
from cloister.linear import _limbs as limbs
from cloister.linear import _ntt as ntt
from cloister.linear import _residues as residues
from cloister.linear import _streams as streams
from cloister.linear._field import P, to_ints
from cloister.linear._field_ntt import to_coefficients, to_slots
from cloister.linear._primes import DROPPED, FULL, KEPT, Basis
from cloister.linear._roots import square_roots

Call = Callable[[], Any]
OURS, PYTHON, NUMPY, GMPY2 = "cloister", "Python", "numpy object", "gmpy2"
HAS_GMPY2 = importlib.util.find_spec("gmpy2") is not None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smaller degree and three rounds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers there")
    options = parser.parse_args()
    degree, rounds = (1024, 3) if options.quick else (32768, 9)
    rows: list[dict[str, Any]] = []
    print(f"{'operation':<34}{'unit':>6}{OURS:>12}{PYTHON:>12}{NUMPY:>14}{GMPY2:>12}{'times faster':>14}")
    for unit, count, operations in (("ns", degree, field_operations), ("ms", 1, polynomial_operations)):
        for name, contenders in operations(degree).items():
            row = {"operation": name, "unit": unit, **measured(contenders, count, unit, rounds)}
            rows.append(row)
            print(text(row), flush=True)
    report = {"machine": machine(), "degree": degree, "rounds": rounds, "rows": rows}
    print(f"\n{json.dumps(report['machine'], ensure_ascii=False)}")
    if options.json:
        options.json.write_text(json.dumps(report, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
    return 0


def machine() -> dict[str, object]:
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "numpy": np.__version__,
    }


def measured(contenders: dict[str, Call], count: int, unit: str, rounds: int) -> dict[str, float]:
    """Of each contender the median of a round, after a look at whether they agree."""
    made = {who: call() for who, call in contenders.items()}
    assert all(np.array_equal(np.asarray(other, object), np.asarray(made[OURS], object)) for other in made.values())
    calls = {who: max(1, min(200, round(0.02 / elapsed(call, 1)))) for who, call in contenders.items()}
    taken: dict[str, list[float]] = {who: [] for who in contenders}
    for _ in range(rounds):
        for who, call in contenders.items():
            taken[who].append(elapsed(call, calls[who]))
    scale = {"ns": 1e9, "ms": 1e3}[unit] / count
    return {who: scale * statistics.median(found) for who, found in taken.items()}


def elapsed(call: Call, times: int) -> float:
    start = time.thread_time()
    for _ in range(times):
        call()
    return (time.thread_time() - start) / times


def text(row: dict[str, Any]) -> str:
    shown = [f"{row[who]:.4g}" if who in row else "" for who in (OURS, PYTHON, NUMPY, GMPY2)]
    others = [row[who] for who in (PYTHON, NUMPY, GMPY2) if who in row]
    ratio = f"{min(others) / row[OURS]:.0f}" if others else ""
    return f"{row['operation']:<34}{row['unit']:>6}{shown[0]:>12}{shown[1]:>12}{shown[2]:>14}{shown[3]:>12}{ratio:>14}"


# ---- what is measured ------------------------------------------------------------------------------------


def field_operations(degree: int) -> dict[str, dict[str, Call]]:
    """By operation and contender; each gives what can be compared."""
    source = streams.SecretStream("benchmark")
    a, b = streams.elements(source, degree), streams.elements(source, degree)
    x, y = to_ints(a).tolist(), to_ints(b).tolist()
    objects = to_ints(a), to_ints(b)

    def each(ours: Callable[[Any, Any], Any], plain: Callable[[Any, Any], Any]) -> dict[str, Call]:
        found: dict[str, Call] = {
            OURS: lambda: Compared(ours(a, b)),
            PYTHON: lambda: [plain(u, v) % P for u, v in zip(x, y, strict=True)],
            NUMPY: lambda: plain(*objects) % P,
        }
        if HAS_GMPY2:
            import gmpy2

            left, right, p = [gmpy2.mpz(u) for u in x], [gmpy2.mpz(v) for v in y], gmpy2.mpz(P)
            found[GMPY2] = lambda: [plain(u, v) % p for u, v in zip(left, right, strict=True)]
        return found

    squares, data = field.multiply(a, a), field.to_bytes(a)
    return {
        "field addition": each(field.add, lambda u, v: u + v),
        "field multiplication": each(field.multiply, lambda u, v: u * v),
        "inner product, a term": {
            OURS: lambda: Compared(field.dot(a, b)),
            PYTHON: lambda: sum(u * v for u, v in zip(x, y, strict=True)) % P,
        },
        "field inverse": {OURS: lambda: Compared(field.inverse(a)), PYTHON: lambda: [pow(u, -1, P) for u in x]},
        "square root": {OURS: lambda: square_roots(squares)[0]},
        "uniform element": {OURS: lambda: streams.elements(source, degree).shape},
        "from bytes": {
            OURS: lambda: Compared(field.from_bytes(data, (degree,))),
            PYTHON: lambda: [int.from_bytes(data[start : start + 23], "little") for start in range(0, len(data), 23)],
        },
    }


class Compared:
    """An array of elements that is turned into integers only where it is compared."""

    def __init__(self, elements: Any) -> None:
        self._elements = elements

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return to_ints(self._elements)


def polynomial_operations(degree: int) -> dict[str, dict[str, Call]]:
    source = streams.SecretStream("benchmark")
    basis = Basis(FULL.primes, degree)
    kept, dropped = Basis(KEPT.primes, degree), Basis(DROPPED.primes, degree)
    one = Basis(DROPPED.primes[:1], degree)
    (q,) = one.primes
    a = streams.elements(source, degree)
    x = streams.residues(streams.PublicStream(bytes(32), "benchmark"), basis)
    alone, coefficients = np.ascontiguousarray(x[4:5]), to_ints(a)
    flood = streams.box(source, degree, -(2**327), 2**327 - 1)
    slots, values = to_slots(a), ntt.forward(alone, one)
    return {
        "field NTT": {
            OURS: lambda: Compared(to_slots(a)),
            NUMPY: lambda: plain_transform(coefficients, P),
        },
        "field NTT, inverse": {OURS: lambda: Compared(to_coefficients(slots))},
        "ring NTT, one prime": {
            OURS: lambda: ntt.forward(alone, one)[0],
            NUMPY: lambda: plain_transform(alone[0].astype(object), q)[(ntt.exponents(degree) - 1) // 2],
        },
        "ring NTT, inverse, one prime": {OURS: lambda: ntt.inverse(values, one)[0]},
        "products of residues": {OURS: lambda: residues.multiply(x, x, basis)},
        "residues of field elements": {OURS: lambda: limbs.from_centred(a, basis)},
        "residues of 328 bits": {OURS: lambda: limbs.from_words(flood, basis)},
        "switch to q′": {OURS: lambda: limbs.switch(x, kept, dropped)},
        "decode": {OURS: lambda: limbs.decode(x[:4], kept, basis.modulus)},
        "ternary": {OURS: lambda: streams.ternary(source, degree).shape},
        "binomial": {OURS: lambda: streams.binomial(source, degree).shape},
        "box of 328 bits": {OURS: lambda: streams.box(source, degree, -(2**327), 2**327 - 1).shape},
    }


def plain_transform(coefficients: Any, modulus: int) -> Any:
    """Values at ψ to all odd powers, of an array of integers; bits of the place reversed where the modulus is p."""
    degree = len(coefficients)
    candidates = (pow(base, (modulus - 1) // (2 * degree), modulus) for base in range(2, 1000))
    root = next(root for root in candidates if pow(root, degree, modulus) == modulus - 1)
    order = ntt.bit_reversed(degree)
    powers = np.array([pow(root, int(place), modulus) for place in order], object)
    x, half = coefficients.copy(), degree // 2
    while half >= 1:
        pairs = x.reshape(-1, 2, half)
        blocks = len(pairs)
        turned = pairs[:, 1] * powers[blocks : 2 * blocks, None]
        x = np.stack([(pairs[:, 0] + turned) % modulus, (pairs[:, 0] - turned) % modulus], axis=1).reshape(-1)
        half //= 2
    return x if modulus == P else x[order]


if __name__ == "__main__":
    sys.exit(main())
