"""RFC 6962's tree against its published vectors, a slow recursive oracle, and every bent proof."""

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.errors import IntegrityError
from cloister.keys import MerkleLog, leaf_hash, verify_consistency, verify_inclusion, verify_joint_inclusion

# the leaves and roots of Certificate Transparency's reference tests
LEAVES = [bytes.fromhex(x) for x in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657")]
LEAVES.append(bytes.fromhex("606162636465666768696a6b6c6d6e6f"))
ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
INCLUSION_0_OF_8 = [
    "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
    "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
    "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
]
CONSISTENCY_6_TO_8 = [
    "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
    "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
]


def tree(size: int) -> MerkleLog:
    log = MerkleLog()
    for number in range(size):
        log.append(b"%d" % number)
    return log


def slow_root(leaves: list[bytes]) -> bytes:
    """RFC 6962, 2.1, word by word."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return hashlib.sha256(b"\0" + leaves[0]).digest()
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return hashlib.sha256(b"\1" + slow_root(leaves[:split]) + slow_root(leaves[split:])).digest()


def test_roots_are_the_published_ones() -> None:
    log = MerkleLog()
    for leaf, root in zip(LEAVES, ROOTS, strict=True):
        log.append(leaf)
        assert log.root().hex() == root
    assert [log.root(size).hex() for size in range(1, 9)] == ROOTS
    assert log.root(0) == hashlib.sha256(b"").digest()


def test_proofs_are_the_published_ones() -> None:
    log = MerkleLog()
    for leaf in LEAVES:
        log.append(leaf)
    assert [step.hex() for step in log.inclusion(0, 8)] == INCLUSION_0_OF_8
    assert [step.hex() for step in log.consistency(6, 8)] == CONSISTENCY_6_TO_8


def test_every_root_and_proof_of_small_trees() -> None:
    log = tree(40)
    leaves = [b"%d" % number for number in range(40)]
    for size in range(1, 41):
        root = log.root(size)
        assert root == slow_root(leaves[:size])
        for index in range(size):
            verify_inclusion(leaves[index], index=index, size=size, proof=log.inclusion(index, size), root=root)
        for first in range(1, size + 1):
            verify_consistency(
                first=first,
                first_root=log.root(first),
                second=size,
                second_root=root,
                proof=log.consistency(first, size),
            )


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_bent_inclusion_proof_is_refused(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 70))
    index = data.draw(st.integers(0, size - 1))
    log, leaf = tree(size), b"%d" % index
    proof, root = list(log.inclusion(index, size)), log.root(size)
    kind = data.draw(st.sampled_from(["leaf", "index", "size", "drop", "add", "flip", "root"]))
    given_size, given_index = size, index
    if kind == "leaf":
        leaf += b"x"
    elif kind == "index":
        given_index = data.draw(st.integers(-1, size + 1).filter(lambda i: i != index))
    elif kind == "size":
        # a size in which the leaf's path has the same shape proves the same leaf: only the root tells sizes apart
        given_size = data.draw(
            st.integers(0, 200).filter(lambda s: s != size and _path(s, index) != _path(size, index))
        )
    elif kind == "drop" and proof:
        proof.pop(data.draw(st.integers(0, len(proof) - 1)))
    elif kind == "add":
        proof.insert(data.draw(st.integers(0, len(proof))), leaf_hash(b"more"))
    elif kind == "flip" and proof:
        at = data.draw(st.integers(0, len(proof) - 1))
        proof[at] = bytes([proof[at][0] ^ 1]) + proof[at][1:]
    else:
        root = leaf_hash(root)
    with pytest.raises(IntegrityError) as raised:
        verify_inclusion(leaf, index=given_index, size=given_size, proof=proof, root=root)
    assert raised.value.code == 5003


def _path(size: int, index: int) -> list[str]:
    """On which side each sibling is, from the root down."""
    path: list[str] = []
    start, stop = 0, size
    while stop - start > 1:
        split = 1
        while split * 2 < stop - start:
            split *= 2
        if index < start + split:
            path.append("right")
            stop = start + split
        else:
            path.append("left")
            start += split
    return path


@given(st.integers(1, 60), st.integers(1, 60), st.data())
@settings(max_examples=200, deadline=None)
def test_bent_consistency_proof_is_refused(one: int, other: int, data: st.DataObject) -> None:
    first, second = sorted((one, other))
    log = tree(second)
    proof, roots = list(log.consistency(first, second)), [log.root(first), log.root(second)]
    kind = data.draw(st.sampled_from(["first", "second", "drop", "add", "flip"]))
    if kind == "drop" and proof:
        proof.pop()
    elif kind == "add":
        proof.append(leaf_hash(b"more"))
    elif kind == "flip" and proof:
        at = data.draw(st.integers(0, len(proof) - 1))
        proof[at] = bytes([proof[at][0] ^ 1]) + proof[at][1:]
    else:
        roots[kind == "second"] = leaf_hash(b"another tree")
    with pytest.raises(IntegrityError) as raised:
        verify_consistency(first=first, first_root=roots[0], second=second, second_root=roots[1], proof=proof)
    assert raised.value.code == 5003


def test_shrunk_log_is_never_consistent() -> None:
    log = tree(9)
    with pytest.raises(IntegrityError):
        verify_consistency(first=9, first_root=log.root(9), second=8, second_root=log.root(8), proof=[])


def test_a_node_never_passes_for_a_leaf() -> None:
    log = MerkleLog()
    log.append(b"a")
    log.append(b"b")
    forged = leaf_hash(b"a") + leaf_hash(b"b")
    with pytest.raises(IntegrityError):
        verify_inclusion(forged, index=0, size=1, proof=[], root=log.root())


@pytest.mark.parametrize("asked", [(-1, 3), (3, 3), (0, 4)])
def test_asking_for_a_leaf_that_is_not_there_is_a_mistake_of_the_caller(asked: tuple[int, int]) -> None:
    with pytest.raises(IndexError):
        tree(3).inclusion(*asked)
    with pytest.raises(IndexError):
        tree(3).consistency(0, 3)


def numbered(indices: list[int]) -> list[tuple[int, bytes]]:
    return [(index, b"%d" % index) for index in indices]


def test_joint_proof_of_every_choice_of_leaves_of_small_trees() -> None:
    log = tree(8)
    for size in range(1, 9):
        for chosen in range(1 << size):
            indices = [index for index in range(size) if chosen >> index & 1]
            proof = log.joint_inclusion(indices, size)
            verify_joint_inclusion(numbered(indices), size=size, proof=proof, root=log.root(size))
        assert log.joint_inclusion([], size) == (log.root(size),)
        assert log.joint_inclusion(range(size), size) == ()
        for index in range(size):  # of one leaf it has the nodes of RFC 6962's audit path
            assert set(log.joint_inclusion([index], size)) == set(log.inclusion(index, size))


def test_joint_proof_is_not_made_of_leaves_that_are_none() -> None:
    for indices in ([0, 0], [1, 0], [-1], [5]):
        with pytest.raises(IndexError):
            tree(9).joint_inclusion(indices, 5)


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_bent_joint_proof_is_refused(data: st.DataObject) -> None:
    size = data.draw(st.integers(2, 70))
    indices = sorted(data.draw(st.sets(st.integers(0, size - 1), min_size=1, max_size=12)))
    log, leaves = tree(size), numbered(indices)
    proof, root = list(log.joint_inclusion(indices, size)), log.root(size)
    verify_joint_inclusion(leaves, size=size, proof=proof, root=root)
    at = data.draw(st.integers(0, len(leaves) - 1))
    kind = data.draw(st.sampled_from(["leaf", "moved", "twice", "beyond", "left out", "drop", "add", "flip", "root"]))
    if kind == "leaf":
        leaves[at] = (leaves[at][0], leaves[at][1] + b"x")
    elif kind == "moved":
        free = data.draw(st.integers(-1, size).filter(lambda index: index not in indices))
        leaves[at] = (free, leaves[at][1])
        if data.draw(st.booleans()):
            leaves.sort()
    elif kind == "twice":
        leaves.insert(at, leaves[at])
    elif kind == "beyond":
        leaves.append((size, b"%d" % size))
    elif kind == "left out":
        leaves.pop(at)
    elif kind == "drop" and proof:
        proof.pop(data.draw(st.integers(0, len(proof) - 1)))
    elif kind == "add":
        proof.insert(data.draw(st.integers(0, len(proof))), leaf_hash(b"more"))
    elif kind == "flip" and proof:
        step = data.draw(st.integers(0, len(proof) - 1))
        proof[step] = bytes([proof[step][0] ^ 1]) + proof[step][1:]
    else:
        root = leaf_hash(root)
    with pytest.raises(IntegrityError) as raised:
        verify_joint_inclusion(leaves, size=size, proof=proof, root=root)
    assert raised.value.code == 5003


def test_joint_proof_costs_what_is_shown_and_not_what_the_tree_holds() -> None:
    log = tree(4096)
    assert len(log.joint_inclusion(range(1000, 1500), 4096)) < 2 * 12
    assert len(log.joint_inclusion(range(0, 4096, 1024), 4096)) == 4 * 10
