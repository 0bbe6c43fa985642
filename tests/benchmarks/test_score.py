"""Which rows of results.json stand for a representation."""

from bioimg_jax.benchmarks.score import headline_rows


def row(representation: str, block: str, seed: int | None = 0, **settings: str) -> dict:
    return {
        "benchmark": "b",
        "target": "t",
        "representation": representation,
        "block": block,
        "seed": seed,
        "settings": settings,
    }


def test_the_selected_layer_or_the_last_and_averages_for_their_members() -> None:
    rows = [
        row("mae", "block02"),
        row("mae", "final"),
        row("mae", "selected"),
        row("random_1", "selected", 1, group="random"),
        row("random_2", "selected", 2, group="random"),
        row("pixels", "pixels"),
        row("single", "block01"),
        row("single", "final"),
        row("alone_1", "selected", 1, group="alone"),  # a group of one has no average
        row("random", "final", None, group="random"),
        row("random", "selected", None, group="random"),
        {**row("mae", "selected"), "target": "other"},
        {**row("mae", "selected"), "benchmark": "other"},
    ]
    shown = [(r["representation"], r["block"]) for r in headline_rows(rows, "t", "b")]
    assert shown == [
        ("mae", "selected"), ("pixels", "pixels"), ("single", "final"), ("alone_1", "selected"),
        ("random", "selected"),
    ]  # fmt: skip
