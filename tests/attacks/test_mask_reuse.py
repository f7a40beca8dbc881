"""A mask is used twice: what a worker would then see, and that nothing leaves. Each way is refused with 9701."""

import gc
import pickle
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cloister.errors import InternalError
from cloister.ring import (
    THE_MASK,
    Hidden,
    Mask,
    MaskLedger,
    MaskSource,
    Quantised,
    RoundingStream,
    expand,
    hide,
    quantise,
    remask,
)

SHAPE = (4, 6)
SHARED3 = {"left": 1, "right": -1, "dealer": THE_MASK}


class Enclave:
    """What hides tensors: a ledger and a source of masks. The honest code path, used wrongly by the tests."""

    def __init__(self) -> None:
        self.ledger, self.source = MaskLedger(), MaskSource("x")

    def mask(self) -> Mask:
        return self.source.next(SHAPE)

    def hide(self, values: Tensor, mask: Mask, points: Mapping[str, int] = SHARED3, **options: Any) -> Hidden:
        return hide(values, ledger=self.ledger, masks=[(mask, points)], **options)

    def remask(self, quantised: Quantised, mask: Mask, points: Mapping[str, int] = SHARED3) -> Hidden:
        return remask(quantised, ledger=self.ledger, masks=[(mask, points)])


@pytest.fixture
def enclave() -> Enclave:
    return Enclave()


def values(seed: int = 1) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def refused(act: Callable[[], object]) -> None:
    with pytest.raises(InternalError) as caught:
        act()
    assert caught.value.code == 9701


def sent(hidden: Hidden, worker: str) -> Tensor:
    (masked,) = [masked for masked in hidden.masked if masked.worker == worker]
    return masked.words_for(worker)


def test_why_two_tensors_under_one_mask_show_their_difference() -> None:
    """Two enclaves that do not know of each other, with one mask: what the ledger is there to prevent."""
    one, other = Enclave(), Enclave()
    mask = one.mask()
    seen = [sent(held.hide(values(seed), mask), "left") for seed, held in ((1, one), (2, other))]
    difference = quantise(values(1)).values.to(torch.int32) - quantise(values(2)).values.to(torch.int32)
    assert torch.equal(seen[0] - seen[1], difference)


def test_why_two_points_of_one_mask_show_the_tensor(enclave: Enclave) -> None:
    hidden = enclave.hide(values(), enclave.mask())
    together = sent(hidden, "left") + sent(hidden, "right")
    assert torch.equal(together, 2 * hidden.quantised.values.to(torch.int32))


def test_why_an_even_point_shows_the_lowest_bits(enclave: Enclave) -> None:
    integers, mask = quantise(values()).values.to(torch.int32), enclave.mask()
    assert torch.equal((integers + 4 * mask.words) & 3, integers & 3)


def test_a_second_tensor(enclave: Enclave) -> None:
    mask = enclave.mask()
    kept = enclave.hide(values(1), mask)
    refused(lambda: enclave.hide(values(2), mask))
    refused(lambda: enclave.remask(quantise(values(2)), mask))
    assert kept.masked


def test_a_second_tensor_of_the_same_values(enclave: Enclave) -> None:
    """Equal integers would do no harm, but nobody compares them: they are another tensor."""
    mask = enclave.mask()
    kept = enclave.hide(values(), mask)
    refused(lambda: enclave.hide(values(), mask))
    assert kept.masked


def test_a_tensor_that_was_changed_in_place(enclave: Enclave) -> None:
    mask = enclave.mask()
    hidden = enclave.hide(values(), mask)
    hidden.quantised.values.mul_(-1)
    refused(lambda: enclave.remask(hidden.quantised, mask))
    enclave.remask(hidden.quantised, enclave.mask())


@pytest.mark.parametrize(
    "options", [{"bits": 7}, {"exponent": -3}, {"axis": 0}, {"rounding": RoundingStream()}], ids=lambda o: next(iter(o))
)
def test_a_tensor_that_was_quantised_again(enclave: Enclave, options: dict[str, Any]) -> None:
    """Rounded, scaled or clipped otherwise, the same values are other integers."""
    mask = enclave.mask()
    hidden = enclave.hide(values(), mask)
    refused(lambda: enclave.hide(values(), mask, **options))
    refused(lambda: enclave.remask(quantise(values(), **options), mask))
    assert hidden.masked


def test_a_view_or_a_copy_of_the_tensor(enclave: Enclave) -> None:
    mask = enclave.mask()
    hidden = enclave.hide(values(), mask)
    integers = hidden.quantised.values
    for other in (integers.clone(), integers.view(SHAPE), integers.reshape(-1)[:24].reshape(SHAPE), integers.detach()):
        refused(lambda other=other: enclave.remask(Quantised(other, -6, 8), mask))


