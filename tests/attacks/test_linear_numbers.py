"""Numbers of linear fits that tell more than they should: by their time, under a second name, drawn twice, too short.

First what an attacker gains where a rule is broken, then that it cannot be.
"""

from __future__ import annotations

import os
import platform
import random
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tests.branches import compiled_code, secret_conditions, secret_instructions
from tests.exact_numbers import refused
from tests.machine_code import Function, Shown, secrets_shown

from cloister.linear import _draws, _field_ntt, _limb_kernels, _limbs, _ntt
from cloister.linear import _field as field
from cloister.linear import _field_kernels as kernels
from cloister.linear import _residues as residues
from cloister.linear import _streams as streams
from cloister.linear._field import P, from_ints, to_ints
from cloister.linear._primes import Basis, largest

KEPT, DROPPED = Basis(largest(53, 2, 64), 32), Basis(largest(62, 2, 64), 32)
BOTH = Basis(KEPT.primes + DROPPED.primes, 32)

# ---- numbers that show by how long they take -------------------------------------------------------------

COUNT = 32
X = np.zeros((COUNT, 3), np.uint64)
ROWS = np.zeros(BOTH.shape, np.uint64)
FACTORS = np.concatenate([residues.shoup_factors([7], q) for q in BOTH.primes])
TABLE = np.zeros((kernels.POWERS, 3), np.uint64)
WORDS = np.zeros((COUNT, 4), np.uint64)


def tables(inverse: bool) -> Any:
    return _ntt._tables(DROPPED.primes[0], 32, inverse)


KERNELS: dict[str, Callable[[], tuple[Any, ...]]] = {
    "add": lambda: (kernels.added, X, X, X),
    "subtract": lambda: (kernels.subtracted, X, X, X),
    "multiply": lambda: (kernels.multiplied, X, X, X),
    "inner products": lambda: (kernels.dots, X[None], X[None], X[:1]),
    "inverse": lambda: (kernels.inverted, X, kernels.INVERSION, TABLE, X.copy()),
    "signed words": lambda: (kernels.embedded, WORDS[:, 0].view(np.int64).copy(), X),
    "centred": lambda: (kernels.centred, X, X),
    "uniform elements": lambda: (kernels.brought_down, X, X),
    "slots": lambda: (_field_ntt._forward, X, *_field_ntt._roots(COUNT, False)),
    "coefficients": lambda: (_field_ntt._inverse, X, *_field_ntt._roots(COUNT, True)),
    "transform": lambda: (_ntt._forward, ROWS[0], ROWS[1], tables(False)),
    "inverse transform": lambda: (_ntt._inverse, ROWS[0], ROWS[1], tables(True)),
    "add residues": lambda: (residues._add, ROWS, ROWS, ROWS, residues.moduli(BOTH)),
    "subtract residues": lambda: (residues._subtract, ROWS, ROWS, ROWS, residues.moduli(BOTH)),
    "multiply residues": lambda: (residues._multiply, ROWS, ROWS, ROWS, residues.moduli(BOTH)),
    "multiply and add": lambda: (residues._multiply_add, ROWS, ROWS, ROWS, ROWS, residues.moduli(BOTH)),
    "scale residues": lambda: (residues._scale, ROWS, FACTORS, ROWS, residues.moduli(BOTH)),
    "residues of words": lambda: (
        _limb_kernels.from_words, WORDS.T.copy(), *_limbs._weights(BOTH, 4), residues.moduli(BOTH), ROWS
    ),
    "switch": lambda: (_limb_kernels.switch, ROWS, _limbs._switching(KEPT, DROPPED), ROWS[:3].copy(), ROWS[:2].copy()),
    "decode": lambda: (_limb_kernels.decode, ROWS[:2], _limbs._decoding(KEPT, BOTH.modulus), X),
    "binomial": lambda: (_draws.binomial, WORDS[:, 0].copy(), np.zeros(COUNT, np.int8)),
    "box": lambda: (_draws.box, WORDS, WORDS[0, :1], WORDS[0, :2], np.zeros(5, np.uint64), WORDS[:, :2].copy()),
}  # fmt: skip


