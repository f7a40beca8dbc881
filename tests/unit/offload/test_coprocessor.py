"""The worker's inside: what it makes, how often, and what it counts."""

import pytest
import torch
from tests.workers import compute, drop, expand_to, matmul, put, refused, words

from cloister.offload._coprocessor import Coprocessor
from cloister.ring import MaskKey, kernels_for


class Counting:
    """Real kernels that count their products."""

    name = "counting"

    def __init__(self):
        self.products = 0
        self._kernels = kernels_for(torch.device("cpu"))

    def product(self, product, left, right):
        self.products += 1
        return self._kernels.product(product, left, right)


def exact(left, right):
    return (left.to(torch.int64) @ right.to(torch.int64).T).to(torch.int32)


@pytest.fixture
def kernels():
    return Counting()


def test_terms_with_one_right_operand_are_one_product(kernels):
    worker = Coprocessor(kernels)
    a, b, c, d = (words(4, 6, seed=seed) for seed in range(4))
    for handle, tensor in enumerate((a, b, c, d)):
        worker.execute(*put(handle, tensor))
    answer = worker.execute(compute(matmul(4, 6, 4), (1, 0, 2), (1, 1, 2), (-1, 0, 3)))
    assert kernels.products == 2
    assert torch.equal(answer, exact(a, c) + exact(b, c) - exact(a, d))


def test_the_least_byte_is_subtracted_exactly(kernels):
    worker = Coprocessor(kernels)
    worker.execute(*put(1, torch.full((2, 2), -128, dtype=torch.int8)))
    worker.execute(*put(2, torch.ones(2, 2, dtype=torch.int8)))
    answer = worker.execute(compute(matmul(2, 2, 2), (-1, 1, 2), (-1, 1, 2)))
    assert answer.tolist() == [[512, 512], [512, 512]]


def test_what_is_kept_is_counted(kernels):
    worker = Coprocessor(kernels, keys={"x": MaskKey("x")})
    worker.execute(*put(1, words(4, 8)))
    worker.execute(*put(2, words(4, 8).to(torch.int8)))
    worker.execute(expand_to(3, "x", 0, 4, 8))
    assert worker.used_bytes == 128 + 32 + 128
    worker.execute(drop(1, 3))
    assert worker.used_bytes == 32


def test_a_tensor_that_is_put_is_not_copied(kernels):
    worker = Coprocessor(kernels)
    tensor = words(4, 8)
    worker.execute(*put(1, tensor))
    assert worker._kept[1].data_ptr() == tensor.data_ptr()


def test_a_refused_command_changes_nothing(kernels):
    worker = Coprocessor(kernels, memory_bytes=1000)
    worker.execute(*put(1, words(4, 8)))
    for command, tensor, code in (
        (*put(1, words(4, 8)), 2710),
        (*put(2, words(40, 8)), 6701),
        (drop(1, 2), None, 2710),
        (drop(1, 1), None, 2710),
        (expand_to(2, "x", 0, 2, 2), None, 2712),
        (compute(matmul(4, 8, 4), (1, 1, 2)), None, 2710),
        (compute(matmul(4, 8, 4), (1, 1, 1), pad=0), None, 2712),
    ):
        refused(code, worker.execute, command, tensor)
        assert (worker.used_bytes, list(worker._kept), kernels.products) == (128, [1], 0)


@pytest.mark.parametrize(
    ("terms", "pad", "needed"),
    [
        (((1, 1, 2),), None, 1),
        (((1, 1, 2),), 5, 2),
        (((1, 1, 2), (1, 1, 3)), None, 2),
        (((-1, 1, 2),), None, 1 + 3),
        (((1, 1, 2), (1, 1, 2)), None, 1 + 3),
    ],
    ids=["one", "padded", "two", "subtracted", "summed"],
)
def test_what_a_product_needs_counts_with_what_is_kept(kernels, terms, pad, needed):
    """In units of one operand of 64 bytes, as the result has; three are kept."""
    for spare, code in ((0, None), (-1, 6701)):
        worker = Coprocessor(kernels, keys={"pad": MaskKey("pad")}, memory_bytes=64 * (3 + needed) + spare)
        for handle in (1, 2, 3):
            worker.execute(*put(handle, words(4, 4)))
        command = compute(matmul(4, 4, 4), *terms, pad=pad)
        if code is None:
            assert worker.execute(command).shape == (4, 4)
        else:
            refused(code, worker.execute, command)
