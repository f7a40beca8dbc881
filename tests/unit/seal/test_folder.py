"""What an image may hold, refused by name."""

import os
import shutil
import socket
import stat
from pathlib import Path

import pytest

from cloister.errors import InputError
from cloister.seal import scan_folder
from cloister.seal._folder import changed_entry, check_name


def refusal(folder: Path) -> InputError:
    with pytest.raises(InputError) as caught:
        scan_folder(folder)
    return caught.value


def test_files_folders_and_inner_symlinks_pass(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").write_bytes(b"12345")
    (tmp_path / "naïve name.txt").write_bytes(b"1")
    (tmp_path / "a" / "up").symlink_to("../naïve name.txt")
    (tmp_path / "here").symlink_to(".")
    (tmp_path / "dangling").symlink_to("a/nothing")
    listing = scan_folder(tmp_path)
    assert (listing.paths, listing.size_bytes) == (7, 6)


def test_an_empty_folder_passes_and_what_is_no_folder_does_not(tmp_path: Path) -> None:
    assert scan_folder(tmp_path).paths == 0
    assert refusal(tmp_path / "none").code == 2001
    (tmp_path / "file").write_bytes(b"")
    assert refusal(tmp_path / "file").code == 2001


@pytest.mark.parametrize(
    "target", ["/etc/passwd", "..", "../sibling", "a/../../sibling", "../{name}/file", "/", "a/../..", "hop"]
)
def test_a_symlink_that_leaves_is_refused(target: str, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "a").mkdir(parents=True)
    (tmp_path / "sibling").write_bytes(b"")
    (folder / "hop").symlink_to(tmp_path)
    if target != "hop":
        (folder / "hop").unlink()
    (folder / "link").symlink_to(target.format(name="folder"))
    error = refusal(folder)
    assert error.code == 2201
    assert "link" in error.what or "hop" in error.what


def test_a_symlink_that_leaves_through_another_folder_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder" / "deep" / "er").mkdir(parents=True)
    (tmp_path / "folder" / "short").symlink_to("deep/er")
    (tmp_path / "folder" / "fine").symlink_to("short/../x")  # as written inside, as resolved inside
    assert scan_folder(tmp_path / "folder").paths == 4
    (tmp_path / "folder" / "deep" / "er" / "top").symlink_to("../..")
    (tmp_path / "folder" / "out").symlink_to("deep/er/top/../sibling")
    assert refusal(tmp_path / "folder").code == 2201


def test_pipes_sockets_and_devices_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    error = refusal(tmp_path)
    assert (error.code, error.what) == (2202, "'pipe' is a named pipe")
    (tmp_path / "pipe").unlink()
    with socket.socket(socket.AF_UNIX) as server:
        here = os.getcwd()
        os.chdir(tmp_path)  # a socket's path is short
        try:
            server.bind("socket")
        finally:
            os.chdir(here)
        assert refusal(tmp_path).what == "'socket' is a socket"
    (tmp_path / "socket").unlink()
    if os.geteuid() == 0:
        os.mknod(tmp_path / "null", stat.S_IFCHR | 0o600, os.makedev(1, 3))
        assert refusal(tmp_path).what == "'null' is a character device"


@pytest.mark.parametrize("name", [b"a\nb", b"a\x1b[31m", b"\x7f", b"caf\xe9", b"tab\t", "\x85".encode()])
def test_names_that_are_not_portable_are_refused(name: bytes, tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path)
    with open(os.path.join(folder, name), "wb"):
        pass
    error = refusal(tmp_path)
    assert error.code == 2203
    assert error.what.isascii()
    assert error.what.isprintable()


@pytest.mark.parametrize("name", [b"", b".", b"..", b"a\0b", b"a/b"])
def test_names_that_a_disk_cannot_hold_but_an_image_could_are_refused(name: bytes) -> None:
    with pytest.raises(InputError) as caught:
        check_name(name, b"folder/" + name)
    assert caught.value.code == 2203


@pytest.mark.parametrize("bit", [stat.S_ISUID, stat.S_ISGID])
def test_setuid_and_setgid_programs_are_refused(bit: int, tmp_path: Path) -> None:
    (tmp_path / "program").write_bytes(b"")
    (tmp_path / "program").chmod(0o755 | bit)
    assert refusal(tmp_path).code == 2204


def test_every_kind_of_change_is_noticed_and_named(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    for name in ("a", "b", "sub/c"):
        (source / name).write_bytes(b"content")

    def changed(change) -> str | None:
        shutil.rmtree(tmp_path / "folder", ignore_errors=True)
        folder = Path(shutil.copytree(source, tmp_path / "folder"))
        before = scan_folder(folder)
        assert changed_entry(folder, before) is None
        change(folder)
        return changed_entry(folder, before)

    assert changed(lambda f: (f / "sub" / "c").write_bytes(b"CONTENT")) == "'sub/c'"
    assert changed(lambda f: (f / "b").unlink()) == "'sub'"
    assert changed(lambda f: (f / "sub" / "d").write_bytes(b"")) == "'sub'"
    assert changed(lambda f: (f / "a").chmod(0o700)) == "'a'"
    assert changed(lambda f: (f / "zz").symlink_to("/etc")) == "error[CLOISTER-2201]: symlink leaves the folder: 'zz'"
    assert changed(lambda f: (f / "zz").write_bytes(b"")) == "'zz'"
    assert changed(lambda f: shutil.rmtree(f / "sub") or None) == "an entry that is gone"
