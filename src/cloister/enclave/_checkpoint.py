"""A stage's checkpoints: what the script saves is sealed for the host to keep, and the last one is there at the start.

The script writes a file beside ``/checkpoint/state`` and renames it to that. The launcher sees the new file, seals it,
writes it to the host's storage under a name of its own, and only then tells the key managers its number and digest: of
an attempt that is killed in between, the checkpoint before is still the last. At the next attempt's start the bytes in
storage must be those that the key managers know as the last ones, so a host that puts yesterday's back, another
stage's, or nothing, gets no attempt at all.

A checkpoint in storage: ``magic ‖ attempt ‖ sequence ‖ salt``, then sealed pieces (:class:`cloister.wire.Pieces`) of
``length ‖ state ‖ zeros``, padded to the bucket that an image of this size would have.

What a script saves after a worker lied to it is made of the lie, whether it knows or not: nothing is saved any more
from the moment that a check failed, which is before the script has anything in the wrong product's place.

Storage or a key manager that does not answer costs the checkpoint that was to be saved, which the log says, and nothing
else. What the script did wrong, and a refusal that stands (a newer attempt has the keys, a party suspended the
manifest), ends the attempt: it would go on as if it were safe.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import stat
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

from cloister.enclave._release import AttemptKeys
from cloister.errors import CloisterError, InputError, IntegrityError, InternalError, RefusedError
from cloister.keys import CheckpointRecord, Checkpoints
from cloister.manifest import Stage
from cloister.seal import ByteSource, open_sink, open_source, padded_length, remove_file
from cloister.wire import Pieces, PieceWriter, sealed_length

__all__ = ["CHECKPOINT_VARIABLE", "SCRIPT_FOLDER", "StageCheckpoints"]

CHECKPOINT_VARIABLE: Final = "CLOISTER_CHECKPOINT"
"""The variable that tells the script where its checkpoints go."""

SCRIPT_FOLDER: Final = "/checkpoint"
"""Where that is, in its sandbox."""

_MAGIC = b"cloister stage checkpoint\x01"
_SALT_BYTES = 32
_HEAD = struct.Struct(f">{len(_MAGIC)}sIQ{_SALT_BYTES}s")
_LENGTH = struct.Struct(">Q")
_LABEL = b"cloister/stage-checkpoint/v1"
_STATE = "state"
_CHUNK = 1 << 20
_POLL_S = 0.5
_MOST = 4000  # checkpoints of one attempt; key managers take a few more
_PASSING = frozenset({3420, 3425, 3433})  # refusals that say: later


class StageCheckpoints:
    """The checkpoints of one attempt. :meth:`restore` first; then a context manager around the script.

    Args:
        stage: With checkpoint terms.
        place: Where the host keeps them: what each one's name begins with.
        attempt: This attempt's number.
        keys: Released to it.
        folder: What the script sees as ``/checkpoint``, in private memory; made here.
        warn: Told of each checkpoint that was not saved; what it is told is not for the host.
        tainted: Whether anything was handed to the script that its state must not be made of; asked once that state has
            been read, so that it was asked after it was made.
    """

    def __init__(
        self,
        stage: Stage,
        *,
        place: str,
        attempt: int,
        keys: AttemptKeys,
        folder: Path,
        warn: Callable[[str], None],
        tainted: Callable[[], bool] = lambda: False,
    ) -> None:
        granted: Checkpoints | None = keys.checkpoints
        if stage.checkpoint is None or granted is None:
            raise InternalError(9001, "a stage without checkpoint terms")
        self._place, self._attempt, self._keys, self._warn, self._tainted = place, attempt, keys, warn, tainted
        self._max_bytes, self._granted, self._folder = stage.checkpoint.max_bytes, granted, folder
        self._pause_s = max(_POLL_S, stage.limits.time_s / _MOST)
        self._sequence = 0 if granted.last is None else granted.last.sequence
        self._seen: tuple[int, int, int] | None = None
        self._kept = [] if granted.last is None else [self._url(granted.last.attempt, granted.last.sequence)]
        self._failure: CloisterError | None = None
        self._looking, self._ended = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._watch, name="cloister-checkpoints", daemon=True)
        self.halt = threading.Event()
        folder.mkdir(mode=0o700)

    def __enter__(self) -> StageCheckpoints:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    # ---- going on ----------------------------------------------------------------------------------------------

    def restore(self) -> CheckpointRecord | None:
        """Puts the last checkpoint where the script finds it; None when there is none yet.

        Raises:
            IntegrityError: 5507 when storage does not hold the bytes that the key managers know as the last; 5508 when
                it does, and they were not sealed as this.
            PeerError: 6201 when the storage does not answer.
        """
        last = self._granted.last
        if last is None:
            return None
        url = self._url(last.attempt, last.sequence)
        rolled_back = IntegrityError(5507, expected=f"number {last.sequence} of attempt {last.attempt}, at '{url}'")
        try:
            source = open_source(url)
            with contextlib.closing(source):
                self._unseal(source, last, rolled_back)
        except InputError as error:
            if error.code != 2001:  # not there
                raise
            raise rolled_back from None
        return last

    def _unseal(self, source: ByteSource, last: CheckpointRecord, rolled_back: IntegrityError) -> None:
        """One pass: storage may answer differently each time, so what is hashed is what is opened."""
        size = source.size()
        if not _HEAD.size < size <= _HEAD.size + sealed_length(padded_length(_LENGTH.size + self._max_bytes)):
            raise rolled_back
        reader = _HashingReader(source, size)
        head = reader.read(_HEAD.size)
        wanted = _HEAD.pack(_MAGIC, last.attempt, last.sequence, head[-_SALT_BYTES:])
        target = self._folder / _STATE
        opened = True
        with target.open("xb") as file:
            state = _StateWriter(file.write)
            try:
                if head != wanted:
                    raise ValueError("another head")
                self._pieces(head).open(reader.read, state.write, size_bytes=size - _HEAD.size)
                state.require_whole()
            except ValueError:
                opened = False
                reader.drain()
        if not secrets.compare_digest(reader.hexdigest(), last.checkpoint):
            target.unlink()
            raise rolled_back
        if not opened:
            target.unlink()
            raise IntegrityError(5508, expected=f"number {last.sequence} of attempt {last.attempt}")
        self._seen = _identity(target.stat())

    # ---- saving ------------------------------------------------------------------------------------------------

    def look(self) -> None:
        """Saves what the script saved last, if that is not done. Whatever fails is kept for :meth:`require`."""
        with self._looking:
            if self._failure is not None:
                return
            try:
                self._look()
            except CloisterError as error:
                if _may_pass(error):
                    self._warn(f"[checkpoint {self._sequence} was not saved: {error}]")
                    return
                self._failure = error
            except Exception as error:
                self._failure = InternalError(9001, type(error).__name__)
            if self._failure is not None:
                self.halt.set()

    def require(self) -> None:
        """Returns when nothing went wrong that ends the attempt.

        Raises:
            RefusedError: 3507 when the script left no ordinary file; 3508 when it is larger than agreed; what a key
                manager refused for good, under its own code.
        """
        if self._failure is not None:
            raise self._failure

    def _watch(self) -> None:
        while not self._ended.wait(self._pause_s):
            self.look()

    def _look(self) -> None:
        try:
            # Neither a link is followed nor a pipe waited for: the script chose what lies here.
            handle = os.open(self._folder / _STATE, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        except OSError as error:
            raise RefusedError(3507, got=error.strerror) from None
        try:
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode):
                raise RefusedError(3507)
            if _identity(status) == self._seen:
                return
            if status.st_size > self._max_bytes:
                raise RefusedError(3508, expected=f"at most {self._max_bytes} bytes", got=status.st_size)
            self._save(handle, status)
            self._seen = _identity(status)
        finally:
            os.close(handle)

    def _save(self, handle: int, status: os.stat_result) -> None:
        self._sequence += 1  # of every try: a number never stands for two states
        url = self._url(self._attempt, self._sequence)
        sink, hasher, size = open_sink(url, overwrite=False), hashlib.sha256(), 0

        def put(data: bytes) -> None:
            nonlocal size
            hasher.update(data)
            sink.write(data)
            size += len(data)

        try:
            head = _HEAD.pack(_MAGIC, self._attempt, self._sequence, secrets.token_bytes(_SALT_BYTES))
            put(head)
            writer = PieceWriter(put, self._pieces(head))
            writer.write(_LENGTH.pack(status.st_size))
            at = 0
            while at < status.st_size and (chunk := os.pread(handle, min(_CHUNK, status.st_size - at), at)):
                at += writer.write(chunk)
            if at != status.st_size or _identity(os.fstat(handle)) != _identity(status):
                raise InputError(2001, "the script wrote to it meanwhile: it is to write beside it, and to rename")
            _pad(writer, _LENGTH.size + at)
            writer.finish()
            if self._tainted():
                sink.abort()
                return
            sink.commit(size)
        except BaseException:
            sink.abort()
            raise
        self._kept.append(url)
        self._keys.save_checkpoint(self._sequence, hasher.hexdigest())
        before, self._kept = self._kept[:-1], [url]
        for each in before:  # every key manager knows the new one as the last
            with contextlib.suppress(CloisterError):
                remove_file(each)

    def _pieces(self, head: bytes) -> Pieces:
        return Pieces(self._granted.key, salt=head[-_SALT_BYTES:], label=_LABEL, head=head)

    def _url(self, attempt: int, sequence: int) -> str:
        return f"{self._place}.attempt{attempt}.{sequence}.cloister"


class _HashingReader:
    """Reads a source once, from its beginning, and hashes what it gave."""

    def __init__(self, source: ByteSource, size_bytes: int) -> None:
        self._source, self._left, self._at = source, size_bytes, 0
        self._hasher = hashlib.sha256()

    def read(self, size_bytes: int) -> bytes:
        data = self._source.read(self._at, min(size_bytes, self._left))
        self._at += len(data)
        self._left -= len(data)
        self._hasher.update(data)
        return data

    def drain(self) -> None:
        while self._left and self.read(_CHUNK):
            pass

    def hexdigest(self) -> str:
        return self._hasher.hexdigest()


class _StateWriter:
    """Takes ``length ‖ state ‖ zeros`` in parts of any size, and writes the state."""

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._write, self._head, self._left = write, b"", -1

    def write(self, data: bytes) -> None:
        if self._left < 0:
            self._head += data
            if len(self._head) < _LENGTH.size:
                return
            (self._left,) = _LENGTH.unpack_from(self._head)
            data = self._head[_LENGTH.size :]
        self._write(data[: self._left])
        self._left -= min(self._left, len(data))

    def require_whole(self) -> None:
        if self._left != 0:
            raise ValueError("shorter than it says")


def _pad(writer: PieceWriter, size_bytes: int) -> None:
    left = padded_length(size_bytes) - size_bytes
    while left:
        left -= writer.write(bytes(min(left, _CHUNK)))


def _identity(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_ino, status.st_mtime_ns, status.st_size


def _may_pass(error: CloisterError) -> bool:
    """Whether a later checkpoint may well be saved: a peer or the host's storage failed, or a key manager is busy."""
    return error.exit_status in (2, 6) or error.code in _PASSING
