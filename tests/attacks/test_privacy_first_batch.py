"""The first forward is tried before it counts: no record decides how that ends, and nothing slips past it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.clipped_sums import engine_for, exact_gradient, private_gradient, relative
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from cloister.errors import UnsupportedError
from cloister.privacy import bind, check_model, make_private
from cloister.privacy._clipping import Flat
from cloister.privacy._engine import Engine

ROWS = 30
FRAMES = (3, 1, 4, 4)


class Frames(nn.Module):
    """Frames folded with the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Conv2d(1, 2, 3), nn.Linear(8, 3)

    def forward(self, frames: Tensor) -> Tensor:
        found = F.relu(self.layer(frames.reshape(-1, 1, 4, 4)))
        return self.head(found.flatten(1)).view(-1, 3, 3).mean(1)


class Pictures(Frames):
    def forward(self, frames: Tensor) -> Tensor:
        return super().forward(frames.float() / 255)


class Words(nn.Module):
    """Words folded with the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(20, 6), nn.Linear(6, 3)

    def forward(self, words: Tensor) -> Tensor:
        return self.head(torch.tanh(self.words(words)).flatten(0, 1)).view(-1, 5, 3).mean(1)


RECORDS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor], Tensor]] = {
    "no numbers": (lambda: nn.Linear(5, 3), lambda: torch.randn(ROWS, 5), torch.full((5,), math.nan)),
    "huge": (Frames, lambda: torch.randn(ROWS, *FRAMES), torch.full(FRAMES, 1e30)),
    "black": (
        Pictures,
        lambda: torch.randint(0, 255, (ROWS, *FRAMES), dtype=torch.uint8),
        torch.zeros(FRAMES, dtype=torch.uint8),
    ),
    "one word": (Words, lambda: torch.randint(0, 20, (ROWS, 5)), torch.full((5,), 7)),
}
"""A model, what it takes, and a record that nothing can be told from."""


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


@pytest.mark.parametrize("certified", [True, False], ids=["certified", "as it is"])
@pytest.mark.parametrize("records", RECORDS)
def test_no_record_ends_a_training(records: str, certified: bool) -> None:
    """That it ended would tell that such a record was drawn."""
    torch.manual_seed(0)
    build, usual, record = RECORDS[records]
    labels, program = torch.randint(0, 3, (ROWS,)), build()
    if certified:
        program = bind(check_model(program, loss, (usual()[:4], labels[:4])), program, loss)
        program.stay_within()
    program, optimizer, loader = make_private(
        program,
        torch.optim.SGD(program.parameters(), lr=0.1),
        DataLoader(TensorDataset(record.expand(ROWS, *record.shape).clone(), labels), batch_size=10),
        clip=1.0,
        noise_multiplier="1",
        delta="1e-5",
        kernels="torch",
    )
    for batch in loader:
        (program(tuple(batch)) if certified else loss(program, tuple(batch))).mean().backward()
        optimizer.step()
    assert optimizer.privacy.steps == 3


class Listening(nn.Module):
    """Remembers what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.layer = nn.Embedding(8, 4), nn.Linear(4, 3)
        self.heard: list[list[Tensor]] = []

    def forward(self, rows: Tensor, words: Tensor, *, mask: Tensor) -> Tensor:
        self.heard.append([each.detach().clone() for each in (rows, words, mask)])
        return self.layer(rows * mask + self.words(words).sum(1))


def heard(rows: Tensor, words: Tensor, mask: Tensor) -> list[list[Tensor]]:
    torch.manual_seed(0)
    model = Listening()
    engine = engine_for(model, Flat(1.0), len(rows))
    engine.forward(model.__call__, ((rows, words), {"mask": mask}), len(rows))
    assert torch.equal(model.heard[-1][1], words)
    return model.heard[:-1]


def test_a_trial_is_given_nobodys_rows() -> None:
    usual = heard(torch.randn(9, 4), torch.randint(0, 8, (9, 5)), torch.rand(9, 4) > 0.5)
    other = heard(torch.full((9, 4), math.inf), torch.full((9, 5), 7), torch.zeros(9, 4).bool())
    assert len(usual) == len(other) >= 4
    assert all(torch.equal(*both) for one, two in zip(usual, other, strict=True) for both in zip(one, two, strict=True))


