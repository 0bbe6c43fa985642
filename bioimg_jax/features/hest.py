"""Reads HEST-Benchmark's layout: images and gene counts of one task, matched by barcode.

    <task>/patches/<sample>.h5      img uint8 [n, s, s, 3], barcode [n, 1], coords [n, 2] (x, y)
    <task>/adata/<sample>.h5ad      raw counts [spots, genes]; rows named by barcode, in any order
    <task>/splits/train_<k>.csv     sample_id, patches_path, expr_path; test_<k>.csv likewise
    <task>/var_50genes.json         {"genes": [...]}: the genes that are predicted

Jaume et al., "HEST-1k: a dataset for spatial transcriptomics and histology image analysis", 2024.
A sample is a section. The layout does not say whose: see `read_task`.
"""

import dataclasses
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
from scipy import sparse

from bioimg_jax.data.splits import Fold
from bioimg_jax.errors import InputError

GENE_LIST = "var_50genes.json"
COLUMNS = ("sample_id", "patches_path", "expr_path")
IMAGES = ("img", "imgs", "images")  # names that releases of the benchmark gave the same arrays
BARCODES = ("barcode", "barcodes")
PATIENT = "patient"
SECTION = "section"


@dataclasses.dataclass(frozen=True)
class Split:
    """One fold as the benchmark distributes it: whole sections."""

    name: str
    train: tuple[str, ...]
    test: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Sample:
    """Files of one section, relative to the task's folder, and its array of images."""

    name: str
    patches: str
    counts: str
    images: str  # name of the array in `patches`
    shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """A task, read but for its images and counts.

    spots: [n], a row a patch that has counts, samples in their order and patches as in the file:
      "section", "barcode", "patch" (its row in the file), "x" and "y" in pixels of the slide,
      "total_counts" of all genes and, where it is known, "patient".
    genes: of the gene list.
    without_counts, without_patch: section -> patches that the counts lack, and rows of the counts
      that no patch belongs to; both are left out.
    """

    folder: Path
    samples: tuple[Sample, ...]
    splits: tuple[Split, ...]
    genes: tuple[str, ...]
    spots: pd.DataFrame
    files: tuple[str, ...]  # everything that was read, relative to the folder
    without_counts: dict[str, int]
    without_patch: dict[str, int]

    @property
    def unit(self) -> str:
        """Column with the unit of independence: the patient, or the section if none is known."""
        return PATIENT if PATIENT in self.spots else SECTION

    def folds(self) -> tuple[list[Fold], dict[str, str]]:
        """Folds of rows of `spots`, and splits that are left out with the reason.

        A split with a patient on both sides measures replicates and not patients. There are no
        validation rows.
        """
        folds, left_out = [], {}
        sections, units = self.spots[SECTION], self.spots[self.unit]
        for split in self.splits:
            train, test = (sections.isin(part).to_numpy() for part in (split.train, split.test))
            shared = sorted(set(units[train]) & set(units[test]))
            if shared:
                left_out[split.name] = f"{self.unit} {shared[0]!r} is in training and test"
                continue
            none = np.zeros(0, np.int64)
            rows = np.flatnonzero(train), none, np.flatnonzero(test)
            folds.append(Fold(split.name, *rows, unit=(self.unit,)))
        return folds, left_out

    def rows_of(self, sections: Sequence[str], barcodes: Sequence[str]) -> np.ndarray:
        """Rows of `spots` int64 [m] with these names, as features from elsewhere need them.

        Raises:
          InputError: a spot that the task does not have, or one that is asked for twice.
        """
        index = pd.MultiIndex.from_frame(self.spots[[SECTION, "barcode"]])
        wanted = pd.MultiIndex.from_arrays([list(sections), list(barcodes)])
        if len(wanted) and not wanted.is_unique:
            section, barcode = wanted[int(np.argmax(wanted.duplicated()))]
            raise InputError(f"barcode {barcode!r} of section {section!r} is given twice")
        rows = index.get_indexer(wanted)
        if (rows < 0).any():
            row = int(np.argmin(rows))
            raise InputError(
                f"row {row}: {self.folder} has no counts for barcode {barcodes[row]!r} of section "
                f"{sections[row]!r}"
            )
        return rows.astype(np.int64)


