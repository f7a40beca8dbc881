"""The review says everything that matters, in the proposer's words only where they are quoted."""

import pytest
from hypothesis import given, settings
from tests.unit.manifest.full import FULL_MANIFEST, FULL_YAML
from tests.unit.manifest.generated import manifests

from cloister.errors import CloisterError, InputError
from cloister.manifest import changes, load_manifest, review


def section(manifest, title, party=None):
    return "\n".join(line for s in review(manifest, party=party).sections if s.title == title for line in s.lines)


def changed(old, new):
    assert old in FULL_YAML
    return load_manifest(FULL_YAML.replace(old, new).encode())


def test_your_data_is_what_you_own_and_who_reads_it(full):
    text = section(full, "YOUR DATA", "hospital-a")
    assert "'data-a'" in text
    assert "'data-b'" not in text
    assert "a" * 64 in text
    assert "at most 5 times, until 2026-12-01T00:00:00Z" in text
    assert "key manager 'keys-a'" in text
    assert "stage 'prepare', which runs: SEED=7 python prepare.py --labels 'benign malignant'" in text
    assert "what is made of it reaches stage 'train'" in text
    assert "what is made of it reaches service 'answers'" in text
    assert "none" in section(full, "YOUR DATA", "cloud-x")


def test_everything_that_leaves_is_named_with_whose_data_it_may_tell_of(full):
    text = section(full, "LEAVES", "hospital-b")
    assert "output 'report' → hospital-a, in the clear" in text
    assert "answers of service 'answers' → you (hospital-b)" in text
    assert text.count("the data of hospital-a, hospital-b, YOURS included") == 2
    assert "output 'scratch' → nobody" in text
    assert "output 'clean' → stage 'train' only, sealed, at most 3 times" in text


def test_an_open_service_is_shouted(full):
    text = section(changed("clients: [hospital-b]", "clients: []"), "LEAVES")
    assert "ANYONE who can reach it" in text


def test_a_state_that_is_saved_is_said_to_be_seen(full):
    text = section(full, "LEAVES")
    assert "state of stage 'prepare', at most 64 MiB each time → its own next attempt only, sealed" in text
    assert "see when and how often it was saved" in text
    assert "state of stage" not in section(changed("    checkpoint: {max_size: 64 MiB}\n", ""), "LEAVES")


def test_logs_are_named_or_closed(full):
    assert section(full, "LOGS", "hospital-b") == (
        "what stage 'prepare' prints → hospital-a; may tell of the data of hospital-a"
    )
    assert section(changed("logs: [hospital-a]", "logs: []"), "LOGS").startswith("closed")


def test_the_network_section_says_what_each_mode_shows(full):
    assert "unless two of the three collude" in section(full, "NETWORK")
    verify = changed("mode: shared3, workers: [gpu-x, gpu-y, gpu-z]", "mode: verify, workers: [gpu-x]")
    text = section(verify, "NETWORK")
    assert "in the clear; a wrong result is caught" in text
    assert text.count("whatever the script sends") == 2
    bare = changed("    offload: {mode: shared3, workers: [gpu-x, gpu-y, gpu-z]}\n", "")
    assert section(bare, "NETWORK").count("whatever the script sends") == 3
    assert "collude" not in text
    assert "put together" not in text
    closed = load_manifest(
        FULL_YAML.replace("    network: [gpu-x, gpu-y, gpu-z]\n", "")
        .replace("    offload: {mode: shared3, workers: [gpu-x, gpu-y, gpu-z]}\n", "")
        .encode()
    )
    assert section(closed, "NETWORK") == "none: no stage can reach a network"


def test_it_says_who_must_not_collude_and_what_they_would_learn(full):
    text = section(full, "NETWORK", "cloud-y")
    assert "cloud-x, you (cloud-y), cloud-z: no two of them may put together what they see" in text
    assert "they learn the inputs, weights and gradients of every layer that is offloaded" in text
    two = changed("mode: shared3, workers: [gpu-x, gpu-y, gpu-z]", "mode: blind2, workers: [gpu-x, gpu-z]")
    assert "cloud-x, cloud-z: no two" in section(two, "NETWORK")
    assert "they learn the inputs and gradients of" in section(two, "NETWORK")


def test_a_worker_is_shown_with_its_whole_key(full):
    text = section(full, "NETWORK")
    for worker in full.workers.values():
        assert f"{worker.url} (key {worker.key})" in text


def test_privacy_terms_are_stated_as_stated_and_their_absence_too(full):
    text = section(full, "PRIVACY")
    assert "agreed are ε ≤ 3.0 at δ = 1e-5 per patient (replace-one); these terms cost ε = 0.703" in text
    assert "image 'records' may cost ε ≤ 80 at δ = 2e-5 per patient over all runs" in text
    for released in ("report", "model"):
        assert f"'{released}' may tell a reader whether a record of 'data-a', 'data-b' was there" in text
    assert "'weights' may tell" not in text
    assert "logs of 'prepare' may tell their readers the same" in text


def test_what_workers_of_a_private_training_see_is_said_not_to_be_in_its_bound(full):
    terms = full.stages["train"].offload
    learn = full.stages["learn"].model_copy(update={"offload": terms, "network": terms.workers})
    text = section(full.model_copy(update={"stages": {**full.stages, "learn": learn}}), "PRIVACY")
    assert "that bounds what is released; what 'gpu-x', 'gpu-y', 'gpu-z' may see is under NETWORK" in text
    assert "NETWORK" not in section(full, "PRIVACY")


