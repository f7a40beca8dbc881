"""k of n shares of a secret: Shamir's scheme over GF(2^8), byte by byte.

Source: A. Shamir, "How to share a secret", CACM 22(11), 1979; the field is that of FIPS 197, 4.2. A share is its number
(1 to 255) and one byte for each byte of the secret: the shares of HashiCorp Vault and of SLIP-39 are of the same kind.

Fewer than k shares say nothing about the secret. Shares carry no checksum: who combines them compares with
commitments first.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping

from cloister.errors import InputError
from cloister.wire import Secret

__all__ = ["combine", "split"]

_REDUCTION = 0x11B  # x^8 + x^4 + x^3 + x + 1


def multiply(a: int, b: int) -> int:
    """The product in GF(2^8). No table, so that no address depends on a secret."""
    product = 0
    for bit in range(8):
        product ^= (a << bit) & -(b >> bit & 1)
    for bit in range(14, 7, -1):
        product ^= (_REDUCTION << (bit - 8)) & -(product >> bit & 1)
    return product


def invert(a: int) -> int:
    """a^254, which is 1/a for every a but 0."""
    result = 1
    for _ in range(7):
        a = multiply(a, a)
        result = multiply(result, a)
    return result


def split(secret: Secret, *, threshold: int, count: int) -> dict[int, Secret]:
    """``count`` shares, any ``threshold`` of which give the secret.

    Raises:
        InputError: 2404 unless 1 <= threshold <= count <= 255.
    """
    if not 1 <= threshold <= count <= 255:
        raise InputError(2404, expected="1 <= threshold <= administrators <= 255", got=f"{threshold} of {count}")
    columns = [(byte, *secrets.token_bytes(threshold - 1)) for byte in secret.reveal()]
    return {number: Secret(bytes(_evaluate(column, number) for column in columns)) for number in range(1, count + 1)}


def combine(shares: Mapping[int, Secret]) -> Secret:
    """The secret of at least ``threshold`` shares by number. Of fewer, or of wrong ones: another secret.

    Raises:
        InputError: 2404 when there are none, a number is out of bounds, or their sizes differ.
    """
    sizes = {len(share) for share in shares.values()}
    if len(sizes) != 1 or not all(1 <= number <= 255 for number in shares):
        raise InputError(2404, "shares do not belong together")
    weights = {number: _weight(number, shares) for number in shares}
    secret = bytearray(sizes.pop())
    for number, share in shares.items():
        for place, byte in enumerate(share.reveal()):
            secret[place] ^= multiply(byte, weights[number])
    return Secret(bytes(secret))


def _evaluate(column: tuple[int, ...], at: int) -> int:
    value = 0
    for coefficient in reversed(column):
        value = multiply(value, at) ^ coefficient
    return value


def _weight(number: int, shares: Mapping[int, Secret]) -> int:
    """Lagrange's basis polynomial of ``number`` at 0; minus is plus here."""
    weight = 1
    for other in shares:
        if other != number:
            weight = multiply(weight, multiply(other, invert(other ^ number)))
    return weight
