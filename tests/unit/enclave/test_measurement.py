import os
import time

import pytest

from cloister.enclave._hashes import FileHashes, memory
from cloister.enclave._measurement import diff_listings, measure, parse_listing
from cloister.enclave._trees import Tree, code_trees
from cloister.errors import InputError


@pytest.fixture
def site(tmp_path):
    folder = tmp_path / "site"
    (folder / "lib" / "__pycache__").mkdir(parents=True)
    (folder / "lib-1.0.dist-info").mkdir()
    (folder / "lib" / "__init__.py").write_text("x = 1")
    (folder / "lib" / "__pycache__" / "__init__.cpython-311.pyc").write_bytes(b"compiled")
    (folder / "lib-1.0.dist-info" / "METADATA").write_text("Name: lib")
    (folder / "lib-1.0.dist-info" / "RECORD").write_text("lib/__init__.py,,")
    return folder


def measured(folder, role="launcher", **options):
    return measure(role, trees=(Tree("site", folder),), hashes=FileHashes(remember=False), **options)


def changed(folder, change):
    before = measured(folder)
    change()
    after = measured(folder)
    return diff_listings(before.listing, after.listing) if before.measurement != after.measurement else None


def test_a_measurement_is_sha384_and_repeatable(site):
    assert measured(site) == measured(site)
    assert len(bytes.fromhex(measured(site).measurement)) == 48
    assert len(measured(site).for_tee("sgx")) == 64


def test_a_changed_byte_shows(site):
    assert changed(site, lambda: (site / "lib" / "__init__.py").write_text("x = 2"))["changed"] == [
        "site/lib/__init__.py"
    ]


@pytest.mark.parametrize("name", ["sitecustomize.py", "evil.pth", "lib/extra.so"])
def test_a_planted_file_that_no_distribution_lists_shows(site, name):
    assert changed(site, lambda: (site / name).write_text("import evil"))["added"] == [f"site/{name}"]


def test_a_removed_file_shows(site):
    assert changed(site, (site / "lib" / "__init__.py").unlink)["removed"] == ["site/lib/__init__.py"]


def test_a_retargeted_link_shows(site):
    (site / "link").symlink_to("lib")

    def change():
        (site / "link").unlink()
        (site / "link").symlink_to("lib-1.0.dist-info")

    assert changed(site, change)["changed"] == ["site/link"]


def test_bytecode_and_installer_notes_do_not_count(site):
    def change():
        (site / "lib" / "__pycache__" / "other.pyc").write_bytes(b"x")
        (site / "lib-1.0.dist-info" / "RECORD").write_text("other")
        (site / "lib-1.0.dist-info" / "direct_url.json").write_text("{}")

    assert changed(site, change) is None


def test_role_configuration_and_roots_count(site):
    variants = [
        measured(site),
        measured(site, role="service"),
        measured(site, configuration={"sandbox": "bubblewrap"}),
        measured(site, roots={"intel": "a" * 64}),
    ]
    assert len({each.measurement for each in variants}) == len(variants)


def test_the_same_code_elsewhere_measures_the_same(site, tmp_path):
    before = measured(site)
    site.rename(tmp_path / "moved")
    assert measured(tmp_path / "moved").measurement == before.measurement


def test_an_editable_install_is_measured_where_its_source_is(site, tmp_path):
    def at(source, extra=""):
        (site / "_editable.pth").write_text(f"{source}\n{extra}")
        trees = (Tree("site", site), Tree("linked", source))
        return measure("launcher", trees=trees, hashes=FileHashes(remember=False)).measurement

    source = tmp_path / "src"
    source.mkdir()
    before = at(source)
    source.rename(tmp_path / "elsewhere")
    assert at(tmp_path / "elsewhere") == before
    assert at(tmp_path / "elsewhere", "import evil\n") != before


def test_a_pipe_in_the_tree_is_an_error_and_not_a_hang(site):
    os.mkfifo(site / "pipe")
    with pytest.raises(InputError) as caught:
        measured(site)
    assert caught.value.code == 2001


def test_a_name_that_would_forge_a_line_of_the_listing_is_an_error(site):
    (site / "a\n0  b").write_text("")
    with pytest.raises(InputError) as caught:
        measured(site)
    assert caught.value.code == 2001


def test_an_unknown_role_is_an_error(site):
    with pytest.raises(InputError) as caught:
        measured(site, role="janitor")
    assert caught.value.code == 2501


def test_a_listing_reads_back(site):
    result = measured(site)
    assert parse_listing(result.listing_text()) == result.listing


@pytest.mark.parametrize("text", ["x", "ab  name", "0" * 64 + " name", "0" * 64 + "  a\n" + "0" * 64 + "  a"])
def test_what_is_no_listing_is_an_error(text):
    with pytest.raises(InputError) as caught:
        parse_listing(text)
    assert caught.value.code == 2002


def test_a_remembered_hash_is_used_until_the_file_changes(tmp_path):
    file = tmp_path / "file"
    file.write_text("one")
    old = time.time() - 100
    os.utime(file, (old, old))
    time.sleep(2.1)  # the change time cannot be set, and a file this fresh is not remembered

    def read(path):
        hashes = FileHashes(tmp_path / "cache")
        return hashes.of([(str(path), path.lstat())])[str(path)], hashes.read

    first, reads = read(file)
    assert reads == 1
    assert read(file) == (first, 0)
    file.write_text("two")
    os.utime(file, (old, old))
    assert read(file)[0] != first


def test_a_cache_that_others_may_write_is_not_believed(tmp_path):
    file = tmp_path / "file"
    file.write_text("one")
    time.sleep(2.1)
    FileHashes(tmp_path / "cache").of([(str(file), file.lstat())])
    os.chmod(memory(tmp_path / "cache"), 0o666)  # noqa: S103 - the attack
    hashes = FileHashes(tmp_path / "cache")
    hashes.of([(str(file), file.lstat())])
    assert hashes.read == 1


def test_what_is_gone_is_forgotten_and_old_environments_too(tmp_path):
    files = [tmp_path / name for name in ("one", "two")]
    for file in files:
        file.write_text(file.name)
    time.sleep(2.1)
    for place in range(10):
        memory(tmp_path, f"/venv/{place}").write_bytes(b"")
    FileHashes(tmp_path).of([(str(file), file.lstat()) for file in files])
    both = memory(tmp_path).stat().st_size
    FileHashes(tmp_path).of([(str(files[0]), files[0].lstat())])
    assert memory(tmp_path).stat().st_size == both  # nothing was new, so nothing is written
    files[1].write_text("another")
    time.sleep(2.1)
    FileHashes(tmp_path).of([(str(files[1]), files[1].lstat())])
    assert memory(tmp_path).stat().st_size < both
    assert len(list(tmp_path.glob("hashes-v2*"))) == 8


@pytest.mark.parametrize("damage", [b"", b"[]", b'{"a": 1}', b'{"a": []}', b"\xff"])
def test_a_damaged_cache_is_only_slow(tmp_path, damage):
    memory(tmp_path).write_bytes(damage)
    file = tmp_path / "file"
    file.write_text("one")
    assert len(FileHashes(tmp_path).of([(str(file), file.lstat())])) == 1


def test_interpreter_library_and_packages_are_trees():
    labels = {tree.label for tree in code_trees()}
    assert {"interpreter", "stdlib", "site"} <= labels
