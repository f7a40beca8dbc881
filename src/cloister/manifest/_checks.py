"""What must hold between the parts of a manifest. One function a rule; a finding says where, what, and which rule."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, cast

from cloister.errors import InputError
from cloister.manifest._environment import fault_of_variable
from cloister.manifest._finding import Finding
from cloister.manifest._graph import stage_order
from cloister.manifest._model import OFFLOAD_WORKERS, Manifest, Release
from cloister.manifest._privacy_checks import check_budgets, check_terms
from cloister.manifest._text import fault_of_text, skeleton
from cloister.manifest._yaml import Place
from cloister.wire import SealingKey, VerifyKey

__all__ = ["check", "require_sound"]

_MEASUREMENT_DIGITS = {"sgx": 64, "tdx": 96}
_MAX_PORT = 65535
_RESERVED = ("client", "relying-party")  # under these names services and key managers attest to a stranger's nonce
_TARGETS = ("stage", "service", "party", "nobody")


def check(manifest: Manifest) -> tuple[Finding, ...]:
    """Every broken rule, in the order of the rules; none when the manifest is sound."""
    return tuple(finding for rule in _RULES for finding in rule(manifest))


def require_sound(manifest: Manifest) -> None:
    """Returns when no rule is broken.

    Raises:
        CloisterError: the first finding, with its code (23xx, 33xx).
    """
    for finding in check(manifest):
        raise finding.error()


def _texts(manifest: Manifest) -> Iterator[Finding]:
    waiting: list[tuple[Place, Any]] = [((), manifest.as_json())]
    while waiting:
        place, value = waiting.pop()
        if isinstance(value, str):
            fault = fault_of_text(value)
            if fault is not None:
                yield Finding(2323, place, fault)
        elif isinstance(value, dict):
            waiting += [((*place, key), item) for key, item in cast("dict[str, Any]", value).items()]
        elif isinstance(value, list):
            waiting += [((*place, index), item) for index, item in enumerate(cast("list[Any]", value))]


def _names(manifest: Manifest) -> Iterator[Finding]:
    """Within each kind, no two names look alike; what is read, and what reads, has one name each."""
    outputs = [
        (("stages", name, "outputs", output), output) for name, s in manifest.stages.items() for output in s.outputs
    ]
    readable = [(("images", name), name) for name in manifest.images]
    running = [(("stages", name), name) for name in manifest.stages]
    kinds: list[Sequence[tuple[Place, str]]] = [
        [(("parties", name), name) for name in manifest.parties],
        [(("key_managers", name), name) for name in manifest.key_managers],
        [(("tees", name), name) for name in manifest.tees],
        [(("workers", name), name) for name in manifest.workers],
        readable + outputs,
        running + [(("services", name), name) for name in manifest.services],
    ]
    for kind in kinds:
        seen: dict[str, str] = {}
        for place, name in kind:
            other = seen.setdefault(skeleton(name), name)
            if other != name:
                yield Finding(2324, place, f"'{name}' is easily taken for '{other}'")


def _reserved(manifest: Manifest) -> Iterator[Finding]:
    """No key manager is called what a stranger's nonce is called: claims for the one were claims for the other."""
    for name in _RESERVED:
        if name in manifest.key_managers:
            yield Finding(2333, ("key_managers", name), f"'{name}' is reserved: no key manager is called so")


def _producers(manifest: Manifest) -> Iterator[Finding]:
    producer: dict[str, str] = {}
    for name, stage in manifest.stages.items():
        for output in stage.outputs:
            first = producer.setdefault(output, name)
            if first != name:
                yield Finding(
                    2311, ("stages", name, "outputs", output), f"'{output}' is already written by stage '{first}'"
                )
            if output in manifest.images:
                yield Finding(2311, ("stages", name, "outputs", output), f"'{output}' is already the name of an image")
    for name in manifest.services:
        if name in manifest.stages:
            yield Finding(2311, ("services", name), f"'{name}' is already the name of a stage")


