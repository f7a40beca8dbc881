"""A manifest is read strictly; every message says where."""

import contextlib
import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.manifest.full import FULL_YAML

from cloister.errors import CloisterError, InputError
from cloister.manifest import load_draft, load_manifest, require_sound
from cloister.manifest._units import duration_s, size_bytes
from cloister.wire import canonical


def refused(text, code, *parts):
    with pytest.raises(InputError) as caught:
        load_manifest(text.encode() if isinstance(text, str) else text, what="demo.yaml")
    assert caught.value.code == code, caught.value
    for part in parts:
        assert part in str(caught.value)
    return caught.value


def test_a_full_manifest_is_read_and_sound(full):
    require_sound(full)
    assert full.stages["prepare"].outputs["clean"].max_bytes == 64 << 20
    assert full.stages["train"].outputs["model"].max_bytes == 64 << 20
    assert full.stages["prepare"].limits.memory_bytes == 2 << 30
    assert full.stages["prepare"].limits.time_s == 600
    assert full.valid.not_before == "2026-01-01T00:00:00Z"
    assert full.stages["prepare"].env == {"SEED": "7"}


def test_json_is_yaml(full):
    assert load_manifest(full.canonical()) == full
    assert load_manifest(json.dumps(full.as_json(), indent="\t").encode()) == full


def test_the_id_is_that_of_the_meaning_not_of_the_writing(full, full_yaml):
    rewritten = "# a comment\n" + full_yaml.replace("64 MiB", "65536 KiB").replace("10 min", "600 s")
    assert load_manifest(rewritten.encode()).id == full.id


def test_every_change_of_meaning_changes_the_id(full, full_yaml):
    assert load_manifest(full_yaml.replace("64 MiB", "65 MiB").encode()).id != full.id


def test_an_unknown_key_is_refused_with_its_place_and_a_suggestion(full_yaml):
    line = full_yaml.splitlines().index("tees:") + 2
    text = full_yaml.replace(
        "launcher: {type: tdx, measurements", "launcher: {type: tdx, tcb_statuses: [UpToDate], measurements"
    )
    refused(text, 2308, f"demo.yaml:{line}:25: unknown key 'tcb_statuses', did you mean 'tcb'?")
    refused("cloister: 1\nnmae: x\n", 2308, "demo.yaml:2:1: unknown key 'nmae', did you mean 'name'?")
    refused("cloister: 1\nzzz: x\n", 2308, "demo.yaml:2:1: unknown key 'zzz'")


def test_a_duplicate_key_is_refused_with_its_place():
    refused("cloister: 1\nname: a\nname: b\n", 2305, "demo.yaml:3:1: duplicate key 'name'")
    refused('{"cloister": 1, "name": "a", "name": "b"}', 2305, "demo.yaml:1:30")
    refused('name: a\n"name": b\n', 2305)


def test_one_limit_in_two_notations_is_a_duplicate(full_yaml):
    refused(full_yaml.replace("time: 10 min", "time: 10 min, time_s: 600"), 2305, "says again")


@pytest.mark.parametrize("number", ["3.0", "1e5", ".5", "-1.5", ".inf", "-.inf", ".nan", "1.", "+2.5"])
def test_a_float_is_refused(number):
    refused(f"cloister: 1\nname: {number}\n", 2306, "demo.yaml:2:7")


@pytest.mark.parametrize(
    "number", ["010", "0x1f", "0o17", "0b1", "1_000", "+5", "9007199254740992", "-0x1"[0:1] + "00", "1" * 400]
)
def test_a_number_that_readers_disagree_on_is_refused(number):
    refused(f"cloister: {number}\n", 2330)


@pytest.mark.parametrize(
    "text", ["a: &x 1\nb: *x\n", "a: &x {b: 1}\n", "<<: {a: 1}\n", "a: *x\n", "*x : 1\n", "a: [&x 1]\n", "&x a: 1\n"]
)
def test_anchors_aliases_and_merge_keys_are_refused(text):
    refused(text, 2302, "demo.yaml:")


