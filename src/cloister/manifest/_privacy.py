"""What privacy terms mean: the mechanism that they describe, its cost, and how far it reaches.

Cost is by Rényi divergence, in integers: whoever signs, releases keys or audits computes the same number, with nothing
installed beside this package. The tighter account by privacy loss distributions is for people to look at.

How far it reaches is a question about the manifest's graph. What a stage with privacy terms makes of an image is
private, and stays so whatever later stages do with it, as long as they do not read the image again. Where a script
stood between image and training, one record may have become many, or all of them one: nothing is said of the image.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum

from cloister.errors import CloisterError, InputError, InternalError
from cloister.ledger import Method, Price, Relation, TrainingOrder, amount, price_of
from cloister.manifest._graph import stage_order
from cloister.manifest._model import Manifest, PrivacyTerms
from cloister.wire import labelled_digest

__all__ = ["Reach", "order_of", "price_of_terms", "private_stages", "reaches_of", "shown_price"]


_LABEL = "cloister/private-training/v1"


class Reach(IntEnum):
    """How an image's records come into an output, the worse the greater.

    * ``PRIVATE``: only through trainings that read the image itself.
    * ``PREPARED``: only through trainings, and on some way to one a script stood before it.
    * ``OPEN``: on some way through scripts alone.
    """

    PRIVATE = 0
    PREPARED = 1
    OPEN = 2


def order_of(manifest: Manifest, stage: str, *, run: str) -> TrainingOrder:
    """What a stage with privacy terms orders, in one run: every attempt at it has the same order.

    Raises:
        InputError: 2801 when a number is out of range.
        InternalError: 9001 for a stage without privacy terms.
    """
    terms = manifest.stages[stage].privacy
    if terms is None:
        raise InternalError(9001, "a stage without privacy terms")
    return _order(terms, labelled_digest(_LABEL, {"manifest": manifest.id, "run": run, "stage": stage}))


def _order(terms: PrivacyTerms, name: str) -> TrainingOrder:
    return TrainingOrder(
        id=name,
        unit=terms.unit,
        relation=Relation(terms.relation),
        units=terms.units,
        batch=terms.batch,
        steps=terms.steps,
        noise_multiplier=amount(terms.noise_multiplier),
        clip=amount(terms.clip),
        most_rows=terms.most_rows,
        slack=amount(terms.slack),
        delta=amount(terms.delta),
    )


def price_of_terms(terms: PrivacyTerms) -> Price:
    """What the mechanism costs at the terms' δ.

    Raises:
        InputError: 2801 when a number is out of range.
        BudgetError: 7803 when the slack alone is more than δ.
    """
    order = _order(terms, "0" * 64)
    if order.clip == "0":
        raise InputError(2801, "a clipping norm is out of range", expected="above 0", got=order.clip)
    return price_of([order.event], delta=order.delta, by=Method.RDP)


def reaches_of(manifest: Manifest) -> Mapping[str, Mapping[str, Reach]]:
    """Of each output: the data set images that come into it, and how."""
    reaches: dict[str, Mapping[str, Reach]] = {name: {name: Reach.OPEN} for name in manifest.images}
    for name in stage_order(manifest):
        stage, found = manifest.stages[name], dict[str, Reach]()
        for read in stage.inputs:
            for image, reach in reaches[read].items():
                if stage.privacy is not None and reach is Reach.OPEN:
                    reach = Reach.PRIVATE if read == image else Reach.PREPARED
                found[image] = max(reach, found.get(image, reach))
        reaches |= dict.fromkeys(stage.outputs, found)
    return {output: reach for output, reach in reaches.items() if output not in manifest.images}


def private_stages(manifest: Manifest, image: str) -> tuple[str, ...]:
    """The trainings that read an image itself, by name."""
    return tuple(
        sorted(name for name, stage in manifest.stages.items() if stage.privacy is not None and image in stage.inputs)
    )


def shown_price(terms: PrivacyTerms) -> str:
    """The ε that the terms cost, for people; a reason where there is none."""
    try:
        return price_of_terms(terms).epsilon or "more than can be stated"
    except CloisterError as error:
        return error.what
