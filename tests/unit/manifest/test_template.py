"""The manifest to start from is sound once it is filled in, and refused before."""

import re
from datetime import UTC, datetime

import pytest
from tests.unit.manifest.full import PEOPLE

from cloister.errors import InputError
from cloister.manifest import check, load_manifest, required_signers, template

NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)


def filled(text):
    """What a person does: ids, measurements and a key."""
    from cloister.wire import SigningKey

    text = text.replace("FILL-IN-KEY-MANAGER-SIGNING-KEY", str(SigningKey.generate().public))
    text = re.sub(r"FILL-IN-(MEASUREMENT-96-DIGITS|RTMR[0-2])", "ab" * 48, text)
    ids = iter(range(100))
    return re.sub(r"FILL-IN-IMAGE-ID-OF-[A-Z-]+", lambda _: f"{next(ids):064x}", text)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_it_is_sound_once_filled_in(count):
    people = [identity.public for identity in list(PEOPLE.values())[:count]]
    manifest = load_manifest(filled(template("study", parties=people, now=NOW)).encode())
    assert check(manifest) == ()
    assert required_signers(manifest) == {public.name for public in people}
    assert manifest.valid.not_before == "2026-03-04T00:00:00Z"
    assert manifest.valid.not_after == "2026-06-02T00:00:00Z"
    for public in people:
        assert manifest.parties[public.name].sign == public.sign


def test_it_is_refused_before_with_the_first_place_to_fill_in():
    text = template("study", parties=[PEOPLE["host"].public], now=NOW)
    with pytest.raises(InputError) as caught:
        load_manifest(text.encode(), what="study.yaml")
    assert caught.value.code == 2329
    first = next(index for index, line in enumerate(text.splitlines(), 1) if "FILL-IN-MEASUREMENT" in line)
    assert f"study.yaml:{first}:" in str(caught.value)
    assert "tees.launcher.measurements.0: string should match pattern" in str(caught.value)


def test_a_party_takes_part_once():
    for parties in ([], [PEOPLE["host"].public] * 2):
        with pytest.raises(InputError) as caught:
            template("study", parties=parties, now=NOW)
        assert caught.value.code == 2005
