"""What a manifest's signers are told of privacy: what is bounded, by what, and what is not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from cloister.manifest._model import Manifest
from cloister.manifest._privacy import Reach, reaches_of, shown_price

__all__ = ["privacy_lines"]


def privacy_lines(manifest: Manifest) -> Iterator[str]:
    """Of each training what it costs, of each budget what it allows, and of each output what nothing bounds."""
    for name, stage in manifest.stages.items():
        if (terms := stage.privacy) is None:
            continue
        yield f"stage '{name}' runs no script but the launcher's own training: {terms.steps} steps, each of about"
        drawn = f"{terms.batch} of at most {terms.units} {terms.unit}s"
        yield f"  {drawn}, noise {terms.noise_multiplier} × the norm {terms.clip}"
        bound = f"ε ≤ {terms.epsilon} at δ = {terms.delta} per {terms.unit} ({terms.relation})"
        yield f"  agreed are {bound}; these terms cost ε = {shown_price(terms)}"
        if stage.offload is not None and stage.offload.workers:
            yield f"  that bounds what is released; what {_listed(stage.offload.workers)} may see is under NETWORK"
    for name, image in manifest.images.items():
        if (budget := image.budget) is not None:
            most = f"ε ≤ {budget.epsilon} at δ = {budget.delta} per {budget.unit}"
            yield f"image '{name}' may cost {most} over all runs: its key manager counts"
    released = {release.output for release in manifest.releases if release.party or release.service}
    reaches = reaches_of(manifest)
    for output in sorted(released):
        for how, reach in (("through scripts", Reach.OPEN), ("prepared by a script before", Reach.PREPARED)):
            images = sorted(name for name, found in reaches[output].items() if found is reach)
            if images:
                yield f"'{output}' may tell a reader whether a record of {_listed(images)} was there: it comes {how}"
    logged = sorted(name for name, stage in manifest.stages.items() if stage.logs and stage.privacy is None)
    if logged:
        yield f"logs of {_listed(logged)} may tell their readers the same"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
