import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from in_toto_attestation.v1.statement import Statement

from cloister.errors import CloisterError, InputError, IntegrityError
from cloister.manifest import (
    Image,
    KeyManager,
    Limits,
    Manifest,
    OffloadTerms,
    Output,
    Party,
    Stage,
    Tee,
    Validity,
    Worker,
)
from cloister.receipt import (
    PAYLOAD_TYPE,
    OffloadFacts,
    SealedOutput,
    StageFacts,
    StageReceipt,
    sign_receipt,
    verify_receipt,
)
from cloister.wire import Envelope, SigningKey, parse_message, sign_envelope

KEY = SigningKey.generate()
IDS = {name: digit * 64 for name, digit in (("code", "a"), ("data", "b"), ("model", "c"))}


def manifest(**changes) -> Manifest:
    fields = {
        "cloister": 1,
        "name": "demo",
        "valid": Validity(not_before="2026-01-01T00:00:00Z", not_after="2027-01-01T00:00:00Z"),
        "parties": {"ann": Party(sign="ed25519:x", hpke="x25519:x")},
        "key_managers": {"km": KeyManager(sign="ed25519:x", tee="sim")},
        "registrar": "km",
        "tees": {"sim": Tee(type="tdx", measurements=("f" * 96,), simulated_root="e" * 64)},
        "images": {
            "code": Image(id=IDS["code"], kind="code", owner="ann", key_manager="km"),
            "data": Image(id=IDS["data"], kind="dataset", owner="ann", key_manager="km"),
        },
        "stages": {
            "train": Stage(
                tee="sim",
                code="code",
                argv=("python", "train.py"),
                inputs=("data",),
                outputs={"model": Output(max_bytes=1000)},
                limits=Limits(),
                logs=("ann",),
            )
        },
    }
    return Manifest(**(fields | changes))


MANIFEST = manifest()


def facts(**changes) -> StageFacts:
    fields = {
        "manifest": MANIFEST.id,
        "run": "run-1",
        "stage": "train",
        "attempt": 1,
        "inputs": {"code": IDS["code"], "data": IDS["data"]},
        "outputs": {"model": SealedOutput(image=IDS["model"], size_bytes=1000)},
        "claims": "1" * 64,
        "evidence": "2" * 64,
        "assurance": "simulated",
        "sandbox": "bubblewrap",
        "exit_status": 0,
        "started_at": "2026-02-01T00:00:00Z",
        "ended_at": "2026-02-01T00:00:09Z",
        "logs": ("ann",),
    }
    return StageFacts(**(fields | changes))


def signed(value) -> Envelope:
    return sign_envelope(PAYLOAD_TYPE, value, KEY)


def test_a_receipt_that_fits_its_manifest_verifies():
    envelope = parse_message(Envelope, sign_receipt(facts(), key=KEY).canonical(), what="receipt")
    assert verify_receipt(envelope, key=KEY.public, manifest=MANIFEST) == facts()


def test_in_totos_own_library_reads_a_receipt():
    statement = Statement.copy_from_pb(_protobuf(StageReceipt.of(facts()).as_json()))
    statement.validate()
    assert statement.pb.subject[0].digest["sha256"] == IDS["model"]


def _protobuf(value):
    from google.protobuf.json_format import ParseDict
    from in_toto_attestation.v1.statement_pb2 import Statement as StatementMessage

    return ParseDict(value, StatementMessage())


def test_a_receipt_of_another_key_is_refused():
    with pytest.raises(IntegrityError) as caught:
        verify_receipt(sign_receipt(facts(), key=KEY), key=SigningKey.generate().public)
    assert caught.value.code == 5001


def test_subjects_that_are_not_the_outputs_are_refused():
    value = StageReceipt.of(facts()).as_json()
    value["subject"][0]["digest"]["sha256"] = "9" * 64
    with pytest.raises(IntegrityError) as caught:
        verify_receipt(signed(value), key=KEY.public)
    assert caught.value.code == 5350


def test_a_receipt_that_ends_before_it_starts_is_refused():
    with pytest.raises(IntegrityError) as caught:
        verify_receipt(sign_receipt(facts(ended_at="2026-01-31T23:59:59Z"), key=KEY), key=KEY.public)
    assert caught.value.code == 5350


