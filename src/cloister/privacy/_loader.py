"""The user's data loader with its sampling replaced: each record, or group, drawn by itself in every step.

* What can be kept of a ``DataLoader`` is: data set, collate function, workers, pinned memory, timeout, generator and
  the rest of how rows are fetched; ``batch_size`` becomes the *expected* batch, and an epoch has as many steps as the
  loader had. What cannot is refused by name (:mod:`cloister.privacy._analysable`).
* A step's *logical batch* comes as a fixed number of *micro-batches* of one shape. Rows that nobody owns fill them, so
  neither shape nor number says how many were drawn; an empty one is nothing special. :attr:`PrivateLoader.mask` says
  which rows of the micro-batch just given are real. It is secret, as the batch is.
* With groups, a group's rows are neighbours in one micro-batch, which has as many groups at most as have room if each
  has ``most_rows``. :attr:`PrivateLoader.owners` says whose a row is.
* A step belongs to its number: whoever leaves an iteration goes on with the next, and a logical batch that was left
  halfway is never begun again. What was summed of it is to be dropped: :attr:`PrivateLoader.place` begins at 0 again.

>>> from torch.utils.data import DataLoader, TensorDataset
>>> records = TensorDataset(torch.arange(1000.0).reshape(500, 2))
>>> loader = PrivateLoader(DataLoader(records, batch_size=10), key=RunKey(), micro_batch=16)
>>> [tuple(rows.shape) for (rows,) in loader][:3], loader.place, len(loader)
([(16, 2), (16, 2), (16, 2)], Place(step=49, micro_batch=2, is_last=True), 150)
>>> loader.mask.shape, loader.sampler.probability <= Fraction(10, 500), loader.sampler.expected
(torch.Size([16]), True, Fraction(10, 1))
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from cloister.errors import InputError, InternalError, RefusedError
from cloister.privacy._analysable import require_analysable
from cloister.privacy._groups import Groups
from cloister.privacy._padding import PaddedCollate, blank, form, require_rowwise
from cloister.privacy._run_key import RunKey, StreamState
from cloister.privacy._sampling import TAIL, PoissonSampler
from cloister.privacy._stream import Numbers
from cloister.privacy._turns import Turns

__all__ = ["ROWS_AT_ONCE", "Place", "PrivateLoader"]


class Place(NamedTuple):
    """Which micro-batch it is.

    Attributes:
        step: Of the run.
        micro_batch: From 0 on.
        is_last: Whether the logical batch is whole with it.
    """

    step: int
    micro_batch: int
    is_last: bool


ROWS_AT_ONCE = 64
"""Of a micro-batch that nobody named: enough for a layer's kernels to be at their speed, and the memory of a model's
activations and rows stays that of so many examples, however large the batch is."""


class PrivateLoader:
    """Iterates over one epoch of Poisson batches, in micro-batches of one shape.

    Args:
        loader: The user's; it is not iterated.
        key: The run's.
        groups: Whose rows are in together; each record by itself when left out.
        expected_batch: Records, or groups, in a batch on average; the loader's ``batch_size`` when left out, which with
            groups must be said, since the loader's counts rows.
        micro_batch: Rows of a micro-batch, whole groups; when left out, even parts of about ``ROWS_AT_ONCE``.
        tail: Greatest probability that a step draws more than fit (:attr:`PoissonSampler.overflow`).
        dangerous_visible_size: Gives only as many micro-batches as the drawn rows need, at least one: faster, and
            whoever sees the time of a step, or counts batches, learns about how many were drawn. The guarantee is then
            one against those who see the released numbers and nothing else.

    Attributes:
        sampler: What draws; its ``probability``, ``expected`` and ``overflow`` are what is accounted.
        epoch_steps: Steps of an epoch.
        micro_batches: Of a logical batch; the most of them when the size is visible.
        micro_batch: Rows of one.
        most_rows: Of a group; 1 for records.
        turns: That each batch is trained with before the next is given, once an engine holds it to that.

    Raises:
        RefusedError: 3810 when the loader cannot be analysed.
        InputError: 2811 when a number is out of range; 2813 when rows make no static batch.
    """

    def __init__(
        self,
        loader: DataLoader[Any],
        *,
        key: RunKey,
        groups: Groups | None = None,
        expected_batch: int | None = None,
        micro_batch: int | None = None,
        tail: Fraction = TAIL,
        dangerous_visible_size: bool = False,
    ) -> None:
        require_analysable(loader)
        self._data: Any = loader.dataset
        self._rows, self._groups = len(self._data), groups
        if groups is not None and groups.total_rows != self._rows:
            raise InputError(2811, expected=f"a label for each of {self._rows} rows", got=groups.total_rows)
        if groups is not None and expected_batch is None:
            raise InputError(2811, "the loader's batch size counts rows", expected="expected_batch, in groups")
        count = self._rows if groups is None else len(groups)
        expected = expected_batch or loader.batch_size or 0
        if not 1 <= expected <= count:
            raise InputError(2811, expected=f"an expected batch from 1 to {count}", got=expected)
        self.sampler = PoissonSampler(count, probability=Fraction(expected, count), key=key, tail=tail)
        self.most_rows = 1 if groups is None else groups.most_rows
        most = self.sampler.capacity * self.most_rows
        self.micro_batch = _even_part(self.sampler.capacity, self.most_rows) if micro_batch is None else micro_batch
        if self.micro_batch < 1 or self.micro_batch % self.most_rows:
            raise InputError(2811, expected=f"a micro-batch of whole groups of {self.most_rows}", got=self.micro_batch)
        self.micro_batches = -(-most // self.micro_batch)
        # what the last micro-batch has room for beyond that is used: it costs nothing, and fewer are left out
        room = self.micro_batches * self.micro_batch // self.most_rows
        self.sampler = PoissonSampler(
            count, probability=Fraction(expected, count), key=key, tail=tail, capacity=max(room, self.sampler.capacity)
        )
        self.epoch_steps = count // expected if loader.drop_last else -(-count // expected)
        self._visible = dangerous_visible_size
        self._steps, self._key = Numbers(), key
        samples = [self._data[0], self._data[self._rows - 1]]
        if _fetches_many(self._data) and isinstance(_Rows(self._data).__getitems__([0]), _Miscounted):
            raise _miscounted()
        padding = blank(samples[0])
        self._form = require_rowwise(loader.collate_fn, samples, padding, self.micro_batch)
        self._schedule = _Schedule()
        self._inner = _with_schedule(loader, self._schedule, _Collate(loader.collate_fn, padding, self.micro_batch))
        self._turn, self.turns = 0, Turns()
        self._owners: Tensor | None = None
        self._place: Place | None = None

    @property
    def dataset(self) -> Any:
        """The user's."""
        return self._data

    @property
    def owners(self) -> Tensor:
        """``(micro_batch,)`` int64: whose each row is, counted within the micro-batch; -1 for nobody's. Secret.

        Raises:
            InternalError: 9810 before the first.
        """
        if self._owners is None:
            raise InternalError(9810, "no batch was given yet")
        return self._owners

    @property
    def mask(self) -> Tensor:
        """``(micro_batch,)`` bool: which rows of the micro-batch just given are real. Secret.

        Raises:
            InternalError: 9810 before the first.
        """
        return self.owners >= 0

    @property
    def place(self) -> Place:
        """Of the micro-batch just given.

        Raises:
            InternalError: 9810 before the first.
        """
        if self._place is None:
            raise InternalError(9810, "no batch was given yet")
        return self._place

    @property
    def step(self) -> int:
        """The next step's number: as many were begun, as far as anybody was given a batch of them."""
        return self._steps.next

    @property
    def state(self) -> StreamState:
        """For a checkpoint, after the step whose result it holds. No secret."""
        return StreamState.make(self._steps.next, self._key, *self._context)

    def resume(self, state: Any) -> None:
        """Goes on at a saved state, in the midst of an epoch if it was saved there.

        Steps that this loader has begun are not drawn for again: after an earlier state it goes on behind them.

        Raises:
            InputError: 2812 when it is no state.
            IntegrityError: 5810 when it was saved under another key or other terms, or was changed.
        """
        saved = StreamState.read(state, self._key, *self._context)
        self._steps = Numbers(max(saved, self._steps.next))
        self.leave()

    def leave(self) -> None:
        """Ends an iteration that is on its way: no batch of it is given, or trained with, any more."""
        self._turn += 1
        self.turns.begin()

    def __len__(self) -> int:
        """Micro-batches of an epoch.

        Raises:
            TypeError: When their number is not fixed.
        """
        if self._visible:
            raise TypeError("how many micro-batches there will be depends on who is drawn")
        return self.epoch_steps * self.micro_batches

    def __iter__(self) -> Iterator[Any]:
        """What is left of this epoch, or all of the next.

        Raises:
            InternalError: 9810 when a newer iteration was begun, or in a fork.
            RefusedError: 3810 when the data set has grown or shrunk.
            InputError: 2813 when a batch has another form, or other records than those that were asked for.
            RefusedError: 3850 when the loop asks for a batch and has not stepped with the one before.
        """
        self._steps.require()
        if len(self._data) != self._rows:
            raise RefusedError(3810, "the data set has another length", expected=self._rows, got=len(self._data))
        self._turn += 1
        self.turns.begin()
        return self._epoch(self._turn)

    def _epoch(self, turn: int) -> Iterator[Any]:
        first = self._steps.next
        pending = self._schedule.begin(self._planned(first, first - first % self.epoch_steps + self.epoch_steps))
        for batch in self._inner:
            if turn != self._turn:
                raise InternalError(9810, "another iteration over this loader was begun")
            place, owners = pending.popleft()
            if isinstance(batch, _Miscounted):
                raise _miscounted()
            if form(batch) != self._form:
                raise InputError(2813, "a batch has another form than the first", expected=self._form)
            self.turns.give(batch)
            if place.micro_batch == 0 and self._steps.take() != place.step:
                raise InternalError(9810, "a step was about to be sampled twice")
            self._place, self._owners = place, owners
            yield batch

    def _planned(self, first: int, last: int) -> Iterator[_Planned]:
        """What each micro-batch holds, ahead of those who fetch it."""
        each = self.micro_batch // self.most_rows
        for step in range(first, last):
            drawn = self.sampler.sample(step).tolist()
            count = max(1, -(-len(drawn) // each)) if self._visible else self.micro_batches
            for number in range(count):
                rows, owners = self._filled(drawn[number * each : (number + 1) * each])
                yield _Planned(rows, owners, Place(step, number, number == count - 1))

    def _filled(self, drawn: list[int]) -> tuple[list[int], Tensor]:
        owned = [[number] if self._groups is None else self._groups.rows(number).tolist() for number in drawn]
        owners = torch.full((self.micro_batch,), -1, dtype=torch.int64)
        whose = [owner for owner, rows in enumerate(owned) for _ in rows]
        owners[: len(whose)] = torch.tensor(whose, dtype=torch.int64)
        return [row for rows in owned for row in rows], owners

    @property
    def _context(self) -> tuple[bytes, ...]:
        sampler = self.sampler
        terms = sampler.count, sampler.probability, sampler.capacity, self.micro_batch, self.most_rows
        return b"loader", repr((*terms, self.epoch_steps, self._visible)).encode()


class _Planned(NamedTuple):
    rows: list[int]
    owners: Tensor
    place: Place


class _Schedule(Sampler[list[int]]):
    """Hands rows to torch's loader, which may ask for them long before their batch is given."""

    def __init__(self) -> None:
        self.begin(iter(()))

    def begin(self, planned: Iterator[_Planned]) -> deque[tuple[Place, Tensor]]:
        """Plans an iteration; what it hands out is noted in the deque, in order."""
        self._planned, self._pending = planned, deque[tuple[Place, Tensor]]()
        return self._pending

    def __iter__(self) -> Iterator[list[int]]:
        return _handed(self._planned, self._pending)


def _handed(planned: Iterator[_Planned], pending: deque[tuple[Place, Tensor]]) -> Iterator[list[int]]:
    for rows, owners, place in planned:
        pending.append((place, owners))
        yield rows


class _Miscounted:
    """In place of rows: there were not as many as were asked for. Whose a row is would be wrong from there on."""


def _miscounted() -> InputError:
    # not how many: that is how many were drawn
    hint = "__getitems__ gives one sample for each index, in their order; several views of a record are one sample"
    return InputError(2813, "the data set gave other than a record for each that was asked for", hint=hint)


def _fetches_many(data: Any) -> bool:
    return getattr(data, "__getitems__", None) is not None


class _Rows(Dataset[Any]):
    """A data set that fetches many rows at once, and may also be asked for none."""

    def __init__(self, data: Any) -> None:
        self.dataset = data

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, row: int) -> Any:
        return self.dataset[row]

    def __getitems__(self, rows: list[int]) -> list[Any] | _Miscounted:
        found = list(self.dataset.__getitems__(rows)) if rows else []
        return found if len(found) == len(rows) else _Miscounted()


class _Collate(PaddedCollate):
    """Lets what was miscounted through, to the process that may say so by its code."""

    def __call__(self, samples: Any) -> Any:
        return samples if isinstance(samples, _Miscounted) else super().__call__(samples)


def _with_schedule(loader: DataLoader[Any], schedule: _Schedule, collate: PaddedCollate) -> DataLoader[Any]:
    """The user's loader with another sampler; all that concerns how rows are fetched is as it was."""
    data: Any = loader.dataset
    kept = {name: getattr(loader, name) for name in _KEPT}
    if loader.pin_memory_device:
        kept["pin_memory_device"] = loader.pin_memory_device
    data = _Rows(data) if _fetches_many(data) else data
    return DataLoader(data, batch_sampler=schedule, collate_fn=collate, **kept)


_KEPT = (
    "num_workers",
    "pin_memory",
    "timeout",
    "worker_init_fn",
    "multiprocessing_context",
    "generator",
    "prefetch_factor",
    "persistent_workers",
)


def _even_part(groups: int, most_rows: int) -> int:
    """Rows of parts as long as each other, so that as few as can be are padding; whole groups."""
    parts = max(1, round(groups * most_rows / ROWS_AT_ONCE))
    return -(-groups // parts) * most_rows
