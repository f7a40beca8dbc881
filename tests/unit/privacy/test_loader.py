"""The private loader: static micro-batches, masks that say who is real, what is kept of a DataLoader, exact resumes."""

from collections import OrderedDict, namedtuple
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset, get_worker_info

from cloister.errors import CloisterError
from cloister.privacy._groups import Groups
from cloister.privacy._loader import ROWS_AT_ONCE, Place, PrivateLoader
from cloister.privacy._padding import blank
from cloister.privacy._run_key import RunKey
from cloister.privacy._sampling import PoissonSampler
from cloister.wire import Secret

KEY = RunKey(Secret(bytes(range(32))))
ROWS = 60


def records(count: int = ROWS) -> TensorDataset:
    """Record i is (i + 1, i + 1) with the label i: never zero, so that padding shows."""
    values = torch.arange(1.0, count + 1)
    return TensorDataset(torch.stack([values, values], dim=1), torch.arange(count))


def private(data: Any = None, *, batch_size: int = 6, **options: Any) -> PrivateLoader:
    own = {name: options.pop(name) for name in tuple(options) if name in OPTIONS}
    loader = DataLoader(records() if data is None else data, batch_size=batch_size, **options)
    return PrivateLoader(loader, **({"key": KEY} | own))


OPTIONS = {"key", "groups", "expected_batch", "micro_batch", "tail", "dangerous_visible_size"}


def seen(loader: PrivateLoader) -> list[list[int]]:
    """The records of each logical batch of an epoch, by their labels; padding is checked on the way."""
    steps: list[list[int]] = [[]]
    for values, labels in loader:
        real = loader.mask
        assert values.shape == (loader.micro_batch, 2)
        assert labels.shape == real.shape == loader.owners.shape == (loader.micro_batch,)
        assert torch.equal(values[real][:, 0].long(), labels[real] + 1)
        assert not values[~real].any()
        assert not labels[~real].any()
        steps[-1] += labels[real].tolist()
        if loader.place.is_last:
            steps.append([])
    assert steps.pop() == []
    return steps


def code(act: Any) -> int:
    with pytest.raises(CloisterError) as caught:
        act()
    return caught.value.code


# ---- batches ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("micro_batch", [None, 1, 4, 7, 1000])
@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_is_the_samplers_draws(micro_batch: int | None, workers: int) -> None:
    if workers and micro_batch == 1:
        return
    loader = private(micro_batch=micro_batch, num_workers=workers)
    expected = PoissonSampler(ROWS, probability=Fraction(1, 10), key=KEY, capacity=loader.sampler.capacity)
    found = seen(loader)
    assert found == [expected.sample(step).tolist() for step in range(10)]
    assert [] in found or min(map(len, found)) < 6 < max(map(len, found))


def test_shape_and_number_are_the_same_for_every_step() -> None:
    loader = private(micro_batch=4)
    places = [loader.place for _ in loader]
    assert len(places) == len(loader) == loader.epoch_steps * loader.micro_batches
    assert places == [
        Place(step, number, number == loader.micro_batches - 1)
        for step in range(10)
        for number in range(loader.micro_batches)
    ]
    assert loader.micro_batches * 4 >= loader.sampler.capacity - 3


def test_room_is_as_large_as_the_micro_batches() -> None:
    for micro_batch in (None, 4, 7):
        loader = private(micro_batch=micro_batch)
        assert loader.sampler.capacity == min(loader.micro_batches * loader.micro_batch, ROWS)
        assert loader.sampler.overflow <= Fraction(1, 1 << 50)
    assert private(micro_batch=31).sampler.overflow < private().sampler.overflow


