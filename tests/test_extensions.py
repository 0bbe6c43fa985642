"""A user's own file: loaded by its path, and every way to get it wrong."""

from pathlib import Path

import pytest

from bioimg_jax.errors import InputError
from bioimg_jax.extensions import check_name, digest, load_build


def test_the_function_of_a_file_is_found_and_dataclasses_work(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "from __future__ import annotations\n"
        "import dataclasses\n\n"
        "@dataclasses.dataclass\nclass Pair:\n    a: int\n\n"
        "def build(x):\n    return Pair(x)\n"
    )
    assert load_build(path, "evaluate.benchmarks")(3).a == 3
    before = digest(path)
    path.write_text("def build(x):\n    return x + 1\n")
    assert digest(path) != before
    assert load_build(path, "evaluate.benchmarks")(3) == 4  # an edited file is not the old one


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "there is no such file"),
        ("x = 1\n", "defines no function 'build'"),
        ("build = 1\n", "defines no function 'build'"),
        ("def build(:\n", "SyntaxError"),
        ("x = 1\nimport nowhere_at_all\n", "line 2: ModuleNotFoundError: No module named"),
    ],
)
def test_a_mistake_is_one_line_with_key_and_file(
    tmp_path: Path, text: str | None, message: str
) -> None:
    path = tmp_path / "mine.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=message) as raised:
        load_build(path, "evaluate.benchmarks")
    assert str(raised.value).startswith(f"evaluate.benchmarks: {path}")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("relative", [False, True])
def test_a_mistake_inside_build_is_one_line_with_its_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, relative: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path("mine.py") if relative else tmp_path / "mine.py"
    path.write_text("def build(n):\n    return 1 / n\n")
    build = load_build(path, "evaluate.representations")
    assert build(2) == 0.5
    with pytest.raises(InputError) as raised:
        build(0)
    told = f"evaluate.representations: {path}, line 2: ZeroDivisionError: division by zero"
    assert str(raised.value) == told


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "taken", "two words"])
def test_a_name_becomes_a_file_and_stays_in_its_folder(name: str) -> None:
    with pytest.raises(InputError, match="is called"):
        check_name(name, {"taken"}, "representation")
    check_name("mine-2.0", {"taken"}, "representation")