def _references(manifest: Manifest) -> Iterator[Finding]:
    readable = {*manifest.images, *_outputs(manifest)}
    wanted: list[tuple[Place, str, Iterable[str], str]] = [
        (("registrar",), manifest.registrar, manifest.key_managers, "key manager")
    ]
    for name, manager in manifest.key_managers.items():
        wanted.append((("key_managers", name, "tee"), manager.tee, manifest.tees, "tee"))
    for name, worker in manifest.workers.items():
        wanted.append((("workers", name, "operator"), worker.operator, manifest.parties, "party"))
    for name, image in manifest.images.items():
        wanted.append((("images", name, "owner"), image.owner, manifest.parties, "party"))
        wanted.append((("images", name, "key_manager"), image.key_manager, manifest.key_managers, "key manager"))
    for name, stage in manifest.stages.items():
        here: Place = ("stages", name)
        wanted.append(((*here, "tee"), stage.tee, manifest.tees, "tee"))
        wanted.append(((*here, "code"), stage.code, manifest.images, "image"))
        wanted += [((*here, "inputs", i), read, readable, "image or output") for i, read in enumerate(stage.inputs)]
        wanted += [((*here, "network", i), to, manifest.workers, "worker") for i, to in enumerate(stage.network)]
        wanted += [((*here, "logs", i), to, manifest.parties, "party") for i, to in enumerate(stage.logs)]
        offload = stage.offload.workers if stage.offload else ()
        wanted += [((*here, "offload", "workers", i), to, manifest.workers, "worker") for i, to in enumerate(offload)]
    for name, service in manifest.services.items():
        here = ("services", name)
        wanted.append(((*here, "tee"), service.tee, manifest.tees, "tee"))
        wanted.append(((*here, "model"), service.model, readable, "image or output"))
        wanted += [((*here, "clients", i), who, manifest.parties, "party") for i, who in enumerate(service.clients)]
    for place, name, among, noun in wanted:
        if name not in among:
            yield Finding(2312, place, f"there is no {noun} '{name}'")


def _cycles(manifest: Manifest) -> Iterator[Finding]:
    try:
        stage_order(manifest)
    except InputError as error:
        yield Finding(error.code, ("stages",), error.what)


def _kinds(manifest: Manifest) -> Iterator[Finding]:
    def kind_of(name: str) -> str | None:
        image = manifest.images.get(name)
        return image.kind if image else None

    read: set[str] = set()
    for name, stage in manifest.stages.items():
        read.update((stage.code, *stage.inputs))
        if kind_of(stage.code) == "dataset":
            yield Finding(2317, ("stages", name, "code"), f"'{stage.code}' is a dataset, not code")
        for index, item in enumerate(stage.inputs):
            if kind_of(item) == "code":
                yield Finding(2317, ("stages", name, "inputs", index), f"'{item}' is code, not a dataset")
    for name, service in manifest.services.items():
        read.add(service.model)
        if kind_of(service.model) == "code":
            yield Finding(2317, ("services", name, "model"), f"'{service.model}' is code, not a dataset")
    for name in manifest.images.keys() - read:
        yield Finding(2318, ("images", name), f"image '{name}' is read by nobody")


