"""Parties of a linear fit and what they agree on, for the tests of agreements, links and commands."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Sequence
from typing import Any

from cloister.linear._agreement import Agreement
from cloister.linear._consent import Signed, load_agreement, propose, sign
from cloister.linear._link import TlsChannel
from cloister.linear._meeting import connect
from cloister.party import Identity
from cloister.wire import canonical

NAMES = ("bank-a", "bank-b", "bank-c")
PEOPLE = {name: Identity.generate(name) for name in (*NAMES, "bank-d", "stranger")}


def free_ports(many: int) -> list[int]:
    """Ports of this machine that nobody listens at."""
    taken = [socket.create_server(("127.0.0.1", 0)) for _ in range(many)]
    ports = [one.getsockname()[1] for one in taken]
    for one in taken:
        one.close()
    return ports


def written(names: Sequence[str] = NAMES, **changes: Any) -> dict[str, Any]:
    """An agreement as a person writes it; an entry that is None is left out."""
    ports = free_ports(len(names))
    document: dict[str, Any] = {
        "format": "cloister/linear-agreement/v1",
        "name": "aml",
        "purpose": "find accounts that launder money",
        "valid": {"not_before": "2020-01-01T00:00:00Z", "not_after": "2099-01-01T00:00:00Z"},
        "parties": [
            {
                "name": name,
                "key": str(PEOPLE[name].signing_key.public),
                "address": f"127.0.0.1:{port}",
                "rows": 400 + 100 * place,
            }
            for place, (name, port) in enumerate(zip(names, ports, strict=True))
        ],
        "features": [
            {"name": "amount", "centre": "2", "scale": "4"},
            {"name": "kind", "categories": ["card", "cash", "wire"]},
            {"name": "age", "centre": "-0.5", "scale": "1.5e1", "mean_square": "3"},
        ],
        "response": {"name": "risk", "centre": "1", "scale": "2"},
        "model": {"type": "lasso", "alpha": "0.1", "rounds": 8, "half": 8},
        "curvature": "8",
        "timeouts": {"connect_s": 20, "answer_s": 20},
    } | changes
    return {key: value for key, value in document.items() if value is not None}


def agreed(names: Sequence[str] = NAMES, **changes: Any) -> Agreement:
    """The same, read."""
    return load_agreement(canonical(written(names, **changes)))


def signed_by_all(agreement: Agreement) -> Signed:
    signed = propose(agreement)
    for party in agreement.parties:
        signed = sign(signed, PEOPLE[party.name])
    return signed


def together(*works: Callable[[], Any]) -> list[Any]:
    """What each gives, or the exception that ended it, run in threads of their own."""
    found: list[Any] = [None] * len(works)

    def run(place: int) -> None:
        try:
            found[place] = works[place]()
        except BaseException as error:
            found[place] = error

    threads = [threading.Thread(target=run, args=(place,), daemon=True) for place in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "a party hangs"
    return found


def linked(agreement: Agreement, work: Callable[[TlsChannel], Any]) -> list[Any]:
    """What each party's ``work`` gives on its channel, all of them on this machine; a failure is its exception."""

    def one(place: int) -> Any:
        key = PEOPLE[agreement.parties[place].name].signing_key
        with connect(agreement, place, key, listen=agreement.parties[place].address) as channel:
            return work(channel)

    return together(*(lambda place=place: one(place) for place in range(len(agreement.parties))))
