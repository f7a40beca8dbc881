"""Sound manifests of every shape, and the same ones as JSON values to break."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from tests.unit.manifest.full import FULL_MANIFEST

from cloister.manifest import Manifest

__all__ = ["manifests"]

BASE = FULL_MANIFEST.as_json()
OWNERS = list(BASE["parties"])
MANAGERS = list(BASE["key_managers"])


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    """A random acyclic graph of stages over random images, with the releases that it needs and some more."""
    images = {
        f"image-{index}": {
            "id": f"{index:064x}",
            "kind": "dataset",
            "owner": draw(st.sampled_from(OWNERS)),
            "key_manager": draw(st.sampled_from(MANAGERS)),
        }
        for index in range(draw(st.integers(1, 4)))
    }
    code = {"id": "f" * 64, "kind": "code", "owner": draw(st.sampled_from(OWNERS)), "key_manager": "keys-a"}
    count = draw(st.integers(1, 6))
    names = draw(st.permutations([f"stage-{letter}" for letter in "abcdef"]))[:count]
    stages: dict[str, Any] = {}
    releases: list[dict[str, Any]] = []
    outputs: list[str] = []
    for name in names:
        read = draw(st.lists(st.sampled_from([*images, *outputs]), max_size=4, unique=True))
        written = [f"out-{name}-{index}" for index in range(draw(st.integers(1, 2)))]
        releases += [{"output": item, "stage": name} for item in read if item in outputs]
        stages[name] = {
            "tee": "launcher",
            "code": "scripts",
            "argv": ["python", "x.py"],
            "inputs": read,
            "outputs": {output: {"max_bytes": 1024} for output in written},
            "logs": draw(st.lists(st.sampled_from(OWNERS), max_size=2, unique=True)),
            "network": draw(st.lists(st.sampled_from(["gpu-x", "gpu-y"]), max_size=2, unique=True)),
        }
        outputs += written
    services: dict[str, Any] = {}
    for index, model in enumerate(draw(st.lists(st.sampled_from(outputs), max_size=2, unique=True))):
        clients = draw(st.lists(st.sampled_from(OWNERS), max_size=2, unique=True))
        services[f"service-{index}"] = {"tee": "launcher", "model": model, "clients": clients}
        releases.append({"output": model, "service": f"service-{index}"})
    for output in outputs:
        for party in draw(st.lists(st.sampled_from(OWNERS), max_size=2, unique=True)):
            releases.append({"output": output, "party": party})
        if not any(release["output"] == output for release in releases):
            releases.append({"output": output, "nobody": True})
    unread = set(images) - {item for stage in stages.values() for item in stage["inputs"]}
    stages[names[0]]["inputs"] = sorted(unread) + stages[names[0]]["inputs"]
    ordered = draw(st.permutations(list(stages)))
    value = BASE | {
        "images": images | {"scripts": code},
        "stages": {name: stages[name] for name in ordered},
        "services": services,
        "releases": draw(st.permutations(releases)),
    }
    from cloister.wire import parse_message

    return parse_message(Manifest, value, what="generated")
