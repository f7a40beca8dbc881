"""A private training as it is ordered: what decides its guarantee, from whoever agreed on it to the engine."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field, StringConstraints

from cloister.ledger._events import SampledGaussian, sampled_gaussian
from cloister.ledger._numbers import Amount
from cloister.ledger._relation import Relation
from cloister.wire import Digest, Message, Name

__all__ = ["LEDGER_FILE", "ORDER_VARIABLE", "StageOrder", "TrainingOrder"]

ORDER_VARIABLE: Final = "CLOISTER_PRIVACY"
"""The variable in which an engine that is a process of its own finds its :class:`StageOrder`, as canonical JSON."""

LEDGER_FILE: Final = "privacy.json"
"""What such an engine leaves in its output: the ledger of what it did."""

Count = Annotated[int, Field(ge=1, lt=2**40)]
Folder = Annotated[str, StringConstraints(min_length=1, max_length=4096)]


class TrainingOrder(Message):
    """What an engine is to do, and no more than that.

    Attributes:
        id: Of this run of it: what its ledger and its charge are filed under.
        unit: Whose presence is hidden.
        relation: When two data sets are neighbours.
        units: How many of them the data has, at most; it is as if the others were there and had nothing.
        batch: How many a step is expected to draw.
        steps: How many steps are made.
        noise_multiplier: The noise's standard deviation over the clipping norm.
        clip: The norm that one unit's gradient keeps.
        most_rows: How many records of one unit count, at most.
        slack: Total variation distance that sampling and noise may have to ideal ones.
        delta: At which ε is told.
    """

    id: Digest
    unit: Name
    relation: Relation
    units: Count
    batch: Count
    steps: Count
    noise_multiplier: Amount
    clip: Amount
    most_rows: Annotated[int, Field(ge=1, le=1 << 20)]
    slack: Amount
    delta: Amount

    @property
    def event(self) -> SampledGaussian:
        """The mechanism.

        Raises:
            InputError: 2801 when a number is out of range.
        """
        return sampled_gaussian(
            unit=self.unit,
            relation=self.relation,
            sampling_probability=f"{self.batch}/{self.units}",
            noise_multiplier=self.noise_multiplier,
            steps=self.steps,
            slack=self.slack,
        )


class StageOrder(Message):
    """An order, and where things are.

    Attributes:
        training: What is to be done.
        program: The folder with certificate, first weights and recipe.
        inputs: Folders with records.
        output: The folder that is written.
        checkpoint: Whether somebody keeps checkpoints.
    """

    format: Literal["cloister/private-stage/v1"] = "cloister/private-stage/v1"
    training: TrainingOrder
    program: Folder
    inputs: Annotated[tuple[Folder, ...], Field(min_length=1, max_length=64)]
    output: Folder
    checkpoint: bool = False
