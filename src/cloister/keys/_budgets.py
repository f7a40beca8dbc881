"""Privacy budgets of images: what each training costs is charged before its key is released, and never given back.

A budget belongs to the image, by its id and its owner's key: whichever manifests its key is installed under, one book
counts them all, and no stranger who names the image in a manifest of their own touches it. It is a fold of the log like
everything else, so a release and its charge are one entry, and neither is there without the other.

A run of a stage is charged once, whatever its attempts: one of them at most is registered, and nobody gets the keys of
the others' outputs. Which one that is, is the host's choice among ciphertexts.

An image that was sealed again is another image, and two key managers that hold one image's key count apart.
"""

from __future__ import annotations

from collections.abc import Mapping

from cloister.errors import RefusedError
from cloister.ledger import Book, Budget, Charge, Method, Relation, amount, open_book
from cloister.manifest import Image, Manifest, order_of

__all__ = ["Books", "book_of", "charged", "counted", "opened"]

Books = Mapping[tuple[str, str], Book]
"""By the owner's key and the image's id."""


def counted(books: Books, manifest: Manifest, name: str) -> bool:
    """Whether an image has a privacy budget, by this manifest or by an earlier one."""
    return manifest.images[name].budget is not None or _whose(manifest, name) in books


def book_of(books: Books, manifest: Manifest, name: str) -> Book | None:
    """What an image's trainings are charged to; None for one without a budget.

    Raises:
        RefusedError: 3442 when the image has a book already, and this manifest says another budget, or none.
    """
    said, book = _budget(manifest.images[name]), books.get(_whose(manifest, name))
    if book is not None and (said is None or said.model_copy(update={"owner": book.budget.owner}) != book.budget):
        got = "none" if said is None else f"epsilon {said.epsilon} at delta {said.delta} per {said.unit}"
        counted = f"epsilon {book.budget.epsilon} at delta {book.budget.delta} per {book.budget.unit}"
        raise RefusedError(3442, f"the privacy budget of image {name!r} is another", expected=counted, got=got)
    return None if said is None else book or open_book(said)


def opened(books: Books, manifest: Manifest, name: str) -> dict[tuple[str, str], Book]:
    """An image's book, once its key is installed; nothing for one without a budget.

    Raises:
        RefusedError: 3442 as :func:`book_of`.
    """
    book = book_of(books, manifest, name)
    return {} if book is None else {_whose(manifest, name): book}


def charged(books: Books, manifest: Manifest, name: str, *, run: str, stage: str) -> dict[tuple[str, str], Book]:
    """An image's book with what this run of this stage costs; nothing for one without a budget.

    Raises:
        RefusedError: 3308 when the stage has no privacy terms; 3442 as :func:`book_of`.
        BudgetError: 7801 when the budget would be exceeded.
    """
    book = book_of(books, manifest, name)
    if book is None:
        return {}
    if stage not in manifest.stages or manifest.stages[stage].privacy is None:
        raise RefusedError(3308, f"{name!r} has a privacy budget, and {stage!r} no privacy terms")
    order = order_of(manifest, stage, run=run)
    charge = Charge(
        id=order.id,
        owner=book.budget.owner,
        unit=order.unit,
        relation=order.relation,
        events=(order.event,),
        delta=order.delta,
    )
    return {_whose(manifest, name): book.charge(charge, after=book.head, by=Method.RDP)}


def _whose(manifest: Manifest, name: str) -> tuple[str, str]:
    image = manifest.images[name]
    return manifest.parties[image.owner].sign, image.id


def _budget(image: Image) -> Budget | None:
    terms = image.budget
    if terms is None:
        return None
    relation, epsilon, delta = Relation(terms.relation), amount(terms.epsilon), amount(terms.delta)
    return Budget(owner=image.owner, unit=terms.unit, relation=relation, epsilon=epsilon, delta=delta)
