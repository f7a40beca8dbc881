"""What must hold of private trainings and of images' privacy budgets."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal

from cloister.errors import CloisterError
from cloister.manifest._finding import Finding
from cloister.manifest._model import PRIVATE_TRAINING, Manifest, PrivacyTerms, Stage
from cloister.manifest._privacy import price_of_terms
from cloister.manifest._yaml import Place

__all__ = ["check_budgets", "check_terms"]

_MOST_BUDGET = 500  # as cloister.ledger.Budget
_SHOWN = ("verify",)  # modes in which one worker alone sees activations and gradients


def check_terms(manifest: Manifest) -> Iterator[Finding]:
    """Privacy terms are numbers that mean something, of a stage that is the engine's, and cost what they say."""
    for name, stage in manifest.stages.items():
        if stage.privacy is None:
            continue
        epsilon, delta = Decimal(stage.privacy.epsilon), Decimal(stage.privacy.delta)
        if not 0 < epsilon <= 1000:
            yield Finding(
                2325, ("stages", name, "privacy", "epsilon"), f"epsilon lies above 0 and at most 1000, not {epsilon}"
            )
        elif not 0 < delta < 1:
            yield Finding(2325, ("stages", name, "privacy", "delta"), f"delta lies between 0 and 1, not {delta}")
        else:
            yield from _training(name, stage, stage.privacy)


def _training(name: str, stage: Stage, terms: PrivacyTerms) -> Iterator[Finding]:
    """A stage with privacy terms is the engine's, whole: nothing beside it sees the data, or says what is released."""
    here: Place = ("stages", name)
    if stage.argv != PRIVATE_TRAINING:
        yield Finding(2335, (*here, "argv"), f"a stage with privacy terms runs {list(PRIVATE_TRAINING)}")
    if stage.env:
        yield Finding(2335, (*here, "env"), "a stage with privacy terms has no 'env'")
    workers = () if stage.offload is None else stage.offload.workers
    for worker in stage.network:
        if worker not in workers:
            yield Finding(2335, (*here, "network"), f"a stage with privacy terms reaches no '{worker}'")
    if stage.offload is not None and stage.offload.mode in _SHOWN:
        what = f"in mode '{stage.offload.mode}' a worker sees what is made of each record, and no bound counts that"
        yield Finding(2335, (*here, "offload"), what)
    if len(stage.outputs) != 1 or not stage.inputs:
        yield Finding(2335, here, "a stage with privacy terms has inputs, and one output")
    if terms.batch > terms.units:
        yield Finding(2325, (*here, "privacy", "batch"), f"{terms.batch} are expected of {terms.units}")
    elif terms.unit == "record" and terms.most_rows != 1:
        yield Finding(2325, (*here, "privacy", "most_rows"), "a record is one row")
    else:
        try:
            price = price_of_terms(terms)
        except CloisterError as error:
            yield Finding(2325, (*here, "privacy"), error.what)
            return
        if price.epsilon is None or Decimal(price.epsilon) > Decimal(terms.epsilon):
            cost = "more than can be stated" if price.epsilon is None else price.epsilon
            yield Finding(7805, (*here, "privacy"), f"the terms cost ε = {cost}, agreed is at most {terms.epsilon}")


def check_budgets(manifest: Manifest) -> Iterator[Finding]:
    """Whatever reads an image with a budget is charged to it."""
    for name, image in manifest.images.items():
        if (budget := image.budget) is None:
            continue
        epsilon, delta = Decimal(budget.epsilon), Decimal(budget.delta)
        if not 0 < epsilon <= _MOST_BUDGET or not 0 < delta < 1:
            yield Finding(2325, ("images", name, "budget"), f"ε above 0 and at most {_MOST_BUDGET}; δ between 0 and 1")
        for reader, stage in manifest.stages.items():
            terms, place = stage.privacy, ("stages", reader, "inputs")
            if name not in stage.inputs:
                continue
            if terms is None:
                yield Finding(3308, place, f"'{name}' has a privacy budget, and '{reader}' is a script without terms")
            elif (terms.unit, terms.relation) != (budget.unit, budget.relation):
                yield Finding(3308, place, f"the budget of '{name}' is per {budget.unit}, {budget.relation}")
        for service, served in manifest.services.items():
            if served.model == name:
                yield Finding(3308, ("services", service), f"'{name}' has a privacy budget, and would be served")