ON_X86 = platform.machine() in ("x86_64", "AMD64")


@pytest.mark.parametrize("name", KERNELS)
def test_no_jump_follows_from_a_number(name: str) -> None:
    function, *arguments = KERNELS[name]()
    text, assembly = compiled_code(function, *arguments)
    assert secret_conditions(text) == []
    if ON_X86:
        shown = secret_instructions(text, assembly)
        assert shown.decided == []
        assert len(shown.addressed) == (3 if name == "inverse" else 0)  # its table: by digits of a public exponent


def reduce_by_comparing(x: Any, q: Any) -> None:
    for i in range(x.shape[0]):
        while x[i] >= q:
            x[i] -= q


def look_up(x: Any, table: Any) -> None:
    for i in range(x.shape[0]):
        x[i] = table[x[i]]


def test_a_jump_that_follows_from_a_number_would_be_seen() -> None:
    text, assembly = compiled_code(reduce_by_comparing, np.zeros(8, np.uint64), np.uint64(5))
    assert secret_conditions(text)
    assert not ON_X86 or secret_instructions(text, assembly).decided


@pytest.mark.skipif(not ON_X86, reason="the machine's code is followed on x86-64")
def test_an_address_that_follows_from_a_number_would_be_seen() -> None:
    text, assembly = compiled_code(look_up, np.zeros(8, np.uint64), np.zeros(8, np.uint64))
    assert secret_conditions(text) == []
    assert secret_instructions(text, assembly).addressed


def test_a_jump_in_a_function_that_is_given_a_number_would_be_seen() -> None:
    assert secret_conditions(CALLS.replace("SECRET", "%number")) == ["%zero"]
    assert secret_conditions(CALLS.replace("SECRET", "%count")) == []


CALLS = """
define i32 @outer(ptr %x, i64 %count) {
entry:
  %number = load i64, ptr %x, align 8
  %made = call i64 @inner(i64 %count, i64 SECRET)
  ret i32 0
}

define internal i64 @inner(i64 %a, i64 %b) {
entry:
  %twice = shl i64 %b, 1
  %zero = icmp eq i64 %twice, 0
  br i1 %zero, label %one, label %two
}
"""


def machine(*lines: str, given: int = 2) -> Shown:
    """What the code shows; its first word is public, its last is secret."""
    return secrets_shown(Function("\n".join(lines), [False] * (given - 1) + [True], frozenset(), 24))


@pytest.mark.parametrize(
    "lines",
    [
        ["cmpq %rsi, %rdi", "jae .LBB0_1", ".LBB0_1:", "retq"],
        ["movq (%rdi), %rax", "addq $7, %rax", "jb .LBB0_1", ".LBB0_1:", "retq"],
        ["subq %rsi, %rdi", "sbbq %rax, %rax", "testl %eax, %eax", "je .LBB0_1", ".LBB0_1:", "retq"],
        ["testq %rsi, %rsi", "sete %al", "movb %al, -8(%rsp)", "cmpb $0, -8(%rsp)", "jne .L1", ".L1:", "retq"],
        ["pushq %rbx", "movq %rsi, -16(%rsp)", "movl -12(%rsp), %eax", "decl %eax", "js .L1", ".L1:", "retq"],
        ["vpbroadcastq %rsi, %ymm1", "vpaddq %ymm0, %ymm1, %ymm2", "vptest %ymm2, %ymm2", "je .L1", ".L1:", "retq"],
        ["vmovdqu (%rdi), %ymm1", "vmovdqu %ymm1, -64(%rsp)", "cmpq $3, -40(%rsp)", "ja .L1", ".L1:", "retq"],
        [".L1:", "incq %rdi", "cmpq %rdi, %rax", "jne .L1", "movq %rsi, %rax", "jmp .L1"],
        ["movq %rdi, %rax", "cqto", "idivq %rsi", "retq"],
        ["movq %rsi, %rdx", "xorl %esi, %esi", "movabsq $memset, %rax", "callq *%rax", "retq"],
    ],
)
def test_a_jump_that_the_machine_was_given_would_be_seen(lines: list[str]) -> None:
    assert machine(*lines).decided


