"""What is kept on disk: by names that do not meet, and keys of what it was made of."""

from pathlib import Path
from typing import Any

import pytest

from bioimg_jax.kept import file_name, kept


@pytest.mark.parametrize(
    "names",
    [
        ("細胞", "核心", "__"),
        ("Zahl", "Zähl", "Z_hl"),
        ("a b", "a/b", "a_b", "a.b"),
        ("Count", "count"),
        ("x" * 300, "x" * 301),
        ("a-b", "a-b-"),
    ],
    ids=["no letter of ASCII", "one letter", "like a path", "case", "long", "ends"],
)
def test_names_that_look_alike_are_kept_apart(names: tuple[str, ...], tmp_path: Path) -> None:
    files = [file_name(name) for name in names]
    assert len({file.lower() for file in files}) == len(names)  # some file systems have one case
    assert all(file.isascii() and len(file) < 200 and "/" not in file for file in files)
    for name in names:
        assert kept(tmp_path, name, 0, lambda name=name: {"of": name}) == {"of": name}

    def again() -> Any:
        raise AssertionError("made again")

    for name in names:  # none took the place of another
        assert kept(tmp_path, name, 0, again) == {"of": name}
    assert len(list(tmp_path.iterdir())) == len(names)


def test_another_thing_it_is_made_of_makes_it_again(tmp_path: Path) -> None:
    assert kept(tmp_path, "x", {"seed": 0}, lambda: [1]) == [1]
    assert kept(tmp_path, "x", {"seed": 1}, lambda: [2]) == [2]
    assert kept(tmp_path, "x", {"seed": 1}, lambda: [3]) == [2]
    (path,) = tmp_path.iterdir()
    path.write_text(path.read_text()[:-4])  # damaged: made again
    assert kept(tmp_path, "x", {"seed": 1}, lambda: [3]) == [3]
