"""Points of small order are no keys: under one anybody signs, and sealing to one fails in the middle of an answer."""

import base64

import pytest

from cloister.errors import InputError
from cloister.wire import SealingKey, VerifyKey

P = 2**255 - 19
ORDER_EIGHT = [
    int.from_bytes(bytes.fromhex(y), "little")
    for y in (
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    )
]
MONTGOMERY_ORDER_EIGHT = [
    325606250916557431795983626356110631294008115727848805560023387167927233504,
    39382357235489614581723060781553021112529911719440698176882885853963445705823,
]


def text(prefix, number):
    return prefix + base64.urlsafe_b64encode(number.to_bytes(32, "little")).rstrip(b"=").decode()


@pytest.mark.parametrize("sign_bit", [0, 1])
@pytest.mark.parametrize("y", [0, 1, *ORDER_EIGHT, P - 1, P, P + 1])
def test_a_signing_key_that_is_anybody_s_is_refused(y, sign_bit):
    with pytest.raises(InputError) as caught:
        VerifyKey.parse(text("ed25519:", y | sign_bit << 255))
    assert caught.value.code == 2005


def test_the_order_eight_coordinates_are_on_the_curve():
    """A point of order eight, doubled, has order four: its y is zero. Edwards: x² = (y² - 1) / (d·y² + 1)."""
    d = -121665 * pow(121666, -1, P) % P
    for y in ORDER_EIGHT:
        x_squared = (y * y - 1) * pow(d * y * y + 1, -1, P) % P
        doubled = (y * y + x_squared) * pow(1 - d * x_squared * y * y, -1, P) % P
        assert doubled == 0


@pytest.mark.parametrize("u", [0, 1, *MONTGOMERY_ORDER_EIGHT, P - 1, P, P + 1])
def test_a_sealing_key_that_shares_nothing_is_refused(u):
    with pytest.raises(InputError) as caught:
        SealingKey.parse(text("x25519:", u))
    assert caught.value.code == 2005
