"""The `task:` block of a study. Light: importing it does not load torch."""

from typing import Literal, Self

from pydantic import Field, model_validator

from fedimaging.spec import Spec


class TaskSpec(Spec):
    """What is learnt from a scan.

    kind: `binary` (label 0 or 1), `multiclass` (label 0..classes-1), `multilabel` (one 0/1 column a label) or
        `segmentation` (a mask of 0..classes-1, 0 is background).
    label: the manifest's column (binary, multiclass); labels: the columns (multilabel).
    class_names: for tables and pictures; one a class, for multilabel one a label.
    """

    kind: Literal["binary", "multiclass", "multilabel", "segmentation"]
    label: str | None = None
    labels: tuple[str, ...] = ()
    classes: int = Field(2, ge=2)
    class_names: tuple[str, ...] | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.kind in ("binary", "multiclass") and (self.label is None or self.labels):
            raise ValueError(f"kind {self.kind!r} learns one column: give label, and no labels")
        if self.kind == "multilabel" and (not self.labels or self.label is not None):
            raise ValueError("kind 'multilabel' learns several columns: give labels, a list of them, and no label")
        if len(set(self.labels)) != len(self.labels):
            raise ValueError(f"labels {list(self.labels)} name a column twice")
        if self.kind == "segmentation" and (self.label is not None or self.labels):
            raise ValueError("kind 'segmentation' learns the mask column: give neither label nor labels")
        if self.kind == "binary" and self.classes != 2:
            raise ValueError(f"kind 'binary' has 2 classes, not {self.classes}: use kind 'multiclass'")
        if self.class_names is not None and len(self.class_names) != self.n_outputs:
            raise ValueError(f"class_names has {len(self.class_names)} names for {self.n_outputs} outputs")
        return self

    @property
    def n_outputs(self) -> int:
        """Numbers the network gives a scan or pixel: labels for multilabel, else classes."""
        return len(self.labels) if self.kind == "multilabel" else self.classes

    @property
    def columns(self) -> tuple[str, ...]:
        """Manifest columns the task needs as labels; none for segmentation."""
        return self.labels if self.kind == "multilabel" else (self.label,) if self.label is not None else ()
