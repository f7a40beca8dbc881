"""Sampling that is not what is accounted: each way it goes wrong silently elsewhere, and what stops it here.

Loaders whose draws are not independent with a known probability, rows that count twice, several processes that each
draw from everybody, empty batches, collate functions that mix rows, shapes that follow the data, states and keys of
other runs. Each is refused by its name, or makes no difference.
"""

import pickle
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    StackDataset,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from cloister.errors import CloisterError, RefusedError
from cloister.privacy._groups import Groups
from cloister.privacy._loader import PrivateLoader
from cloister.privacy._run_key import RunKey
from cloister.privacy._sampling import PoissonSampler
from cloister.wire import Secret

DATA = TensorDataset(torch.arange(1.0, 41), torch.arange(40))
KEY = RunKey(Secret(bytes(range(32))))


def private(data: Any = DATA, **options: Any) -> PrivateLoader:
    return PrivateLoader(DataLoader(data, **({"batch_size": 4} | options)), key=KEY)


def refused(act: Callable[[], object], code: int = 3810, naming: str = "") -> None:
    with pytest.raises(CloisterError) as caught:
        act()
    assert caught.value.code == code
    assert naming in str(caught.value)
    assert caught.value.hint


# ---- loaders that draw otherwise -------------------------------------------------------------------------


class Mine(Sampler[int]):
    def __iter__(self) -> Iterator[int]:
        return iter([0] * 40)

    def __len__(self) -> int:
        return 40


class Sly(RandomSampler):
    """Is a RandomSampler, and draws record 0 only."""

    def __iter__(self) -> Iterator[int]:
        return iter([0] * 40)


