"""Who holds which scan: the manifest's own hospitals, or hospitals simulated by dealing out whole patients."""

from collections import Counter
from urllib.parse import quote

import numpy as np

from fedimaging.data.dataset import Dataset
from fedimaging.data.spec import HospitalsSpec
from fedimaging.errors import DataError, StudyError, unknown_name

_LONGEST_NAME = 200  # percent-encoded: each hospital of a simulation has a folder of that name
_FLOOR = 1e-6  # a Dirichlet draw may underflow to 0; a class must stay dealable to somebody


def assign(dataset: Dataset, spec: HospitalsSpec, labels_for_skew: np.ndarray | None = None) -> np.ndarray:
    """The hospital of every scan: (N,) str, blank for those of a hospital that takes no part (`spec.sites`).

    All scans of a patient are at one hospital. Train, validation and test patients are dealt out apart in the same
    proportions, so that every hospital of some size has patients to test on. The same dataset and spec always give
    the same answer. labels_for_skew: the dataset's labels, (N,) class indices or (N, L) zeros and ones; a patient's
    class is the greatest of his scans', or the first of the L labels that any of them has. Raises DataError for a
    missing or blank column, a patient at two hospitals, or a hospital without training patients; StudyError for a
    held_out name that is no hospital, and for label_skew without labels.
    """
    sites = _by_column(dataset, spec.column) if spec.by == "column" else _simulated(dataset, spec, labels_for_skew)
    names = np.unique(sites) if spec.by == "column" else np.array(spec.site_names)
    if spec.sites is not None:
        for name in spec.sites:
            if name not in names:
                raise StudyError(unknown_name("hospitals.sites", name, names.tolist()))
        names = names[np.isin(names, spec.taking_part)]
        sites = np.where(np.isin(sites, names), sites, "")
    for name in names.tolist():
        if not name.isprintable() or len(quote(name)) > _LONGEST_NAME:
            raise DataError(f"hospital {name[:50]!r} has line breaks in its name or a very long one; give it a short name.")
    for name in spec.held_out:
        if name not in names:
            raise StudyError(unknown_name("hospitals.held_out", name, names.tolist()))
    training = Counter(sites[dataset.split == "train"].tolist())
    for name in names.tolist():
        if name not in spec.held_out and not training[name]:
            raise DataError(f"hospital {name!r} has no training patient; {_remedy(spec)}.")
    if len(names) == len(set(spec.held_out)):
        raise StudyError("hospitals.held_out names every hospital; leave at least one to train.")
    return sites


def one_class_sites(sites: np.ndarray, labels: np.ndarray) -> dict[str, int]:
    """Hospitals all of whose scans have one class, and that class. labels: (N,) class indices.

    Such a hospital can train; a metric that compares classes, such as AUROC, is not defined on it.
    """
    found = {}
    for name in np.unique(sites).tolist():
        classes = np.unique(labels[sites == name])
        if len(classes) == 1:
            found[name] = int(classes[0])
    return found


def _by_column(dataset: Dataset, column: str) -> np.ndarray:
    if column not in dataset.columns:
        known = sorted(dataset.columns)
        hint = unknown_name("hospitals.column", column, known) if known else f"there is no column {column!r}."
        raise DataError(f"{hint} Without one, simulate hospitals with hospitals.by: iid, label_skew or quantity_skew.")
    sites = dataset.columns[column]
    blank = np.flatnonzero(sites == "")
    if len(blank):
        patient = str(dataset.patient_ids[blank[0]])
        raise DataError(f"{len(blank)} scans have a blank {column!r}, the first of patient {patient!r}; fill it in.")
    _, first, which = np.unique(dataset.patient_ids, return_index=True, return_inverse=True)
    moved = np.flatnonzero(sites != sites[first][which])
    if len(moved):
        row = int(moved[0])
        here, there, patient = str(sites[row]), str(sites[first][which[row]]), str(dataset.patient_ids[row])
        raise DataError(
            f"patient {patient!r} is at two hospitals, {there!r} and {here!r}; privacy is kept per patient at"
            " one hospital, so give the two different ids only if they are different people."
        )
    return sites


