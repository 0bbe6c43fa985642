"""What a screen is run for, from aligned profiles: good plates, edges, hits, doses, replicates.

Every output is a table of rows, one representation beside the other, so that a hit list can be laid
beside that of the cell count. One that lacks a column says which. Wells are held against control
wells that the alignment has not seen (`AlignedTable.parts`).
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from bioimg_jax.benchmarks.dose_response import DoseResponse, dose_responses
from bioimg_jax.benchmarks.hits import HitList, hit_list, hit_overlap
from bioimg_jax.benchmarks.phenotype import TreatmentStrength, strength_test, well_strengths
from bioimg_jax.benchmarks.plate_layout import PlateLayout, plate_layout, well_positions
from bioimg_jax.benchmarks.plate_quality import MEASURES, plate_quality
from bioimg_jax.benchmarks.protocols import COMPOUND, DOSE, PLATE, ProfileProtocol
from bioimg_jax.benchmarks.replicate_consistency import replicate_consistency
from bioimg_jax.benchmarks.replicate_curve import replicate_curve
from bioimg_jax.benchmarks.retrieval import REPLICATES
from bioimg_jax.data.splits import has_value, unit_names
from bioimg_jax.errors import InputError
from bioimg_jax.features.aligned import CONTROL, WELL, AlignedTable, controls_of, unaligned
from bioimg_jax.statistics.parts import p_of_parts

POSITIVE = "positive_control"  # column
CURVE_DRAWS = 5
Rows = list[dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Screening:
    """tables: output -> rows; layouts: representation -> its map of the plate; missing: output ->
    why there is none.
    """

    tables: dict[str, Rows]
    layouts: dict[str, PlateLayout]
    missing: dict[str, str]


def screening(
    tables: Mapping[str, AlignedTable],
    encoders: list[str],
    *,
    activity: ProfileProtocol | None,
    permutations: int,
    seed: int,
) -> Screening:
    """All outputs that the metadata allow.

    Args:
      tables: encoders and floors, aligned alike, with the same metadata.
      activity: the protocol whose score is shown over the number of replicates.
    """
    found: dict[str, Rows] = {}
    layouts: dict[str, PlateLayout] = {}
    missing: dict[str, str] = {}
    lists: dict[str, HitList] = {}
    obs = next(iter(tables.values())).obs
    treatment = [column for column in (COMPOUND, DOSE) if column in obs]

    def run(name: str, needs: tuple[str, ...], make: Callable[[str, AlignedTable], Rows]) -> None:
        absent = [column for column in needs if column not in obs]
        if absent:
            missing[name] = f"the metadata have no column {' and no column '.join(absent)}"
            return
        try:
            found[name] = [
                {"representation": key, **row}
                for key, table in tables.items()
                for row in make(key, table)
            ]
        except InputError as error:
            missing[name] = str(error)

    @functools.cache  # an alignment without each part of the controls, for three outputs
    def strengths(key: str) -> np.ndarray:
        return _strengths(tables[key])

    def layout(key: str, table: AlignedTable) -> Rows:
        layouts[key] = _layout(table, strengths(key), treatment, seed)
        return [_edge_row(layouts[key])]

    def hits(key: str, table: AlignedTable) -> Rows:
        rows, lists[key] = _hits(table, treatment, seed)
        return rows

    def curve(key: str, table: AlignedTable) -> Rows:
        if activity is None:
            raise InputError("the benchmark activity was not run")
        return _curve(table, activity, treatment, seed) if key in encoders else []

    def consistency(key: str, table: AlignedTable) -> Rows:
        return _consistency(table, treatment, permutations, seed)

    controls = (PLATE, CONTROL)
    run("plate_quality", (*controls, POSITIVE), lambda key, table: _quality(table, strengths(key)))
    run("plate_layout", (*controls, WELL), layout)
    run("hits", (*controls, COMPOUND), hits)
    run(
        "dose_response", (*controls, COMPOUND, DOSE),
        lambda key, table: _doses(table, strengths(key), seed),
    )  # fmt: skip
    run("replicate_consistency", (*controls, COMPOUND), consistency)
    run("replicate_curve", (*controls, WELL, COMPOUND), curve)
    try:
        overlaps = [
            _overlap_row(encoder, floor, lists[encoder], lists[floor])
            for encoder in encoders
            for floor in tables
            if floor not in encoders and {encoder, floor} <= lists.keys()
        ]
    except InputError as error:
        overlaps, missing["hit_overlap"] = [], str(error)
    if overlaps:
        found["hit_overlap"] = overlaps
    layouts = layouts if "plate_layout" in found else {}
    return Screening(found, layouts, missing)


def summaries(tables: Mapping[str, Rows]) -> dict[str, Rows]:
    """The short tables, and of the long ones (a row a treatment or plate) one a representation."""
    short = {name: tables[name] for name in ("plate_layout", "hit_overlap", "replicate_curve")
             if name in tables}  # fmt: skip
    long: dict[str, Callable[[pd.DataFrame], dict[str, Any]]] = {
        "plate_quality": lambda rows: {
            "plates": int((rows["why_not"] == "").sum()),
            **{f"median_{m}": _median(rows[m]) for m in MEASURES},
        },
        "hits": lambda rows: {
            "tested": int(rows["q"].notna().sum()), "hits": int(rows["hit"].sum()),
            "not_tested": int(rows["q"].isna().sum()),
        },
        "dose_response": lambda rows: {
            "compounds": int(rows["trend_p"].notna().sum()),
            "with_trend": int((rows["trend_p"] <= 0.05).sum()),
            "with_ec50": int(rows["ec50"].notna().sum()),
        },
        "replicate_consistency": lambda rows: {
            "treatments": int(rows["cosine"].notna().sum()),
            "median_cosine": _median(rows["cosine"]),
            "alike": int((rows["cosine_p"] <= 0.05).sum()),
            "away_from_controls": int((rows["energy_p"] <= 0.05).sum()),
        },
    }  # fmt: skip
    for name, summarise in long.items():
        if tables.get(name):
            by_name = pd.DataFrame(tables[name]).groupby("representation", sort=False)
            short[name] = [{"representation": key, **summarise(rows)} for key, rows in by_name]
    return short


def _median(column: pd.Series) -> float | None:
    known = pd.to_numeric(column).dropna()
    return float(known.median()) if len(known) else None


def _strengths(table: AlignedTable) -> np.ndarray:
    """Of every well its distance to controls, over the parts in which it is no fitted control."""
    controls = controls_of(table.obs)
    sums, counts = np.zeros(len(table.obs)), np.zeros(len(table.obs))
    for features, negatives in table.parts():
        values = well_strengths(features, table.obs[PLATE], negatives).values
        seen = ~np.isnan(values) & (negatives | ~controls)
        sums[seen] += values[seen]
        counts[seen] += 1
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def _quality(table: AlignedTable, values: np.ndarray) -> Rows:
    """values: `_strengths` of the table, as in `_layout` and `_doses`."""
    obs = table.obs
    negative = controls_of(obs)
    positive = obs[POSITIVE].to_numpy(bool)
    measured = ~np.isnan(values)
    found = plate_quality(values, obs[PLATE], positive & measured, negative & measured)
    return [
        {"plate": plate, "n_positive": int(found.n_positive[i]),
         "n_negative": int(found.n_negative[i]),
         **{measure: _number(getattr(found, measure)[i]) for measure in MEASURES}, "why_not": ""}
        for i, plate in enumerate(found.plates)
    ] + [
        {"plate": plate, "n_positive": None, "n_negative": None,
         **dict.fromkeys(MEASURES), "why_not": why}
        for plate, why in found.excluded.items()
    ]  # fmt: skip


def _layout(
    table: AlignedTable, values: np.ndarray, treatment: list[str], seed: int
) -> PlateLayout:
    there = np.flatnonzero(~np.isnan(values))
    obs = table.obs.iloc[there]
    rows, columns = well_positions(obs[WELL])
    treated = unit_names(obs, treatment) if treatment else None
    return plate_layout(values[there], obs[PLATE], rows, columns, treatments=treated, seed=seed)


def _edge_row(found: PlateLayout) -> dict[str, Any]:
    return {"edge_minus_rest": found.edge, "p": found.p, "reason": found.reason,
            "treatments_on_one_side": found.one_sided,
            "plates_higher_at_edge": sum(v > 0 for v in found.edge_by_plate.values()),
            "plates": len(found.edge_by_plate)}  # fmt: skip


def _hits(table: AlignedTable, treatment: list[str], seed: int) -> tuple[Rows, HitList]:
    """Of two parts the mean strength and the p of both."""
    controls = controls_of(table.obs)
    treated = ~controls & has_value(table.obs[COMPOUND])
    by_part: list[dict[str, TreatmentStrength]] = []
    excluded: dict[str, str] = {}
    for features, negatives in table.parts():
        wells = np.flatnonzero(treated | negatives)
        mine = table.obs.iloc[wells]
        tested = strength_test(
            features[wells], mine[PLATE], unit_names(mine, treatment), negatives[wells], seed=seed
        )
        by_part.append({one.treatment: one for one in tested.treatments})
        excluded |= tested.excluded
    n = len(by_part)
    names = sorted(set.intersection(*(set(part) for part in by_part)))
    p, least, strength, n_wells = {}, {}, {}, {}
    for name in names:
        ones = [part[name] for part in by_part]
        p[name] = float(p_of_parts(np.mean([one.p for one in ones]), n))
        least[name] = float(p_of_parts(np.mean([one.smallest_p for one in ones]), n))
        strength[name] = float(np.mean([one.strength for one in ones]))
        n_wells[name] = ones[0].n_wells
    found = hit_list(p, smallest=least)
    why = {**excluded, **found.excluded}
    rows = [
        {"treatment": name, "strength": strength.get(name), "p": p.get(name),
         "q": found.q.get(name), "hit": name in found.hits, "wells": n_wells.get(name),
         "why_not": "" if name in found.q else why.get(name, "")}
        for name in sorted({*names, *excluded})
    ]  # fmt: skip
    return rows, found


def _overlap_row(encoder: str, floor: str, here: HitList, there: HitList) -> dict[str, Any]:
    found = hit_overlap(here, there)
    odds = found.odds_ratio
    return {"encoder": encoder, "floor": floor, "both": len(found.both),
            "encoder_alone": len(found.only_here), "floor_alone": len(found.only_there),
            "neither": found.n_neither, "jaccard": found.jaccard,
            "odds_ratio": None if odds is None or not np.isfinite(odds) else odds,
            "fisher_p": found.fisher_p}  # fmt: skip


def _doses(table: AlignedTable, values: np.ndarray, seed: int) -> Rows:
    obs = table.obs
    wells = np.flatnonzero(~np.isnan(values) & ~controls_of(obs) & has_value(obs[COMPOUND]))
    mine = obs.iloc[wells]
    found = dose_responses(values[wells], mine[DOSE], mine[COMPOUND], seed=seed)
    rows = []
    for one in found.compounds:
        row = dataclasses.asdict(one)
        low, high = row.pop("interval") or (None, None)
        # An end beyond the tested doses is none.
        row |= {"ec50_lower": low or None, "ec50_upper": None if high == np.inf else high}
        why = row.pop("failure")
        rows.append(row | {"why_not": why})
    fields = {field.name for field in dataclasses.fields(DoseResponse)} - {"interval", "failure"}
    blank = dict.fromkeys([*sorted(fields), "ec50_lower", "ec50_upper"])
    return rows + [blank | {"compound": k, "why_not": why} for k, why in found.excluded.items()]


def _consistency(table: AlignedTable, treatment: list[str], permutations: int, seed: int) -> Rows:
    """Of two parts the mean of the values, and the p-values of both."""
    controls = controls_of(table.obs)
    treated = ~controls & has_value(table.obs[COMPOUND])
    parts: list[pd.DataFrame] = []
    alone: set[str] = set()  # in some part
    for features, negatives in table.parts():
        wells = np.flatnonzero(treated | negatives)
        mine = table.obs.iloc[wells]
        one = replicate_consistency(
            features[wells], unit_names(mine, treatment), negatives[wells], strata=mine[PLATE],
            permutations=permutations, seed=seed,
        )  # fmt: skip
        alone |= set(one.single)
        parts.append(
            pd.DataFrame(
                {
                    "replicates": one.replicates,
                    "controls": one.controls,
                    "cosine": one.cosine,
                    "cosine_p": one.cosine_p,
                    "energy": one.energy,
                    "energy_p": one.energy_p,
                    "ks_max": one.ks_max,
                    "ks_mean": one.ks_mean,
                },
                index=pd.Index(one.perturbations, name="treatment"),
            )
        )  # fmt: skip
    # Of treatments that every part can test: one of a single part would be of other controls.
    mean = pd.concat(parts).drop(index=sorted(alone), errors="ignore")
    mean = mean.groupby(level=0, sort=True).mean()
    for column in ("cosine_p", "energy_p"):
        mean[column] = p_of_parts(mean[column], len(parts))
    rows = [row | {"why_not": ""} for row in mean.reset_index().to_dict("records")]
    blank = dict.fromkeys(rows[0]) if rows else {}
    why = "fewer than two replicates beside controls"
    return rows + [blank | {"treatment": name, "why_not": why} for name in sorted(alone)]


def _curve(table: AlignedTable, activity: ProfileProtocol, treatment: list[str], seed: int) -> Rows:
    """Activity of the treatments that have two replicates, with 2, 3 ... of each."""
    obs = table.obs
    asked = np.flatnonzero(controls_of(obs) | has_value(obs[COMPOUND]))
    fast = activity.untested().with_settings(least_replicates=REPLICATES)
    features = list(table.parts())

    def statistic(rows: np.ndarray) -> float:
        mine = dataclasses.replace(table, obs=obs.iloc[asked[rows]].reset_index(drop=True))
        values = []
        for of, negatives in features:
            held = negatives[asked[rows]] | ~controls_of(mine.obs)
            some = dataclasses.replace(mine, obs=mine.obs[held].reset_index(drop=True))
            part = unaligned(some, of[asked[rows]][held])
            values.append(fast.score(part, representation="", kind="", seed=seed).value)
        return float(np.mean(values))

    mine = obs.iloc[asked]
    labels, ids = unit_names(mine, treatment), unit_names(mine, (PLATE, WELL))
    controls = controls_of(mine)
    counts = pd.Series(labels[~controls]).value_counts()
    largest = int(counts[counts >= 2].min()) if (counts >= 2).any() else 0
    found = replicate_curve(
        statistic, labels, ids, always=controls, sizes=range(2, largest + 1), at_least=2,
        draws=CURVE_DRAWS, seed=seed,
    )  # fmt: skip
    return [
        {"replicates": k, activity.target.metric: mean, "sd_over_draws": sd,
         "treatments": found.n_treatments}
        for k, mean, sd in zip(found.sizes, found.mean, found.sd, strict=True)
    ]  # fmt: skip


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