SAMPLERS: dict[str, Any] = {
    "WeightedRandomSampler": WeightedRandomSampler([1.0] * 39 + [1e6], 40),
    "SubsetRandomSampler": SubsetRandomSampler(range(5)),
    "DistributedSampler": DistributedSampler(DATA, num_replicas=2, rank=0),
    "RandomSampler with replacement": RandomSampler(DATA, replacement=True),
    "RandomSampler with replacement or num_samples": RandomSampler(DATA, num_samples=400),
    "sampler of another data set": SequentialSampler(range(40)),
    "Mine": Mine(),
    "Sly": Sly(DATA),
    "list": list(range(40)),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_that_draws_otherwise(name: str) -> None:
    """With weights, 1/len(loader) is not the probability that a record is drawn with: it may be 1 for some."""
    refused(lambda: private(sampler=SAMPLERS[name]), naming=name)


@pytest.mark.parametrize("name", ["Mine", "WeightedRandomSampler"])
def test_a_batch_sampler_that_draws_otherwise(name: str) -> None:
    loader = DataLoader(DATA, batch_sampler=BatchSampler(SAMPLERS[name], 4, False))
    refused(lambda: PrivateLoader(loader, key=KEY), naming="BatchSampler")


class Batches(BatchSampler):
    pass


def test_a_batch_sampler_of_ones_own() -> None:
    loader = DataLoader(DATA, batch_sampler=Batches(RandomSampler(DATA), 4, False))
    refused(lambda: PrivateLoader(loader, key=KEY), naming="Batches")


def test_no_batches() -> None:
    refused(lambda: private(batch_size=None), naming="batch_size=None")


class Stream(IterableDataset[Tensor]):
    def __iter__(self) -> Iterator[Tensor]:
        return iter(torch.arange(40))


class Counting(Stream):
    """Knows its length, and is still read in its own order."""

    def __len__(self) -> int:
        return 40


class Unsized(Dataset[Tensor]):
    def __getitem__(self, row: int) -> Tensor:
        return torch.tensor(row)


def test_data_that_is_read_in_its_own_order() -> None:
    refused(lambda: private(Stream()), naming="Stream")
    refused(lambda: private(Counting()), naming="Counting")
    loader = DataLoader(Unsized(), batch_size=4, sampler=SequentialSampler(range(4)))
    refused(lambda: PrivateLoader(loader, key=KEY), naming="Unsized")


def test_no_data() -> None:
    loader = DataLoader(Subset(DATA, []), batch_size=4)
    refused(lambda: PrivateLoader(loader, key=KEY), naming="without records")


class Eager(DataLoader[Any]):
    def __iter__(self) -> Any:
        return iter([self.dataset[0]] * 10)


def test_a_loader_of_ones_own() -> None:
    refused(lambda: PrivateLoader(Eager(DATA, batch_size=4), key=KEY), naming="Eager")


def test_a_loader_that_samples_already() -> None:
    """Sampled twice, a record's probability is another one."""
    refused(lambda: PrivateLoader(private(), key=KEY), naming="PrivateLoader")  # type: ignore[arg-type]


def test_batches_out_of_order() -> None:
    """The mask would be another batch's."""
    refused(lambda: private(num_workers=1, in_order=False), naming="in_order")


def test_the_users_generator_draws_nothing() -> None:
    """Who knows the seed knows nothing of the sample; and a seed that was used again repeats none."""
    drawn = []
    for _ in range(2):
        torch.manual_seed(0)
        random.seed(0)
        loader = PrivateLoader(DataLoader(DATA, batch_size=4, shuffle=True, generator=torch.Generator()), key=RunKey())
        drawn.append([labels[loader.mask].tolist() for _, labels in loader])
    assert drawn[0] != drawn[1]


DISTRIBUTED = """
import datetime, sys, torch
from torch import distributed
from torch.utils.data import DataLoader, TensorDataset
from cloister.errors import RefusedError
from cloister.privacy._loader import PrivateLoader
from cloister.privacy._run_key import RunKey

store = distributed.HashStore()
for rank, size in ((0, 1), (0, 2)):
    distributed.init_process_group("fake", store=store, rank=rank, world_size=size)
    try:
        PrivateLoader(DataLoader(TensorDataset(torch.ones(40, 1)), batch_size=4), key=RunKey())
        found = 0
    except RefusedError as error:
        found = error.code if "2 processes" in str(error) else 1
    print(size, found)
    distributed.destroy_process_group()
"""


def test_several_processes() -> None:
    """Each would draw from all records: twice the data a step, and nobody's accounting knows."""
    from torch.testing._internal.distributed import fake_pg  # noqa: F401  there is a backend that connects nobody

    script = "import torch.testing._internal.distributed.fake_pg\n" + DISTRIBUTED
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, timeout=200, check=False
    )
    assert done.stdout.split("\n")[:2] == ["1 0", "2 3810"], done.stderr


# ---- records that count twice ----------------------------------------------------------------------------

DOUBLED: dict[str, Any] = {
    "an index twice": Subset(DATA, [0, 1, 2, 3, 4, 0]),
    "an index from behind": Subset(DATA, [0, 1, 2, 3, 39, -1]),
    "tensors as indices": Subset(DATA, torch.tensor([5, 6, 7, 8, 5]).tolist()),
    "in itself": Subset(Subset(DATA, [4, 5, 6, 7, 8]), [0, 1, 2, 3, 1]),
    "joined with itself": ConcatDataset([DATA, DATA]),
    "joined with a part": ConcatDataset([Subset(DATA, range(30)), Subset(DATA, range(29, 40))]),
    "a part of a join": Subset(ConcatDataset([DATA, DATA]), range(35, 45)),
}


@pytest.mark.parametrize("name", list(DOUBLED)[:6])
def test_a_record_that_is_there_twice(name: str) -> None:
    refused(lambda: private(DOUBLED[name]), naming="more than once")


