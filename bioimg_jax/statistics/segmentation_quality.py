"""How well the nuclei of a data set were told apart, from the features of the count floor."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from bioimg_jax.errors import InputError

NEEDED = ("count", "foreground", "separability", "contrast", "discarded", "at_border", "touching")


def segmentation_quality(features: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """The quality that is reported with the count floor: nothing is segmented again.

    A count is no better than the segmentation behind it. What it cannot say without hand-drawn
    masks is how many nuclei were merged or split: nuclei that touch another one are those at risk.

    Args:
      features: [n, d] of the layer "nuclei" of a table.
      names: of the d features (`representations.nuclei.FEATURE_NAMES`).

    Returns:
      {"n_images", "n_nuclei", "median_count", "count_q10", "count_q90", "empty_share" (images
      without a nucleus), "median_foreground"; over images with nuclei "median_separability" (Otsu:
      share of the variance between its two classes; 2/π for a normal cloud without classes, and
      low too where nuclei are few), "median_contrast" (foreground less background in sd of the
      background), "mean_discarded" (share of the foreground taken for no nucleus); over nuclei
      "at_border_share", "touching_share"; "reason": one sentence}; None where there is no nucleus.

    Raises:
      InputError: no row, names of another number than the features, or one that is needed missing.
    """
    if len(names) != features.shape[1] or not len(features):
        raise InputError(
            f"segmentation quality: features of shape {features.shape} for {len(names)} names, "
            "expected one name a column and at least one row"
        )
    for name in NEEDED:
        if name not in names:
            raise InputError(f"segmentation quality: no feature {name!r} among {', '.join(names)}")
    column = {name: features[:, names.index(name)].astype(np.float64) for name in NEEDED}
    count = column["count"]
    held = count > 0
    n_nuclei = float(count.sum())

    def median(name: str) -> float | None:
        return float(np.median(column[name][held])) if held.any() else None

    def of_nuclei(name: str) -> float | None:
        return float(column[name] @ count) / n_nuclei if n_nuclei else None

    found: dict[str, Any] = {
        "n_images": len(count),
        "n_nuclei": int(n_nuclei),
        "median_count": float(np.median(count)),
        "count_q10": float(np.quantile(count, 0.1)),
        "count_q90": float(np.quantile(count, 0.9)),
        "empty_share": float(np.mean(~held)),
        "median_foreground": float(np.median(column["foreground"])),
        "median_separability": median("separability"),
        "median_contrast": median("contrast"),
        "mean_discarded": float(column["discarded"][held].mean()) if held.any() else None,
        "at_border_share": of_nuclei("at_border"),
        "touching_share": of_nuclei("touching"),
    }
    if not n_nuclei:
        return {**found, "reason": f"no nucleus was found in any of {len(count):,} images"}
    shares = [found[name] for name in ("touching_share", "at_border_share", "empty_share")]
    reason = (
        f"median {found['median_count']:.0f} nuclei an image, {shares[2]:.0%} of "
        f"{len(count):,} images empty; {shares[0]:.0%} of the nuclei touch another one and "
        f"{shares[1]:.0%} the border; the median contrast is {found['median_contrast']:.0f} sd of "
        "the background"
    )
    return {**found, "reason": reason}
