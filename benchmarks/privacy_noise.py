"""What a draw of noise costs: discrete Gaussian noise from AES-256, against torch.randn and plain AES, in the same run.

    python benchmarks/privacy_noise.py [--quick] [--json FILE] [--threads N]

Nanoseconds a draw, by the clock and of processor time (which neighbours on a busy machine disturb less), medians over
rounds in which all take turns, so that a machine that drifts drifts for all. ``noise`` goes onto an integer sum in
place, as the engine does it; ``resumable`` is bound to the sum; the stream and the table are its two halves.

Baselines: ``torch.randn`` in float32 and float64, which are no CSPRNG; AES-256-CTR of the same 32 bytes; and a floating
normal made of AES words by numpy (Box-Muller, 8 bytes each), which is what one would write without this. ``sample`` is
Poisson sampling, a record.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from _machine import machine
from cloister.privacy._discrete import DRAW_BYTES, discrete_gaussian
from cloister.privacy._grid import GRID_SIGMA
from cloister.privacy._noise import CHUNK_DRAWS, NoiseSource, ResumableNoise
from cloister.privacy._run_key import RunKey
from cloister.privacy._sampling import PoissonSampler
from cloister.privacy._stream import Chunks

Call = Callable[[], object]
Clock = Callable[[], float]

BASELINE = "torch.randn float32"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer draws and rounds, to see that it runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers there")
    parser.add_argument("--threads", type=int, default=1, help="of noise and of torch")
    arguments = parser.parse_args()
    facts = measure(quick=arguments.quick, threads=arguments.threads)
    print(f"{facts['machine']}; {facts['threads']} thread(s), load {facts['load_before']}")
    print(f"σ = 2^24, one draw within 2^{facts['distance_bits']:.1f} of the ideal; table: {facts['table_ms']:.0f} ms\n")
    print(f"{'':<26}{'ns a draw':>12}{'of randn':>10}{'cpu ns':>10}{'of randn':>10}")
    for name, row in facts["rows"].items():
        print(f"{name:<26}{row['ns']:>12.2f}{row['of_randn']:>9.2f}x{row['cpu_ns']:>10.2f}{row['cpu_of_randn']:>9.2f}x")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(facts, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
    return 0


def measure(*, quick: bool, threads: int) -> dict[str, object]:
    torch.set_num_threads(threads)
    count, rounds = (1 << 16, 5) if quick else (1 << 20, 15)
    load = os.getloadavg()[0]
    start = time.perf_counter()
    gaussian = discrete_gaussian(GRID_SIGMA)
    table_ms = (time.perf_counter() - start) * 1e3
    calls = contenders(count, threads)
    for call in calls.values():
        call()  # compiles, and warms caches
    clocks: dict[str, Clock] = {"ns": time.perf_counter, "cpu_ns": time.process_time}
    taken = {name: {unit: [] for unit in clocks} for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            begun = {unit: clock() for unit, clock in clocks.items()}
            call()
            for unit, clock in clocks.items():
                taken[name][unit].append((clock() - begun[unit]) / count * 1e9)
    rows = {name: {unit: statistics.median(found[unit]) for unit in clocks} for name, found in taken.items()}
    for row in rows.values():
        row |= {"of_randn": row["ns"] / rows[BASELINE]["ns"], "cpu_of_randn": row["cpu_ns"] / rows[BASELINE]["cpu_ns"]}
    return {
        "machine": machine(),
        "torch": torch.__version__,
        "threads": threads,
        "load_before": round(load, 2),
        "draws": count,
        "rounds": rounds,
        "distance_bits": math.log2(gaussian.distance),
        "table_ms": table_ms,
        "rows": rows,
    }


def contenders(count: int, threads: int) -> dict[str, Call]:
    gaussian, key = discrete_gaussian(GRID_SIGMA), RunKey()
    total = torch.zeros(count, dtype=torch.int64)
    fresh = NoiseSource(GRID_SIGMA, threads=threads)
    bound = ResumableNoise(key, GRID_SIGMA, context=b"", threads=threads)
    stream = Chunks(key.derive("benchmark"))
    words, chunk = stream.words(0, 0), np.zeros(CHUNK_DRAWS, np.int64)
    sampler = PoissonSampler(count, probability=Fraction(1, 200), key=key)
    single, double = torch.empty(count), torch.empty(count, dtype=torch.float64)
    zeros, out = bytes(DRAW_BYTES * CHUNK_DRAWS), np.empty(DRAW_BYTES * CHUNK_DRAWS + 64, np.uint8)
    chunks = range(count // CHUNK_DRAWS)

    def aes() -> None:
        cipher = Cipher(algorithms.AES(bytes(32)), modes.CTR(bytes(16))).encryptor()
        for _ in chunks:
            cipher.update_into(zeros, out)

    def box_muller() -> None:
        cipher = Cipher(algorithms.AES(bytes(32)), modes.CTR(bytes(16))).encryptor()
        for _ in chunks:
            cipher.update_into(zeros[: 8 * CHUNK_DRAWS], out)
            uniform = ((out[: 8 * CHUNK_DRAWS].view(np.uint64) >> 11) + 1) * 2.0**-53
            radius = np.sqrt(-2 * np.log(uniform[::2]))
            angle = 2 * np.pi * uniform[1::2]
            np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])

    return {
        "noise": lambda: fresh.add_to(total),
        "noise, resumable": lambda: bound.add_to(total),
        "  its stream": lambda: [stream.words(1, number) for number in chunks],
        "  its table": lambda: [gaussian.add(words, chunk) for _ in chunks],
        BASELINE: single.normal_,
        "torch.randn float64": double.normal_,
        "AES-256-CTR, 32 bytes": aes,
        "AES and numpy, float64": box_muller,
        "sample, a record": lambda: sampler.sample(1),
    }


if __name__ == "__main__":
    sys.exit(main())
