"""What a study says about its data: where scans come from, how they are brought to one shape, who holds them.

The specs stand together here, apart from the code that uses them, so that reading a study imports neither torch nor
scipy.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fedimaging.spec import Spec

Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Standard = Literal["image", "mask", "patient_id", "site", "sex", "age", "split"]


class SplitSpec(Spec):
    """Fractions of patients (not of scans) kept for testing and validation; the rest trains.

    A patient's part follows from a hash of the patient id and `seed` alone, so it stays when other patients come or go.
    A `split` column in the manifest, or the parts of a MedMNIST file, win over this.
    """

    test: Fraction = 0.2
    validation: Fraction = 0.0
    seed: int = 0

    @model_validator(mode="after")
    def _leaves_someone_to_train(self) -> Self:
        if self.test + self.validation >= 1.0:
            raise ValueError(
                f"test + validation = {self.test + self.validation:g} leaves nobody to train; keep below 1"
            )
        return self


class PhantomSpec(Spec):
    """Generated patients with known lesions, spread over hospitals whose scanners and populations differ.

    Pairs are (least, greatest): hospital 1 has the first value, the last hospital the second, those between lie
    between. `lesion_radius` is a fraction of half the picture. `hard_contrast` weakens the lesions of women over 70.
    """

    patients: Annotated[int, Field(ge=1, le=10_000_000)] = 600
    scans_per_patient: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] = (1, 4)
    dims: Literal[2, 3] = 2
    hospitals: Annotated[int, Field(ge=1)] = 6
    prevalence: tuple[Fraction, Fraction] = (0.3, 0.6)
    lesion_radius: tuple[Annotated[float, Field(gt=0, le=0.4)], Annotated[float, Field(gt=0, le=0.4)]] = (0.10, 0.16)
    lesion_contrast: Annotated[float, Field(gt=0, le=1)] = 0.40
    hard_contrast: Annotated[float, Field(gt=0, le=1)] = 0.4
    scanner_difference: Annotated[float, Field(ge=0, le=1)] = 1.0
    seed: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _ranges_make_sense(self) -> Self:
        if self.scans_per_patient[0] > self.scans_per_patient[1]:
            raise ValueError(f"scans_per_patient={list(self.scans_per_patient)} must be [least, greatest]")
        if self.patients < self.hospitals:
            raise ValueError(f"patients={self.patients} is fewer than hospitals={self.hospitals}; each needs one")
        return self


class DataSpec(Spec):
    """The `data:` block of a study.

    `path` is relative to `root`; `root` is a hospital's own and no part of the study's fingerprint. `image_size` has
    two numbers (rows, columns: resized with the aspect kept, then padded) or three (right, anterior, superior voxels:
    resampled to `spacing_mm` where given, then cropped or padded about the centre). `intensity`, always from one scan
    alone: unit = 8-bit values / 255, others least..greatest to 0..1; percentile = 1st..99th to 0..1, clipped; zscore
    = mean 0, sd 1. `columns` gives the manifest's own name for a standard column, e.g. {mask: label, patient_id:
    case_id}.
    """

    source: Literal["phantoms", "manifest", "medmnist"] = "phantoms"
    path: str | None = None
    root: str = "."
    image_size: tuple[Annotated[int, Field(ge=4, le=4096)], ...] = (64, 64)
    channels: Annotated[int, Field(ge=1, le=16)] = 1
    spacing_mm: tuple[Positive, Positive, Positive] | None = None
    intensity: Literal["unit", "zscore", "percentile"] = "unit"
    split: SplitSpec = SplitSpec()
    columns: dict[Standard, str] = Field(default_factory=dict)
    phantoms: PhantomSpec | None = None

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        dims = len(self.image_size)
        if dims not in (2, 3):
            raise ValueError(f"image_size={list(self.image_size)} must have 2 or 3 numbers")
        if self.spacing_mm and dims == 2:
            raise ValueError("spacing_mm is for volumes; give image_size three numbers or leave spacing_mm out")
        if self.source == "phantoms":
            if self.path is not None:
                raise ValueError(f"path={self.path!r} needs source: manifest or medmnist; phantoms have none")
            if self.phantoms and self.phantoms.dims != dims:
                raise ValueError(f"phantoms.dims={self.phantoms.dims} does not fit the {dims} numbers of image_size")
            return self
        if self.path is None:
            raise ValueError(f"source: {self.source} needs path (relative to root={self.root!r})")
        if self.phantoms is not None:
            raise ValueError(f"phantoms is set but source is {self.source}; leave phantoms out or set source: phantoms")
        return self


class HospitalsSpec(Spec):
    """Who holds which patients: a column of the manifest, or hospitals simulated from one pool of patients.

    by column: `column` names the hospital; `sites`, where given, are those that take part, and the rows of others are
    left out (a study for real hospitals must name them). iid: patients dealt at random, by `sizes` or equally.
    label_skew: each hospital's class mix is drawn from Dirichlet(`alpha` x classes x the pool's mix), its size from
    `sizes` or equal. quantity_skew: sizes are `sizes`, or drawn from Dirichlet(`alpha`); the class mix is the pool's.
    Simulated hospitals are called hospital_01, hospital_02 … unless `names` are given. A `held_out` one never trains.
    """

    by: Literal["column", "iid", "label_skew", "quantity_skew"] = "column"
    count: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    alpha: Annotated[float, Field(gt=0)] = 0.5
    sizes: list[Annotated[float, Field(gt=0)]] | None = None
    column: str = "site"
    sites: list[str] | None = None
    held_out: list[str] = Field(default_factory=list)
    seed: Annotated[int, Field(ge=0)] = 0
    names: list[str] | None = None

    @model_validator(mode="after")
    def _number_is_clear(self) -> Self:
        lists = {"sizes": self.sizes, "names": self.names}
        told = {name: len(values) for name, values in lists.items() if values is not None}
        if self.count is not None:
            told["count"] = self.count
        if self.by == "column":
            if told:
                raise ValueError(f"{', '.join(told)} is for simulated hospitals; leave it out with by: column")
        elif not told:
            raise ValueError(f"by: {self.by} needs count, sizes or names to know how many hospitals to make")
        elif len(set(told.values())) > 1 or 0 in told.values():
            raise ValueError(f"hospitals disagree on their number: {told}")
        for name, listed in (("names", self.names), ("sites", self.sites)):
            if listed and len(set(listed)) < len(listed):
                raise ValueError(f"{name}={listed} has a name twice")
        if self.sites is not None and (self.by != "column" or not set(self.sites) - set(self.held_out)):
            raise ValueError(f"sites={self.sites} must name a hospital that trains, and goes with by: column only")
        return self

    @property
    def training_sites(self) -> list[str]:
        """In name order, the hospitals of `sites` that train; empty where the study does not name its hospitals."""
        return sorted(set(self.sites or ()) - set(self.held_out))

    @property
    def taking_part(self) -> list[str]:
        """In name order, all hospitals of `sites` and those held out; empty where the study does not name them."""
        return sorted({*self.sites, *self.held_out}) if self.sites is not None else []

    @property
    def site_names(self) -> list[str]:
        """Names of the simulated hospitals in order; empty with by: column, where the manifest tells them."""
        if self.names:
            return list(self.names)
        number = self.count or len(self.sizes or [])
        return [f"hospital_{i + 1:02d}" for i in range(number)]


class AugmentSpec(Spec):
    """Random changes drawn anew for every scan of every batch. Zero or false leaves that change out.

    flip: left and right swapped in half of the scans. shift: up to this fraction of the size along each axis.
    rotate_degrees: up to this angle (about every axis in 3-D). scale: zoom by 1 ± this. intensity: contrast by 1 ±
    this and brightness by ± this many standard deviations of the scan.
    """

    flip: bool = False
    shift: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    rotate_degrees: Annotated[float, Field(ge=0, le=180)] = 0.0
    scale: Annotated[float, Field(ge=0, lt=1)] = 0.0
    intensity: Annotated[float, Field(ge=0, lt=1)] = 0.0
