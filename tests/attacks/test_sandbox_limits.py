"""A script that takes more than it was given."""

import os
import time

import pytest

from cloister.enclave._limits import ResourceGroup
from cloister.enclave._sandbox import Bind, run_sandboxed
from cloister.manifest import Limits


def run(*argv, limits, binds=(), control_groups=True):
    with ResourceGroup(limits, control_groups=control_groups) as group:
        return run_sandboxed(argv, binds=binds, limits=limits, group=group)


@pytest.mark.parametrize("control_groups", [True, False])
def test_a_memory_bomb_is_killed(control_groups):
    bomb = "data = []\nwhile True: data.append(bytearray(1 << 22))"
    limits = Limits(memory_bytes=1 << 28, time_s=30)
    ended = run("python", "-c", bomb, limits=limits, control_groups=control_groups)
    if control_groups and os.geteuid() == 0:
        assert ended.ended == "memory"
    else:
        assert ended.ended == "memory" or b"MemoryError" in ended.output


def test_many_processes_with_little_memory_each_are_one_memory_bomb():
    bomb = (
        "import os\nfor _ in range(8):\n if os.fork() == 0: break\nx = bytearray(80 << 20); import time; time.sleep(20)"
    )
    assert run("python", "-c", bomb, limits=Limits(memory_bytes=1 << 28, time_s=30)).ended == "memory"


@pytest.mark.parametrize("control_groups", [True, False])
def test_private_file_systems_count_as_memory(control_groups):
    fill = "f = open('/dev/shm/x', 'wb')\nwhile True: f.write(bytes(1 << 20))"
    limits = Limits(memory_bytes=1 << 27, time_s=20)
    ended = run("python", "-c", fill, limits=limits, control_groups=control_groups)
    assert ended.ended == "memory" or b"No space left" in ended.output


def test_a_fork_bomb_is_held_at_the_limit():
    if os.geteuid() == 0 and not ResourceGroup(Limits())._pids:
        pytest.skip("the kernel does not limit root's processes without a control group")
    source = """
import os, time
made = 0
try:
    while made < 200:
        if os.fork() == 0:
            time.sleep(30)
        made += 1
except BlockingIOError:
    print(made)
"""
    ended = run("python", "-c", source, limits=Limits(time_s=20, processes=32))
    assert ended.ended == "exited"
    assert int(ended.output) < 32


def test_time_is_limited_and_the_whole_namespace_dies():
    started = time.monotonic()
    ended = run("bash", "-c", "trap '' TERM INT HUP; sleep 60 & sleep 60", limits=Limits(time_s=1))
    assert ended.ended == "time"
    assert time.monotonic() - started < 10


def test_what_is_printed_without_end_is_bounded():
    ended = run("bash", "-c", "head -c 50000000 /dev/zero; echo end", limits=Limits(time_s=20))
    assert len(ended.output) == 256 * 1024
    assert ended.output.endswith(b"end\n")
    assert ended.dropped_bytes == 50_000_004 - 256 * 1024


def test_no_control_group_is_left_behind(tmp_path):
    with ResourceGroup(Limits()) as group:
        run_sandboxed(["true"], binds=[Bind(tmp_path, "/outputs/o")], limits=Limits(), group=group)
        made = list(group._groups)
    assert not any(path.exists() for path in made)


@pytest.mark.skipif(os.geteuid() != 0, reason="the kernel refuses an ordinary user's process before we count")
def test_too_many_processes_are_killed_where_the_kernel_does_not_limit_them():
    limits = Limits(time_s=30, processes=3)
    ended = run("bash", "-c", "for i in 1 2 3 4 5; do sleep 20 & done; wait", limits=limits, control_groups=False)
    assert ended.ended == "processes"
