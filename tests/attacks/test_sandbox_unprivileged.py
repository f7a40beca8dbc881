"""The same attacks, from a launcher that an ordinary user started."""

import contextlib
import os
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import pytest

import cloister

NOBODY = 65534
ATTACKS = ("test_sandbox_escape.py", "test_sandbox_limits.py")


def as_nobody(*argv, **options):
    return subprocess.run(
        argv, user=NOBODY, group=NOBODY, extra_groups=[], capture_output=True, text=True, check=False, **options
    )


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user runs the attacks themselves; only root can become one")
def test_every_attack_on_the_sandbox_fails_for_an_ordinary_user_too():
    packages = sysconfig.get_path("purelib")
    source = Path(cloister.__file__).parents[1]
    env = {"PATH": "/usr/bin:/bin", "PYTHONPATH": f"{packages}:{source}", "PYTHONDONTWRITEBYTECODE": "1"}
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for interpreter in (str(Path(sys.executable).resolve()), f"/usr/bin/{version}"):
        with contextlib.suppress(OSError):  # not there, or in a folder of root's
            if as_nobody(interpreter, "-c", "import pytest", env=env, cwd="/").returncode == 0:
                break
    else:
        pytest.skip("no interpreter of this version that an ordinary user may run")
    here = Path(__file__).parent
    with tempfile.TemporaryDirectory(prefix="cloister-nobody-") as home:  # pytest's own folders are closed to others
        os.chown(home, NOBODY, NOBODY)
        ended = as_nobody(
            *(interpreter, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--basetemp={home}/tests"),
            *(str(here / name) for name in ATTACKS),
            env=env | {"HOME": home},
            cwd=here.parents[1],
        )
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-1000:]
    assert " passed" in ended.stdout
