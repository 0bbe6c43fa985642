"""The image files of a source of class folders, and the part that a folder puts them in."""

import dataclasses
import os
from pathlib import Path

from bioimg_jax.errors import InputError

from .reading import SUFFIXES

# Folder of a fixed split -> its part.
PARTS = {"train": "train", "validation": "validation", "val": "validation", "test": "test"}


@dataclasses.dataclass(frozen=True)
class File:
    """An image file of the source."""

    name: str  # relative to the source, with "/" between
    folder: str  # the class folder's name; "" for a file beside the class folders
    part: str  # "train", "validation" or "test" of a split by folders, else ""


def find_images(root: Path) -> list[File]:
    """All of them, sorted by name; `InputError` for what is out of place."""
    if not root.is_dir():
        raise InputError(f"source {root} is not a folder")
    folders, loose = _listing(root, root)
    parts = {name: PARTS[name] for name in folders if name in PARTS}
    found = [File(name, "", "") for name in loose]
    # "train" may as well be the name of a class: a part holds folders, a class holds images.
    if "train" in parts and _listing(root, root / "train")[0]:
        _check_parts(root, folders, loose, parts)
        for part in folders:
            classes, images = _listing(root, root / part)
            if images:
                raise InputError(f"{root / images[0]} lies in no class folder of {part}/")
            if not classes:
                raise InputError(f"{root / part} has no class folder")
            for folder in classes:
                found += _class_folder(root, folder, parts[part])
    else:
        for folder in folders:
            found += _class_folder(root, folder, "")
    if not found:
        raise InputError(f"source {root} has no class folder with images ({', '.join(SUFFIXES)})")
    found.sort(key=lambda file: file.name)
    seen: dict[str, str] = {}
    for file in found:
        other = seen.setdefault(os.path.realpath(root / file.name), file.name)
        if other != file.name:  # the same pixels under two names could be trained on and tested
            raise InputError(f"{root}: {other} and {file.name} are one file, by a link")
    return found


def _check_parts(root: Path, folders: list[str], loose: list[str], parts: dict[str, str]) -> None:
    expected = "expected train/, test/ and possibly validation/"
    for name in (*loose, *folders):
        if name not in parts:
            raise InputError(f"{root / name} lies beside the folder train/ of a split; {expected}")
    if "test" not in parts:
        raise InputError(f"{root} has train/ but no test/; {expected}")
    if {"val", "validation"} <= set(parts):
        raise InputError(f"{root} has both val/ and validation/; {expected}")


def _class_folder(root: Path, folder: str, part: str) -> list[File]:
    inside, images = _listing(root, root / folder)
    if inside:
        raise InputError(
            f"{root / inside[0]} is a folder inside a class folder; expected SOURCE/CLASS/ or "
            "SOURCE/{train,validation,test}/CLASS/ with images"
        )
    if not images:
        raise InputError(f"class folder {root / folder} has no image ({', '.join(SUFFIXES)})")
    return [File(name, folder.rpartition("/")[2], part) for name in images]


def _listing(root: Path, folder: Path) -> tuple[list[str], list[str]]:
    """Folders and image files in `folder`, relative to root and sorted; hidden ones left out.

    Links are followed where they stay inside the source; one that leads out is refused.
    """
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise InputError(f"cannot read {folder}: {error.strerror}") from error
    folders: list[str] = []
    images: list[str] = []
    for entry in names:
        path = folder / entry
        is_folder = os.path.isdir(path)
        if entry.startswith(".") or not (is_folder or path.suffix.lower() in SUFFIXES):
            continue
        check_link(root, path)
        try:
            entry.encode()
        except UnicodeEncodeError:
            raise InputError(f"{folder} holds a name that is not UTF-8: {entry!a}") from None
        (folders if is_folder else images).append(path.relative_to(root).as_posix())
    return folders, images


def check_link(root: Path, path: Path) -> None:
    """`InputError` for a link that leads out of the source."""
    inside = Path(os.path.realpath(root))
    if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(inside):
        raise InputError(f"{path} is a link that leads out of the source; expected a copy")
