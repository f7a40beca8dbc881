"""The system calls that a stage's script may not make, as one classic BPF program for bubblewrap's ``--seccomp``.

The program is small enough to read: wrong architecture dies, the x32 numbering and every number above the newest
reviewed one do not exist, the calls below are refused, and three are judged by an argument. Everything else is the
script's own business inside its namespaces.

Source: Linux seccomp(2), Documentation/userspace-api/seccomp_filter.rst; include/uapi/linux/{audit,filter,seccomp}.h.
"""

from __future__ import annotations

import errno
import platform
import struct
from dataclasses import dataclass

from cloister.errors import InputError

__all__ = ["REFUSED", "seccomp_program"]

_ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}  # audit.h; column in the tables below

_NEWEST_REVIEWED = 462  # mseal, Linux 6.10: a call that nobody has looked at yet does not exist here
_X32_BIT = 0x40000000  # x86-64 kernels answer a second numbering of the same calls, past every rule below

REFUSED: dict[str, tuple[int, int]] = {
    # another process, or the kernel, seen from outside
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "pidfd_getfd": (438, 438),
    "kcmp": (312, 272),
    "perf_event_open": (298, 241),
    "bpf": (321, 280),
    "syslog": (103, 116),
    "lookup_dcookie": (212, 18),
    # mounts: the walls of the sandbox
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    # namespaces: a new user namespace would give capabilities back
    "unshare": (272, 97),
    "setns": (308, 268),
    # files by handle, outside every mount
    "open_by_handle_at": (304, 265),
    "name_to_handle_at": (303, 264),
    "fanotify_init": (300, 262),
    # the kernel's keyrings are not namespaced
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    # races in the kernel become easy with these
    "userfaultfd": (323, 282),
    "vmsplice": (278, 75),
    # the machine
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "reboot": (169, 142),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "acct": (163, 89),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "clock_adjtime": (305, 266),
    "adjtimex": (159, 171),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "iopl": (172, -1),
    "ioperm": (173, -1),
    "modify_ldt": (154, -1),
    "vhangup": (153, 58),
    "personality": (135, 92),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
    "nfsservctl": (180, 42),
}
"""Name → number on x86-64 and on aarch64 (-1: has none). All of them answer EPERM."""

_ABSENT: dict[str, tuple[int, int]] = {
    "clone3": (435, 435),  # its flags lie in memory, where a filter cannot look; libc falls back to clone
    "io_uring_setup": (425, 425),  # every call made through a ring passes no filter
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
}

_CLONE, _SOCKET, _IOCTL = (56, 220), (41, 198), (16, 29)
_NEW_NAMESPACES = 0x7E020000  # CLONE_NEW{NS,CGROUP,UTS,IPC,USER,PID,NET}
_AF_UNIX = 1
_TERMINAL_TRICKS = (0x5412, 0x541C)  # TIOCSTI and TIOCLINUX type into the terminal of whoever started us

_LOAD, _JUMP_EQUAL, _JUMP_ABOVE, _JUMP_AT_LEAST, _JUMP_ANY_BIT, _RETURN = 0x20, 0x15, 0x25, 0x35, 0x45, 0x06
_NUMBER_AT, _ARCH_AT, _ARGUMENTS_AT = 0, 4, 16
_ALLOW, _ERRNO, _KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000


@dataclass(frozen=True, slots=True)
class _Step:
    code: int
    value: int
    then: str = ""  # label to go to when the test holds; the next step otherwise
    label: str = ""
    otherwise: str = ""


def seccomp_program(machine: str | None = None) -> bytes:
    """The filter as an array of ``struct sock_filter`` for this machine, or for ``machine``.

    Raises:
        InputError: 2008 on a processor for which no numbers were reviewed.
    """
    name = platform.machine() if machine is None else machine
    if name not in _ARCHITECTURES:
        raise InputError(2008, f"no system call filter for this processor: {name}", expected="x86_64 or aarch64")
    arch, column = _ARCHITECTURES[name]
    steps = [
        _Step(_LOAD, _ARCH_AT),
        _Step(_JUMP_EQUAL, arch, otherwise="kill"),
        _Step(_LOAD, _NUMBER_AT),
        _Step(_JUMP_AT_LEAST, _X32_BIT, "kill"),
        _Step(_JUMP_ABOVE, _NEWEST_REVIEWED, "absent"),
        *(_Step(_JUMP_EQUAL, numbers[column], "refuse") for numbers in REFUSED.values() if numbers[column] >= 0),
        *(_Step(_JUMP_EQUAL, numbers[column], "absent") for numbers in _ABSENT.values()),
        _Step(_JUMP_EQUAL, _CLONE[column], "clone"),
        _Step(_JUMP_EQUAL, _SOCKET[column], "socket"),
        _Step(_JUMP_EQUAL, _IOCTL[column], "ioctl"),
        _Step(_RETURN, _ALLOW),
        _Step(_LOAD, _ARGUMENTS_AT, label="clone"),
        _Step(_JUMP_ANY_BIT, _NEW_NAMESPACES, "refuse", otherwise="allowed"),
        _Step(_LOAD, _ARGUMENTS_AT, label="socket"),
        _Step(_JUMP_EQUAL, _AF_UNIX, "allowed", otherwise="family"),
        _Step(_LOAD, _ARGUMENTS_AT + 8, label="ioctl"),
        *(_Step(_JUMP_EQUAL, request, "refuse") for request in _TERMINAL_TRICKS),
        _Step(_RETURN, _ALLOW, label="allowed"),
        _Step(_RETURN, _ERRNO | errno.EPERM, label="refuse"),
        _Step(_RETURN, _ERRNO | errno.EAFNOSUPPORT, label="family"),
        _Step(_RETURN, _ERRNO | errno.ENOSYS, label="absent"),
        _Step(_RETURN, _KILL_PROCESS, label="kill"),
    ]
    return _assemble(steps)


def _assemble(steps: list[_Step]) -> bytes:
    """``struct sock_filter {u16 code; u8 jt; u8 jf; u32 k}``: jumps are forward, at most 255 steps."""
    at = {step.label: index for index, step in enumerate(steps) if step.label}

    def distance(index: int, label: str) -> int:
        return at[label] - index - 1 if label else 0

    return b"".join(
        struct.pack("<HBBI", step.code, distance(i, step.then), distance(i, step.otherwise), step.value)
        for i, step in enumerate(steps)
    )
