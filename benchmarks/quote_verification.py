"""Verifying one TDX quote: Cloister against dcap-qvl, on the same bytes, in the same run.

Both get evidence and collateral as they arrive (bytes and JSON text) and answer with a verdict; neither remembers a
verdict. Cloister remembers parsed certificates and documents by their bytes, as it does in service; the row
``cloister, cold`` forgets them before every call.

    python benchmarks/quote_verification.py [--quick] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import dcap_qvl

from _machine import machine
from cloister import attest
from cloister.attest import _certificates, _pck, _tcb

TARGET_MS = 2.0
_CACHES = (_certificates._parse_certificate, _certificates._parse_crl, _pck.parse_platform, _tcb._parse)


def _median_ms(call: Callable[[], object], *, rounds: int, calls: int) -> float:
    call()
    times: list[float] = []
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(calls):
            call()
        times.append((time.perf_counter() - start) / calls * 1e3)
    return statistics.median(times)


def measure(*, quick: bool) -> dict[str, object]:
    rounds, calls = (5, 10) if quick else (9, 100)
    with tempfile.TemporaryDirectory() as folder:
        site = attest.SimulatedSite.create(folder, created=datetime(2026, 1, 1, tzinfo=UTC))
    at = datetime(2026, 11, 20, tzinfo=UTC)
    evidence = site.attester(bytes(48), clock=lambda: at).attest(bytes(64))
    assert evidence.collateral is not None
    collateral_text = json.dumps(evidence.collateral.as_json())
    roots = attest.VENDOR_ROOTS.with_development(site.root_spki)
    policy, seconds = attest.DANGEROUS_DEVELOPMENT_POLICY, int(at.timestamp())

    def ours() -> None:
        given = attest.Evidence(type="tdx", quote=evidence.quote)
        collateral = attest.parse_collateral(collateral_text.encode())
        attest.appraise(given, collateral, policy, at, roots=roots).require()

    def appraisal() -> None:
        attest.appraise(evidence, None, policy, at, roots=roots).require()

    def cold() -> None:
        for cache in _CACHES:
            cache.cache_clear()
        ours()

    def theirs() -> None:
        collateral = dcap_qvl.QuoteCollateralV3.from_json(collateral_text)
        report = dcap_qvl.verify_with_root_ca(evidence.quote, collateral, site.root_certificate, seconds)
        assert report.status == "UpToDate"

    rows = {
        "cloister": _median_ms(ours, rounds=rounds, calls=calls),
        "cloister, collateral already parsed": _median_ms(appraisal, rounds=rounds, calls=calls),
        "cloister, cold": _median_ms(cold, rounds=rounds, calls=calls),
        "dcap-qvl": _median_ms(theirs, rounds=rounds, calls=calls),
    }
    return {
        "benchmark": "quote_verification",
        "machine": machine(),
        "rounds": rounds,
        "calls_a_round": calls,
        "median_ms": {name: round(value, 3) for name, value in rows.items()},
        "ratio_to_dcap_qvl": {name: round(value / rows["dcap-qvl"], 2) for name, value in rows.items()},
        "target_ms": TARGET_MS,
        "target_met": rows["cloister"] <= TARGET_MS,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, to see that it runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers there")
    arguments = parser.parse_args()
    facts = measure(quick=arguments.quick)
    print(f"one TDX quote v4 with its collateral, verified; median of {facts['rounds']} rounds")
    print(f"machine: {facts['machine']}\n")
    medians, ratios = facts["median_ms"], facts["ratio_to_dcap_qvl"]
    assert isinstance(medians, dict)
    assert isinstance(ratios, dict)
    print(f"{'':<38}{'ms a quote':>12}{'ratio':>9}")
    for name, value in medians.items():
        print(f"{name:<38}{value:>12.3f}{ratios[name]:>8.2f}x")
    print(f"\ntarget: at most {TARGET_MS} ms a quote: {'met' if facts['target_met'] else 'MISSED'}")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(facts, indent=2, sort_keys=True) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
