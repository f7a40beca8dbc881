"""The code that a sandboxed script can import: what is mounted for it is what is measured."""

from __future__ import annotations

import shutil
import site
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from cloister.enclave._entry import SYSTEM_PATH
from cloister.errors import InputError

__all__ = ["Tree", "base_packages", "code_trees", "interpreter_folder", "pth_places", "tool", "venv_config"]

_PACKAGES = ("site-packages", "dist-packages")


@dataclass(frozen=True, slots=True)
class Tree:
    """A file or folder under a name that does not depend on where this machine keeps it.

    Attributes:
        label: First part of its files' names in a listing.
        path: Where it is.
        without: Names of folders that do not belong to it at its top level.
    """

    label: str
    path: Path
    without: frozenset[str] = frozenset()


def code_trees() -> tuple[Tree, ...]:
    """The interpreter, its standard library, every folder that ``site`` puts on its path, and the system's tools.

    A distribution that is installed editable is measured where its source is: a ``.pth`` line that names a folder
    makes that folder a tree of its own.
    """
    stdlib = Path(sysconfig.get_paths(vars={"installed_base": sys.base_prefix})["stdlib"]).resolve()
    trees = [
        Tree("interpreter", Path(sys.executable).resolve()),
        Tree("stdlib", stdlib, frozenset(_PACKAGES)),
    ]
    shared = sysconfig.get_config_var("INSTSONAME")
    if sysconfig.get_config_var("Py_ENABLE_SHARED") and shared:
        trees.append(Tree("libpython", (Path(sysconfig.get_config_var("LIBDIR")) / shared).resolve()))
    folders = [Path(folder).resolve() for folder in dict.fromkeys(site.getsitepackages())]
    folders = [folder for folder in folders if folder.is_dir()]
    trees += [Tree(_numbered("site", index), folder) for index, folder in enumerate(folders)]
    linked = [path for folder in folders for path in _linked_folders(folder)]
    trees += [Tree(_numbered("linked", index), path) for index, path in enumerate(dict.fromkeys(linked))]
    for name in ("bwrap", "unsquashfs", "mksquashfs"):
        found = tool(name)
        if found:
            trees.append(Tree(f"tool-{name}", found))
    return tuple(trees)


def tool(name: str) -> Path | None:
    """The file of a system tool: the one that is measured is the one that is run, whatever ``PATH`` says."""
    found = shutil.which(name, path=SYSTEM_PATH)
    return Path(found).resolve() if found else None


def interpreter_folder() -> str:
    """Where ``python`` and ``python3`` are inside a sandbox.

    In the virtual environment's own folder, if there is one: they look for ``pyvenv.cfg`` beside themselves.
    """
    return str(Path(sys.executable).parent) if venv_config() else "/run/cloister/bin"


def venv_config() -> Path | None:
    """``pyvenv.cfg`` of the virtual environment that this interpreter runs in, if it does."""
    path = Path(sys.prefix) / "pyvenv.cfg"
    return path if sys.prefix != sys.base_prefix and path.is_file() else None


def base_packages(trees: tuple[Tree, ...]) -> tuple[Path, ...]:
    """Package folders that would be mounted with the system but are not measured: the sandbox shows them empty."""
    measured = {tree.path for tree in trees}
    stdlib = next(tree.path for tree in trees if tree.label == "stdlib")
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    folders = [stdlib / name for name in _PACKAGES]
    for root in ("/usr/lib", "/usr/local/lib"):
        folders += [Path(root) / python / name for python in ("python3", version) for name in _PACKAGES]
    found = {folder for folder in folders if folder.is_dir() and not folder.is_symlink()}
    return tuple(sorted(folder for folder in found if folder.resolve() not in measured))


def _numbered(label: str, index: int) -> str:
    return label if index == 0 else f"{label}-{index}"


def _linked_folders(folder: Path) -> list[Path]:
    """What the ``.pth`` files of ``folder`` add to the path, in the order in which ``site`` reads them."""
    found: list[Path] = []
    for pth in sorted(folder.glob("*.pth")):
        found += [place for place in pth_places(pth) if place is not None and place.exists()]
    return found


def pth_places(pth: Path) -> list[Path | None]:
    """What each line of a ``.pth`` file that means something adds to the path; None for a line that is code.

    Raises:
        InputError: 2001 when it cannot be read, or is not plain ASCII: which lines such a file has, and what they name,
            depends on the locale of whoever reads it.
    """
    try:
        data = pth.read_bytes()
    except OSError as error:
        raise InputError(2001, f"cannot read what is to be measured: {error.strerror}: '{pth}'") from error
    if not all(0x20 <= byte < 0x7F or byte in b"\t\r\n" for byte in data):
        raise InputError(2001, f"a .pth file that is not plain ASCII cannot be measured: '{pth}'")
    lines = [line for line in data.decode("ascii").splitlines() if line.strip() and not line.startswith("#")]
    return [
        None if line.startswith(("import ", "import\t")) else (pth.parent / line.rstrip()).resolve() for line in lines
    ]
