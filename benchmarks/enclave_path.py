"""The enclave's passes over memory, one core: hiding and recovering a layer's tensors over copying the same tensors.

*Hiding* is one pass that quantises with stochastic rounding and masks for shared3: fp32 values, rounding bytes and
mask words in, int8 integers and two masked tensors out. *Recovering* is everything that the enclave does to an answer
of shared3, for the product and both gradients: it draws the challenge, unmasks three answers, holds them to the bound,
sums them up and scales them to fp32 in one pass, computes from the operands what the sum must be, and compares.

What both are measured against is copying each of these tensors once, inputs and outputs. A copy moves every byte twice,
so against a copy that moves as many bytes as the pass must, both ratios double; these are printed as well. Beside them:
the same bits by torch, a pass a line, as published implementations work (about six passes a tensor); the maximum, where
no pass before has found it; the keystream; and where the rest of recovering goes. Processor time of one thread, medians
of interleaved rounds.

    python benchmarks/enclave_path.py [--quick] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from _machine import machine
from cloister.ring import (
    Conv2d,
    MaskKey,
    MatMul,
    Operator,
    Product,
    Role,
    RoundingStream,
    dequantise,
    draw,
    expand,
    exponent_for,
    kernels_for,
    magnitude,
    recover,
)
from cloister.ring import _multipass as multipass
from cloister.ring._fused import maximum, quantise_words

HIDE_TARGET, RECOVER_TARGET = 3.0, 4.0
ROLES: tuple[Role, ...] = ("forward", "input_gradient", "weight_gradient")
Rows = dict[str, Callable[[], object]]


@dataclass(frozen=True)
class Layer:
    """One layer at one batch size."""

    name: str
    operator: Operator
    x: tuple[int, ...]
    w: tuple[int, ...]


LAYERS = (
    Layer("conv 256→256, 56×56, batch 16", Conv2d(padding=(1, 1)), (16, 256, 56, 56), (256, 256, 3, 3)),
    Layer("conv 512→512, 4×4, batch 128", Conv2d(padding=(1, 1)), (128, 512, 4, 4), (512, 512, 3, 3)),
    Layer("linear 4096→4096, batch 1024", MatMul(), (1024, 4096), (4096, 4096)),
)
QUICK = (
    Layer("conv 64→64, 56×56, batch 8", Conv2d(padding=(1, 1)), (8, 64, 56, 56), (64, 64, 3, 3)),
    Layer("conv 512→512, 4×4, batch 32", Conv2d(padding=(1, 1)), (32, 512, 4, 4), (512, 512, 3, 3)),
    Layer("linear 1024→1024, batch 1024", MatMul(), (1024, 1024), (1024, 1024)),
)


def _medians(rows: Rows, rounds: int) -> dict[str, float]:
    """Median processor seconds of each row; rounds are interleaved, so that a disturbance meets all rows."""
    for call in rows.values():
        call()  # compiles, and touches all memory
    spent: dict[str, list[float]] = {name: [] for name in rows}
    for _ in range(rounds):
        for name, call in rows.items():
            start = time.thread_time()
            call()
            spent[name].append(time.thread_time() - start)
    return {name: statistics.median(times) for name, times in spent.items()}


def _copying(tensors: list[Tensor]) -> Callable[[], object]:
    """Copies each tensor once, into memory that was touched before."""
    copies = [torch.empty_like(tensor) for tensor in tensors]

    def copy() -> None:
        for target, source in zip(copies, tensors, strict=True):
            target.copy_(source)

    return copy


def _bytes(tensors: list[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _hiding(layer: Layer, rounds: int) -> dict[str, float]:
    values = torch.randn(layer.x)
    count = values.numel()
    noise = RoundingStream().next(count)
    words = expand(MaskKey("x"), 0, layer.x)
    exponent = exponent_for(float(maximum(values)), 8)
    out = torch.empty(layer.x, dtype=torch.int8)
    masked = [torch.empty(layer.x, dtype=torch.int32) for _ in range(2)]
    masks = [(words, 1), (words, -1)]
    key, rounding = MaskKey("x"), RoundingStream()
    rows: Rows = {
        "copy": _copying([values, noise, words, out, *masked]),
        "pass": lambda: quantise_words(values, exponent, noise=noise, masks=masks, out=out, masked_out=masked),
        "maximum": lambda: maximum(values),
        "many passes": lambda: multipass.quantise_words(values, exponent, noise=noise, masks=masks),
        "mask words": lambda: expand(key, 0, layer.x),
        "rounding bytes": lambda: rounding.next(count),
    }
    made = quantise_words(values, exponent, noise=noise, masks=masks)
    twin = multipass.quantise_words(values, exponent, noise=noise, masks=masks)
    assert all(torch.equal(*pair) for pair in zip(made.masked, twin.masked, strict=True))
    return _medians(rows, rounds)


def _recovering(layer: Layer, role: Role, rounds: int) -> dict[str, float]:
    product = Product(layer.operator, role, x=layer.x, w=layer.w)
    left, right = (torch.randint(-128, 128, shape, dtype=torch.int8) for shape in (product.left, product.right))
    right_answer = kernels_for(torch.device("cpu")).product(product, left, right)
    second, third = (expand(MaskKey(role), i, product.result) for i in range(2))
    answers = [(1, 2 * right_answer + 2 * third - second), (1, second), (-2, third)]
    out = torch.empty(product.result)
    bound = magnitude(product.terms, 8, 8)
    bias = (
        torch.randn(product.result[1]).reshape(-1, 1, 1)
        if len(product.result) == 4
        else torch.randn(product.result[-1])
    )
    exponents = [-6, -9]

    def whole() -> Tensor:
        challenge = draw(product)
        found = recover(answers, bound=bound, halve=True, functional=challenge, exponents=exponents, bias=bias, out=out)
        assert found.functional is not None
        assert challenge.judge(left, right, value=found.functional).holds
        assert (found.odd, found.beyond) == (0, 0)
        return found.values

    def many() -> Tensor:
        challenge = draw(product)
        found = multipass.recover(
            answers, bound=bound, halve=True, functional=challenge, exponents=exponents, bias=bias
        )
        assert found.functional is not None
        assert challenge.judge(left, right, value=found.functional).holds
        return found.values

    held = draw(product)
    rows: Rows = {
        "copy": _copying([*(words for _, words in answers), out, left, right]),
        "whole": whole,
        "challenge": lambda: draw(product),
        "pass, unchecked": lambda: recover(answers, bound=bound, halve=True, exponents=exponents, bias=bias, out=out),
        "pass": lambda: recover(
            answers, bound=bound, halve=True, functional=held, exponents=exponents, bias=bias, out=out
        ),
        "operands": lambda: held.expected(left, right),
        "many passes": many,
    }
    expected = dequantise(right_answer, exponents, bias)
    assert torch.equal(whole(), expected)
    assert torch.equal(many(), expected)
    return _medians(rows, rounds)


def _sum(results: list[dict[str, float]], name: str) -> float:
    return sum(result[name] for result in results)


def measure(*, quick: bool) -> dict[str, object]:
    """All ratios of one run."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rounds = 5 if quick else 15
    hiding: dict[str, dict[str, float]] = {}
    recovering: dict[str, dict[str, float]] = {}
    bytes_hidden = words_made = 0
    for layer in QUICK if quick else LAYERS:
        hiding[layer.name] = _hiding(layer, rounds)
        words_made += 4 * torch.Size(layer.x).numel()
        bytes_hidden += 18 * torch.Size(layer.x).numel()
        for role in ROLES:
            recovering[f"{layer.name}, {role}"] = _recovering(layer, role, rounds)
    hides, recovers = list(hiding.values()), list(recovering.values())
    hide_ratio = _sum(hides, "pass") / _sum(hides, "copy")
    recover_ratio = _sum(recovers, "whole") / _sum(recovers, "copy")
    checking = _sum(recovers, "pass") - _sum(recovers, "pass, unchecked")
    parts = {
        "drawing the challenge": _sum(recovers, "challenge"),
        "unmask, bound, scale": _sum(recovers, "pass, unchecked"),
        "summing the answer up": checking,
        "what the operands demand": _sum(recovers, "operands"),
    }
    whole = _sum(recovers, "whole")
    return {
        "benchmark": "enclave_path",
        "machine": f"{machine()}, torch {torch.__version__}",
        "rounds": rounds,
        "hiding_seconds": hiding,
        "recovering_seconds": recovering,
        "copy_gb_a_second": round(bytes_hidden / _sum(hides, "copy") / 1e9, 2),
        "keystream_gb_a_second": round(words_made / _sum(hides, "mask words") / 1e9, 2),
        "hide_over_copy": round(hide_ratio, 2),
        "hide_with_maximum_over_copy": round((_sum(hides, "pass") + _sum(hides, "maximum")) / _sum(hides, "copy"), 2),
        "hide_with_keystream_over_copy": round(
            sum(_sum(hides, name) for name in ("pass", "maximum", "mask words", "rounding bytes"))
            / _sum(hides, "copy"),
            2,
        ),
        "hide_many_passes_over_copy": round(_sum(hides, "many passes") / _sum(hides, "copy"), 2),
        "recover_over_copy": round(recover_ratio, 2),
        "recover_many_passes_over_copy": round(_sum(recovers, "many passes") / _sum(recovers, "copy"), 2),
        "recover_parts": {name: round(seconds / whole, 3) for name, seconds in parts.items()},
        "recover_parts_over_copy": {
            name: round(seconds / _sum(recovers, "copy"), 2) for name, seconds in parts.items()
        },
        "targets": {"hide": HIDE_TARGET, "recover": RECOVER_TARGET},
        "targets_met": {"hide": hide_ratio <= HIDE_TARGET, "recover": recover_ratio <= RECOVER_TARGET},
    }


