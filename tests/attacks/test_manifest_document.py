"""A proposer writes a document that reads otherwise than it means, or that costs its readers dearly."""

from __future__ import annotations

import time

import pytest
from tests.unit.manifest.full import FULL_YAML, WORKERS

from cloister.errors import CloisterError
from cloister.manifest import load_manifest, load_signed, propose


def refused(text, code):
    started = time.monotonic()
    with pytest.raises(CloisterError) as caught:
        propose(load_manifest(text.encode() if isinstance(text, str) else text, what="m.yaml"))
    assert caught.value.code == code, caught.value
    assert time.monotonic() - started < 5


def edited(old, new):
    assert old in FULL_YAML
    return FULL_YAML.replace(old, new, 1)


def test_the_honest_document_is_accepted():
    propose(load_manifest(FULL_YAML.encode()))


def test_a_billion_laughs():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10)]
    refused("\n".join(lines), 2302)


@pytest.mark.parametrize("opener", ["[", "{a: ", "- ", "? "])
def test_deep_nesting(opener):
    refused(opener * 50_000, 2307 if opener != "? " else 2301)


def test_deep_nesting_in_a_signed_file():
    with pytest.raises(CloisterError) as caught:
        load_signed(b'{"manifest":' * 100_000)
    assert caught.value.code in (2002, 2003)


def test_a_merge_key_that_brings_rules_from_elsewhere():
    refused(edited("  prepare:\n", "  prepare:\n    <<: {logs: [host]}\n"), 2302)


def test_an_alias_that_changes_with_a_distant_edit():
    refused(edited("inputs: [data-a]", "inputs: &i [data-a]"), 2302)


def test_code_in_a_tag():
    refused(edited("purpose: Everything", "purpose: !!python/object/apply:os.system [id] #"), 2303)


def test_a_second_document_that_another_reader_takes():
    refused(FULL_YAML + "---\n" + FULL_YAML, 2304)


def test_a_duplicate_field():
    refused(edited("logs: [hospital-a]", "logs: []\n    logs: [hospital-a]"), 2305)


def test_a_duplicate_field_in_other_quotes():
    refused(edited("logs: [hospital-a]", 'logs: []\n    "logs": [hospital-a]'), 2305)


def test_a_float():
    refused(edited('epsilon: "3.0"', "epsilon: 3.0"), 2306)


def test_an_unknown_field():
    refused(edited("logs: [hospital-a]", "log: [hospital-a]"), 2308)


def test_a_number_that_is_octal_to_some():
    refused(edited("uses: 5", "uses: 010"), 2330)


def test_text_in_another_normal_form():
    refused(edited("purpose: Everything", "purpose: cafe\u0301"), 2323)


def test_text_that_is_shown_backwards():
    refused(edited("purpose: Everything that", 'purpose: "\\u202egnihtyrevE" #'), 2323)


def test_a_terminal_escape():
    refused(edited("purpose: Everything that a manifest can say", 'purpose: "\\e[2J"'), 2323)


def test_a_homoglyph_in_a_name():
    refused(edited("clients: [hospital-b]", "clients: [hospit\u0430l-b]"), 2324)


def test_a_name_that_looks_like_a_partner_s():
    line = next(line for line in FULL_YAML.splitlines() if line.startswith("  hospital-b: {"))
    key = next(line for line in FULL_YAML.splitlines() if line.startswith("  keys-a: {")).split('"')[1]
    other = line.replace("hospital-b", "hospitai-b").replace(line.split('"')[1], key)
    refused(edited(line, line + "\n" + other), 2324)


def test_a_second_producer_of_an_output():
    refused(edited("outputs: {model:", "outputs: {clean: {max_size: 64 MiB}, model:"), 2311)


def test_an_output_under_the_name_of_an_image():
    refused(edited("outputs: {model:", "outputs: {data-b: {max_size: 64 MiB}, model:"), 2311)


def test_a_service_under_the_name_of_a_stage():
    refused(edited("answers: {tee", "prepare: {tee"), 2311)


def test_an_output_released_by_nobody_s_decision():
    refused(edited("  - {output: scratch, nobody: true}\n", ""), 2314)


def test_a_release_with_two_targets():
    refused(edited("{output: clean, stage: train, uses: 3}", "{output: clean, stage: train, party: host}"), 2315)


def test_nobody_and_yet_somebody():
    refused(edited("nobody: true}", "nobody: true}\n  - {output: scratch, party: host}"), 2316)


def test_a_stage_that_reads_what_it_writes():
    refused(edited("inputs: [data-a]", "inputs: [data-a, model]"), 2310)


@pytest.mark.parametrize(
    "name", ["PYTHONPATH", "PYTHONSTARTUP", "LD_PRELOAD", "LD_LIBRARY_PATH", "PATH", "BASH_ENV", "HTTPS_PROXY"]
)
def test_environment_injection(name):
    refused(edited("SEED:", f"{name}:"), 3304)


def test_a_nul_in_an_argument():
    refused(edited("argv: [python, train.py]", 'argv: [python, "train.py\\0--steal"]'), 2323)


def test_colluding_workers_of_one_operator():
    refused(edited("operator: cloud-y", "operator: cloud-x"), 3306)


def test_two_workers_that_are_one():
    refused(edited(WORKERS["gpu-y"], WORKERS["gpu-x"]), 2322)


def test_a_worker_that_anybody_could_be():
    refused(edited(f', key: "{WORKERS["gpu-y"]}"', ""), 2334)


def test_an_oversized_document():
    refused(b"# " + b"x" * (1 << 20), 2003)