def _simulated(dataset: Dataset, spec: HospitalsSpec, labels: np.ndarray | None) -> np.ndarray:
    rng = np.random.default_rng([spec.seed, 5])
    patients, first, which = np.unique(dataset.patient_ids, return_index=True, return_inverse=True)
    split = dataset.split[first]
    wanted, there = len(spec.site_names), int((split == "train").sum())
    if wanted - len(spec.held_out) > there:
        raise DataError(f"hospitals={wanted} are more than the {there} patients to train on; make fewer hospitals.")
    kind = np.zeros(len(patients), dtype=np.int64)
    if spec.by == "label_skew":
        kind = _class_of_patients(labels, which, len(patients))
    shares = _shares(spec, np.bincount(kind) / len(kind), rng)
    hospital = np.zeros(len(patients), dtype=np.int64)
    for part in np.unique(split):
        for k in range(shares.shape[1]):
            stratum = rng.permutation(np.flatnonzero((split == part) & (kind == k)))
            # One random offset for all edges: every hospital gets its share, up or down to a whole patient, and on
            # average exactly; always rounding the same way would starve small hospitals.
            edges = np.floor(np.cumsum(shares[:-1, k]) * len(stratum) + rng.random()).astype(int)
            hospital[stratum] = np.searchsorted(edges, np.arange(len(stratum)), side="right")
    return np.array(spec.site_names)[hospital][which]


def _shares(spec: HospitalsSpec, prior: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(hospitals, classes): which share of each class's patients a hospital gets; every column sums to 1."""
    count = len(spec.site_names)
    sizes = np.array(spec.sizes or [1.0] * count, dtype=np.float64)
    if spec.by == "quantity_skew" and spec.sizes is None:
        sizes = rng.dirichlet(np.full(count, spec.alpha))
    sizes = sizes / sizes.sum()
    if spec.by != "label_skew":
        return sizes[:, None]
    present = prior > 0
    mix = np.zeros((count, len(prior)))
    mix[:, present] = np.maximum(rng.dirichlet(spec.alpha * present.sum() * prior[present], size=count), _FLOOR)
    return _balanced(mix, sizes, prior) / np.where(present, prior, 1.0)


def _balanced(mix: np.ndarray, sizes: np.ndarray, prior: np.ndarray) -> np.ndarray:
    """`mix` scaled by rows and columns until hospitals have their sizes and classes their totals (Sinkhorn and Knopp
    1967).

    The drawn mixes cannot all be had at once: there are only so many patients of a class. Of all tables with the right
    totals this is the nearest to them in relative entropy. Ends on the columns: every patient is dealt out.
    """
    table = mix.copy()
    for _ in range(500):
        table *= (sizes / table.sum(axis=1))[:, None]
        totals = table.sum(axis=0)
        table *= np.divide(prior, totals, out=np.zeros_like(prior), where=totals > 0)
    return table


def _class_of_patients(labels: np.ndarray | None, which: np.ndarray, n_patients: int) -> np.ndarray:
    if labels is None:
        raise StudyError(
            "hospitals.by: label_skew needs a task with labels; use iid or quantity_skew for segmentation."
        )
    if labels.ndim == 1:
        greatest = np.zeros(n_patients, dtype=np.int64)
        np.maximum.at(greatest, which, labels)
        return greatest
    has = np.zeros((n_patients, labels.shape[1] + 1), dtype=bool)
    np.logical_or.at(has[:, :-1], which, labels > 0)
    has[:, -1] = True  # none of the labels: a class of its own
    return has.argmax(axis=1)


def _remedy(spec: HospitalsSpec) -> str:
    if spec.by == "column":
        return "name it in hospitals.held_out, give it more patients, or change data.split"
    return "make fewer hospitals, raise hospitals.alpha, or give hospitals.sizes"
