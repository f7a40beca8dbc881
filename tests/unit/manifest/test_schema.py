"""Schema, reference and model say the same."""

import json
from importlib import resources
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from tests.unit.manifest.full import FULL_MANIFEST
from tests.unit.manifest.generated import manifests

from cloister.errors import CloisterError
from cloister.manifest import load_manifest, reference, schema
from cloister.wire import canonical

VALIDATOR = Draft202012Validator(schema())
FULL_VALUE = FULL_MANIFEST.as_json()


def reads(value):
    try:
        load_manifest(canonical(value))
    except CloisterError:
        return False
    return True


def test_the_schema_is_a_schema():
    Draft202012Validator.check_schema(schema())


def test_the_shipped_schema_is_current():
    """After a change: cloister manifest schema > src/cloister/manifest/manifest.schema.json."""
    shipped = resources.files("cloister.manifest").joinpath("manifest.schema.json").read_text(encoding="utf-8")
    assert json.loads(shipped) == schema()


def test_the_reference_in_the_documentation_is_current():
    """After a change: cloister manifest schema --markdown, between the markers of docs/manifest.md."""
    text = (Path(__file__).parents[3] / "docs" / "manifest.md").read_text(encoding="utf-8")
    _, _, rest = text.partition("<!-- reference: generated from the model -->\n")
    assert rest.partition("<!-- end of reference -->")[0].strip() == reference().strip()


def test_every_field_is_described():
    assert "None |" not in reference()
    for definition in (schema(), *schema()["$defs"].values()):
        for name, field in definition["properties"].items():
            assert field.get("description"), name


@given(manifests())
@settings(max_examples=30, deadline=None)
def test_both_accept_what_is_sound(manifest):
    assert VALIDATOR.is_valid(manifest.as_json())
    assert reads(manifest.as_json())


def steps(value, place=()):
    if isinstance(value, dict):
        for key, item in value.items():
            yield (*place, key)
            yield from steps(item, (*place, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield (*place, index)
            yield from steps(item, (*place, index))


STEPS = list(steps(FULL_VALUE))
ODD = st.sampled_from(
    [
        0,
        1,
        -1,
        2**50,
        True,
        False,
        "",
        "x",
        "X",
        "a b",
        "1 GiB",
        "1 h",
        [],
        ["x"],
        {},
        {"x": 1},
        "0" * 64,
        "\u0430",
        "x" * 5000,
    ]
)


def broken(place, how, value):
    copy = json.loads(json.dumps(FULL_VALUE))
    part = copy
    for step in place[:-1]:
        part = part[step]
    if how == "drop":
        del part[place[-1]]
    elif how == "rename" and isinstance(part, dict):
        part["Odd_Key"] = part.pop(place[-1])
    else:
        part[place[-1]] = value
    return copy


@given(st.sampled_from(STEPS), st.sampled_from(["drop", "rename", "set", "set", "set"]), ODD)
@settings(max_examples=400, deadline=None)
def test_both_refuse_and_accept_alike(place, how, value):
    changed = broken(place, how, value)
    assert VALIDATOR.is_valid(changed) == reads(changed), (place, how, value)


@pytest.mark.parametrize(
    ("place", "key", "value", "accepted"),
    [
        (("stages", "prepare", "limits"), "memory", "2 GiB", False),
        (("stages", "prepare", "limits"), "time_s", "10 min", True),
        (("stages", "prepare", "limits"), "memory_bytes", "2 GB", False),
        (("stages", "prepare", "outputs", "clean"), "max_size", "1 MiB", False),
        (("stages", "prepare", "outputs", "clean"), "max_bytes", "1 MiB", True),
    ],
)
def test_units_and_shorthands_are_known_to_both(place, key, value, accepted):
    changed = json.loads(json.dumps(FULL_VALUE))
    part = changed
    for step in place:
        part = part[step]
    part[key] = value
    assert VALIDATOR.is_valid(changed) == reads(changed) == accepted


def test_a_shorthand_in_place_of_its_field_is_known_to_both():
    changed = json.loads(json.dumps(FULL_VALUE))
    changed["stages"]["prepare"]["outputs"]["clean"] = {"max_size": "1 MiB"}
    changed["stages"]["prepare"]["limits"] = {"memory": "2 GiB", "time": 5}
    assert VALIDATOR.is_valid(changed)
    assert reads(changed)


def test_a_size_in_words_is_held_to_its_least_by_reading_alone() -> None:
    """A schema can say how a size is written, not how much it is."""
    small = broken(("services", "answers", "limits", "memory_bytes"), "set", "1 MiB")
    assert VALIDATOR.is_valid(small)
    assert not reads(small)