@pytest.mark.parametrize(
    "text",
    [
        "a: !!str 1\n",
        "!!map {a: 1}\n",
        "!x a: 1\n",
        "%YAML 1.1\n---\na: 1\n",
        "%TAG ! tag:x,1:\n---\na: 1\n",
        "a: !!python/object:os.system x\n",
    ],
)
def test_tags_and_directives_are_refused(text):
    refused(text, 2303)


def test_yaml_1_2_may_be_declared(full, full_yaml):
    assert load_manifest(f"%YAML 1.2\n---\n{full_yaml}".encode()) == full


@pytest.mark.parametrize("text", ["", "# nothing\n", "a: 1\n---\nb: 2\n"])
def test_exactly_one_document_is_read(text):
    refused(text, 2304)


@pytest.mark.parametrize("text", ["a", "- a\n", "3"])
def test_a_manifest_is_a_mapping(text):
    refused(text, 2329, "demo.yaml:1:1")


@pytest.mark.parametrize(
    "text",
    ["a: [1\n", "a: 'x\n", "a: b: c\n", b"\xff\xfe", "a:\n\t- b\n", "a: \x00\n", "? [a]\n: 1\n", "a: \x1b[31m\n"],
)
def test_what_is_not_yaml_is_refused(text):
    refused(text, 2301)


@pytest.mark.parametrize("value", ["", "~", "null", "NULL"])
def test_an_empty_value_is_refused(value):
    refused(f"cloister: 1\nname: {value}\n", 2309, "demo.yaml:2:")


@pytest.mark.parametrize(
    "text", ["cafe\\u0301", "a\\u200bb", "a\\u202eb", "\\ud800", "\\x1b[31m", "a\\u00a0b", "\\ue000", "a\\u2028b"]
)
def test_text_that_hides_something_is_refused(text):
    refused(f'cloister: 1\npurpose: "{text}"\n', 2323, "demo.yaml:2:10")


def test_an_escaped_surrogate_pair_is_one_character(full_yaml):
    text = full_yaml.replace("purpose: Everything that a manifest can say", 'purpose: "\\ud83d\\ude00"')
    assert load_manifest(text.encode()).purpose == "\U0001f600"


def test_a_name_in_letters_that_only_look_like_ours_is_refused(full_yaml):
    text = full_yaml.replace("owner: hospital-b", "owner: hospit\u0430l-b")
    refused(text, 2324, "U+0430 CYRILLIC SMALL LETTER A")
    refused(full_yaml.replace("  data-b:", "  d\u0430ta-b:"), 2324, "images.d")


@pytest.mark.parametrize(
    "size", ["64 MB", "1.5 GiB", "-1 MiB", "0 B", "many", "64  MiB", "MiB", "64 mib", "\u0665 MiB"]
)
def test_a_size_that_cannot_be_read_is_refused(full_yaml, size):
    refused(full_yaml.replace("max_size: 64 MiB", f'max_size: "{size}"'), 2328)


@given(st.integers(1, 10**6), st.sampled_from(["B", "KiB", "MiB", "GiB", "TiB"]), st.sampled_from(["", " "]))
def test_sizes_and_durations_are_exact(count, unit, space):
    assert size_bytes(f"{count}{space}{unit}") == count * 1024 ** ["B", "KiB", "MiB", "GiB", "TiB"].index(unit)
    assert duration_s(f"{count}{space}h") == count * 3600


def test_another_version_is_told_apart():
    refused("cloister: 2\nfuture: x\n", 2004, "demo.yaml:1:1")