def _releases(manifest: Manifest) -> Iterator[Finding]:
    """Each release has one target, and each reader of an output has a release: neither without the other."""
    outputs = _outputs(manifest)
    granted: Counter[tuple[str, str, str]] = Counter()
    for index, release in enumerate(manifest.releases):
        place: Place = ("releases", index)
        targets = [(kind, str(getattr(release, kind))) for kind in _TARGETS if getattr(release, kind) is not None]
        if len(targets) != 1:
            yield Finding(2315, place, f"a release names exactly one of {', '.join(_TARGETS)}, not {len(targets)}")
            continue
        kind, target = targets[0]
        granted[(release.output, kind, target)] += 1
        if granted[(release.output, kind, target)] == 2:
            yield Finding(2327, place, f"'{release.output}' is released to this {kind} twice")
        if release.output not in outputs:
            yield Finding(2312, (*place, "output"), f"there is no output '{release.output}'")
        else:
            yield from _release_target(manifest, release, kind, target, place)
    for output, place in outputs.items():
        kinds = [kind for name, kind, _ in granted if name == output]
        if not kinds:
            yield Finding(2314, place, f"output '{output}' is released to no one: say so with 'nobody: true'")
        if "nobody" in kinds and len(kinds) > 1:
            yield Finding(2316, place, f"output '{output}' is released to nobody, and also to somebody")
    for place, kind, reader, output in _readers(manifest):
        if output in outputs and (output, kind, reader) not in granted:
            yield Finding(2313, place, f"{kind} '{reader}' reads '{output}', which is not released to it")


def _release_target(manifest: Manifest, release: Release, kind: str, target: str, place: Place) -> Iterator[Finding]:
    if kind == "nobody":
        return
    among: dict[str, Iterable[str]] = {
        "stage": manifest.stages,
        "service": manifest.services,
        "party": manifest.parties,
    }
    if target not in among[kind]:
        yield Finding(2312, (*place, kind), f"there is no {kind} '{target}'")
    elif kind == "stage" and release.output not in manifest.stages[target].inputs:
        yield Finding(2313, place, f"'{release.output}' is released to stage '{target}', which does not read it")
    elif kind == "service" and release.output != manifest.services[target].model:
        yield Finding(2313, place, f"'{release.output}' is released to service '{target}', whose model it is not")


def _readers(manifest: Manifest) -> Iterator[tuple[Place, str, str, str]]:
    for name, stage in manifest.stages.items():
        for index, item in enumerate(stage.inputs):
            yield ("stages", name, "inputs", index), "stage", name, item
    for name, service in manifest.services.items():
        yield ("services", name, "model"), "service", name, service.model


def _repeats(manifest: Manifest) -> Iterator[Finding]:
    lists: list[tuple[Place, tuple[str, ...]]] = []
    for name, tee in manifest.tees.items():
        for part in ("measurements", "rtmrs", "tcb", "deny_advisories", "platforms"):
            lists.append((("tees", name, part), getattr(tee, part)))
    for name, stage in manifest.stages.items():
        lists += [(("stages", name, part), getattr(stage, part)) for part in ("inputs", "network", "logs")]
        if stage.offload:
            lists.append((("stages", name, "offload", "workers"), stage.offload.workers))
    lists += [(("services", name, "clients"), service.clients) for name, service in manifest.services.items()]
    for place, items in lists:
        for item, count in Counter(items).items():
            if count > 1:
                yield Finding(2327, place, f"'{item}' is listed {count} times")
    by_id: dict[str, str] = {}
    for name, image in manifest.images.items():
        first = by_id.setdefault(image.id, name)
        if first != name:
            yield Finding(2327, ("images", name, "id"), f"image '{first}' has the same id")


def _times(manifest: Manifest) -> Iterator[Finding]:
    start = manifest.valid.not_before
    if not start < manifest.valid.not_after:
        yield Finding(2319, ("valid",), f"the window ends ({manifest.valid.not_after}) before it starts ({start})")
    ends: list[tuple[Place, str | None]] = [(("images", name, "until"), i.until) for name, i in manifest.images.items()]
    ends += [(("releases", index, "until"), release.until) for index, release in enumerate(manifest.releases)]
    for place, until in ends:
        if until is not None and until <= start:
            yield Finding(2319, place, f"it ends ({until}) before the manifest starts ({start})")


