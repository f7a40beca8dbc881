"""Work shared among threads: every part once, errors heard, none left behind by a fork."""

import multiprocessing
import threading
from collections.abc import Iterator
from multiprocessing.connection import Connection

import pytest
import torch

from cloister.privacy import _threads
from cloister.privacy._team import team
from cloister.privacy._threads import scratch, share


@pytest.fixture(params=["torch's", "our own"], autouse=True)
def whose(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "our own":
        monkeypatch.setattr(_threads, "team", lambda: None)
    elif team() is None:
        pytest.skip("torch has loaded another OpenMP runtime than libgomp")
    return request.param


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_every_part_is_done_once(threads: int, count: int) -> None:
    done: list[int] = []
    share(count, lambda first, last: done.extend(range(first, last)))
    assert sorted(done) == list(range(count))


def test_as_many_threads_as_torchs_and_the_caller_is_one(threads: int) -> None:
    seen: set[int] = set()
    meeting = threading.Barrier(threads, timeout=10)

    def work(first: int, last: int) -> None:
        meeting.wait()
        seen.add(threading.get_ident())

    share(5, work)
    assert len(seen) == threads
    assert threading.get_ident() in seen


@pytest.mark.parametrize("broken", [0, 3])
def test_an_error_of_any_part_is_heard_after_all_have_ended(threads: int, broken: int) -> None:
    ended: list[int] = []

    def work(first: int, last: int) -> None:
        if first <= broken < last:
            raise ValueError("broken")
        ended.append(first)

    with pytest.raises(ValueError, match="broken"):
        share(4, work)
    assert len(ended) == threads - 1


def test_scratch_is_aligned_and_a_threads_own() -> None:
    found: list[int] = []
    both = threading.Barrier(2, timeout=10)

    def ask() -> None:
        found.append(scratch(1000))
        both.wait()

    others = [threading.Thread(target=ask) for _ in range(2)]
    for other in others:
        other.start()
    for other in others:
        other.join()
    assert abs(found[0] - found[1]) >= 1000
    assert all(address % 64 == 0 for address in [*found, scratch(5)])
    first = scratch(100)
    assert scratch(50) == first


def test_torchs_threads_keep_their_scratch(whose: str) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    found: list[set[int]] = [set(), set()]
    try:
        for _ in range(3):
            share(2, lambda first, last: found[first].add(scratch(5000)))
    finally:
        torch.set_num_threads(before)
    assert [len(each) for each in found] == [1, 1] if whose == "torch's" else len(found[0]) == 1
    assert found[0] != found[1]


def test_calls_of_several_threads_do_not_meet(threads: int) -> None:
    done: dict[int, list[int]] = {caller: [] for caller in range(4)}

    def call(caller: int) -> None:
        for _ in range(20):
            share(3, lambda first, last: done[caller].extend(range(first, last)))

    callers = [threading.Thread(target=call, args=(caller,)) for caller in done]
    for each in callers:
        each.start()
    for each in callers:
        each.join()
    assert all(sorted(each) == sorted([*range(3)] * 20) for each in done.values())


def _in_fork(pipe: Connection) -> None:
    torch.set_num_threads(2)
    done: list[int] = []
    share(4, lambda first, last: done.extend(range(first, last)))
    pipe.send(sorted(done))


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_fork_makes_threads_of_its_own() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        share(4, lambda first, last: None)
        context = multiprocessing.get_context("fork")
        ours, theirs = context.Pipe()
        child = context.Process(target=_in_fork, args=(theirs,))
        child.start()
        assert ours.poll(30)
        assert ours.recv() == [0, 1, 2, 3]
        child.join(10)
    finally:
        torch.set_num_threads(before)
