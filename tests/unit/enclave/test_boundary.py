import os
import subprocess
import sys

import pytest

from cloister.enclave import boundary_command, private_folder
from cloister.enclave._boundary import PRIVATE_ROOT
from cloister.errors import RefusedError

INSIDE = """
import os, sys
from cloister.enclave import close_process, private_folder
close_process()
folder = private_folder()
(folder / "plain").write_text("secret")
print(folder, os.statvfs("/dev/shm").f_blocks * os.statvfs("/dev/shm").f_frsize, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def inside():
    command = boundary_command([sys.executable, "-c", INSIDE], memory_bytes=1 << 26)
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    folder, size = process.stdout.readline().split()
    yield process, folder, int(size)
    process.stdin.close()
    process.stdout.close()
    process.wait()


def test_private_memory_is_not_on_any_path_of_another_process(inside):
    _, folder, _ = inside
    assert folder.startswith(str(PRIVATE_ROOT))
    assert not os.path.exists(folder)


def test_private_memory_is_as_large_as_the_stage_may_use(inside):
    assert inside[2] == 1 << 26


def test_without_the_boundary_there_is_no_private_memory():
    with pytest.raises(RefusedError) as caught:
        private_folder()
    assert caught.value.code == 3501


def test_a_folder_that_is_no_mount_is_no_private_memory(tmp_path):
    tmp_path.chmod(0o700)
    with pytest.raises(RefusedError) as caught:
        private_folder(tmp_path)
    assert caught.value.code == 3501


def test_a_launcher_cannot_be_read_by_another_process_of_its_user():
    source = """
import os, subprocess, sys
from cloister.enclave import close_process
close_process()
path = f"/proc/{os.getpid()}/mem"
peek = "import sys; open(sys.argv[1], 'rb')"
sys.exit(subprocess.run([sys.executable, "-c", peek, path], stderr=subprocess.DEVNULL).returncode)
"""
    if os.geteuid() != 0:
        assert subprocess.run([sys.executable, "-c", source], check=False).returncode != 0
    else:
        pytest.skip("root may read any process")
