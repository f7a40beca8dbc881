"""In a stage no record ends a training by what it points at, and records as they should be have the same losses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cloister.privacy import bind, check_model

ROWS = 4


class Picks(nn.Module):
    """Scores of an example, and what its places pick."""

    def __init__(self, pick: Callable[[Any, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.words, self.head, self.pick = nn.Embedding(6, 5), nn.Linear(5, 5), pick
        self.register_buffer("table", torch.arange(20.0).reshape(5, 4))
        if "words" not in pick.__code__.co_names:
            self.words.requires_grad_(False)

    def forward(self, x: Tensor, places: Tensor) -> Tensor:
        return self.pick(self, self.head(x), places)


def _places(scores: Tensor, places: Tensor) -> Tensor:
    return places.unsqueeze(1).expand(-1, scores.shape[1])


PICKS: dict[str, Callable[[Any, Tensor, Tensor], Tensor]] = {
    "label": lambda of, y, at: F.cross_entropy(y, at, reduction="none"),
    "labels of positions": lambda of, y, at: F.cross_entropy(
        y.unsqueeze(2).expand(-1, -1, 3), at.unsqueeze(1).expand(-1, 3), reduction="none"
    ).sum(1),
    "word": lambda of, y, at: (y + of.words(at)).square().sum(1),
    "gather": lambda of, y, at: y.gather(1, at.unsqueeze(1)).squeeze(1),
    "scatter": lambda of, y, at: y.scatter(1, at.unsqueeze(1), 0.0).square().sum(1),
    "table": lambda of, y, at: y.sum(1) * of.table[at].sum(1),
    "index_select": lambda of, y, at: y.sum(1) * of.table.index_select(0, at).sum(1),
    "one hot": lambda of, y, at: (y * F.one_hot(at, 5)).sum(1),
    "division": lambda of, y, at: y.sum(1) * (60 // (at - 3)).float(),
    "remainder": lambda of, y, at: y.sum(1) * torch.remainder(at * 7, at - 3).float(),
    "probability": lambda of, y, at: F.binary_cross_entropy(
        torch.sigmoid(y.sum(1)) * at.float() / 4, torch.ones_like(y[:, 0]), reduction="none"
    ),
}
WRONG = {"division": 3, "remainder": 3}


def loss(model: nn.Module, batch: Any) -> Tensor:
    return model(*batch)


@pytest.mark.parametrize("name", list(PICKS))
def test_no_place_ends_it(name: str) -> None:
    torch.manual_seed(0)
    model = Picks(PICKS[name])
    x, places = torch.randn(ROWS, 5), torch.tensor([0, 1, 2, 4])
    certificate = check_model(model, loss, (x, places))
    bound, staying = bind(certificate, model, loss), bind(certificate, model, loss)
    staying.stay_within()
    right = bound((x, places))
    assert torch.equal(staying((x, places)), right)
    for place in [WRONG[name]] if name in WRONG else [5000, -5000]:
        wrong = places.clone()
        wrong[1] = place
        with pytest.raises((IndexError, RuntimeError, ZeroDivisionError)):
            bound((x, wrong)).sum().backward()
        found = staying((x, wrong))
        found.sum().backward()
        assert torch.equal(found[[0, 2, 3]], right[[0, 2, 3]])  # nobody else's changes


def test_what_is_ignored_stays_ignored() -> None:
    model = Picks(PICKS["label"])
    x, places = torch.randn(ROWS, 5), torch.tensor([0, 1, 2, 4])
    staying = bind(check_model(model, loss, (x, places)), model, loss)
    staying.stay_within()
    assert staying((x, torch.tensor([0, -100, 2, 4])))[1] == 0