@dataclasses.dataclass(frozen=True, eq=False)
class Counts:
    """Raw counts of a task's spots: csr [n, m] float64, of genes that every section has once."""

    matrix: sparse.csr_array
    names: tuple[str, ...]


def read_task(
    folder: str | Path,
    *,
    gene_list: str = GENE_LIST,
    patients: str = "",
    patient_pattern: str = "",
) -> Task:
    """Reads and checks a task's folder.

    Args:
      gene_list: file in the folder.
      patients: a CSV file in the folder with the columns sample_id (or id) and patient. Without it
        and without a pattern patients are those of a column "patient" in the tables of counts; if
        there is none, they are unknown.
      patient_pattern: a regular expression that is searched for in a section's name; its first
        group, or all of it, is the patient: "^[A-Z]" makes B of B4.

    Raises:
      InputError: a file, column, array, barcode, gene or patient that is missing, double or of
        another form than expected.
    """
    folder = Path(folder)
    if not (folder / "splits").is_dir():
        raise InputError(f"{folder}: no folder splits in it, expected a task of HEST-Benchmark")
    splits, paths, files = _read_splits(folder)
    genes = _read_genes(folder / gene_list)
    samples, tables, without_counts, without_patch = [], [], {}, {}
    for name, (patches, counts) in paths.items():
        sample, table = _read_patches_file(folder, name, patches, counts)
        matched, row = _match(folder, sample, table, genes)
        without_counts[name] = len(table) - len(matched)
        without_patch[name] = row
        samples.append(sample)
        tables.append(matched)
    spots = pd.concat(tables, ignore_index=True)
    if patients:
        spots[PATIENT] = spots[SECTION].map(_read_patients(folder / patients, list(paths)))
        files.append(patients)
    elif patient_pattern:
        spots[PATIENT] = spots[SECTION].map(_named_patients(patient_pattern, list(paths)))
    elif PATIENT in spots and spots[PATIENT].isna().any():
        lacking = spots[SECTION][spots[PATIENT].isna()].iloc[0]
        raise InputError(f"{folder}: section {lacking!r} has spots without a patient, others have")
    files += [gene_list, *(file for s in samples for file in (s.patches, s.counts))]
    return Task(
        folder, tuple(samples), splits, genes, spots, tuple(files), without_counts, without_patch
    )


def read_counts(task: Task) -> Counts:
    """The counts of all spots; one section's table is in memory beside the result at a time.

    Genes are those that every section has, in the order of the first one. What a section lists
    twice is left out: nobody can say which is meant.
    """
    names: list[str] | None = None
    parts: list[tuple[list[str], sparse.csr_array]] = []
    for sample in task.samples:
        mine = task.spots[task.spots[SECTION] == sample.name]
        table = _read_table(task.folder / sample.counts)
        rows = table.barcodes.get_indexer(mine["barcode"])
        once = table.genes[~table.genes.duplicated(keep=False)]
        columns = table.genes.get_indexer_for(once)
        parts.append((list(once), table.matrix[rows][:, columns]))
        held = set(once)
        names = list(once) if names is None else [name for name in names if name in held]
    assert names is not None  # a task has a section
    matrices = [matrix[:, pd.Index(genes).get_indexer(pd.Index(names))] for genes, matrix in parts]
    return Counts(sparse.csr_array(sparse.vstack(matrices, format="csr")), tuple(names))


