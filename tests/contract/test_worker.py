"""What every worker must do."""

import threading
from concurrent.futures import CancelledError, wait

import pytest
import torch
from tests.workers import (
    IDENTITY,
    Limits,
    code_of,
    compute,
    drop,
    expand_to,
    matmul,
    put,
    serving,
    waits_for,
    words,
    worker_at,
)

from cloister.errors import InputError, PeerError
from cloister.offload._commands import Cut
from cloister.offload._workers import InlineWorker
from cloister.ring import MaskKey, MatMul, Product, expand

MEMORY = 64 << 20


@pytest.fixture(scope="module")
def address():
    with serving(limits=Limits(sessions=4, memory_bytes=MEMORY, idle_s=60)) as server:
        yield server.address


@pytest.fixture(params=["inline", "socket"])
def make(request, address):
    made = []

    def one():
        inline = request.param == "inline"
        worker = InlineWorker(IDENTITY.name, memory_bytes=MEMORY) if inline else worker_at(address)
        made.append(worker)
        return worker

    yield one
    for worker in made:
        worker.close()


@pytest.fixture
def worker(make):
    worker = make()
    worker.start({})
    return worker


def exact(left, right):
    return (left.to(torch.int64) @ right.to(torch.int64).T).to(torch.int32)


class TestWorker:
    """The contract; each rule is run against each worker."""

    def test_it_multiplies_what_was_put_exactly(self, worker):
        left, right = words(5, 7), words(3, 7, seed=1)
        for future in (worker.submit(*put(1, left)), worker.submit(*put(2, right))):
            assert future.result(20) is None
        answer = worker.submit(compute(matmul(5, 7, 3), (1, 1, 2))).result(20)
        assert answer.dtype == torch.int32
        assert torch.equal(answer, exact(left, right))

    def test_bytes_are_multiplied_as_signed_integers(self, worker):
        left = torch.tensor([[-128, 127], [-1, 1]], dtype=torch.int8)
        worker.submit(*put(1, left))
        worker.submit(*put(2, words(2, 2)))
        assert torch.equal(worker.submit(compute(matmul(2, 2, 2), (1, 1, 2))).result(20), exact(left, words(2, 2)))

    def test_terms_are_added_and_subtracted(self, worker):
        a, b, c = words(4, 6), words(4, 6, seed=1), words(2, 6, seed=2)
        for handle, tensor in enumerate((a, b, c)):
            worker.submit(*put(handle, tensor))
        answer = worker.submit(compute(matmul(4, 6, 2), (1, 0, 2), (-1, 1, 2))).result(20)
        assert torch.equal(answer, exact(a, c) - exact(b, c))

    def test_a_slice_of_what_is_kept_is_multiplied(self, worker):
        left, right = words(4, 10), words(3, 10, seed=1)
        worker.submit(*put(1, left))
        worker.submit(*put(2, right))
        cut = Cut(axis=-1, start=2, stop=8)
        answer = worker.submit(compute(matmul(4, 6, 3), (1, 1, 2), left=cut, right=cut)).result(20)
        assert torch.equal(answer, exact(left[:, 2:8], right[:, 2:8]))

    def test_it_expands_the_keystreams_it_was_dealt_and_no_other(self, make):
        worker, key = make(), MaskKey("x")
        worker.start({"x": key, "pad": MaskKey("pad")})
        worker.submit(expand_to(1, "x", 9, 4, 5))
        worker.submit(*put(2, torch.eye(5, dtype=torch.int32)))
        assert torch.equal(worker.submit(compute(matmul(4, 5, 5), (1, 1, 2))).result(20), expand(key, 9, (4, 5)))
        assert code_of(worker.submit(expand_to(3, "w", 0, 4, 5))) == 2712

    def test_a_pad_is_added_and_needs_its_key(self, make):
        worker, pad = make(), MaskKey("pad")
        worker.start({"pad": pad})
        worker.submit(*put(1, words(2, 3)))
        worker.submit(*put(2, words(2, 3, seed=1)))
        answer = worker.submit(compute(matmul(2, 3, 2), (1, 1, 2), pad=4)).result(20)
        assert torch.equal(answer, exact(words(2, 3), words(2, 3, seed=1)) + expand(pad, 4, (2, 2)))
        other = make()
        other.start({})
        other.submit(*put(1, words(2, 3)))
        assert code_of(other.submit(compute(matmul(2, 3, 2), (1, 1, 1), pad=4))) == 2712

    def test_commands_are_done_in_order(self, worker):
        """Each command names what the one before it made: out of order, one of them is refused."""
        answers = []
        for turn in range(20):
            worker.submit(*put(1, words(2, 2, seed=turn)))
            answers.append(worker.submit(compute(matmul(2, 2, 2), (1, 1, 1))))
            worker.submit(drop(1))
        for turn, answer in enumerate(answers):
            assert torch.equal(answer.result(20), exact(words(2, 2, seed=turn), words(2, 2, seed=turn)))

    @pytest.mark.parametrize(
        ("commands", "code"),
        [
            ([drop(7)], 2710),
            ([put(1, words(2, 2)), put(1, words(2, 2))], 2710),
            ([put(1, words(2, 2)), expand_to(1, "x", 0, 2, 2)], 2710),
            ([put(1, words(2, 2)), drop(1, 1)], 2710),
            ([compute(matmul(2, 2, 2), (1, 1, 1))], 2710),
            ([put(1, words(2, 3)), compute(matmul(2, 2, 2), (1, 1, 1))], 2711),
            ([(put(1, words(2, 3))[0], words(3, 2))], 2711),
            ([(put(1, words(2, 3))[0], words(2, 3).to(torch.int8))], 2711),
            ([(put(1, words(2, 3))[0], None)], 2711),
            ([(drop(1), words(2, 3))], 2711),
            ([put(1, words(2, 3)), compute(matmul(2, 3, 2), (1, 1, 1), left=Cut(axis=-1, start=1, stop=4))], 2711),
            ([put(1, words(2, 3)), compute(matmul(2, 3, 2), (1, 1, 1), left=Cut(axis=-3, start=0, stop=1))], 2711),
            ([expand_to(1, "x", 0, 1 << 20, 1 << 20)], 2711),
            ([expand_to(1, "x", 0, 1 << 10, 1 << 16)], 6701),
        ],
    )
    def test_what_does_not_fit_is_refused_and_nothing_else_is(self, make, commands, code):
        worker = make()
        worker.start({"x": MaskKey("x")})
        futures = [worker.submit(*item) if isinstance(item, tuple) else worker.submit(item) for item in commands]
        assert code_of(futures[-1]) == code
        worker.submit(*put(9, words(2, 2)))
        answer = worker.submit(compute(matmul(2, 2, 2), (1, 9, 9))).result(20)
        assert torch.equal(answer, exact(words(2, 2), words(2, 2)))

    def test_a_product_whose_shapes_do_not_fit_is_refused(self, worker):
        good = compute(matmul(2, 2, 2), (1, 1, 1))
        form = good.form.model_copy(update={"w": (2, 3)})
        with pytest.raises(InputError) as caught:
            worker.submit(good.model_copy(update={"form": form})).result(20)
        assert caught.value.code == 2700

    def test_a_refused_drop_drops_nothing(self, worker):
        worker.submit(*put(1, words(2, 2)))
        assert code_of(worker.submit(drop(1, 2))) == 2710
        assert worker.submit(drop(1)).result(20) is None

    def test_memory_is_bounded_and_dropped_memory_comes_back(self, worker):
        block = torch.ones(1 << 10, 10 << 10, dtype=torch.int32)  # 40 MiB of 64
        assert worker.submit(*put(1, block)).result(20) is None
        assert code_of(worker.submit(*put(2, block))) == 6701
        worker.submit(drop(1))
        assert worker.submit(*put(2, block)).result(20) is None
        assert code_of(worker.submit(drop(1))) == 2710

    def test_a_result_that_does_not_fit_the_memory_is_refused(self, worker):
        """Two thin operands would make 4 GiB of result."""
        worker.submit(*put(1, words(1 << 15, 1)))
        assert code_of(worker.submit(compute(matmul(1 << 15, 1, 1 << 15), (1, 1, 1)))) == 6701

    def test_a_border_that_does_not_fit_the_memory_is_refused(self, worker):
        worker.submit(*put(1, words(1, 1, 1, 1)))
        good = compute(matmul(2, 2, 2), (1, 1, 1))
        form = good.form.model_copy(
            update={
                "operator": "conv2d",
                "x": (1, 1, 1, 1),
                "w": (1, 1, 1, 1),
                "padding": (1 << 20, 1 << 20),
                "stride": (1 << 20, 1 << 20),
            }
        )
        assert code_of(worker.submit(good.model_copy(update={"form": form}))) == 6701

    def test_a_large_tensor_comes_back_bit_for_bit(self, worker):
        """Several records each way, the last one short, through a product with the identity."""
        large = words(3, 701, 1001)
        identity = torch.eye(1001, dtype=torch.int8).expand(3, 1001, 1001)
        worker.submit(*put(1, large))
        worker.submit(*put(2, identity))
        product = Product(MatMul(), "forward", x=(3, 701, 1001), w=(3, 1001, 1001))
        assert torch.equal(worker.submit(compute(product, (1, 1, 2))).result(60), large)

    def test_a_tensor_that_is_not_contiguous_is_put_as_it_reads(self, worker):
        tensor = words(6, 4).T
        worker.submit(*put(1, tensor))
        worker.submit(*put(2, torch.eye(6, dtype=torch.int32)))
        assert torch.equal(worker.submit(compute(matmul(4, 6, 6), (1, 1, 2))).result(20), tensor)

    def test_several_work_at_once_and_share_nothing(self, make):
        workers = [make() for _ in range(3)]
        results: dict[int, torch.Tensor] = {}

        def one(number, worker):
            worker.start({})
            worker.submit(*put(1, words(8, 8, seed=number)))
            results[number] = worker.submit(compute(matmul(8, 8, 8), (1, 1, 1))).result(20)

        threads = [threading.Thread(target=one, args=item) for item in enumerate(workers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        for number in range(3):
            assert torch.equal(results[number], exact(words(8, 8, seed=number), words(8, 8, seed=number)))

    def test_calls_out_of_order_are_our_mistake(self, make):
        worker = make()
        with pytest.raises(RuntimeError):
            worker.submit(drop(1))
        worker.start({})
        with pytest.raises(RuntimeError):
            worker.start({})
        worker.close()
        worker.close()
        for call in (lambda: worker.submit(drop(1)), lambda: worker.start({})):
            with pytest.raises(RuntimeError):
                call()

    def test_closing_leaves_no_command_open(self, worker):
        futures = [worker.submit(*put(handle, words(256, 1024))) for handle in range(40)]
        worker.close()
        assert not wait(futures, timeout=10).not_done
        for future in futures:
            assert future.exception() is None or isinstance(future.exception(), CancelledError)

    def test_a_command_that_was_submitted_is_not_taken_back(self, worker):
        future = worker.submit(*put(1, words(2, 2)))
        assert not future.cancel()
        assert future.result(20) is None
        assert worker.submit(drop(1)).result(20) is None


class Broken:
    """Kernels whose device fails."""

    name = "broken"

    def product(self, product, left, right):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")


@pytest.mark.parametrize("kind", ["inline", "socket"])
def test_a_kernel_that_fails_refuses_its_command_only(kind):
    """The code says nothing of the device; what was kept is still there."""
    with serving(kernels=Broken()) as server:
        worker = InlineWorker(IDENTITY.name, kernels=Broken()) if kind == "inline" else worker_at(server.address)
        worker.start({})
        worker.submit(*put(1, words(2, 2)))
        failed = worker.submit(compute(matmul(2, 2, 2), (1, 1, 1)))
        assert code_of(failed) == 6709
        assert "illegal memory" not in str(failed.exception().as_json())
        assert worker.submit(drop(1)).result(20) is None
        worker.close()


def test_the_session_ends_with_the_connection_and_frees_its_place(address):
    """Four places, ten sessions one after the other."""
    for _ in range(10):
        waits_for(lambda: _starts(address))


def _starts(address):
    worker = worker_at(address)
    try:
        worker.start({})
    except PeerError as error:
        if error.code != 6703:
            raise
        return False
    finally:
        worker.close()
    return True