class Starting(nn.Module):
    """Takes nothing but what begins with a 7; folded, so that a trial must tell one example from another."""

    def __init__(self, after: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.words, self.head, self.after = nn.Embedding(9, 4), nn.Linear(4, 3), after

    def forward(self, words: Tensor) -> Tensor:
        if not bool((words[:, 0] == 7).all()):
            raise ValueError("a sentence begins with a 7")
        found = self.words(words).flatten(0, 1)
        return self.head(found if self.after is None else self.after(found)).view(len(words), -1, 3).sum(1)


def starting(length: int = 5) -> Tensor:
    return torch.cat([torch.full((ROWS, 1), 7), torch.randint(0, 9, (ROWS, length))], 1)


def test_a_model_that_takes_no_made_up_rows_is_tried_on_its_own() -> None:
    torch.manual_seed(0)
    engine, words = engine_for(Starting(), Flat(0.5), ROWS), starting()

    def losses(outputs: Tensor, rows: Tensor) -> Tensor:
        return F.cross_entropy(outputs, rows % 3, reduction="none")

    gradient = private_gradient(engine, [words], losses, ROWS)
    assert relative(gradient, exact_gradient(engine, [words], losses, range(ROWS))) <= 1e-6


def refused(engine: Engine, *rows: Tensor) -> UnsupportedError:
    with pytest.raises(UnsupportedError) as error:
        engine.forward(engine.model.__call__, (rows, {}), len(rows[0]))
    return error.value


def test_it_is_refused_on_its_own_rows_too_where_it_mixes_examples() -> None:
    torch.manual_seed(0)
    engine = engine_for(Starting(lambda found: found - found.mean(0)), Flat(0.5), ROWS)
    assert refused(engine, starting()).code == 8857


class Arched(nn.Module):
    """Is defined from 1 on."""

    def __init__(self, after: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.after = nn.Linear(4, 3), after

    def forward(self, rows: Tensor) -> Tensor:
        return self.layer(self.after(rows.acosh()))


def test_numbers_that_are_no_numbers_hide_no_mixing() -> None:
    engine = engine_for(Arched(lambda rows: rows - rows.mean(0)), Flat(0.5), ROWS)
    assert refused(engine, torch.rand(ROWS, 4) + 1).code == 8857


def test_numbers_that_are_no_numbers_are_alike() -> None:
    engine, rows = engine_for(Arched(torch.tanh), Flat(0.5), ROWS), torch.rand(ROWS, 4) + 1

    def losses(outputs: Tensor, rows: Tensor) -> Tensor:
        return outputs.square().sum(1)

    gradient = private_gradient(engine, [rows], losses, ROWS)
    assert relative(gradient, exact_gradient(engine, [rows], losses, range(ROWS))) <= 1e-6


# ---- what a parameter does on the examples' own axis ----------------------------------------------------------------


class Joined(nn.Module):
    """A parameter behind or before the batch, on the batch's own axis; all rows then read it."""

    def __init__(self, join: Callable[[Tensor, Tensor], Tensor], place: int) -> None:
        super().__init__()
        self.shared, self.layer = nn.Parameter(torch.zeros(1, 40)), nn.Linear(40, 40)
        self.join, self.place = join, place

    def forward(self, rows: Tensor) -> Tensor:
        both, place = self.layer(self.join(rows, self.shared)), self.place
        return both[1 + place : len(both) + place] * both[place]


JOINS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], int]] = {
    "behind": (lambda rows, shared: torch.cat([rows, shared]), -1),
    "before": (lambda rows, shared: torch.cat([shared, rows], dim=-2), 0),
    "as numpy says": (lambda rows, shared: torch.concatenate((rows, shared), axis=0), -1),  # pyright: ignore[reportCallIssue]
    "as an operator": (lambda rows, shared: torch.ops.aten.cat.default([rows, shared], 0), -1),
}


@pytest.mark.parametrize("join", JOINS)
def test_a_parameter_joined_to_the_batch_is_nobodys_row(join: str) -> None:
    """Row 0 would have everybody's gradient, and a row that is nobody's would move the sum."""
    engine = engine_for(Joined(*JOINS[join]), Flat(1.0), 16)
    assert refused(engine, torch.randn(16, 40)).code == 8855


