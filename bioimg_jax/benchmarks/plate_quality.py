"""How well each plate separates its positive from its negative controls: Z' and SSMD.

With means μ and standard deviations σ of the two kinds of control wells

    Z'   = 1 − 3 (σ₊ + σ₋) / |μ₊ − μ₋|      Zhang, Chung & Oldenburg, J. Biomol. Screen. 4 (1999)
    SSMD = (μ₊ − μ₋) / √(σ₊² + σ₋²)         Zhang, Genomics 89 (2007), independent groups

and, robust, the same with medians and 1.4826 times the median absolute deviations. σ has n − 1.
"""

import dataclasses

import numpy as np

from bioimg_jax.benchmarks.columns import Column, feature_rows, flags, names
from bioimg_jax.errors import InputError

MAD = 1.4826022185056018  # 1 / Φ⁻¹(3/4): of normal numbers the MAD is then the σ
MEASURES = ("z_prime", "ssmd", "robust_z_prime", "robust_ssmd")


@dataclasses.dataclass(frozen=True, eq=False)
class PlateQuality:
    """Plates [p] by name, and the measures of each.

    z_prime, ssmd, robust_z_prime, robust_ssmd: float64 [p], or [p, d] of d features. nan where one
    does not exist, which `undefined` counts by measure: Z' where the centres are equal, SSMD where
    neither kind varies.
    n_positive, n_negative: int [p]; excluded: plate -> why it has no measures.
    """

    plates: tuple[str, ...]
    n_positive: np.ndarray
    n_negative: np.ndarray
    z_prime: np.ndarray
    ssmd: np.ndarray
    robust_z_prime: np.ndarray
    robust_ssmd: np.ndarray
    undefined: dict[str, int]
    excluded: dict[str, str]


def plate_quality(
    values: np.ndarray, plates: Column, positives: Column, negatives: Column
) -> PlateQuality:
    """Z' and SSMD of every plate with two or more control wells of each kind.

    Args:
      values: [n], one score a well (`phenotype.well_strengths`), or [n, d] features.
      plates: [n]; positives, negatives: bool [n]. Other wells are not looked at, so the score of
        one that has none may be nan.

    Raises:
      InputError: a score of a control that is not finite, a well that is a control of both kinds,
        no control of a kind on any plate.
    """
    values = np.asarray(values)
    if values.ndim not in (1, 2):
        raise InputError(f"scores of shape {values.shape}, expected [wells] or [wells, features]")
    n = len(values)
    plate = names(plates, n, "plate")
    kinds = {
        "positive": flags(positives, n, "positive control"),
        "negative": flags(negatives, n, "negative control"),
    }
    both = np.flatnonzero(kinds["positive"] & kinds["negative"])
    if len(both):
        raise InputError(f"row {both[0]} is a positive and a negative control, expected one")
    for kind, rows in kinds.items():
        if not rows.any():
            raise InputError(f"no well is a {kind} control, expected two or more a plate")
    x = values.reshape(n, -1)
    looked_at = kinds["positive"] | kinds["negative"]
    x = feature_rows(np.where(looked_at[:, None], x, 0.0))

    kept, counts, measures, excluded = [], [], [], {}
    for name in np.unique(plate).tolist():
        sides = {kind: np.sort(x[rows & (plate == name)], axis=0) for kind, rows in kinds.items()}
        few = [f"{len(s)} {kind} control wells" for kind, s in sides.items() if len(s) < 2]
        if few:
            excluded[name] = f"{' and '.join(few)}, expected 2 or more"
            continue
        kept.append(name)
        counts.append([len(side) for side in sides.values()])
        measures.append(_measures(*sides.values()))
    n_positive, n_negative = np.array(counts, int).reshape(-1, 2).T
    # [p, 4, d] -> [4, p, d] or [4, p]
    table = np.array(measures).reshape(-1, len(MEASURES), x.shape[1]).transpose(1, 0, 2)
    table = table if values.ndim == 2 else table[..., 0]
    return PlateQuality(
        tuple(kept),
        n_positive,
        n_negative,
        z_prime=table[0],
        ssmd=table[1],
        robust_z_prime=table[2],
        robust_ssmd=table[3],
        undefined={m: int(np.isnan(t).sum()) for m, t in zip(MEASURES, table, strict=True)},
        excluded=excluded,
    )


def _measures(positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """The four measures [4, d] of sorted control wells [n, d] of both kinds."""
    found = []
    for centre, spread in ((_mean, _sd), (_median, _mad)):
        difference = centre(positive) - centre(negative)
        up, down = spread(positive), spread(negative)
        found += [
            1 - 3 * _ratio(up + down, np.abs(difference)),
            _ratio(difference, np.sqrt(up**2 + down**2)),
        ]
    return np.stack(found)


def _ratio(over: np.ndarray, under: np.ndarray) -> np.ndarray:
    return np.divide(over, under, out=np.full_like(over, np.nan), where=under > 0)


def _mean(x: np.ndarray) -> np.ndarray:
    # From one of the wells: the mean of equal numbers is then that number, and their sd is 0.
    return np.asarray(x[0] + (x - x[0]).mean(axis=0))


def _sd(x: np.ndarray) -> np.ndarray:
    return np.asarray((x - x[0]).std(axis=0, ddof=1))


def _median(x: np.ndarray) -> np.ndarray:
    return np.asarray(np.median(x, axis=0))


def _mad(x: np.ndarray) -> np.ndarray:
    return np.asarray(MAD * np.median(np.abs(x - _median(x)), axis=0))