def test_a_visible_size_gives_as_few_as_needed() -> None:
    loader = private(micro_batch=2, dangerous_visible_size=True)
    static = private(micro_batch=2)
    assert seen(loader) == seen(static)
    counts = [0] * 30
    for _ in loader:
        counts[loader.place.step] += 1
    assert counts[10:20] == [max(1, -(-len(rows) // 2)) for rows in seen(static)]
    with pytest.raises(TypeError):
        len(loader)


def test_an_expected_batch_of_everybody() -> None:
    loader = private(records(3), batch_size=3, micro_batch=3)
    assert loader.sampler.probability == 1
    assert seen(loader) == [[0, 1, 2]]


def test_empty_batches_are_nothing_special() -> None:
    loader = private(batch_size=1)
    found = seen(loader)
    assert found.count([]) > 5
    assert len(found) == ROWS


@pytest.mark.parametrize("workers", [0, 1])
def test_a_batch_of_nobody_reaches_no_data_set(workers: int) -> None:
    """Data sets that fetch many rows at once are not asked for none."""

    loader = private(Many(), batch_size=1, num_workers=workers)
    counts = [int(loader.mask.sum()) for _ in loader]
    assert 0 in counts
    assert sum(counts) > 10


class Many(Dataset[Any]):
    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, row: int) -> Tensor:
        return torch.tensor([row])

    def __getitems__(self, rows: list[int]) -> list[Tensor]:
        assert rows
        return [self[row] for row in rows]


# ---- steps, left iterations, resumes ---------------------------------------------------------------------


def test_epochs_go_on_with_new_steps() -> None:
    loader = private()
    one, two = seen(loader), seen(loader)
    assert one != two
    assert loader.step == 20
    again = private()
    assert [seen(again), seen(again)] == [one, two]


@pytest.mark.parametrize("left_after", [1, 4, 9, 10, 19])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_loader_goes_on_where_it_was(left_after: int, workers: int) -> None:
    whole = private(micro_batch=8)
    expected = seen(whole) + seen(whole)
    loader = private(micro_batch=8, num_workers=workers)
    done = 0
    while done < left_after:
        for _ in loader:
            done += loader.place.is_last
            if done == left_after:
                break
    saved = tuple(loader.state)
    again = private(micro_batch=8, num_workers=workers)
    again.resume(saved)
    assert again.step == left_after
    rest = seen(again)
    while len(rest) < 20 - left_after:
        rest += seen(again)
    assert rest == expected[left_after:]


def test_prefetched_steps_are_not_counted() -> None:
    """Workers have asked for the rows of later steps by then; what is saved is what was given."""
    loader = private(num_workers=2, prefetch_factor=4)
    batches = iter(loader)
    next(batches)
    assert loader.state.position == loader.step == 1
    del batches


def test_a_logical_batch_that_was_left_is_not_begun_again() -> None:
    loader = private(micro_batch=4)
    for _ in loader:
        if loader.place == (2, 1, False):
            break
    next(iter(loader))
    assert loader.place == (3, 0, False)


def test_an_older_iteration_ends_where_a_newer_begins() -> None:
    loader = private()
    older = iter(loader)
    next(older)
    newer = iter(loader)
    next(newer)
    place, owners = loader.place, loader.owners
    assert code(lambda: next(older)) == 9810
    assert (loader.place, loader.owners is owners) == (place, True)
    loader.resume(loader.state)
    assert code(lambda: next(newer)) == 9810


def test_a_mask_is_there_with_the_first_batch() -> None:
    loader = private()
    for act in (lambda: loader.mask, lambda: loader.owners, lambda: loader.place):
        assert code(act) == 9810


@pytest.mark.parametrize(
    "other",
    [
        {"key": RunKey(Secret(bytes(32)))},
        {"batch_size": 5},
        {"micro_batch": 3},
        {"tail": Fraction(1, 1 << 20)},
        {"dangerous_visible_size": True},
        {"data": records(61)},
        {"drop_last": True, "batch_size": 7},
        {"groups": Groups.of(range(ROWS), most_rows=2), "expected_batch": 6},
    ],
    ids=lambda other: next(iter(other)),
)
def test_a_state_of_another_run_is_refused(other: dict[str, Any]) -> None:
    loader = private()
    next(iter(loader))
    assert code(lambda: private(**other).resume(loader.state)) == 5810
    changed = loader.state._replace(position=0)
    assert code(lambda: private().resume(changed)) == 5810
    assert code(lambda: private().resume("state")) == 2812


# ---- what is kept of a DataLoader ------------------------------------------------------------------------


def test_how_rows_are_fetched_is_kept() -> None:
    generator = torch.Generator()
    loader = private(
        num_workers=1,
        timeout=55,
        worker_init_fn=started,
        generator=generator,
        prefetch_factor=3,
        persistent_workers=True,
        multiprocessing_context="spawn",
        collate_fn=shifted,
    )
    inner = loader._inner
    kept = (inner.num_workers, inner.timeout, inner.worker_init_fn, inner.generator, inner.prefetch_factor)
    assert kept == (1, 55, started, generator, 3)
    assert inner.persistent_workers
    assert inner.multiprocessing_context.get_start_method() == "spawn"
    assert loader.dataset is inner.dataset


def test_workers_are_kept_over_epochs() -> None:
    loader = private(num_workers=1, persistent_workers=True, worker_init_fn=started)
    plain = private()
    for _ in range(3):
        assert seen(loader) == seen(plain)
    for _ in loader:
        break
    for _ in plain:
        break
    assert seen(loader) == seen(plain)


def started(_worker: int) -> None:
    info = get_worker_info()
    assert info is not None
    assert isinstance(info.dataset, TensorDataset)  # the user's own, as their function expects


def shifted(rows: list[Any]) -> Any:
    return {
        "values": torch.stack([values for values, _ in rows]) + 1,
        "labels": torch.stack([label for _, label in rows]),
    }


def test_a_collate_function_is_kept() -> None:
    loader = private(collate_fn=shifted)
    for batch in loader:
        assert set(batch) == {"values", "labels"}
        assert batch["values"].shape == (loader.micro_batch, 2)
        assert torch.equal(batch["values"][~loader.mask], torch.ones(int((~loader.mask).sum()), 2))


def test_pinned_memory_is_kept() -> None:
    plain = DataLoader(records(), batch_size=6)
    plain.pin_memory = True
    assert PrivateLoader(plain, key=KEY)._inner.pin_memory is True


def test_steps_of_an_epoch_are_the_loaders() -> None:
    for drop_last in (True, False):
        for batch_size in (6, 7, 59, 60):
            plain = DataLoader(records(), batch_size=batch_size, drop_last=drop_last)
            assert PrivateLoader(plain, key=KEY).epoch_steps == len(plain)


Pair = namedtuple("Pair", "x y")
SAMPLES = [
    torch.ones(3),
    np.ones(3, np.float32),
    (torch.ones(2), 5),
    [torch.ones(2), 1.5, True],
    {"x": torch.ones(2), "y": {"z": np.float64(3)}},
    OrderedDict(x=torch.ones(2)),
    Pair(torch.ones(1), 3),
    (torch.ones(1), "name", b"bytes", None, np.bool_(True)),
]


class Same(Dataset[Any]):
    def __init__(self, sample: Any) -> None:
        self.sample = sample

    def __len__(self) -> int:
        return 20

    def __getitem__(self, row: int) -> Any:
        return self.sample


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: type(sample).__name__)
def test_padding_has_the_structure_of_a_sample(sample: Any) -> None:
    padding = blank(sample)
    assert type(padding) is type(sample)
    if None in (sample if isinstance(sample, tuple) else ()):
        return  # torch's default collate takes no None
    for batch in private(Same(sample), batch_size=2):
        assert type(batch) is type(next(iter(DataLoader(Same(sample), batch_size=2))))


def test_zeros_are_of_the_same_type() -> None:
    one = {"a": torch.ones(2, dtype=torch.float16), "b": np.ones((1, 2), np.int8), "c": (True, 2, 0.5, "x", b"y", None)}
    zero = blank(one)
    assert (zero["a"].dtype, zero["b"].dtype, zero["c"]) == (torch.float16, np.int8, (False, 0, 0.0, "", b"", None))
    assert not zero["a"].any()
    assert not zero["b"].any()


# ---- groups ----------------------------------------------------------------------------------------------

LABELS = [f"patient {row % 25}" for row in range(ROWS)]  # 10 with three records, 15 with two


@pytest.mark.parametrize("micro_batch", [None, 3, 12])
def test_a_group_is_in_with_all_its_rows_or_none(micro_batch: int | None) -> None:
    groups = Groups.of(LABELS, most_rows=3)
    loader = private(groups=groups, expected_batch=5, micro_batch=micro_batch)
    sampler = PoissonSampler(25, probability=Fraction(1, 5), key=KEY, capacity=loader.sampler.capacity)
    found = seen(loader)
    assert len(found) == loader.epoch_steps == 5
    for step, rows in enumerate(found):
        assert rows == [row for group in sampler.sample(step) for row in groups.rows(group)]


def test_owners_number_the_groups_of_a_micro_batch() -> None:
    loader = private(groups=Groups.of(LABELS, most_rows=4), expected_batch=5, micro_batch=8)
    for _, labels in loader:
        owners = loader.owners
        assert owners.max() < 8 // loader.most_rows
        whose = {}
        for owner, label in zip(owners.tolist(), labels.tolist(), strict=True):
            if owner >= 0:
                whose.setdefault(owner, set()).add(label % 25)
        assert all(len(patients) == 1 for patients in whose.values())
        assert sorted(whose) == list(range(len(whose)))
        assert torch.equal(loader.mask, owners >= 0)


def test_records_own_themselves() -> None:
    loader = private()
    for _ in loader:
        count = int(loader.mask.sum())
        assert loader.owners.tolist() == [*range(count), *[-1] * (loader.micro_batch - count)]


@pytest.mark.parametrize(
    "given",
    [
        {"expected_batch": 61},
        {"expected_batch": -1},
        {"batch_size": 61},
        {"micro_batch": 0},
        {"micro_batch": -4},
        {"groups": Groups.of(LABELS, most_rows=3)},
        {"groups": Groups.of(LABELS, most_rows=3), "expected_batch": 26},
        {"groups": Groups.of(LABELS, most_rows=3), "expected_batch": 5, "micro_batch": 8},
        {"groups": Groups.of(LABELS[1:], most_rows=3), "expected_batch": 5},
    ],
    ids=str,
)
def test_numbers_that_do_not_fit_are_refused(given: dict[str, Any]) -> None:
    assert code(lambda: private(**given)) == 2811


@pytest.mark.parametrize(("batch_size", "patients"), [(6, False), (200, False), (60, True)])
def test_parts_that_nobody_named_are_even_and_hardly_padded(batch_size: int, patients: bool) -> None:
    groups = Groups.of(np.repeat(np.arange(200), 3).tolist(), most_rows=3) if patients else None
    own = {"groups": groups, "expected_batch": batch_size} if groups else {}
    loader = private(records(600), batch_size=batch_size, **own)
    needed = loader.sampler.capacity * loader.most_rows
    assert loader.micro_batch % loader.most_rows == 0
    assert loader.micro_batch <= 2 * ROWS_AT_ONCE
    assert needed - loader.most_rows * loader.micro_batches < loader.micro_batch * loader.micro_batches <= needed
