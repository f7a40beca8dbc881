import ctypes
import ctypes.util
import errno
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.enclave._seccomp import _ABSENT, _CLONE, _IOCTL, _SOCKET, REFUSED, seccomp_program
from cloister.errors import InputError

ARCHES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
ALLOW, KILL = 0x7FFF0000, 0x80000000
EPERM, ENOSYS, EAFNOSUPPORT = (0x50000 | code for code in (errno.EPERM, errno.ENOSYS, errno.EAFNOSUPPORT))


def verdict(machine, number, *arguments, arch=None):
    """Interprets the program as the kernel does."""
    data = struct.pack("<IIQ6Q", number, arch or ARCHES[machine], 0, *arguments, *[0] * (6 - len(arguments)))
    program = seccomp_program(machine)
    steps = [struct.unpack("<HBBI", program[i : i + 8]) for i in range(0, len(program), 8)]
    at, value = 0, 0
    while True:
        code, then, otherwise, k = steps[at]
        at += 1
        if code == 0x20:
            value = struct.unpack_from("<I", data, k)[0]
        elif code == 0x06:
            return k
        else:
            holds = {0x15: value == k, 0x25: value > k, 0x35: value >= k, 0x45: bool(value & k)}[code]
            at += then if holds else otherwise


@pytest.mark.parametrize("machine", ARCHES)
def test_every_number_is_the_one_that_libseccomp_knows(machine):
    name = ctypes.util.find_library("seccomp")
    if name is None:
        pytest.skip("libseccomp, the second opinion, is not installed")
    resolve = ctypes.CDLL(name).seccomp_syscall_resolve_name_arch
    resolve.argtypes, resolve.restype = [ctypes.c_uint32, ctypes.c_char_p], ctypes.c_int
    column = list(ARCHES).index(machine)
    named = {**REFUSED, **_ABSENT, "clone": _CLONE, "socket": _SOCKET, "ioctl": _IOCTL}
    for call, numbers in named.items():
        known = resolve(ARCHES[machine], call.encode())
        assert numbers[column] == (known if known >= 0 else -1), call


@pytest.mark.parametrize("machine", ARCHES)
def test_each_refused_call_answers_eperm_and_each_absent_one_enosys(machine):
    column = list(ARCHES).index(machine)
    for numbers in REFUSED.values():
        if numbers[column] >= 0:
            assert verdict(machine, numbers[column]) == EPERM
    for numbers in _ABSENT.values():
        assert verdict(machine, numbers[column]) == ENOSYS


@pytest.mark.parametrize("machine", ARCHES)
def test_another_architecture_is_killed(machine):
    assert verdict(machine, 0, arch=0x40000003) == KILL


def test_the_x32_numbering_is_killed():
    assert verdict("x86_64", 0x40000000 | 165) == KILL


@pytest.mark.parametrize("machine", ARCHES)
def test_calls_newer_than_the_reviewed_ones_do_not_exist(machine):
    assert verdict(machine, 463) == ENOSYS


@pytest.mark.parametrize("machine", ARCHES)
@given(flags=st.integers(0, 2**32 - 1))
def test_a_clone_with_any_namespace_flag_is_refused(machine, flags):
    expected = EPERM if flags & 0x7E020000 else ALLOW
    assert verdict(machine, _CLONE[list(ARCHES).index(machine)], flags) == expected


@pytest.mark.parametrize("machine", ARCHES)
@given(family=st.integers(0, 2**32 - 1))
def test_only_local_sockets_are_made(machine, family):
    expected = ALLOW if family == 1 else EAFNOSUPPORT
    assert verdict(machine, _SOCKET[list(ARCHES).index(machine)], family) == expected


@pytest.mark.parametrize("machine", ARCHES)
def test_a_terminal_cannot_be_typed_into(machine):
    number = _IOCTL[list(ARCHES).index(machine)]
    assert verdict(machine, number, 0, 0x5412) == EPERM
    assert verdict(machine, number, 0, 0x541C) == EPERM
    assert verdict(machine, number, 0, 0x5401) == ALLOW


def test_an_unknown_processor_has_no_filter():
    with pytest.raises(InputError) as caught:
        seccomp_program("riscv64")
    assert caught.value.code == 2008