def read_annotations(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What the tables of a task say of spots and of genes, counts left out.

    Spots of all sections one after the other, with "section" and "barcode"; genes of the first one,
    their names the index.
    """
    task, spots, genes = read_task(folder), [], pd.DataFrame()
    for sample in task.samples:
        with h5py.File(task.folder / sample.counts) as file:
            obs = anndata.io.read_elem(file["obs"])
            genes = genes if len(genes) else anndata.io.read_elem(file["var"])
        spots.append(obs.assign(**{SECTION: sample.name, "barcode": obs.index}))
    return pd.concat(spots, ignore_index=True), genes


def read_images(path: Path, images: str, patches: Sequence[int]) -> Iterator[np.ndarray]:
    """Patches uint8 [h, w, 3] of some rows, one after the other; `OSError` for a broken file."""
    with h5py.File(path) as file:
        for patch in patches:
            yield file[images][patch]


def read_patches(folder: Path, n: int) -> np.ndarray:
    """n patches spread over all files of a folder, uint8 [n, h, w, 3]; `InputError`."""
    paths = sorted(folder.rglob("*.h5"))
    if not paths:
        raise InputError(f"{folder}: no *.h5 in it, expected patches of HEST-Benchmark")
    found = []
    for i in range(n):
        path = paths[i * len(paths) // n]
        try:
            with h5py.File(path) as file:
                images = file["img"]
                found.append(images[(i * 7919) % len(images)])
        except (OSError, KeyError) as error:
            raise InputError(f"{path}: not a patch file ({error})") from error
    return np.stack(found)


def _read_splits(
    folder: Path,
) -> tuple[tuple[Split, ...], dict[str, tuple[str, str]], list[str]]:
    """Splits, section -> its two files, and the names of the files read."""
    numbers = {}
    for part in ("train", "test"):
        found = (folder / "splits").glob(f"{part}_*.csv")
        numbers[part] = {path.stem.removeprefix(f"{part}_") for path in found}
    for part, other in (("train", "test"), ("test", "train")):
        if alone := sorted(numbers[part] - numbers[other]):
            raise InputError(f"{folder / 'splits'}: {part}_{alone[0]}.csv has no {other}_ beside")
    if not numbers["train"]:
        raise InputError(f"{folder / 'splits'}: no train_*.csv in it, expected train_0.csv")
    paths: dict[str, tuple[str, str]] = {}
    splits, files = [], []
    for number in sorted(numbers["train"], key=lambda n: (not n.isdecimal(), n.zfill(9))):
        parts = {}
        for part in ("train", "test"):
            file = f"splits/{part}_{number}.csv"
            files.append(file)
            parts[part] = _read_split(folder, file, paths)
        if both := sorted(set(parts["train"]) & set(parts["test"])):
            raise InputError(
                f"{folder / file}: section {both[0]!r} is in train_{number}.csv too; "
                "expected it in one of the two"
            )
        splits.append(Split(number, **parts))
    return tuple(splits), dict(sorted(paths.items())), files


def _read_split(folder: Path, file: str, paths: dict[str, tuple[str, str]]) -> tuple[str, ...]:
    """Sections of one CSV file; adds their files to `paths`."""
    table = _read_csv(folder / file, COLUMNS)
    if not len(table):
        raise InputError(f"{folder / file}: no section in it")
    for row, (name, *two) in enumerate(table[list(COLUMNS)].itertuples(index=False), start=1):
        where = f"{folder / file}: row {row}"
        if not name:
            raise InputError(f"{where} has no sample_id")
        for column, path in zip(COLUMNS[1:], two, strict=True):
            pure = PurePosixPath(path)
            if not path or pure.is_absolute() or ".." in pure.parts:
                raise InputError(f"{where}: {column} {path!r}, expected a path inside {folder}")
            if not (folder / path).is_file():
                raise InputError(f"{where}: {column} {path!r} is no file in {folder}")
        if paths.setdefault(name, (two[0], two[1])) != tuple(two):
            raise InputError(f"{where}: section {name!r} has other files in another split")
    if table["sample_id"].duplicated().any():
        twice = table["sample_id"][table["sample_id"].duplicated()].iloc[0]
        raise InputError(f"{folder / file}: section {twice!r} is listed twice")
    return tuple(table["sample_id"])


def _read_csv(path: Path, columns: Iterable[str]) -> pd.DataFrame:
    """All values as text: "001" and "NA" are names."""
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (OSError, ValueError) as error:  # pandas' parser errors are ValueErrors
        raise InputError(f"{path}: cannot be read ({_first_line(error)})") from error
    for column in columns:
        if column not in table:
            raise InputError(f"{path}: no column {column!r}; it has {', '.join(table.columns)}")
    return table


def _read_genes(path: Path) -> tuple[str, ...]:
    try:
        genes = json.loads(path.read_text(encoding="utf-8"))["genes"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f'{path}: expected {{"genes": [...]}} ({_first_line(error)})') from error
    if not isinstance(genes, list) or not genes or not all(isinstance(g, str) for g in genes):
        raise InputError(f"{path}: expected a list of names of genes")
    if len(set(genes)) < len(genes):
        twice = next(gene for i, gene in enumerate(genes) if gene in genes[:i])
        raise InputError(f"{path}: gene {twice!r} is listed twice")
    return tuple(genes)


def _read_patients(path: Path, sections: Sequence[str]) -> dict[str, str]:
    table = _read_csv(path, (PATIENT,))
    key = next((column for column in ("sample_id", "id") if column in table), None)
    if key is None:
        raise InputError(f"{path}: no column 'sample_id' or 'id'")
    rows = table[table[key].isin(sections)]
    if rows[key].duplicated().any():
        twice = rows[key][rows[key].duplicated()].iloc[0]
        raise InputError(f"{path}: section {twice!r} is listed twice")
    known = dict(zip(rows[key], rows[PATIENT].str.strip(), strict=True))
    for section in sections:
        if not known.get(section):
            raise InputError(f"{path}: no patient for section {section!r}")
    return known


def _named_patients(pattern: str, sections: Sequence[str]) -> dict[str, str]:
    try:
        found = {section: re.search(pattern, section) for section in sections}
    except re.error as error:
        raise InputError(f"patient_pattern {pattern!r}: no regular expression ({error})") from error
    named = {}
    for section, match in found.items():
        name = match and match.group(min(1, match.re.groups))
        if not name:
            raise InputError(f"patient_pattern {pattern!r} finds no patient in {section!r}")
        named[section] = name
    return named


def _read_patches_file(
    folder: Path, name: str, patches: str, counts: str
) -> tuple[Sample, pd.DataFrame]:
    """The section, and its patches: section, barcode, patch, x, y."""
    path = folder / patches
    try:
        with h5py.File(path) as file:
            images = _first_of(file, IMAGES, path)
            shape, dtype = file[images].shape, file[images].dtype
            barcodes = _texts(file[_first_of(file, BARCODES, path)][:], path)
            coords = np.asarray(file[_first_of(file, ("coords",), path)][:])
    except (OSError, RuntimeError) as error:
        raise InputError(f"{path}: not a readable patch file ({_first_line(error)})") from error
    if dtype != np.uint8 or len(shape) != 4 or shape[3] != 3:
        raise InputError(f"{path}: {images} is {dtype} {shape}, expected uint8 (n, h, w, 3)")
    if len(barcodes) != shape[0] or coords.shape != (shape[0], 2):
        raise InputError(
            f"{path}: {shape[0]} images, {len(barcodes)} barcodes and coords {coords.shape}; "
            "expected as many of each"
        )
    if len(set(barcodes)) < len(barcodes):
        twice = pd.Series(barcodes)[pd.Series(barcodes).duplicated()].iloc[0]
        raise InputError(f"{path}: barcode {twice!r} occurs twice")
    if not (np.issubdtype(coords.dtype, np.number) and np.isfinite(coords).all()):
        raise InputError(f"{path}: coords hold what is no number")
    table = pd.DataFrame({SECTION: name, "barcode": barcodes, "patch": np.arange(len(barcodes))})
    table["x"], table["y"] = np.rint(coords).astype(np.int64).T
    return Sample(name, patches, counts, images, tuple(shape)), table


def _match(
    folder: Path, sample: Sample, patches: pd.DataFrame, genes: Sequence[str]
) -> tuple[pd.DataFrame, int]:
    """The patches that have counts, with their totals, and how many counts have no patch."""
    path = folder / sample.counts
    table = _read_table(path)
    for gene in genes:
        n = int((table.genes == gene).sum())
        if n != 1:
            raise InputError(
                f"{path}: gene {gene!r} of the gene list is {'not' if not n else f'{n} times'} "
                f"among its {len(table.genes):,} genes"
            )
    rows = table.barcodes.get_indexer(patches["barcode"])
    if (rows < 0).all():
        raise InputError(
            f"{path}: none of the {len(rows)} barcodes of {sample.patches}; it has "
            f"{table.barcodes[0]!r}, expected such as {patches['barcode'].iloc[0]!r}"
            if len(rows) and len(table.barcodes)
            else f"{path}: no spot that {sample.patches} has too"
        )
    found = rows >= 0
    matched = patches[found].reset_index(drop=True)
    totals = np.asarray(table.matrix.sum(axis=1))
    matched["total_counts"] = np.rint(totals[rows[found]]).astype(np.int64)
    if PATIENT in table.obs:
        values = table.obs[PATIENT].iloc[rows[found]].reset_index(drop=True)
        matched[PATIENT] = values.astype(object).where(values.isna(), values.astype(str))
    return matched, len(table.barcodes) - int(found.sum())


@dataclasses.dataclass(frozen=True, eq=False)
class _Table:
    barcodes: pd.Index
    genes: pd.Index
    matrix: sparse.csr_array  # float64, raw counts
    obs: pd.DataFrame


def _read_table(path: Path) -> _Table:
    """Counts of one section. Only what is needed: some files carry whole slides beside them."""
    try:
        with h5py.File(path) as file:
            obs, var, x = (anndata.io.read_elem(file[key]) for key in ("obs", "var", "X"))
    except Exception as error:  # the readers raise half a dozen types for a damaged file
        raise InputError(f"{path}: not a readable .h5ad ({_first_line(error)})") from error
    barcodes, genes = (pd.Index(frame.index.astype(str)) for frame in (obs, var))
    matrix = sparse.csr_array(x, dtype=np.float64)
    if barcodes.has_duplicates:
        raise InputError(f"{path}: barcode {barcodes[barcodes.duplicated()][0]!r} occurs twice")
    odd = ~((matrix.data >= 0) & (matrix.data == np.rint(matrix.data)) & (matrix.data < np.inf))
    if odd.any():
        at = int(np.argmax(odd))
        row = int(np.searchsorted(matrix.indptr, at, side="right")) - 1
        raise InputError(
            f"{path}: {matrix.data[at]:g} for gene {genes[matrix.indices[at]]!r} of "
            f"{barcodes[row]!r}; expected raw counts, whole numbers from 0"
        )
    return _Table(barcodes, genes, matrix, obs)


def _first_of(file: h5py.File, names: Sequence[str], path: Path) -> str:
    for name in names:
        if isinstance(file.get(name), h5py.Dataset):
            return name
    raise InputError(f"{path}: no array {names[0]!r}; it has {', '.join(file)}")


def _texts(values: np.ndarray, path: Path) -> list[str]:
    """Names from bytes or text, [n] or [n, 1]."""
    found: list[Any] = np.asarray(values).reshape(-1).tolist()
    try:
        return [v.decode() if isinstance(v, bytes) else str(v) for v in found]
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: a barcode is no UTF-8 ({error})") from error


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
