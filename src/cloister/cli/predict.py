"""``cloister predict``: ask a confidential service, after verifying it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cloister.cli._identity import Home, PassphraseFile
from cloister.cli._voice import Json, note, show
from cloister.errors import InputError

if TYPE_CHECKING:
    from cloister.manifest import Manifest
    from cloister.serve import Connection, InferenceClient, Signer

__all__ = ["register"]


def predict(
    manifest: Annotated[Path, typer.Option(help="the signed manifest")],
    url: Annotated[str, typer.Option(help="where the service listens")],
    table: Annotated[Path | None, typer.Argument(help="a CSV file: a column for each of the model's features")] = None,
    manifest_id: Annotated[
        str | None, typer.Option("--id", help="the manifest's id, as somebody you trust told you; else all are pinned")
    ] = None,
    service: Annotated[str | None, typer.Option(help="its name, where the manifest has more than one")] = None,
    model: Annotated[str | None, typer.Option(help="the image id that must be served")] = None,
    as_party: Annotated[
        str | None, typer.Option("--as", help="the party that asks, where the manifest limits it")
    ] = None,
    receipts: Annotated[Path | None, typer.Option(help="append the receipt to this file, a line each")] = None,
    card: Annotated[bool, typer.Option("--card", help="only print what the model takes")] = False,
    home: Home = None,
    passphrase_file: PassphraseFile = None,
    json: Json = False,
) -> None:
    """Verify a service's evidence, seal a request to it, print the predictions.

    The host sees that somebody asks, when, and how many bytes; not the input, not the answer.
    """
    from cloister.serve import Connection, read_rows

    signer = _signer(as_party, home, passphrase_file)
    client = _session(_agreed(manifest, manifest_id, signer, home), service, model, signer)
    with Connection(url, client) as connection:
        verdict = connection.verdict
        if verdict.simulated:
            note("SIMULATED enclave: its evidence is software-signed and gives no protection against the host")
        described = connection.ask(()).card
        if described is None:
            raise InputError(2606, "the service did not say what its model takes")
        if card:
            show(described.as_json(), json=json)
            return
        if table is None:
            raise InputError(2001, "no table was given", hint="cloister predict TABLE.csv …, or --card")
        from cloister.wire import read_bounded

        rows = read_rows(read_bounded(table, max_bytes=64 << 20, what="table"), described)
        facts = _asked(connection, rows, described.classes, receipts)
    lines = [f"{row['row']:<24} {row['text']}" for row in facts["predictions"]]
    facts["assurance"] = verdict.assurance
    show(facts, "\n".join([*lines, f"receipt signed by the attested service, model {facts['model'][:16]}…"]), json=json)


def _signer(as_party: str | None, home: Path | None, passphrase_file: Path | None) -> Signer | None:
    from cloister.cli._identity import open_identity
    from cloister.serve import Signer

    if as_party is None:
        return None
    identity = open_identity(as_party, home=home, passphrase_file=passphrase_file)
    return Signer(identity.name, identity.signing_key)


def _agreed(path: Path, manifest_id: str | None, signer: Signer | None, home: Path | None) -> Manifest:
    """The manifest, once it is shown to be the one that the person means: a service is verified against nothing else.

    Raises:
        RefusedError: 3303, 3302 without ``--id``, when a party is not pinned; 3607 when the id is another's.
    """
    import hmac

    from cloister.errors import RefusedError
    from cloister.manifest import MAX_SIGNED_BYTES, load_signed, require_pinned, require_signed
    from cloister.party import Pins, home_folder
    from cloister.wire import read_bounded

    signed = load_signed(read_bounded(path, max_bytes=MAX_SIGNED_BYTES, what="signed manifest"))
    require_signed(signed)
    if manifest_id is None:
        pins = Pins(home_folder(home)).all()
        own = {signer.name} if signer is not None else set()
        others = {name: party for name, party in signed.manifest.parties.items() if name not in own}
        require_pinned(signed.manifest.model_copy(update={"parties": others}), pins)
    elif not hmac.compare_digest(manifest_id, signed.manifest.id):
        raise RefusedError(3607, expected=manifest_id, got=signed.manifest.id)
    return signed.manifest


def _session(manifest: Manifest, service: str | None, model: str | None, signer: Signer | None) -> InferenceClient:
    from cloister.serve import InferenceClient

    names = sorted(manifest.services)
    if service is None and len(names) != 1:
        raise InputError(2005, "which service?", expected=names, hint="name it with --service")
    return InferenceClient(manifest, service or names[0], model=model, signer=signer)


def _asked(connection: Connection, rows: Any, classes: tuple[str, ...] | None, receipts: Path | None) -> dict[str, Any]:
    from cloister.serve import from_tensor

    answer = connection.ask((rows.tensor,))
    arrays = {tensor.name: from_tensor(tensor) for tensor in answer.outputs}
    predictions: list[dict[str, Any]] = []
    for number, label in enumerate(rows.labels):
        values = {name: array[number].reshape(-1).tolist() for name, array in arrays.items() if len(array) > number}
        predictions.append({"row": label, "outputs": values, "text": _text(values, classes)})
    if receipts is not None:
        with receipts.open("ab") as file:
            file.write(answer.envelope.canonical() + b"\n")
    return {"predictions": predictions, "model": answer.receipt.model, "receipt": answer.receipt.as_json()}


def _text(values: dict[str, list[Any]], classes: tuple[str, ...] | None) -> str:
    """One line for a person: with class names, the likelier class and its probability."""
    first = next(iter(values.values()), [])
    if classes and len(classes) == 2 and len(first) == 1 and 0 <= first[0] <= 1:
        chosen = int(first[0] >= 0.5)
        return f"{classes[chosen]:<10} {max(first[0], 1 - first[0]):.3f}"
    if classes and len(first) == len(classes):
        best = max(range(len(first)), key=first.__getitem__)
        return f"{classes[best]:<10} {first[best]:.3f}"
    return "  ".join(f"{name} {value}" for name, value in values.items())


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command()(predict)
