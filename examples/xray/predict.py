"""The radiologist's program: asks the attested service about pictures. The host sees ciphertext only.

``cloister predict`` asks about tables; for anything else this is all that it takes. In order: the manifest's
signatures are checked; the service's evidence, over our own nonce, is judged by the manifest's terms; only then are
the pictures read, prepared as training pictures were, and sealed to the key inside the evidence.

    python predict.py PICTURE… --manifest manifest.signed.json --url http://HOST:PORT --as radiologist

Identity and passphrase are found as by every command: ``CLOISTER_HOME``, ``CLOISTER_PASSPHRASE``. Prints one JSON
object; the service's receipt goes to a file, for whoever audits the run.
"""

import argparse
import json
import os
import sys
from getpass import getpass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from cloister.errors import CloisterError
from cloister.manifest import load_signed, require_signed
from cloister.party import Identity, home_folder
from cloister.serve import Connection, InferenceClient, Signer, from_tensor, to_tensor

SQUARE = 128  # what the preprocessing scripts make of every picture, before training shrinks it


def prepare(path: Path, size: int) -> np.ndarray:
    """A picture as the model saw its training pictures: grey, centre square, 1 % clipped at each end."""
    with Image.open(path) as picture:
        grey = ImageOps.fit(picture.convert("L"), (SQUARE, SQUARE), Image.Resampling.LANCZOS)
    grey = ImageOps.autocontrast(grey, cutoff=1).resize((size, size), Image.Resampling.LANCZOS)
    return np.asarray(grey, dtype=np.float32)[None]


def ask(args: argparse.Namespace) -> dict[str, object]:
    """Verifies, seals, asks, and says what came back."""
    manifest = load_signed(args.manifest.read_bytes())
    require_signed(manifest)
    passphrase = os.environ.get("CLOISTER_PASSPHRASE") or getpass()
    identity = Identity.load(home_folder() / f"{args.as_party}.key", passphrase)
    client = InferenceClient(manifest.manifest, args.service, signer=Signer(identity.name, identity.signing_key))
    with Connection(args.url, client) as service:
        if service.verdict.simulated:
            print("SIMULATED enclave: no protection against the host", file=sys.stderr)
        card = service.ask(()).card
        if card is None:
            raise SystemExit("the service does not say what its model takes")
        size = card.inputs[0].shape[-1]
        pictures = np.stack([prepare(path, size) for path in args.pictures])
        answer = service.ask((to_tensor(card.inputs[0].name, pictures),))
    if args.receipts:
        with args.receipts.open("ab") as file:
            file.write(answer.envelope.canonical() + b"\n")
    classes = card.classes or ()
    probabilities = from_tensor(answer.outputs[0])
    return {
        "assurance": service.verdict.assurance,
        "model": answer.receipt.model,
        "predictions": [
            {"picture": path.name, "class": classes[int(row.argmax())], "probabilities": row.tolist()}
            for path, row in zip(args.pictures, probabilities, strict=True)
        ],
    }


def main() -> None:
    """Reads the arguments, asks, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path, nargs="+", metavar="PICTURE")
    parser.add_argument("--manifest", type=Path, required=True, help="the signed manifest")
    parser.add_argument("--url", required=True, help="where the service listens; not trusted for anything")
    parser.add_argument("--as", dest="as_party", required=True, help="the party that asks")
    parser.add_argument("--service", default="xrays", help="the service's name in the manifest (xrays)")
    parser.add_argument("--receipts", type=Path, help="append the service's receipt to this file, for the audit")
    try:
        print(json.dumps(ask(parser.parse_args()), indent=2))
    except CloisterError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_status)


if __name__ == "__main__":
    main()
