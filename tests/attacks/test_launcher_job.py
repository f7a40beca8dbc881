"""A host that edits what it hands to a launcher."""

import pytest
from tests.enclaves import World

from cloister.enclave import parse_task
from cloister.errors import CloisterError, InputError
from cloister.keys import AttemptGrant, sign_message
from cloister.wire import SigningKey, canonical


@pytest.fixture
def world(tmp_path):
    return World.build(tmp_path / "world", "open('/outputs/model/m', 'w').write('ran')")


def code_of(outcome):
    with pytest.raises(CloisterError) as caught:
        outcome.require()
    return caught.value.code


def edited(world, change):
    """The job with a manifest that was changed after signing."""
    value = world.job.as_json()
    change(value["manifest"]["manifest"])
    return parse_task(canonical(value))


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest["stages"]["train"].update(argv=["python", "evil.py"]),
        lambda manifest: manifest["stages"]["train"].update(logs=["lab"]),
        lambda manifest: manifest["stages"]["train"]["outputs"]["model"].update(max_bytes=1 << 30),
        lambda manifest: manifest["images"]["code"].update(id="9" * 64),
        lambda manifest: manifest["parties"]["hospital"].update(hpke=manifest["parties"]["lab"]["hpke"]),
    ],
)
def test_a_manifest_edited_after_signing_gets_no_key(world, change):
    assert code_of(world.launch(edited(world, change))) in (5301, 2322)
    assert world.obtained == 0


def test_a_manifest_without_an_owners_signature_gets_no_key(world):
    signatures = {"lab": world.signed.signatures["lab"]}
    manifest = world.signed.model_copy(update={"signatures": signatures})
    assert code_of(world.launch(world.job.model_copy(update={"manifest": manifest}))) == 3301
    assert world.obtained == 0


@pytest.mark.parametrize("name", ["PYTHONPATH", "LD_PRELOAD", "BASH_ENV", "PYTHONSTARTUP", "LD_LIBRARY_PATH"])
def test_a_variable_that_loads_other_code_is_refused_even_when_it_is_signed(tmp_path, name):
    with pytest.raises(CloisterError) as caught:
        World.build(tmp_path / "world", stage={"env": {name: "/inputs/data"}})
    assert caught.value.code == 3304


@pytest.mark.parametrize("name", ["PYTHONPATH", "LD_PRELOAD", "BASH_ENV"])
def test_the_launcher_itself_refuses_such_a_variable(world, name, monkeypatch):
    from cloister.enclave import _launcher

    monkeypatch.setattr(_launcher, "require_signed", lambda signed: signed)
    job = edited(world, lambda manifest: manifest["stages"]["train"].update(env={name: "/inputs/data"}))
    grant = World.granted(job.manifest.manifest)
    assert code_of(world.launch(job.model_copy(update={"grant": grant}))) == 3304
    assert world.obtained == 0


@pytest.mark.parametrize(
    "field", ["argv", "env", "limits", "logs", "command", "environment", "image_ids", "measurement", "network"]
)
def test_a_job_has_no_field_that_says_what_to_run(world, field):
    value = world.job.as_json() | {field: ["python", "evil.py"]}
    with pytest.raises(InputError) as caught:
        parse_task(canonical(value))
    assert caught.value.code == 2005


@pytest.mark.parametrize("changes", [{"consumer": "other"}, {"manifest_id": "f" * 64}])
def test_a_grant_for_another_stage_or_manifest_gets_no_key(world, changes):
    job = world.job.model_copy(update={"grant": World.granted(world.signed.manifest, **changes)})
    assert code_of(world.launch(job)) == 3502
    assert world.obtained == 0


def test_a_grant_of_anybody_but_the_registrar_gets_no_key(world):
    grant = AttemptGrant(
        manifest=world.signed.manifest.id,
        run="0" * 32,
        consumer="train",
        attempt=1,
        issued_at="2026-06-01T00:00:00Z",
    )
    forged = sign_message(grant, SigningKey.generate())
    assert code_of(world.launch(world.job.model_copy(update={"grant": forged}))) == 5001
    assert world.obtained == 0


def test_a_stage_that_the_manifest_does_not_have_gets_no_key(world):
    assert code_of(world.launch(world.job.model_copy(update={"stage": "other"}))) == 2501


def test_an_input_swapped_for_another_image_is_refused(world):
    places = {"code": world.job.inputs["code"], "data": world.job.inputs["code"]}
    assert code_of(world.launch(world.job.model_copy(update={"inputs": places}))) // 100 == 52


def test_a_changed_byte_of_an_input_is_refused(world):
    path = world.folder / "data.image"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert code_of(world.launch()) // 100 == 52


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"\xff", b'{"a":1,"a":2}', b"[" * 100, b"1e3"])
def test_a_job_that_is_none_is_an_input_error(data):
    with pytest.raises(InputError) as caught:
        parse_task(data)
    assert caught.value.code in (2002, 2005)