@pytest.mark.parametrize(
    ("old", "new", "part"),
    [
        ("name: full", "name: [full]", "demo.yaml:2:1: name"),
        ("cloister: 1", "cloister: true", "demo.yaml:1:1"),
        ("nobody: true", "nobody: 1", "releases.1.nobody"),
        ("uses: 5", "uses: 0", "images.data-a.uses"),
        ("registrar: keys-a\n", "", "'registrar' is missing"),
        ("type: tdx", "type: sev", "tees.launcher.type"),
        ("2026-12-01T00:00:00Z}\n  data-b", "2026-02-30T00:00:00Z}\n  data-b", "images.data-a.until"),
        ("tcb: [UpToDate, SWHardeningNeeded]", "tcb: []", "tees.launcher.tcb"),
        ('env: {SEED: "7"}', 'env: {SEED: "7\\0"}', ""),
        ("inputs: [data-a]", "inputs: data-a", "stages.prepare.inputs"),
        ("clean: {max_size: 64 MiB}", "clean: 64 MiB", "stages.prepare.outputs.clean"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_with_its_place(full_yaml, old, new, part):
    assert old in full_yaml
    refused(full_yaml.replace(old, new), 2323 if "\\0" in new else 2329, part)


def test_the_first_complaint_in_the_file_is_the_one_made():
    refused("cloister: 1\nname: B\nvalid: 3\nregistrar: C\n", 2329, "demo.yaml:1:1")
    refused("cloister: 1\nname: B\n" + FULL_REST, 2329, "demo.yaml:2:1")


FULL_REST = (
    "valid: {not_before: x, not_after: y}\nregistrar: K\nparties: {p: {sign: a, hpke: b}}\nkey_managers: {}\n"
    "tees: {}\nimages: {}\nstages: {}\n"
)


def test_a_large_file_is_refused_before_it_is_read():
    refused(b"#" * (512 * 1024 + 1), 2003)


@pytest.mark.parametrize("opener", ["[", "{a: ", "- ", "a:\n" + " "])
def test_deep_nesting_is_refused_in_no_time(opener):
    started = time.monotonic()
    depth = 100_000
    text = "\n".join(" " * i + "a:" for i in range(600)) if opener.startswith("a") else opener * depth
    refused(text, 2307)
    assert time.monotonic() - started < 2


def test_too_many_values_are_refused():
    refused("[" + "1," * 100_001 + "]", 2307)


def test_a_draft_knows_where_everything_stands(full_yaml):
    draft = load_draft(full_yaml.encode(), what="demo.yaml")
    line = full_yaml.splitlines().index("  train:") + 1
    assert draft.at(("stages", "train")) == f"demo.yaml:{line}:3"
    assert draft.at(("stages", "train", "nothing", "here")) == f"demo.yaml:{line}:3"
    assert draft.at(()) == "demo.yaml:1:1"


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError) as caught:
        load_manifest(tmp_path / "none.yaml")
    assert caught.value.code == 2001


@given(st.data())
@settings(max_examples=120, deadline=None)
def test_a_damaged_manifest_is_read_or_refused_never_crashed_on(data):
    raw = bytearray(FULL_YAML.encode())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(
            st.sampled_from(b"\x00\t\n -:[]{}&*!%@`'\"#,?|>\xff09ax")
        )
    with contextlib.suppress(CloisterError):
        load_manifest(bytes(raw))


@given(st.text(alphabet=st.sampled_from(list("ab:-[]{}&*!%'\"#,?|> \n\t0.~<\\")), max_size=60))
@settings(max_examples=300, deadline=None)
def test_any_text_is_a_named_refusal(text):
    with pytest.raises(CloisterError):
        load_manifest(text.encode())


JSON = st.recursive(
    st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text(st.sampled_from("abc 0.:#-é\U0001f600"), max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text("abcd-", min_size=1, max_size=6), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(JSON)
@settings(max_examples=150, deadline=None)
def test_all_json_means_to_us_what_it_means_to_a_json_reader(value):
    from cloister.manifest._yaml import parse_yaml

    assert parse_yaml(canonical({"a": value}), what="x").value == {"a": value}
