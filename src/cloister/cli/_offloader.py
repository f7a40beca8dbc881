"""The broker of a stage's layers, as a launcher gets it: links to the manifest's workers, and what multiplies there.

Neither the launcher's room nor the one that multiplies knows the other. Torch is imported when a broker is made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from cloister.enclave import OffloadEnd
from cloister.errors import InputError
from cloister.manifest import OffloadTerms, Worker
from cloister.receipt import OffloadFacts
from cloister.wire import SealingKey

if TYPE_CHECKING:
    from typing import Self

    from cloister.offload import Ended, SocketWorker

__all__ = ["MULTIPLYING", "error_bits", "offloader"]

MULTIPLYING = ("torch", "cloister.offload", "cloister.offload._warm:compile_kernels")
"""What a broker imports, and what compiles its kernels."""


class _StageBroker:
    """:class:`cloister.enclave.Broker` over :class:`cloister.offload.Broker`."""

    def __init__(
        self,
        terms: OffloadTerms,
        workers: Mapping[str, Worker],
        memory_bytes: int,
        parties: Mapping[str, SealingKey],
    ) -> None:
        from cloister.offload import Broker

        self._terms, self._workers = terms, dict(workers)
        self._links()  # an address that is none is told before any key is released
        self._broker = Broker(
            terms.mode, self._links, workers=tuple(workers), memory_bytes=memory_bytes, parties=parties
        )

    @property
    def environment(self) -> Mapping[str, str]:
        return self._broker.environment

    @property
    def descriptors(self) -> Sequence[int]:
        return self._broker.descriptors

    def __enter__(self) -> Self:
        self._broker.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._broker.__exit__(None, None, None)

    @property
    def wrong(self) -> bool:
        return self._broker.wrong

    def end(self) -> OffloadEnd:
        ended = self._broker.end()
        return OffloadEnd(ended.code, _facts(self._terms, ended), dict(ended.evidence))

    def _links(self) -> list[SocketWorker]:
        """Fresh ones: a session never resumes."""
        from cloister.offload import SocketWorker

        return [
            SocketWorker(name, url=worker.url, key=SealingKey.parse(worker.key or ""))
            for name, worker in self._workers.items()
        ]


def offloader(
    terms: OffloadTerms,
    /,
    *,
    workers: Mapping[str, Worker],
    memory_bytes: int,
    parties: Mapping[str, SealingKey],
) -> _StageBroker:
    """See :class:`cloister.enclave.Offloader`."""
    if find_spec("torch") is None or find_spec("numba") is None:
        raise InputError(2006, "offloading needs torch and numba", hint='pip install "cloister[torch]"')
    return _StageBroker(terms, workers, memory_bytes, parties)


def error_bits(checks: int, error: Fraction | None) -> int | None:
    """The greatest n with ``checks · error ≤ 2^-n``, not below 0; None without checks."""
    if not checks or not error:
        return None
    total = checks * error
    return max(0, (total.denominator // total.numerator).bit_length() - 1)


def _facts(terms: OffloadTerms, ended: Ended) -> OffloadFacts:
    counts: dict[str, Any] = {
        name: getattr(ended, name) for name in ("models", "products", "checks", "sent_bytes", "received_bytes", "late")
    }
    bits = error_bits(ended.checks, ended.error)
    return OffloadFacts(mode=terms.mode, workers=terms.workers, error_bits=bits, **counts)
