"""The ledger's rules one by one: what it allows, what it refuses, and that a refusal binds nothing."""

import gc
import threading
from collections.abc import Callable

import pytest
import torch

from cloister.errors import InternalError
from cloister.ring import THE_MASK, Mask, MaskId, MaskLedger
from cloister.ring import _ledger as ledger_module
from cloister.ring._ledger import _Spent

BOTH = {"left": 1, "right": -1}


def mask(counter: int = 0, role: str = "x") -> Mask:
    return Mask(MaskId(role, counter), torch.zeros(3, dtype=torch.int32))


def integers() -> torch.Tensor:
    return torch.zeros(3, dtype=torch.int8)


def refused(act: Callable[[], object]) -> str:
    with pytest.raises(InternalError) as caught:
        act()
    assert caught.value.code == 9701
    return str(caught.value)


def test_a_mask_hides_one_tensor_at_a_point_for_each_worker() -> None:
    ledger, tensor = MaskLedger(), integers()
    ledger.bind(mask(), tensor, BOTH | {"dealer": THE_MASK})


def test_the_same_message_may_be_sent_again_and_others_may_join() -> None:
    ledger, tensor = MaskLedger(), integers()
    ledger.bind(mask(), tensor, {"left": 1})
    ledger.bind(mask(), tensor, {"left": 1})
    ledger.bind(mask(), tensor, {"right": -1})


def test_one_tensor_may_have_many_masks() -> None:
    ledger, tensor = MaskLedger(), integers()
    for counter in range(5):
        ledger.bind(mask(counter), tensor, BOTH)
        ledger.bind(mask(counter, "w"), tensor, BOTH)


def test_a_mask_is_its_role_and_counter_not_its_object() -> None:
    ledger, first, second = MaskLedger(), integers(), integers()
    ledger.bind(mask(7), first, BOTH)
    refused(lambda: ledger.bind(mask(7), second, BOTH))
    ledger.bind(mask(7, "w"), second, BOTH)


def test_a_view_or_a_copy_is_another_tensor() -> None:
    ledger, tensor = MaskLedger(), integers()
    ledger.bind(mask(), tensor, BOTH)
    for other in (tensor.view(-1), tensor.clone(), tensor[:2], tensor.detach()):
        assert "two tensors" in refused(lambda other=other: ledger.bind(mask(), other, BOTH))


def test_a_tensor_that_was_written_is_another_tensor() -> None:
    ledger, tensor = MaskLedger(), integers()
    ledger.bind(mask(), tensor, BOTH)
    tensor.view(-1)[0] = 1  # by a view of it, too
    assert "changed in place" in refused(lambda: ledger.bind(mask(), tensor, BOTH))
    ledger.bind(mask(1), tensor, BOTH)


def test_a_tensor_whose_writes_are_not_counted_is_not_masked() -> None:
    with torch.inference_mode():
        tensor = integers()
    assert "does not count" in refused(lambda: MaskLedger().bind(mask(), tensor, BOTH))


@pytest.mark.parametrize("point", [-1, 3, THE_MASK])
def test_a_worker_sees_one_point(point: int) -> None:
    ledger, tensor = MaskLedger(), integers()
    ledger.bind(mask(), tensor, {"left": 1})
    assert "second point" in refused(lambda: ledger.bind(mask(), tensor, {"left": point}))
    assert "second point" in refused(lambda: ledger.bind(mask(), tensor, {"right": -1, "left": point}))


def test_a_worker_that_has_the_mask_is_sent_nothing_else() -> None:
    ledger, tensor = MaskLedger(), integers()
    ledger.bind(mask(), tensor, {"left": THE_MASK})
    assert "second point" in refused(lambda: ledger.bind(mask(), tensor, {"left": 1}))


@pytest.mark.parametrize("point", [2, -2, 4, 2**31])
def test_an_even_point_hides_no_lowest_bit(point: int) -> None:
    assert "lowest bit" in refused(lambda: MaskLedger().bind(mask(), integers(), {"left": 1, "right": point}))


