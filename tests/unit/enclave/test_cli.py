import json
import subprocess
import sys

import pytest

from cloister.cli import main
from cloister.enclave import measure_installed


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    return caught.value.code, capsys.readouterr().out


def test_measure_prints_what_a_manifest_pins(capsys):
    status, said = run(capsys, "enclave", "measure")
    assert (status, said.strip()) == (0, measure_installed("launcher").measurement)


def test_measure_as_json_names_what_is_covered(capsys):
    status, said = run(capsys, "enclave", "measure", "--role", "key-manager", "--json")
    facts = json.loads(said)
    assert status == 0
    assert facts["role"] == "key-manager"
    assert facts["sgx"] == facts["measurement"][:64]
    assert facts["roots"]


def test_an_inline_launcher_never_measures_like_a_sandboxed_one(capsys):
    assert run(capsys, "enclave", "measure", "--inline")[1] != run(capsys, "enclave", "measure")[1]


def test_an_unknown_role_is_exit_2(capsys):
    assert run(capsys, "enclave", "measure", "--role", "janitor")[0] == 2


def test_only_a_launcher_can_be_inline(capsys):
    assert run(capsys, "enclave", "measure", "--role", "service", "--inline")[0] == 2


def test_diff_names_the_files(capsys, tmp_path):
    (tmp_path / "old").write_text(f"{'a' * 64}  same\n{'b' * 64}  changed\n{'c' * 64}  gone\n")
    (tmp_path / "new").write_text(f"{'a' * 64}  same\n{'d' * 64}  changed\n{'e' * 64}  new\n")
    status, said = run(capsys, "enclave", "diff", str(tmp_path / "old"), str(tmp_path / "new"))
    assert (status, said.splitlines()) == (0, ["- gone", "+ new", "~ changed"])


def test_what_is_no_listing_is_exit_2(capsys, tmp_path):
    (tmp_path / "x").write_bytes(b"\xff")
    assert run(capsys, "enclave", "diff", str(tmp_path / "x"), str(tmp_path / "x"))[0] == 2


@pytest.mark.parametrize("given", [b"", b"{}", b"nonsense"])
def test_a_launcher_that_is_given_no_job_says_so_on_its_standard_output(given):
    ended = subprocess.run(
        [sys.executable, "-m", "cloister.cli._launcher"], input=given, capture_output=True, check=False
    )
    assert (ended.returncode, json.loads(ended.stdout)["failure"]["code"]) in ((2, 2002), (2, 2005))