def test_a_tensor_at_the_address_of_one_that_is_gone(enclave: Enclave) -> None:
    """As an allocator would do it: the next tensor lies where the last one lay."""
    mask, memory = enclave.mask(), np.zeros(SHAPE, np.int8)
    first = torch.from_numpy(memory)
    address = first.data_ptr()
    assert enclave.remask(Quantised(first, 0, 8), mask).masked
    del first
    gc.collect()
    for _ in range(50):
        memory += 1
        second = torch.from_numpy(memory)
        assert second.data_ptr() == address
        refused(lambda second=second: enclave.remask(Quantised(second, 0, 8), mask))


def test_a_mask_of_long_ago(enclave: Enclave) -> None:
    """After thousands of other masks, whose tensors are gone and forgotten."""
    first = enclave.mask()
    enclave.hide(values(), first)
    for _ in range(2000):
        enclave.hide(values(), enclave.mask())
    gc.collect()
    enclave.hide(values(), enclave.mask())
    refused(lambda: enclave.hide(values(), first))


@pytest.mark.parametrize("point", [-1, 3, THE_MASK])
def test_a_second_point_at_a_worker(enclave: Enclave, point: int) -> None:
    mask = enclave.mask()
    hidden = enclave.hide(values(), mask, {"left": 1})
    refused(lambda: enclave.remask(hidden.quantised, mask, {"left": point}))
    refused(lambda: enclave.remask(hidden.quantised, mask, {"right": 1, "left": point}))


def test_a_second_point_in_one_call(enclave: Enclave) -> None:
    mask = enclave.mask()
    masks = [(mask, {"left": 1}), (mask, {"left": -1})]
    refused(lambda: hide(values(), ledger=enclave.ledger, masks=masks))


def test_a_worker_that_was_sent_the_mask(enclave: Enclave) -> None:
    mask = enclave.mask()
    hidden = enclave.hide(values(), mask)
    refused(lambda: enclave.remask(hidden.quantised, mask, {"dealer": 1}))


@pytest.mark.parametrize("point", [2, -2, 4, 1 << 31])
def test_an_even_point(enclave: Enclave, point: int) -> None:
    refused(lambda: enclave.remask(quantise(values()), enclave.mask(), {"left": point}))


def test_words_at_another_worker(enclave: Enclave) -> None:
    hidden = enclave.hide(values(), enclave.mask())
    for masked in hidden.masked:
        for worker in {"left", "right", "dealer", ""} - {masked.worker}:
            refused(lambda masked=masked, worker=worker: masked.words_for(worker))


def test_a_worker_that_was_dealt_the_key(enclave: Enclave) -> None:
    """It expands every mask of the role, past and to come."""
    enclave.ledger.deal("x", "dealer")
    mask = enclave.mask()
    hidden = enclave.hide(values(), mask, {"left": 1})
    assert torch.equal(sent(hidden, "left") - expand(enclave.source.key, 0, SHAPE), hidden.quantised.values)
    refused(lambda: enclave.remask(hidden.quantised, mask, {"dealer": 1}))
    refused(lambda: enclave.hide(values(), enclave.mask(), {"dealer": -1}))


def test_a_key_for_a_worker_that_was_sent_something(enclave: Enclave) -> None:
    hidden = enclave.hide(values(), enclave.mask())
    for worker in ("left", "right"):
        refused(lambda worker=worker: enclave.ledger.deal("x", worker))
    del hidden
    gc.collect()
    refused(lambda: enclave.ledger.deal("x", "left"))
    enclave.ledger.deal("x", "dealer")


def test_a_tensor_whose_changes_are_not_counted(enclave: Enclave) -> None:
    with torch.inference_mode():
        integers = torch.zeros(SHAPE, dtype=torch.int8)
    refused(lambda: enclave.remask(Quantised(integers, 0, 8), enclave.mask()))


def test_a_checkpoint_that_is_rolled_back() -> None:
    """Nothing that makes masks can be saved; whoever starts again has another key, and so other masks."""
    before, after = Enclave(), Enclave()
    for held in (before.source, before.source.key, before.ledger, before.mask()):
        with pytest.raises(TypeError):
            pickle.dumps(held)
    for counter in range(3):
        again = [expand(held.source.key, counter, SHAPE) for held in (before, after)]
        assert not torch.equal(*again)


FORK = """
import os
import torch
from cloister.errors import InternalError
from cloister.ring import MaskLedger, MaskSource, Quantised, remask

ledger, source = MaskLedger(), MaskSource("x")
made, integers = source.next((3,)), Quantised(torch.ones(3, dtype=torch.int8), 0, 8)
source.prefetch(3, 3)
def leaks():
    for draw in (lambda: source.next((3,)), lambda: made):
        try:
            remask(integers, ledger=ledger, masks=[(draw(), {"left": 1})])
            return 1
        except InternalError as error:
            if error.code != 9701:
                return 2
    return 0
child = os.fork()
if child == 0:
    os._exit(leaks())
ledger.bind(made, integers.values, {"left": 1})
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
def test_a_fork() -> None:
    made = subprocess.run([sys.executable, "-W", "ignore", "-c", FORK], timeout=100, capture_output=True, check=False)
    assert made.returncode == 0, made.stderr.decode()