@pytest.mark.parametrize(
    "line", ["movq (%rdi,%rsi,8), %rax", "vmovdqu %ymm0, 8(%rsi)", "addq $1, (%rsi)", "cmpq %rdi, 16(,%rsi,8)"]
)
def test_an_address_that_the_machine_was_given_would_be_seen(line: str) -> None:
    assert machine(line, "retq").addressed


def test_what_a_seventh_word_decides_would_be_seen() -> None:
    assert machine("cmpq $0, 8(%rsp)", "je .L1", ".L1:", "retq", given=7).decided
    assert machine("cmpq $0, 16(%rsp)", "je .L1", ".L1:", "retq", given=7).decided == []


def test_what_shapes_decide_is_no_secret() -> None:
    """A jump around a slow division, the overlap of two arrays, a count that was set aside."""
    division = ["movq %rdi, %rax", "orq %rcx, %rax", "shrq $32, %rax", "je .L1", "cqto", "idivq %rcx", ".L1:"]
    overlap = ["leaq (%rdi,%rcx,8), %rax", "cmpq %rdi, %rax", "setb %dl", "xorl %ebx, %ebx", "orb %bl, %dl", "jne .L2"]
    aside = [".L2:", "movq %rdi, -8(%rsp)", "movq %rsi, -16(%rsp)", "cmpq %rcx, -8(%rsp)", "jb .L3", ".L3:", "retq"]
    assert machine(*division, *overlap, *aside) == ([], [])


@pytest.mark.parametrize(
    "line",
    ["rep movsq", "callq *%rax", "jmpq *%rax", "movq %rsp, %rax", "movq %rax, 8(%rsp,%rdi,8)", "pminud %xmm0, %xmm1"],
)
def test_code_that_cannot_be_followed_is_an_error(line: str) -> None:
    with pytest.raises(AssertionError):
        machine(line, "retq")


# ---- two names for one number ----------------------------------------------------------------------------


def test_why_an_element_has_one_name() -> None:
    """A commitment to bytes would open to two strings that mean the same share."""
    share = 12345
    assert share + P < 2**184
    assert (share + P) % P == share
    refused(lambda: field.from_bytes((share + P).to_bytes(23, "little"), (1,)), 2910)


def test_every_second_name_is_refused() -> None:
    """There are few: 51·2^64 - 1 of them, from p to 2^184."""
    generator = random.Random(1)
    for value in (P, 2**184 - 1, *(P + generator.randrange(2**184 - P) for _ in range(200))):
        honest = [generator.randrange(P).to_bytes(23, "little") for _ in range(4)]
        honest[generator.randrange(4)] = value.to_bytes(23, "little")
        data = b"".join(honest)
        refused(lambda data=data: field.from_bytes(data, (4,)), 2910)


@pytest.mark.parametrize("cut", [1, 23, 45])
def test_bytes_that_are_too_few_or_too_many(cut: int) -> None:
    data = field.to_bytes(from_ints([1, 2, 3]))
    for other in (data[:-cut], data + bytes(cut), b""):
        refused(lambda other=other: field.from_bytes(other, (3,)), 2910)


def test_a_shape_that_no_memory_holds_is_refused_by_its_bytes() -> None:
    refused(lambda: field.from_bytes(bytes(23), (1 << 40, 1 << 40)), 2910)


# ---- arrays that would be read beyond their end ----------------------------------------------------------