def test_who_has_the_key_is_sent_nothing_of_the_role() -> None:
    ledger, tensor = MaskLedger(), integers()
    ledger.deal("x", "dealer")
    ledger.bind(mask(), tensor, {"left": 1, "dealer": THE_MASK})
    assert "has a role's key" in refused(lambda: ledger.bind(mask(1), tensor, {"dealer": 1}))
    ledger.bind(mask(0, "w"), tensor, {"dealer": 1})


def test_who_was_sent_something_is_not_dealt_the_key() -> None:
    ledger, tensor = MaskLedger(), integers()
    ledger.bind(mask(), tensor, {"left": 1, "right": THE_MASK})
    assert "key" in refused(lambda: ledger.deal("x", "left"))
    ledger.deal("x", "right")
    ledger.deal("w", "left")


def test_a_refusal_binds_nothing() -> None:
    ledger, tensor = MaskLedger(), integers()
    ledger.bind(mask(), tensor, {"left": 1})
    refused(lambda: ledger.bind(mask(), tensor, {"other": 1, "left": 3}))
    ledger.bind(mask(), tensor, {"other": -1})
    refused(lambda: ledger.bind(mask(9), tensor, {"third": 2}))
    ledger.deal("x", "third")
    refused(lambda: ledger.bind(mask(9), tensor, {"fourth": 1, "third": 1}))
    ledger.bind(mask(9), integers(), {"fourth": 1})


@pytest.mark.parametrize("sweep", [1, 10**9])
def test_a_mask_of_a_tensor_that_is_gone_is_spent(sweep: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever lies at its address later, and whether or not the ledger has swept."""
    monkeypatch.setattr(ledger_module, "_SWEEP_FROM", sweep)
    ledger, tensor = MaskLedger(), integers()
    ledger.bind(mask(), tensor, BOTH)
    del tensor
    gc.collect()
    kept = [integers() for _ in range(3)]
    for counter, other in enumerate(kept, 1):
        ledger.bind(mask(counter), other, BOTH)
    for other in (*kept, *(integers() for _ in range(100))):
        refused(lambda other=other: ledger.bind(mask(0), other, BOTH))


def test_the_ledger_does_not_grow_with_the_masks() -> None:
    ledger = MaskLedger()
    for counter in range(5000):
        ledger.bind(mask(counter), integers(), BOTH)
    gc.collect()
    ledger.bind(mask(5000), integers(), BOTH)
    assert len(ledger._live) < 1000
    for counter in range(0, 5000, 97):
        refused(lambda counter=counter: ledger.bind(mask(counter), integers(), BOTH))


def test_spent_counters_in_any_order() -> None:
    spent, told = _Spent(), set()
    order = torch.randperm(300, generator=torch.Generator().manual_seed(1)).tolist()
    for counter in order[:250]:
        spent.add(counter)
        told.add(counter)
        assert (counter in spent, counter + 300 in spent, counter - 300 in spent) == (True, False, False)
    assert {counter for counter in range(-5, 305) if counter in spent} == told
    for counter in order[250:]:
        spent.add(counter)
    assert (spent._starts, spent._stops) == ([0], [300])


def test_threads_that_race_for_a_mask_get_it_once() -> None:
    ledger, won, lost = MaskLedger(), [], []
    tensors = [integers() for _ in range(8)]
    start = threading.Barrier(len(tensors))

    def race(tensor: torch.Tensor) -> None:
        start.wait()
        for counter in range(50):
            try:
                ledger.bind(mask(counter), tensor, BOTH)
                won.append(counter)
            except InternalError as error:
                lost.append(error.code)

    threads = [threading.Thread(target=race, args=(tensor,)) for tensor in tensors]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(won) == list(range(50))
    assert lost == [9701] * 7 * 50
