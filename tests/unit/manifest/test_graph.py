"""The graph functions agree with a slow, obvious walk of every path."""

import itertools
import time

import pytest
from hypothesis import given, settings
from tests.unit.manifest.generated import manifests

from cloister.errors import InputError
from cloister.manifest import (
    ANYONE,
    check,
    consumers_of,
    contributors_of,
    inputs_of,
    leaks_of,
    producer_of,
    reachable_images,
    require_sound,
    required_signers,
    stage_order,
)


def every_path_to(manifest, consumer):
    """Oracle: each way from an image to ``consumer``, spelt out one by one."""
    if consumer in manifest.services:
        reads = [manifest.services[consumer].model]
    else:
        reads = [manifest.stages[consumer].code, *manifest.stages[consumer].inputs]
    for name in reads:
        if name in manifest.images:
            yield (name, consumer)
        for stage, terms in manifest.stages.items():
            if name in terms.outputs:
                for path in every_path_to(manifest, stage):
                    yield (*path, consumer)


def reached(manifest, consumer):
    return {path[0] for path in every_path_to(manifest, consumer)}


@given(manifests())
@settings(max_examples=60, deadline=None)
def test_generated_manifests_are_sound(manifest):
    assert check(manifest) == ()


@given(manifests())
@settings(max_examples=60, deadline=None)
def test_what_reaches_a_consumer_is_what_has_a_path_to_it(manifest):
    for consumer in (*manifest.stages, *manifest.services):
        assert reachable_images(manifest, consumer) == reached(manifest, consumer)
        managers = {manifest.images[name].key_manager for name in reached(manifest, consumer)}
        assert contributors_of(manifest, consumer) == tuple(sorted(managers | {manifest.registrar}))


@given(manifests())
@settings(max_examples=60, deadline=None)
def test_everybody_whose_image_reaches_anything_must_sign(manifest):
    consumers = (*manifest.stages, *manifest.services)
    owners = {manifest.images[name].owner for consumer in consumers for name in reached(manifest, consumer)}
    assert required_signers(manifest) == owners


@given(manifests())
@settings(max_examples=60, deadline=None)
def test_every_stage_comes_after_those_it_reads_from(manifest):
    order = stage_order(manifest)
    assert sorted(order) == sorted(manifest.stages)
    for earlier, later in itertools.combinations(order, 2):
        assert not set(manifest.stages[later].outputs) & set(manifest.stages[earlier].inputs)


@given(manifests())
@settings(max_examples=60, deadline=None)
def test_the_leak_report_is_the_releases_to_their_ends(manifest):
    expected = set()
    for release in manifest.releases:
        if release.party:
            producer = next(n for n, s in manifest.stages.items() if release.output in s.outputs)
            expected.add((release.party, "output", release.output, frozenset(reached(manifest, producer))))
    for name, service in manifest.services.items():
        for client in service.clients or [ANYONE]:
            expected.add((client, "client", name, frozenset(reached(manifest, name))))
    for name, stage in manifest.stages.items():
        for party in stage.logs:
            expected.add((party, "log", name, frozenset(reached(manifest, name))))
        for worker in stage.network:
            expected.add((manifest.workers[worker].operator, "operator", worker, frozenset(reached(manifest, name))))
    assert {(leak.recipient, leak.role, leak.what, frozenset(leak.images)) for leak in leaks_of(manifest)} == expected
    for leak in leaks_of(manifest):
        kinds = {manifest.images[name].owner for name in leak.images if manifest.images[name].kind == "dataset"}
        assert set(leak.owners) == kinds


def test_ties_are_in_order_of_name(full):
    assert stage_order(full) == ("learn", "prepare", "train")
    assert inputs_of(full, "train") == ("scripts", "clean", "data-b")
    assert inputs_of(full, "answers") == ("model",)
    assert producer_of(full, "clean") == "prepare"
    assert producer_of(full, "data-a") is None
    assert [release.nobody for release in consumers_of(full, "scratch")] == [True]


def test_a_cycle_is_shown(full):
    train = full.stages["train"].model_copy(update={"inputs": ("clean",)})
    prepare = full.stages["prepare"].model_copy(update={"inputs": ("model",)})
    with pytest.raises(InputError, match="→") as caught:
        stage_order(full.model_copy(update={"stages": {"prepare": prepare, "train": train}}))
    assert caught.value.code == 2310


def test_a_manifest_at_its_bounds_is_checked_in_seconds(full):
    """256 stages of 64 inputs each: asking for producers one by one would take minutes."""
    stage = full.stages["prepare"].model_copy(update={"logs": (), "env": {}})
    output = stage.outputs["clean"]
    stages, releases = {}, []
    for index in range(256):
        earlier = tuple(f"x-{name:03}" for name in range(max(0, index - 15), index))
        stages[f"s-{index:03}"] = stage.model_copy(
            update={"inputs": (*earlier, "data-a"), "outputs": {f"x-{index:03}": output}}
        )
        releases += [full.releases[0].model_copy(update={"output": name, "stage": f"s-{index:03}"}) for name in earlier]
    last = full.releases[1].model_copy(update={"output": "x-255"})
    images = {name: image for name, image in full.images.items() if name in ("data-a", "scripts")}
    update = {"stages": stages, "services": {}, "releases": (*releases, last), "images": images}
    large = full.model_copy(update=update)
    started = time.monotonic()
    require_sound(large)
    assert required_signers(large) == {"hospital-a", "host"}
    assert reachable_images(large, "s-255") == {"data-a", "scripts"}
    assert time.monotonic() - started < 5