def test_a_parameter_is_not_joined_to_the_batch_after_the_trial() -> None:
    class Turning(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shared, self.dim = nn.Parameter(torch.zeros(1, 4)), 1

        def forward(self, rows: Tensor) -> Tensor:
            both = torch.cat([rows, self.shared.expand(len(rows), 4)], self.dim)
            return both if self.dim else both[: len(rows)] * both[len(rows) : len(rows) + 1]

    torch.manual_seed(0)
    model, rows = Turning(), torch.randn(16, 4)
    engine = engine_for(model, Flat(1.0), 16)
    private_gradient(engine, [rows], lambda outputs, _: outputs.sum(1), 16)
    model.dim = 0
    assert refused(engine, rows).code == 8855


class Positions(nn.Module):
    """Steps first, folded with the batch: ``(T·B, C)``, with a parameter's row for each step."""

    def __init__(self, place: Callable[[Tensor, int], Tensor]) -> None:
        super().__init__()
        self.shared, self.layer, self.place = nn.Parameter(torch.randn(6, 5)), nn.Linear(5, 4), place

    def forward(self, rows: Tensor) -> Tensor:
        batch, steps, width = rows.shape
        folded = rows.transpose(0, 1).reshape(steps * batch, width)
        return self.layer(folded + self.place(self.shared, batch)).view(steps, batch, -1).sin().sum(0)


PLACES: dict[str, Callable[[Tensor, int], Tensor]] = {
    "expanded": lambda shared, batch: shared[:, None].expand(-1, batch, -1).reshape(-1, 5),
    "repeated": lambda shared, batch: shared.repeat_interleave(batch, 0),
    "a factor a step": lambda shared, batch: shared[:, :1].repeat_interleave(batch, 0),
}


@pytest.mark.parametrize("place", PLACES)
def test_positions_of_folded_sequences_get_their_own_gradients(place: str) -> None:
    torch.manual_seed(0)
    engine, rows = engine_for(Positions(PLACES[place]), Flat(0.5), 7), torch.randn(7, 6, 5)

    def losses(outputs: Tensor, _: Tensor) -> Tensor:
        return outputs.square().sum(1)

    gradient = private_gradient(engine, [rows], losses, 7)
    assert relative(gradient, exact_gradient(engine, [rows], losses, range(7))) <= 1e-6


# ---- losses of all rows in one number -------------------------------------------------------------------------------


class WithLoss(nn.Module):
    """A model that gives its own loss, as those of Hugging Face do."""

    def __init__(self, loss: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.layer, self.loss = nn.Linear(4, 3), loss

    def forward(self, rows: Tensor, labels: Tensor) -> dict[str, Any]:
        scores = self.layer(rows)
        return {"loss": self.loss(scores, labels), "scores": scores}


def squares(scores: Tensor, labels: Tensor) -> Tensor:
    return F.mse_loss(scores, F.one_hot(labels, 3).float(), reduction="none").mean(1)


def test_a_mean_in_the_model_is_the_mean_beside_it() -> None:
    torch.manual_seed(0)
    rows, labels = torch.randn(7, 4), torch.randint(0, 3, (7,))
    model = WithLoss(lambda scores, labels: squares(scores, labels).mean())
    engine = engine_for(model, Flat(0.1), 7)
    inside = private_gradient(engine, [rows, labels], lambda outputs, _: outputs["loss"], 7)
    outside = private_gradient(engine, [rows, labels], lambda outputs, _: squares(outputs["scores"], labels), 7)
    assert torch.equal(inside, outside)
    assert inside.norm() > 0


WEIGHTS = torch.tensor([1.0, 2.0, 4.0])
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "labels that do not count": F.cross_entropy,
    "a class that does not count": lambda scores, labels: F.cross_entropy(scores, labels, ignore_index=1),
    "classes that count more": lambda scores, labels: F.cross_entropy(scores, labels, weight=WEIGHTS),
    "a product of rows": lambda scores, labels: squares(scores, labels).log().mean().exp(),
}


@pytest.mark.parametrize("mixed", LOSSES)
def test_a_loss_in_which_one_row_weighs_another_is_refused(mixed: str) -> None:
    torch.manual_seed(0)
    engine = engine_for(WithLoss(LOSSES[mixed]), Flat(1.0), 7)
    assert refused(engine, torch.randn(7, 4), torch.randint(0, 3, (7,))).code == 8857
