from fractions import Fraction

import pytest
from tests.enclaves import offload_workers

from cloister.cli import _offloader
from cloister.cli._offloader import error_bits, offloader
from cloister.errors import CloisterError
from cloister.manifest import OffloadTerms
from cloister.offload import Ended
from cloister.wire import OpeningKey

TERMS = OffloadTerms(mode="shared3", workers=("gpu-a", "gpu-b", "gpu-c"))


@pytest.mark.parametrize(
    ("checks", "error", "bits"),
    [
        (0, None, None),
        (5, None, None),
        (1, Fraction(1, 2**58), 58),
        (2, Fraction(1, 2**58), 57),
        (3, Fraction(1, 2**58), 56),
        (1, Fraction(4, 2**61 - 1), 58),
        (1000, Fraction(4, 2**61 - 1), 49),
        (1 << 60, Fraction(1, 2**58), 0),
    ],
)
def test_the_error_of_all_checks_together_is_rounded_up(checks, error, bits):
    assert error_bits(checks, error) == bits
    if bits:
        assert checks * error <= Fraction(1, 2**bits)
        assert checks * error > Fraction(1, 2 ** (bits + 1))


def made(**changes):
    given = {"workers": offload_workers(*TERMS.workers), "memory_bytes": 1 << 20, "parties": {}, **changes}
    return offloader(TERMS, **given)


def test_what_a_broker_says_becomes_the_receipts_facts(monkeypatch):
    party = OpeningKey.generate(post_quantum=False).public
    broker = made(parties={"hospital": party})
    said = Ended(6706, 2, 30, 31, Fraction(1, 2**58), 400, 200, 5, {"hospital": b"sealed"})
    monkeypatch.setattr(broker._broker, "end", lambda: said)
    end = broker.end()
    assert (end.code, dict(end.evidence)) == (6706, {"hospital": b"sealed"})
    facts = end.facts
    assert (facts.mode, facts.workers) == (TERMS.mode, TERMS.workers)
    assert (facts.models, facts.products, facts.checks, facts.late) == (2, 30, 31, 5)
    assert (facts.error_bits, facts.sent_bytes, facts.received_bytes) == (53, 400, 200)


def test_each_model_has_links_of_its_own():
    broker = made()
    first, second = broker._links(), broker._links()
    assert [worker.name for worker in first] == list(TERMS.workers)
    assert not {id(worker) for worker in first} & {id(worker) for worker in second}


@pytest.mark.parametrize("change", [{"url": "tcp://nowhere"}, {"url": "https://gpu.example"}, {"key": "x25519:AA"}])
def test_a_worker_that_cannot_be_reached_by_any_means_is_told_before_anything_begins(change):
    workers = offload_workers(*TERMS.workers)
    workers["gpu-b"] = workers["gpu-b"].model_copy(update=change)
    with pytest.raises(CloisterError) as caught:
        made(workers=workers)
    assert caught.value.code == 2005


def test_without_torch_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(_offloader, "find_spec", lambda name: None)
    with pytest.raises(CloisterError) as caught:
        made()
    assert caught.value.code == 2006
