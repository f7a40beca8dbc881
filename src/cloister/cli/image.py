"""``cloister seal`` and ``cloister image show|verify|open``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cloister.cli._voice import Json, note, show

__all__ = ["register"]

Id = Annotated[str, typer.Option("--id", help="the image's id, from the manifest or from its owner")]
Where = Annotated[str, typer.Argument(help="a path or an fsspec URL")]
Schemes = Annotated[
    list[str] | None,
    typer.Option("--allow-scheme", help="also open URLs of this fsspec protocol; some run code over what they read"),
]


def seal(
    folder: Annotated[Path, typer.Argument(help="what to seal")],
    name: Annotated[str, typer.Option("--name", help="what you call the image: lower-case letters, digits, - and .")],
    to: Annotated[str, typer.Option("--to", help="a path or URL: file:, memory:, or by extra s3:, abfs:, gs:")],
    key_out: Annotated[Path | None, typer.Option(help="where the key stays; default ./NAME.cloister-key")] = None,
    force: Annotated[bool, typer.Option("--force", help="replace an image (never a key) that is there")] = False,
    schemes: Schemes = None,
    json: Json = False,
) -> None:
    """Encrypt a folder into one image under a fresh key that stays here."""
    _allow(schemes)
    from cloister.seal import check_key_file, save_image_key, seal_folder

    key_file = key_out or Path(f"{name}.cloister-key")
    check_key_file(key_file, name=name)  # before the image: one whose key cannot be kept is lost
    image = seal_folder(folder, to, overwrite=force)
    save_image_key(key_file, name=name, image_id=image.id, key=image.key)
    facts = {
        "id": image.id,
        "name": name,
        "root": image.descriptor.root,
        "url": image.url,
        "bytes": image.descriptor.size,
        "content_bytes": image.content_bytes,
        "key_file": str(key_file),
    }
    show(facts, json=json)
    if not json:
        note(f"the key is in '{key_file}': it is as sensitive as the data, and cannot be made again")


def show_image(image: Where, id: Id, schemes: Schemes = None, json: Json = False) -> None:
    """Print an image's descriptor, once it is shown to be the one of the id."""
    _allow(schemes)
    from cloister.seal import open_source, read_descriptor

    source = open_source(image)
    try:
        descriptor = read_descriptor(source, image_id=id)
    finally:
        source.close()
    facts = {"id": descriptor.id, "bytes": descriptor.size, **descriptor.as_json()}
    show(facts, json=json)
    if not json:
        note("the descriptor is authentic; 'cloister image verify' also checks every block")


def verify(image: Where, id: Id, schemes: Schemes = None, json: Json = False) -> None:
    """Check a whole image against its id; needs no key."""
    _allow(schemes)
    from cloister.seal import verify_image

    descriptor = verify_image(image, image_id=id)
    facts = {"id": descriptor.id, "verified": True, "bytes": descriptor.size, "data_blocks": descriptor.data_blocks}
    text = f"verified: {image} is image {descriptor.id}, every one of its {descriptor.data_blocks} blocks"
    show(facts, text, json=json)


def open_(
    image: Where,
    id: Id,
    key: Annotated[Path, typer.Option("--key", help="the key file that sealing wrote")],
    to: Annotated[Path, typer.Option("--to", help="the folder to make")],
    schemes: Schemes = None,
    json: Json = False,
) -> None:
    """Decrypt an image into a new folder, checking every block."""
    _allow(schemes)
    from cloister.seal import load_image_key, open_image, unpack

    entry = load_image_key(key)
    with open_image(image, image_id=id, key=entry.secret) as reader:
        unpack(reader, to)
    facts = {"id": id, "name": entry.name, "folder": str(to)}
    show(facts, f"opened: image {id} is in '{to}'", json=json)


def _allow(schemes: list[str] | None) -> None:
    from cloister.seal import allow_scheme

    for scheme in schemes or []:
        allow_scheme(scheme)


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command()(seal)
    images = typer.Typer(no_args_is_help=True, help="Show, verify or open a sealed image.", rich_markup_mode=None)
    images.command("show")(show_image)
    images.command("verify")(verify)
    images.command("open")(open_)
    app.add_typer(images, name="image")