def _show(result: dict[str, object]) -> None:
    print(f"{result['machine']}; one thread, median of {result['rounds']}; times the copying of the same tensors")
    print(f"  {'hiding':48} {'copy ms':>8} {'one pass':>9} {'+ maximum':>10} {'many passes':>12}")
    for name, row in result["hiding_seconds"].items():
        both = row["pass"] + row["maximum"]
        ratios = [part / row["copy"] for part in (row["pass"], both, row["many passes"])]
        print(f"  {name:48} {row['copy'] * 1e3:8.2f} {ratios[0]:9.2f} {ratios[1]:10.2f} {ratios[2]:12.2f}")
    print(f"  {'recovering':48} {'copy ms':>8} {'whole':>9} {'its pass':>10} {'many passes':>12}")
    for name, row in result["recovering_seconds"].items():
        ratios = [row[part] / row["copy"] for part in ("whole", "pass", "many passes")]
        print(f"  {name:48} {row['copy'] * 1e3:8.2f} {ratios[0]:9.2f} {ratios[1]:10.2f} {ratios[2]:12.2f}")
    for part, ratio in (("hide", "hide_over_copy"), ("recover", "recover_over_copy")):
        verdict = "met" if result["targets_met"][part] else "MISSED"
        print(f"{part}: {result[ratio]} times copying (target {result['targets'][part]}: {verdict});", end=" ")
        print(f"{2 * result[ratio]:.2f} times a copy that moves as many bytes;", end=" ")
        print(f"in many passes {result[f'{part}_many_passes_over_copy']}")
    print(f"hide with the maximum {result['hide_with_maximum_over_copy']},", end=" ")
    print(f"with the keystream on the same core too {result['hide_with_keystream_over_copy']}")
    print(f"copying {result['copy_gb_a_second']} GB/s, AES-256-CTR {result['keystream_gb_a_second']} GB/s")
    print("of recovering: " + ", ".join(f"{name} {part:.0%}" for name, part in result["recover_parts"].items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="smaller layers, fewer rounds: a minute")
    parser.add_argument("--json", metavar="FILE", help="write the result as JSON")
    options = parser.parse_args()
    result = measure(quick=options.quick)
    _show(result)
    if options.json:
        Path(options.json).write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