@pytest.mark.parametrize(
    "change",
    [
        {"manifest": "0" * 64},
        {"stage": "other"},
        {"inputs": {"code": IDS["code"]}},
        {"inputs": {"code": IDS["code"], "data": IDS["model"]}},
        {"outputs": {}},
        {"outputs": {"model": SealedOutput(image=IDS["model"], size_bytes=1001)}},
        {"logs": ()},
        {"sandbox": "UNSANDBOXED", "assurance": "hardware"},
    ],
)
def test_a_receipt_that_does_not_fit_the_manifest_is_refused(change):
    with pytest.raises(IntegrityError) as caught:
        verify_receipt(sign_receipt(facts(**change), key=KEY), key=KEY.public, manifest=MANIFEST)
    assert caught.value.code == 5351


TERMS = OffloadTerms(mode="shared3", workers=("gpu-x", "gpu-y", "gpu-z"))
OFFLOADED = manifest(
    workers={name: Worker(operator="ann", url="tcp://127.0.0.1:1") for name in TERMS.workers},
    stages={"train": MANIFEST.stages["train"].model_copy(update={"network": TERMS.workers, "offload": TERMS})},
)


def offloaded(**changes) -> StageFacts:
    fields = {
        "mode": "shared3",
        "workers": TERMS.workers,
        "models": 1,
        "products": 1000,
        "checks": 1000,
        "error_bits": 48,
        "sent_bytes": 1 << 30,
        "received_bytes": 1 << 29,
    }
    return facts(manifest=OFFLOADED.id, offload=OffloadFacts(**(fields | changes)))


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"products": 0, "checks": 0, "models": 0, "error_bits": None},
        {"checks": 1024, "error_bits": 30},
        {"products": 1 << 26, "checks": 1 << 26, "error_bits": 32, "late": 7},
    ],
    ids=["some", "none", "the weakest checks", "a long training"],
)
def test_a_receipt_of_offloading_as_agreed_fits(change):
    said = offloaded(**change)
    assert verify_receipt(sign_receipt(said, key=KEY), key=KEY.public, manifest=OFFLOADED) == said


@pytest.mark.parametrize(
    "change",
    [
        {"mode": "shared5"},
        {"mode": "enclave", "workers": ()},
        {"workers": ("gpu-x", "gpu-z", "gpu-y")},
        {"workers": ("gpu-x", "gpu-y")},
        {"checks": 999},
        {"checks": 0, "error_bits": None},
        {"error_bits": None},
        {"error_bits": 30},
        {"products": 1, "checks": 1, "error_bits": 39},
    ],
)
def test_a_receipt_of_other_offloading_than_agreed_is_refused(change):
    with pytest.raises(IntegrityError) as caught:
        verify_receipt(sign_receipt(offloaded(**change), key=KEY), key=KEY.public, manifest=OFFLOADED)
    assert caught.value.code == 5351


def test_a_receipt_says_of_offloading_exactly_when_the_stage_agreed_on_it():
    silent = facts(manifest=OFFLOADED.id)
    talking = offloaded().model_copy(update={"manifest": MANIFEST.id})
    for said, agreed in ((silent, OFFLOADED), (talking, MANIFEST)):
        with pytest.raises(IntegrityError) as caught:
            verify_receipt(sign_receipt(said, key=KEY), key=KEY.public, manifest=agreed)
        assert caught.value.code == 5351


def test_receipts_of_other_stages_keep_their_bytes():
    """As they were before there was offloading."""
    assert StageReceipt.of(facts()).as_json()["predicate"].keys() == {
        "manifest", "run", "stage", "attempt", "inputs", "outputs", "claims", "evidence", "assurance", "sandbox",
        "exit_status", "started_at", "ended_at", "logs",
    }  # fmt: skip


def test_a_simulated_receipt_fits_no_manifest_without_a_simulated_root():
    strict = manifest(tees={"sim": Tee(type="tdx", measurements=("f" * 96,))})
    with pytest.raises(IntegrityError) as caught:
        verify_receipt(sign_receipt(facts(manifest=strict.id), key=KEY), key=KEY.public, manifest=strict)
    assert caught.value.code == 5351


@pytest.mark.parametrize(
    "damage",
    [
        lambda value: value.update(extra=1),
        lambda value: value["predicate"].update(exit_status=1),
        lambda value: value.pop("_type"),
        lambda value: value.update(predicateType="urn:cloister:stage-receipt:v2"),
        lambda value: value["predicate"].update(run="../x"),
    ],
)
def test_a_signed_statement_of_another_form_is_refused(damage):
    value = StageReceipt.of(facts()).as_json()
    damage(value)
    with pytest.raises(InputError) as caught:
        verify_receipt(signed(value), key=KEY.public)
    assert caught.value.code == 2350


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
        max_leaves=8,
    )
)
@settings(max_examples=60)
def test_whatever_is_signed_only_ever_gives_our_errors(value):
    with pytest.raises(CloisterError):
        verify_receipt(signed(value), key=KEY.public)
