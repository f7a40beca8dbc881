"""A script that uses its outputs, its errors or its end to carry something out."""

import os
import subprocess

import pytest
from tests.enclaves import World

from cloister.errors import CloisterError
from cloister.manifest import Limits


def build(tmp_path, script, **options):
    return World.build(tmp_path / "world", script, **options)


def failure(outcome):
    with pytest.raises(CloisterError) as caught:
        outcome.require()
    return caught.value


@pytest.mark.parametrize(
    "script",
    [
        "import os; os.symlink('/etc/passwd', '/outputs/model/link')",
        "import os; os.symlink('/inputs/data/x.txt', '/outputs/model/link')",
        "import os; os.symlink('../../inputs/data/content/x.txt', '/outputs/model/link')",
        "import os; os.mkfifo('/outputs/model/pipe')",
        "import socket; socket.socket(socket.AF_UNIX).bind('/outputs/model/socket')",
        "import os; open('/outputs/model/x', 'w'); os.chmod('/outputs/model/x', 0o4755)",
        "import os; open(b'/outputs/model/\\xff', 'w')",
        "open('/outputs/model/a\\nb', 'w')",
    ],
)
def test_what_sealing_refuses_is_refused_by_name(tmp_path, script):
    here = build(tmp_path, script)
    assert failure(here.launch()).code == 3506
    assert not os.path.exists(here.job.outputs["model"])


def test_a_device_node_cannot_even_be_made(tmp_path):
    here = build(tmp_path, "import os; os.mknod('/outputs/model/null', 0o20666, os.makedev(1, 3))")
    assert failure(here.launch()).code == 5501


def test_a_link_inside_the_output_stays_a_link(tmp_path):
    here = build(
        tmp_path, "import os; open('/outputs/model/x', 'w').write('y'); os.symlink('x', '/outputs/model/link')"
    )
    assert os.readlink(here.unpacked(here.launch()) / "link") == "x"


@pytest.mark.parametrize("script", ["f.write(bytes(1 << 17))", "f.truncate(1 << 17)"])
def test_more_bytes_than_agreed_are_refused(tmp_path, script):
    here = build(tmp_path, f"with open('/outputs/model/x', 'wb') as f: {script}", max_bytes=1 << 16)
    assert failure(here.launch()).code == 3505
    assert not os.path.exists(here.job.outputs["model"])


def test_exactly_the_agreed_bytes_are_accepted(tmp_path):
    here = build(tmp_path, "open('/outputs/model/x', 'wb').write(bytes(1 << 16))", max_bytes=1 << 16)
    assert here.launch().require().images


@pytest.mark.parametrize(
    "script",
    [
        "import os; os.symlink('/secret-42', '/outputs/model/secret-42')",
        "open('/outputs/model/secret-42\\n', 'w')",
        "import sys; sys.exit('secret-42')",
        "print('secret-42'); raise ValueError('secret-42')",
        "import sys; print('secret-42', file=sys.stderr); sys.exit(42)",
        "import os, signal; print('secret-42'); os.kill(os.getpid(), signal.SIGSEGV)",
    ],
)
def test_no_text_of_the_script_reaches_the_host(tmp_path, script, capfd):
    outcome = build(tmp_path, script).launch()
    said = outcome.failure.model_copy(update={"evidence": None, "claims": None}).canonical()
    assert b"secret" not in said
    assert b"42" not in said.replace(b"cloister/stage", b"")
    assert "secret" not in "".join(capfd.readouterr())


def test_the_exit_status_is_success_or_failure_and_no_number(tmp_path):
    said = set()
    for status in (1, 2, 77, 255):
        outcome = World.build(tmp_path / str(status), f"raise SystemExit({status})").launch()
        said.add(outcome.failure.model_copy(update={"evidence": None, "claims": None}).canonical())
    assert len(said) == 1


@pytest.mark.parametrize(
    ("script", "limits", "code"),
    [
        ("x = []\nwhile True: x.append(bytearray(1 << 22))", {"memory_bytes": 1 << 27}, 5502),
        ("import time; time.sleep(60)", {"time_s": 1}, 5503),
    ],
)
def test_limits_have_their_own_codes(tmp_path, script, limits, code):
    if code == 5502 and os.geteuid() != 0:
        pytest.skip("without a control group the kernel answers MemoryError first")
    here = build(tmp_path, script, stage={"limits": Limits(**limits)})
    assert failure(here.launch()).code == code


def with_squashfs(folder, make, script):
    """A world whose dataset is a squashfs that no sealing would make."""
    subprocess.run(["bash", "-c", make], check=True, cwd=folder, capture_output=True)
    return World.build(folder / "world", script, squashfs=folder / "hostile.squashfs")


@pytest.mark.parametrize(
    "script",
    [
        "mkdir d; mksquashfs d hostile.squashfs -quiet -no-progress -p 'null c 666 0 0 1 3'",
        "mkdir d; ln -s /etc d/link; mksquashfs d hostile.squashfs -quiet -no-progress",
        "mkdir d; mkfifo d/pipe; mksquashfs d hostile.squashfs -quiet -no-progress",
        "head -c 8192 /dev/urandom > hostile.squashfs",
        "mkdir d; touch d/x; mksquashfs d hostile.squashfs -quiet -no-progress; truncate -s 100 hostile.squashfs",
    ],
)
def test_an_authentic_image_with_hostile_content_is_not_run(tmp_path, script):
    here = with_squashfs(tmp_path, script, "open('/outputs/model/ran', 'w')")
    assert failure(here.launch()).code == 5505
    assert not os.path.exists(here.job.outputs["model"])


def test_a_setuid_program_in_an_image_loses_the_bit(tmp_path):
    make = "mkdir d; touch d/x; chmod 4755 d/x; mksquashfs d hostile.squashfs -quiet -no-progress"
    look = "import os; open('/outputs/model/mode', 'w').write(oct(os.stat('/inputs/data/x').st_mode & 0o7000))"
    here = with_squashfs(tmp_path, make, look)
    assert (here.unpacked(here.launch()) / "mode").read_text() == "0o0"
