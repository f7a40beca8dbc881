"""An append-only Merkle tree and its proofs.

A joint inclusion proof is the audit paths of several leaves at once, each node written down once and none that follows
from the leaves themselves: the tree from left to right, every stretch without a leaf that is shown folded into as few
nodes as possible.

Source: RFC 6962, section 2.1 (hashes, audit paths, consistency proofs); the verifiers follow RFC 9162, 2.1.3.2 and
2.1.4.2.
"""

from __future__ import annotations

import hashlib
import hmac
from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise

from cloister.errors import IntegrityError

__all__ = ["MerkleLog", "leaf_hash", "verify_consistency", "verify_inclusion", "verify_joint_inclusion"]

_EMPTY = hashlib.sha256(b"").digest()
MAX_PROOF_STEPS = 64  # a tree of 2^64 entries


def leaf_hash(leaf: bytes) -> bytes:
    """SHA-256 over 0x00 and the leaf: no leaf passes for a node."""
    return hashlib.sha256(b"\0" + leaf).digest()


def _node_hash(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\1" + left + right).digest()


class MerkleLog:
    """The tree over the leaves so far.

    It keeps the hashes of all complete subtrees, 64 bytes a leaf in all: appending costs two hashes on average, and
    every proof is logarithmic.
    """

    __slots__ = ("_levels",)

    def __init__(self) -> None:
        self._levels: list[list[bytes]] = [[]]  # _levels[k][i]: the root over leaves [i << k, (i + 1) << k)

    @property
    def size(self) -> int:
        """How many leaves."""
        return len(self._levels[0])

    def append(self, leaf: bytes) -> int:
        """Adds a leaf; returns its index."""
        index = self.size
        node, level = leaf_hash(leaf), 0
        self._levels[0].append(node)
        while len(self._levels[level]) % 2 == 0:
            node = _node_hash(self._levels[level][-2], node)
            level += 1
            if level == len(self._levels):
                self._levels.append([])
            self._levels[level].append(node)
        return index

    def root(self, size: int | None = None) -> bytes:
        """The root over the first ``size`` leaves (all of them when None)."""
        return self._range(0, self.size if size is None else self._checked(size))

    def inclusion(self, index: int, size: int) -> tuple[bytes, ...]:
        """The audit path of leaf ``index`` in the tree of ``size`` leaves, from the leaf up."""
        if not 0 <= index < self._checked(size):
            raise IndexError(index)
        path: list[bytes] = []
        start, stop = 0, size
        while stop - start > 1:
            split = start + _split(stop - start)
            if index < split:
                path.append(self._range(split, stop))
                stop = split
            else:
                path.append(self._range(start, split))
                start = split
        return tuple(reversed(path))

    def joint_inclusion(self, indices: Sequence[int], size: int) -> tuple[bytes, ...]:
        """That the tree of ``size`` leaves holds all of these; ``indices`` ascend. Of no leaf it is the root."""
        if not _ascend_below(indices, self._checked(size)):
            raise IndexError(size)
        path: list[bytes] = []

        def fold(start: int, stop: int, first: int, last: int) -> None:
            if first == last:
                path.append(self._range(start, stop))
            elif stop - start > 1:
                split = start + _split(stop - start)
                middle = bisect_left(indices, split, first, last)
                fold(start, split, first, middle)
                fold(split, stop, middle, last)

        fold(0, size, 0, len(indices))
        return tuple(path)

    def consistency(self, first: int, second: int) -> tuple[bytes, ...]:
        """That the tree of ``second`` leaves extends the tree of ``first``; empty when they are equal."""
        if not 1 <= first <= self._checked(second):
            raise IndexError(first)
        path: list[bytes] = []
        start, stop, whole = 0, second, True
        while first != stop:
            split = start + _split(stop - start)
            if first <= split:
                path.append(self._range(split, stop))
                stop = split
            else:
                path.append(self._range(start, split))
                start, whole = split, False
        if not whole:
            path.append(self._range(start, stop))
        return tuple(reversed(path))

    def _checked(self, size: int) -> int:
        if not 0 <= size <= self.size:
            raise IndexError(size)
        return size

    def _range(self, start: int, stop: int) -> bytes:
        """The root over leaves [start, stop); start is a multiple of the subtree's size, as in all callers."""
        size = stop - start
        if size == 0:
            return _EMPTY
        if size & (size - 1) == 0:
            level = size.bit_length() - 1
            return self._levels[level][start >> level]
        split = start + _split(size)
        return _node_hash(self._range(start, split), self._range(split, stop))


def _split(size: int) -> int:
    """The largest power of two below ``size``."""
    return 1 << (size - 1).bit_length() - 1


def _ascend_below(indices: Sequence[int], size: int) -> bool:
    return all(one < other for one, other in pairwise([-1, *indices, size]))


def verify_inclusion(leaf: bytes, *, index: int, size: int, proof: Sequence[bytes], root: bytes) -> None:
    """Returns when ``proof`` leads from ``leaf`` at ``index`` to the ``root`` of a tree of ``size`` leaves.

    Raises:
        IntegrityError: 5003 otherwise.
    """
    if not 0 <= index < size or len(proof) > MAX_PROOF_STEPS:
        raise IntegrityError(5003, "inclusion proof is about no leaf of this tree", got=f"leaf {index} of {size}")
    node, last, found = index, size - 1, leaf_hash(leaf)
    for step in proof:
        if last == 0:
            raise IntegrityError(5003, "inclusion proof is too long")
        if node & 1 or node == last:
            found = _node_hash(step, found)
            while node & 1 == 0 and node != 0:
                node, last = node >> 1, last >> 1
        else:
            found = _node_hash(found, step)
        node, last = node >> 1, last >> 1
    if last != 0 or not hmac.compare_digest(found, root):
        raise IntegrityError(5003, "inclusion proof does not lead to the root", expected=root.hex(), got=found.hex())


def verify_joint_inclusion(
    leaves: Sequence[tuple[int, bytes]], *, size: int, proof: Sequence[bytes], root: bytes
) -> None:
    """Returns when ``proof`` leads from all ``leaves`` (index and leaf, in order) to the ``root`` of ``size`` leaves.

    Raises:
        IntegrityError: 5003 otherwise.
    """
    indices = [index for index, _ in leaves]
    if size < 1 or not _ascend_below(indices, size):
        raise IntegrityError(5003, "joint inclusion proof is about no leaves of this tree", got=f"size {size}")
    steps = iter(proof)

    def fold(start: int, stop: int, first: int, last: int) -> bytes:
        if first == last:
            step = next(steps, None)
            if step is None:
                raise IntegrityError(5003, "joint inclusion proof is too short")
            return step
        if stop - start == 1:
            return leaf_hash(leaves[first][1])
        split = start + _split(stop - start)
        middle = bisect_left(indices, split, first, last)
        left = fold(start, split, first, middle)
        return _node_hash(left, fold(split, stop, middle, last))

    found = fold(0, size, 0, len(leaves))
    if next(steps, None) is not None:
        raise IntegrityError(5003, "joint inclusion proof is too long")
    if not hmac.compare_digest(found, root):
        raise IntegrityError(
            5003, "joint inclusion proof does not lead to the root", expected=root.hex(), got=found.hex()
        )


def verify_consistency(
    *, first: int, first_root: bytes, second: int, second_root: bytes, proof: Sequence[bytes]
) -> None:
    """Returns when ``proof`` shows that the tree of ``second`` leaves begins with the tree of ``first``.

    Raises:
        IntegrityError: 5003 otherwise; so also when ``second`` is smaller: a log only grows.
    """
    if not 1 <= first <= second or len(proof) > MAX_PROOF_STEPS:
        raise IntegrityError(5003, "a log only grows", expected=f"at least {first} entries", got=f"{second} entries")
    if first == second:
        if proof or not hmac.compare_digest(first_root, second_root):
            raise IntegrityError(5003, "two trees of one size differ", expected=first_root.hex(), got=second_root.hex())
        return
    steps = list(proof)
    if first & (first - 1) == 0:
        steps.insert(0, first_root)
    if not steps:
        raise IntegrityError(5003, "consistency proof is empty")
    node, last = first - 1, second - 1
    while node & 1:
        node, last = node >> 1, last >> 1
    old = new = steps[0]
    for step in steps[1:]:
        if last == 0:
            raise IntegrityError(5003, "consistency proof is too long")
        if node & 1 or node == last:
            old, new = _node_hash(step, old), _node_hash(step, new)
            while node & 1 == 0 and node != 0:
                node, last = node >> 1, last >> 1
        else:
            new = _node_hash(new, step)
        node, last = node >> 1, last >> 1
    if last != 0 or not hmac.compare_digest(old, first_root) or not hmac.compare_digest(new, second_root):
        raise IntegrityError(
            5003, "consistency proof does not hold", expected=f"{first_root.hex()} in {second_root.hex()}"
        )
