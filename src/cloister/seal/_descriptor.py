"""The descriptor: what fixes an image's shape, and whose SHA-256 is the image's id."""

from __future__ import annotations

import hmac
import re
from typing import Annotated, Literal

from pydantic import Field

from cloister.errors import CloisterError, InputError, IntegrityError
from cloister.seal._verity import BLOCK, Tree
from cloister.wire import Digest, Message, digest, parse_message

__all__ = ["TRAILER_BYTES", "ImageDescriptor", "check_image_id", "decode_trailer", "encode_trailer"]

TRAILER_BYTES = BLOCK  # the descriptor's own block, the last of the file
MAX_BLOCKS = 1 << 36  # 256 TiB: beyond it the sizes below would leave the integers that JSON carries exactly
MAX_HEADER_BYTES = 1 << 20  # a header is read whole, so its length is bounded before
_MAGIC = b"cloister-image/1"
_HEAD_BYTES = len(_MAGIC) + 4

Blocks = Annotated[int, Field(ge=1, le=MAX_BLOCKS)]
Bytes = Annotated[int, Field(ge=0, le=MAX_BLOCKS * BLOCK)]


class ImageDescriptor(Message):
    """Everything that fixes a sealed image: its verity root *and* its shape.

    A verity root alone fixes nothing: the root of a 100-block image is also the root of the one-block image that
    consists of its hash block. The image's id is therefore the SHA-256 of this object's canonical JSON, and
    ``format`` keeps that digest apart from every other object's.

    Attributes:
        format: Always ``cloister-image``.
        version: Of the format; unknown ones are refused.
        root: The verity root over the header and the ciphertext together.
        salt: The verity salt, 32 bytes in hexadecimal.
        data_blocks: Blocks under the root: LUKS header and ciphertext.
        data_block_size: Bytes in a data block.
        hash_block_size: Bytes in a block of the hash tree.
        algorithm: The tree's hash.
        cipher: How the payload is encrypted, in cryptsetup's words.
        sector_size: Bytes in an encryption sector. The IV counts units of 512 bytes nevertheless (dm-crypt).
        offset: Where the ciphertext begins: the length of the LUKS header.
        length: Bytes of ciphertext, which is the padded length of the squashfs inside.
        hash_offset: Where the verity superblock begins.
        header: SHA-256 of the LUKS header area, so that an edited header is named without being parsed.
    """

    format: Literal["cloister-image"] = "cloister-image"
    version: Literal[1] = 1
    root: Digest
    salt: Digest
    data_blocks: Blocks
    data_block_size: Literal[4096] = 4096
    hash_block_size: Literal[4096] = 4096
    algorithm: Literal["sha256"] = "sha256"
    cipher: Literal["aes-xts-plain64"] = "aes-xts-plain64"
    sector_size: Literal[4096] = 4096
    offset: Bytes
    length: Bytes
    hash_offset: Bytes
    header: Digest

    @property
    def id(self) -> str:
        """The image's id: SHA-256 of the canonical JSON, in hexadecimal."""
        return self.digest()

    @property
    def tree(self) -> Tree:
        """The shape of the hash tree."""
        return Tree(self.data_blocks)

    @property
    def size(self) -> int:
        """Exact size of the file in bytes: header, ciphertext, superblock, hash tree, descriptor."""
        return self.hash_offset + BLOCK + self.tree.blocks * BLOCK + TRAILER_BYTES

    def check_shape(self) -> None:
        """Returns when the areas follow each other without gap or overlap.

        Raises:
            IntegrityError: 5204 otherwise.
        """
        if self.offset > MAX_HEADER_BYTES:
            raise IntegrityError(5204, "descriptor states too long a header", expected=f"at most {MAX_HEADER_BYTES}")
        if self.offset < BLOCK or self.offset % BLOCK or self.length < BLOCK or self.length % BLOCK:
            raise IntegrityError(5204, "descriptor's areas are not whole blocks", got=f"{self.offset}+{self.length}")
        end = self.offset + self.length
        if self.hash_offset != end or self.data_blocks * BLOCK != end:
            raise IntegrityError(
                5204,
                "descriptor contradicts itself",
                expected=f"header and ciphertext end at {end}",
                got=f"hash area at {self.hash_offset}, {self.data_blocks} data blocks",
            )


def check_image_id(image_id: str) -> str:
    """``image_id`` itself.

    Raises:
        InputError: 2209 when it is not 64 lower-case hexadecimal digits.
    """
    if not re.fullmatch(r"[0-9a-f]{64}", image_id):
        raise InputError(2209, "not an image id", expected="64 lower-case hexadecimal digits", got=image_id[:80])
    return image_id


def encode_trailer(descriptor: ImageDescriptor) -> bytes:
    """The file's last block: magic, length, canonical JSON, zeros."""
    body = descriptor.canonical()
    return (_MAGIC + len(body).to_bytes(4, "little") + body).ljust(TRAILER_BYTES, b"\0")


def trailer_body(block: bytes) -> bytes | None:
    """The descriptor's bytes inside ``block``, or None when it is not a trailer. Nothing is interpreted here."""
    if len(block) != TRAILER_BYTES or not block.startswith(_MAGIC):
        return None
    size = int.from_bytes(block[len(_MAGIC) : _HEAD_BYTES], "little")
    return block[_HEAD_BYTES : _HEAD_BYTES + size] if size <= TRAILER_BYTES - _HEAD_BYTES else None


def decode_trailer(block: bytes, *, image_id: str) -> ImageDescriptor:
    """The descriptor in the file's last block, once it is shown to be the one that the caller expects.

    Args:
        block: The last 4096 bytes of the file; a hint until its digest is compared.
        image_id: The id that the manifest, the registration or the owner states.

    Raises:
        IntegrityError: 5201 when the file does not end with a descriptor (it was cut); 5203 when it is another
            image's; 5204 when the authenticated descriptor is not usable; 5210 when the block's padding is not zero.
    """
    body = trailer_body(block)
    if body is None:
        raise IntegrityError(5201, "the file does not end with an image descriptor: it was cut, or is no image")
    found = digest(body)
    if not hmac.compare_digest(found, image_id):
        raise IntegrityError(5203, "this is another image", expected=image_id, got=found)
    if block[_HEAD_BYTES + len(body) :].strip(b"\0"):
        raise IntegrityError(5210, "bytes after the descriptor are not zero")
    try:
        descriptor = parse_message(ImageDescriptor, body, what="image descriptor", max_bytes=TRAILER_BYTES)
    except CloisterError as error:
        raise IntegrityError(5204, f"descriptor is authentic but not usable: {error.what}") from error
    descriptor.check_shape()
    return descriptor