def test_a_script_before_a_private_training_leaves_the_image_unbounded(full):
    learn = full.stages["learn"].model_copy(update={"inputs": ("records", "clean")})
    release = full.releases[0].model_copy(update={"stage": "learn"})
    update = {"stages": {**full.stages, "learn": learn}, "releases": (*full.releases, release)}
    text = section(full.model_copy(update=update), "PRIVACY")
    assert "'weights' may tell a reader whether a record of 'data-a' was there: it comes prepared by a script" in text


def test_simulated_evidence_is_shouted_first(full):
    assert not review(full).simulated
    simulated = changed("type: tdx,", f"type: tdx, simulated_root: '{'9' * 64}',")
    seen = review(simulated, party="hospital-a")
    assert seen.simulated == ("launcher",)
    assert [s.title for s in seen.sections][:2] == ["AGREEMENT", "SIMULATED"]
    assert "!! SIMULATED" in seen.text()
    assert "9" * 64 in section(simulated, "TRUSTED")


def test_who_is_told_of_a_wrong_product_is_said(full):
    text = section(full, "NETWORK")
    assert "which product was wrong is sealed to hospital-a, hospital-b; everybody else learns only" in text
    assert "refuses to run such a stage" not in text
    beyond = full.stages["prepare"].model_copy(update={"network": ("gpu-x",)})
    text = section(full.model_copy(update={"stages": full.stages | {"prepare": beyond}}), "NETWORK")
    assert "stage 'prepare' may reach 'gpu-x': this release refuses to run such a stage (3503)" in text


def test_an_operator_is_told_of_no_wrong_product(full):
    worker = full.workers["gpu-x"].model_copy(update={"operator": "hospital-a"})
    text = section(full.model_copy(update={"workers": full.workers | {"gpu-x": worker}}), "NETWORK")
    assert "which product was wrong is sealed to hospital-b; everybody else" in text


def test_weak_patch_levels_are_shouted(full):
    assert "WEAK" not in section(full, "TRUSTED")
    assert "WEAK" in section(changed("SWHardeningNeeded", "OutOfDate"), "TRUSTED")


def test_whole_measurements_and_keys_are_shown(full):
    """A shortened digest can be ground by an attacker until its ends agree."""
    text = section(full, "TRUSTED")
    for digits in ("0" * 96, "1" * 64, full.key_managers["keys-a"].sign, full.key_managers["keys-b"].sign):
        assert digits in text
    assert "INTEL-SA-00615" in text
    assert "00906ED50000" in text


def test_everybody_else_is_named_by_the_words_they_read_out(full, people):
    from cloister.party import fingerprint

    text = section(full, "TRUSTED", "host")
    for name, identity in people.items():
        assert (fingerprint(identity.public) in text) == (name != "host")


def test_signers_are_told_apart(full):
    text = section(full, "AGREEMENT", "host")
    assert "hospital-a, hospital-b, you (host)" in text
    assert "no signature is needed from: cloud-x, cloud-y, cloud-z" in text


def test_a_proposer_cannot_write_lines_of_the_review(full):
    forged = full.model_copy(update={"purpose": "x\nPRIVACY     all is well\n'; rm"})
    text = review(forged).text()
    assert "\nPRIVACY     all is well" not in text
    assert "\\nPRIVACY" in text
    stage = full.stages["train"].model_copy(update={"argv": ("python", "-c", "a\nLEAVES      nothing")})
    assert (
        "\nLEAVES      nothing" not in review(full.model_copy(update={"stages": full.stages | {"train": stage}})).text()
    )


def test_a_command_stays_on_one_line(full):
    stage = full.stages["train"].model_copy(update={"argv": ("python", "a " * 200)})
    text = review(full.model_copy(update={"stages": full.stages | {"train": stage}})).text()
    assert f"python '{'a ' * 200}'" in text


def test_only_a_party_s_view_is_shown_as_one(full):
    with pytest.raises(InputError) as caught:
        review(full, party="press")
    assert caught.value.code == 2013


def test_an_unsound_manifest_has_no_review(full):
    unsound = full.model_copy(update={"registrar": "none"})
    for ask in (lambda: review(unsound), lambda: changes(full, unsound), lambda: changes(unsound, full)):
        with pytest.raises(CloisterError) as caught:
            ask()
        assert caught.value.code == 2312


def test_changes_are_named_field_by_field(full):
    new = changed("uses: 5,", "uses: 6,").model_copy(update={"purpose": "new"})
    assert changes(full, new) == (
        "~ images.data-a.uses: 5 → 6",
        "~ purpose: 'Everything that a manifest can say' → new",
    )
    shorter = changed("logs: [hospital-a]", "logs: []")
    assert changes(full, shorter) == ("+ stages.prepare.logs: []", "- stages.prepare.logs[0]: hospital-a")
    assert changes(full, full) == ()


def test_programs_get_the_same(full):
    facts = review(full, party="hospital-a").as_json()
    assert facts["manifest"] == full.id
    assert facts["required_signers"] == ["hospital-a", "hospital-b", "host"]
    assert facts["sections"]["LOGS"]
    assert {"recipient", "role", "what", "shows", "images", "owners"} == set(facts["leaks"][0])


@given(manifests())
@settings(max_examples=40, deadline=None)
def test_each_owner_sees_every_recipient_of_what_may_tell_of_their_data(manifest):
    for party in {image.owner for image in manifest.images.values()}:
        seen = review(manifest, party=party)
        text = seen.text()
        for leak in seen.leaks:
            if party in leak.owners and leak.recipient != party:
                assert leak.recipient in text
        shown = section(manifest, "LEAVES", party).count("YOURS included")
        assert shown == sum(leak.role in ("output", "client") and party in leak.owners for leak in seen.leaks)


def test_the_view_of_nobody_in_particular_names_all_data():
    text = section(FULL_MANIFEST, "DATA")
    assert "'data-a' (dataset of hospital-a" in text
    assert "'data-b' (dataset of hospital-b" in text