def test_records_that_are_there_once() -> None:
    for data in (
        Subset(DATA, [3, 1, 0, 7, 9]),
        ConcatDataset([Subset(DATA, range(20)), Subset(DATA, range(20, 40))]),
        DOUBLED["a part of a join"],
        StackDataset(DATA, DATA),
    ):
        assert len(list(private(data))) == -(-len(data) // 4)


def test_data_that_grows_while_training() -> None:
    """With other records the probability, the room and the records themselves are others."""
    rows = [torch.ones(1)] * 40
    loader = private(rows)
    list(loader)
    rows.append(torch.ones(1))
    refused(lambda: iter(loader), naming="length")


# ---- batches that say something --------------------------------------------------------------------------


def test_nobody_in_a_batch_is_no_special_case() -> None:
    """An empty batch is as long, as many and as shaped as any: skipping it, or failing, would say that it was empty."""
    loader = private(batch_size=1)
    shapes = set()
    empty = 0
    for values, labels in loader:
        shapes.add((values.shape, values.dtype, labels.shape, labels.dtype))
        empty += not loader.mask.any()
    assert empty > 5
    assert len(shapes) == 1


def test_the_divisor_is_never_the_number_that_was_drawn() -> None:
    loader = private()
    divisors = {loader.sampler.expected for _ in loader}
    assert divisors == {Fraction(4)}


def longest(rows: list[Tensor]) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


class Ragged(Dataset[Tensor]):
    def __init__(self, *, ends: int) -> None:
        self.ends = ends

    def __len__(self) -> int:
        return 40

    def __getitem__(self, row: int) -> Tensor:
        return torch.ones(9 if row == 20 else self.ends if row == 39 else 3)


def test_a_shape_that_follows_the_rows() -> None:
    refused(lambda: private(Ragged(ends=5), collate_fn=longest), 2813)
    loader = private(Ragged(ends=3), collate_fn=longest)  # the two that were tried are alike
    found = set()
    refused(lambda: [found.add(batch.shape) for _ in range(20) for batch in loader], 2813)
    assert found == {(loader.micro_batch, 3)}


def mixed(rows: list[Any]) -> Any:
    """MixUp: each row is a mixture of two, so who is in the batch is in other people's gradients."""
    values, labels = torch.utils.data.default_collate(rows)
    return 0.7 * values + 0.3 * values.roll(1, 0), labels


def mixed_by_chance(rows: list[Any]) -> Any:
    values, labels = torch.utils.data.default_collate(rows)
    weight = torch.rand(())
    return weight * values + (1 - weight) * values[torch.randperm(len(values))], labels


def centred(rows: list[Any]) -> Any:
    values, labels = torch.utils.data.default_collate(rows)
    return values - values.mean(), labels


def sorted_by_value(rows: list[Any]) -> Any:
    values, labels = torch.utils.data.default_collate(rows)
    order = values.argsort()
    return values[order], labels[order]


def without_padding(rows: list[Any]) -> Any:
    return torch.utils.data.default_collate([row for row in rows if row[0] > 0])


def noisy(rows: list[Any]) -> Any:
    values, labels = torch.utils.data.default_collate(rows)
    return values + torch.rand(len(values)), labels


def summed(rows: list[Any]) -> Any:
    return sum(row[0] for row in rows)


@pytest.mark.parametrize(
    "collate",
    [mixed, mixed_by_chance, centred, sorted_by_value, without_padding, noisy, summed],
    ids=lambda f: f.__name__,
)
def test_a_collate_function_that_mixes_rows(collate: Any) -> None:
    refused(lambda: private(collate_fn=collate), 2813)


class Opaque:
    pass


def test_a_sample_that_has_no_zero() -> None:
    refused(lambda: private([Opaque()] * 40, collate_fn=lambda rows: torch.zeros(len(rows))), 2813, naming="Opaque")


# ---- keys, states, places --------------------------------------------------------------------------------


def test_who_sampled_is_in_no_state_and_no_worker() -> None:
    """What goes to worker processes holds neither key nor sampler; what is saved says a step and a proof."""
    loader = private(num_workers=0)
    next(iter(loader))
    secret = KEY.derive("sampling").reveal()
    inner = loader._inner
    for sent in (inner.dataset, inner.collate_fn):
        kept = pickle.dumps(sent)
        assert secret not in kept
        assert bytes(range(32)) not in kept
    text = repr(loader.state)
    assert secret.hex() not in text
    assert loader.state.position == 1
    for held in (KEY, loader):
        with pytest.raises(TypeError):
            pickle.dumps(held)


def test_a_step_that_is_rolled_back_by_a_changed_state() -> None:
    loader = private()
    list(loader)
    saved = loader.state
    for position in (0, 9, 11):
        refused(lambda position=position: private().resume(saved._replace(position=position)), 5810)
    refused(lambda: PrivateLoader(DataLoader(DATA, batch_size=4), key=RunKey()).resume(saved), 5810)


def test_a_batch_that_was_left_halfway_is_not_given_again() -> None:
    """What was summed of it and then given once more would count its records twice."""
    loader = PrivateLoader(DataLoader(DATA, batch_size=8), key=KEY, micro_batch=4)
    given: list[tuple[int, int]] = []
    for stop in (1, 2, 3, 1, 5):
        for count, _ in enumerate(loader, 1):
            given.append(loader.place[:2])
            if count == stop:
                break
    assert len(set(given)) == len(given)
    assert [step for step, number in given if number == 0] == sorted({step for step, _ in given})


def test_two_iterations_at_once() -> None:
    """The mask is the batch's that was given last: with two iterations it would be the other's."""
    loader = private()
    older, newer = iter(loader), iter(loader)
    next(newer)
    refused(lambda: next(older), 9810)


FORKED = """
import os, sys, torch
from torch.utils.data import DataLoader, TensorDataset
from cloister.errors import InternalError
from cloister.privacy._loader import PrivateLoader
from cloister.privacy._run_key import RunKey

loader = PrivateLoader(DataLoader(TensorDataset(torch.ones(40, 1)), batch_size=4), key=RunKey())
batches = iter(loader)
next(batches)
def refused():
    for act in (lambda: next(iter(loader)), lambda: next(batches)):
        try:
            act()
            return 1
        except InternalError as error:
            if error.code != 9810:
                return 2
    return 0
child = os.fork()
if child == 0:
    os._exit(refused())
status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
next(iter(loader))
sys.exit(status)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
def test_a_fork_samples_nothing() -> None:
    made = subprocess.run([sys.executable, "-W", "ignore", "-c", FORKED], timeout=200, capture_output=True, check=False)
    assert made.returncode == 0, made.stderr.decode()


# ---- groups ----------------------------------------------------------------------------------------------


def test_a_person_with_more_rows_than_is_accounted() -> None:
    with pytest.raises(RefusedError) as caught:
        Groups.of(["ann"] * 39 + ["bob"], most_rows=10)
    assert caught.value.code == 3811
    assert "39" not in f"{caught.value} {caught.value.as_json()}"  # it goes to logs
    assert "ann" not in f"{caught.value} {caught.value.as_json()}"


def test_a_person_is_never_in_two_micro_batches() -> None:
    """There a sum of theirs could not be clipped as one."""
    groups = Groups.of([row // 3 for row in range(40)], most_rows=4)
    loader = PrivateLoader(DataLoader(DATA, batch_size=4), key=KEY, groups=groups, expected_batch=5, micro_batch=8)
    for _ in range(5):
        places: dict[tuple[int, int], set[int]] = {}
        for _, labels in loader:
            for label in labels[loader.mask].tolist():
                places.setdefault((loader.place.step, label // 3), set()).add(loader.place.micro_batch)
        assert places
        assert all(len(found) == 1 for found in places.values())


def test_the_accounted_probability_is_the_drawn_one() -> None:
    """By counting, over many steps, what a loader gives: 40,000 draws a record's worth of evidence."""
    loader, steps = private(batch_size=4), 0
    counts = torch.zeros(40)
    while steps < 1000:
        for _, labels in loader:
            counts[labels[loader.mask]] += 1
            steps += 1
    q = float(loader.sampler.probability)
    assert abs(q - 0.1) < 2.0**-60
    spread = (steps * q * (1 - q)) ** 0.5
    assert (abs(counts - steps * q) < 4.5 * spread).all()
    assert isinstance(loader.sampler, PoissonSampler)