def _tees(manifest: Manifest) -> Iterator[Finding]:
    for name, tee in manifest.tees.items():
        digits = _MEASUREMENT_DIGITS[tee.type]
        for index, measurement in enumerate(tee.measurements):
            if len(measurement) != digits:
                what = f"a measurement of {tee.type} has {digits} hexadecimal digits, not {len(measurement)}"
                yield Finding(2320, ("tees", name, "measurements", index), what)
        if tee.type == "tdx" and tee.simulated_root is None and not tee.rtmrs:
            what = "MRTD covers only the firmware of a TD: name the rtmrs, or the host boots a kernel of its own"
            yield Finding(2332, ("tees", name), what)
        if tee.type == "sgx" and tee.rtmrs:
            yield Finding(2332, ("tees", name, "rtmrs"), "sgx has no run-time measurement registers")


def _keys(manifest: Manifest) -> Iterator[Finding]:
    """Every key is one, and nobody shares one: a shared key would be two consents for the price of one."""
    found: list[tuple[Place, str, Callable[[str], object]]] = []
    for name, party in manifest.parties.items():
        found.append((("parties", name, "sign"), party.sign, VerifyKey.parse))
        found.append((("parties", name, "hpke"), party.hpke, SealingKey.parse))
    for name, manager in manifest.key_managers.items():
        found.append((("key_managers", name, "sign"), manager.sign, VerifyKey.parse))
    for name, worker in manifest.workers.items():
        if worker.key is not None:
            found.append((("workers", name, "key"), worker.key, SealingKey.parse))
    seen: dict[str, str] = {}
    for place, text, parse in found:
        try:
            parse(text)
        except InputError as error:
            yield Finding(2321, place, f"{error.what}: {text[:40]!a}")
            continue
        first = seen.setdefault(text, ".".join(map(str, place)))
        if first != ".".join(map(str, place)):
            yield Finding(2322, place, f"this key is also that of {first}")


def _environment(manifest: Manifest) -> Iterator[Finding]:
    for name, stage in manifest.stages.items():
        for variable, value in stage.env.items():
            fault = fault_of_variable(variable, value)
            if fault is not None:
                yield Finding(3304, ("stages", name, "env", variable), f"environment variable refused: {fault}")


def _offload(manifest: Manifest) -> Iterator[Finding]:
    for name, stage in manifest.stages.items():
        if stage.offload is None:
            continue
        mode, workers, place = stage.offload.mode, stage.offload.workers, ("stages", name, "offload")
        if len(workers) != OFFLOAD_WORKERS[mode]:
            yield Finding(2326, place, f"mode '{mode}' needs {OFFLOAD_WORKERS[mode]} workers, not {len(workers)}")
        for worker in workers:
            if worker not in stage.network:
                yield Finding(2326, place, f"worker '{worker}' is not in the stage's network")
        operators = [manifest.workers[worker].operator for worker in workers if worker in manifest.workers]
        for operator, count in Counter(operators).items():
            if count > 1:
                yield Finding(3306, place, f"'{operator}' operates {count} workers that must not collude")


def _links(manifest: Manifest) -> Iterator[Finding]:
    """Whoever layers are offloaded to can be recognised, and has the protocol of a worker's link."""
    stages = (stage.offload for stage in manifest.stages.values())
    offloaded = {worker for offload in stages if offload for worker in offload.workers}
    for name, worker in manifest.workers.items():
        if name not in offloaded:
            continue
        if worker.key is None:
            what = f"layers are offloaded to '{name}', which has no key: anybody at its address could be it"
            yield Finding(2334, ("workers", name), what)
        if not worker.url.startswith("tcp://") or not 0 < int(worker.url.rpartition(":")[2]) <= _MAX_PORT:
            yield Finding(2334, ("workers", name, "url"), f"a worker's link is tcp://HOST:PORT, not {worker.url!a}")


def _outputs(manifest: Manifest) -> dict[str, Place]:
    return {
        output: ("stages", name, "outputs", output)
        for name, stage in manifest.stages.items()
        for output in stage.outputs
    }


_RULES: tuple[Callable[[Manifest], Iterator[Finding]], ...] = (
    _texts, _names, _reserved, _producers, _references, _cycles, _kinds, _releases, _repeats, _times, _tees, _keys,
    _environment, check_terms, check_budgets, _offload, _links,
)  # fmt: skip
