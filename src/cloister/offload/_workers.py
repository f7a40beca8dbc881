"""The seam to an untrusted accelerator, and the worker that runs in this process."""

from __future__ import annotations

from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Protocol

import torch

from cloister.errors import CloisterError, PeerError
from cloister.offload._coprocessor import DEFAULT_MEMORY_BYTES, Coprocessor
from cloister.ring import kernels_for

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from cloister.offload._commands import Command, Stream
    from cloister.ring import MaskKey, RingKernels

__all__ = ["InlineWorker", "Worker"]


class Worker(Protocol):
    """One untrusted accelerator, as the enclave sees it.

    Commands are done in the order in which they were submitted. A tensor that was submitted is not changed afterwards
    by its owner, so that an implementation may send or keep it without a copy. One session: who was closed, or whose
    link failed, is not started again. A call out of order is a :class:`RuntimeError`.
    """

    name: str

    @property
    def device(self) -> str:
        """Where it expands masks, once started: ``cpu``, ``cuda:0``. Its word: a wrong one makes wrong products."""
        ...

    def start(self, keys: Mapping[Stream, MaskKey]) -> None:
        """Begins a session with the keys of the streams that this worker expands. Once, before any command."""
        ...

    def submit(self, command: Command, tensor: Tensor | None = None) -> Future[Tensor | None]:
        """Hands over one command.

        Returns:
            A future, that nobody else can cancel, with a ``compute``'s answer or with nothing. It carries a
            :class:`~cloister.errors.CloisterError` where the command was refused or the link failed, and
            :class:`~concurrent.futures.CancelledError` where :meth:`close` came first.
        """
        ...

    def close(self) -> None:
        """Ends the session; what the worker kept is forgotten, and commands that were not done are cancelled."""
        ...


class InlineWorker:
    """A worker in this process, on a thread of its own: for notebooks and tests.

    Security: it protects nothing, since who owns the process sees enclave and worker alike.
    """

    def __init__(
        self,
        name: str = "inline",
        *,
        kernels: RingKernels | None = None,
        device: torch.device | None = None,
        memory_bytes: int = DEFAULT_MEMORY_BYTES,
    ) -> None:
        self.name = name
        self._kernels = kernels
        self._device = device or torch.device("cpu")
        self._memory_bytes = memory_bytes
        self._coprocessor: Coprocessor | None = None
        self._started = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"worker {name}")

    @property
    def device(self) -> str:
        """See :class:`Worker`."""
        return str(self._device)

    def start(self, keys: Mapping[Stream, MaskKey]) -> None:
        """See :class:`Worker`."""
        if self._started:
            raise RuntimeError("a worker is started once")
        self._started = True
        self._coprocessor = Coprocessor(
            self._kernels or kernels_for(self._device),
            keys=keys,
            device=self._device,
            memory_bytes=self._memory_bytes,
        )

    def submit(self, command: Command, tensor: Tensor | None = None) -> Future[Tensor | None]:
        """See :class:`Worker`."""
        if self._coprocessor is None:
            raise RuntimeError("submit() comes between start() and close()")
        future: Future[Tensor | None] = Future()
        future.set_running_or_notify_cancel()
        self._thread.submit(self._do, future, command, tensor)
        return future

    def close(self) -> None:
        """See :class:`Worker`."""
        self._started, self._coprocessor = True, None
        self._thread.shutdown(wait=True)

    def _do(self, future: Future[Tensor | None], command: Command, tensor: Tensor | None) -> None:
        coprocessor = self._coprocessor
        if coprocessor is None:
            future.set_exception(CancelledError())
            return
        try:
            answer = coprocessor.execute(command, tensor)
            future.set_result(None if answer is None else answer.cpu())  # where the enclave's passes are
        except CloisterError as error:
            future.set_exception(error)
        except Exception as error:  # of a kernel: what a worker behind a socket says is this code, without the cause
            failed = PeerError(6709, got=type(error).__name__)
            failed.__cause__ = error
            future.set_exception(failed)
