"""Seal: a folder becomes one encrypted, authenticated file; the file becomes the folder again.

The layers, inside out: a reproducible squashfs, padded to a bucket; AES-256-XTS in 4096-byte sectors under a key
made for this image alone; a LUKS2 header without keyslots; dm-verity (SHA-256, salted) over header and ciphertext
together; and one last block with the image's descriptor. So Linux's own tools read it: ``veritysetup verify FILE
FILE ROOT --hash-offset=N`` and, on top, ``cryptsetup open``.

::

    0              offset                    hash_offset
    │ LUKS2 header │ ciphertext (padded)     │ superblock │ hash tree │ descriptor │
    └──────────── under the verity root ─────┘

Rules:

* An image is named by its *id*: the SHA-256 of its descriptor's canonical JSON. A verity root is no name, because it
  does not fix the number of blocks.
* The descriptor travels inside the file and is a hint: it is interpreted only after its digest equals the id that the
  caller brought. Header and superblock are compared, never parsed for parameters.
* Every byte of the file is accounted for, and each way of changing one has its own code (52xx).
* A block is checked on every read, in private memory, and used from that copy.
* One key seals one image. A sealing that failed has spent its key.
* What leaves the folder (symlinks), what is no data (devices, pipes, sockets), what escalates (setuid) and
  names that mean something else elsewhere are refused by name, before anything is written and after unpacking.
* Nothing is half-written: a target appears whole or not at all.

>>> import pathlib, tempfile
>>> from cloister import seal
>>> home = pathlib.Path(tempfile.mkdtemp())
>>> _ = (home / "content").write_bytes(b"sensitive " * 1000)
>>> image = seal.seal_file(home / "content", home / "content.image")
>>> descriptor = seal.verify_image(home / "content.image", image_id=image.id)
>>> with seal.open_image(home / "content.image", image_id=image.id, key=image.key) as reader:
...     reader.read(10, 9)
b'sensitive'
"""

from cloister.seal._descriptor import ImageDescriptor, check_image_id
from cloister.seal._folder import scan_folder
from cloister.seal._keyfile import ImageKey, check_key_file, load_image_key, save_image_key
from cloister.seal._luks import KEY_BYTES
from cloister.seal._reader import ImageReader, open_image, read_descriptor, verify_image
from cloister.seal._sealing import Progress, SealedImage, padded_length, seal_file, seal_folder
from cloister.seal._sink import ByteSink, open_sink, remove_file
from cloister.seal._source import PLAIN_SCHEMES, ByteSource, allow_scheme, open_source
from cloister.seal._squash import squash_folder, unsquash
from cloister.seal._unpacking import unpack

__all__ = [
    "KEY_BYTES",
    "PLAIN_SCHEMES",
    "ByteSink",
    "ByteSource",
    "ImageDescriptor",
    "ImageKey",
    "ImageReader",
    "Progress",
    "SealedImage",
    "allow_scheme",
    "check_image_id",
    "check_key_file",
    "load_image_key",
    "open_image",
    "open_sink",
    "open_source",
    "padded_length",
    "read_descriptor",
    "remove_file",
    "save_image_key",
    "scan_folder",
    "seal_file",
    "seal_folder",
    "squash_folder",
    "unpack",
    "unsquash",
    "verify_image",
]