def test_shapes_are_checked_before_addresses_are_used() -> None:
    x, rows = np.zeros((4, 3), np.uint64), np.zeros(BOTH.shape, np.uint64)
    for act in (
        lambda: field.add(x, x[:3]),
        lambda: field.multiply(x.view(np.int64), x),
        lambda: field.dot(x, x[:2]),
        lambda: field.dot(x, x[:1]),
        lambda: field.matvec(x[None], x[:3]),
        lambda: field.inverse(x[:, :2]),
        lambda: _field_ntt.to_slots(x[:3]),
        lambda: _ntt.forward(rows[:, :31], BOTH),
        lambda: _ntt.inverse(rows[:3], BOTH),
        lambda: residues.multiply(rows, rows[:, :5], BOTH),
        lambda: residues.scale(rows[:2], 3, BOTH),
        lambda: _limbs.switch(rows[:3], KEPT, DROPPED),
        lambda: _limbs.decode(rows, KEPT, BOTH.modulus),
        lambda: _limbs.from_words(x.view(np.int64), BOTH),
        lambda: _limbs.from_centred(x[:, :2], BOTH),
    ):
        refused(act, 2911)


# ---- randomness that is known, or comes twice ------------------------------------------------------------

FORKED = """
import os, sys
from cloister.errors import InternalError
from cloister.linear._streams import PublicStream, SecretStream

secret, public = SecretStream("mask"), PublicStream(bytes(32), "coin")
child = os.fork()
if child == 0:
    public.draw(5)
    try:
        secret.draw(5)
    except InternalError as error:
        os._exit(0 if error.code == 9901 else 2)
    os._exit(1)
secret.draw(5)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_9901_a_fork_draws_nothing_secret() -> None:
    made = subprocess.run([sys.executable, "-W", "ignore", "-c", FORKED], timeout=100, capture_output=True, check=False)
    assert made.returncode == 0, made.stderr.decode()


def test_no_seed_reaches_a_secret_stream() -> None:
    drawn = []
    for _ in range(2):
        np.random.seed(7)
        random.seed(7)
        drawn.append(streams.SecretStream("mask").draw(32).tobytes())
    assert drawn[0] != drawn[1]


@pytest.mark.parametrize("filled", [0, 255, 170])
def test_what_is_drawn_does_not_change_how_much_is_drawn(filled: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A draw that were repeated would move all that come after it, and show by its time that it was."""
    asked: list[int] = []

    def draw(stream: streams.Stream, size_bytes: int) -> np.ndarray:
        asked.append(size_bytes)
        return np.full(size_bytes, filled, np.uint8)

    monkeypatch.setattr(streams.SecretStream, "draw", draw)
    stream = streams.SecretStream("x")
    streams.elements(stream, 5)
    streams.ternary(stream, 5)
    streams.binomial(stream, 5)
    streams.box(stream, 5, -(2**100), 3 * 2**100)
    assert asked == [5 * 23, 5 * 24, 5 * 8, 5 * 32]


def test_masks_of_a_box_reach_both_of_its_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mask that is too narrow shows the leading bits of what it hides."""
    ends = []
    for filled in (0, 255):
        monkeypatch.setattr(
            streams.SecretStream, "draw", lambda _, size, filled=filled: np.full(size, filled, np.uint8)
        )
        words = streams.box(streams.SecretStream("x"), 1, -P, P)[0]
        value = sum(int(word) << 64 * k for k, word in enumerate(words))
        ends.append(value - (1 << 192) if value >> 191 else value)
    assert ends == [-P, P]


def test_a_product_of_masked_values_does_not_wrap() -> None:
    """An element that were not reduced would carry its history into what is opened."""
    x = from_ints([P - 1] * 4)
    for _ in range(5):
        x = field.add(field.multiply(x, x), field.subtract(x, field.negate(x)))
        assert max(to_ints(x).tolist()) < P


# ---- what is brought along -------------------------------------------------------------------------------

MODULES = ("_field", "_roots", "_field_ntt", "_primes", "_ntt", "_residues", "_limbs", "_streams")


@pytest.mark.parametrize("modules", [(), MODULES])
def test_nothing_brings_torch_along(modules: tuple[str, ...]) -> None:
    program = "; ".join(["import sys, cloister.linear", *(f"import cloister.linear.{name}" for name in modules)])
    done = subprocess.run(
        [sys.executable, "-c", f"{program}; print('torch' in sys.modules)"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "False\n"), done.stderr
