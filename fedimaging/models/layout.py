"""What every builder of a network is told about the images and the outputs."""

from dataclasses import dataclass

from fedimaging.errors import StudyError, bad_value


@dataclass(frozen=True)
class Layout:
    """Scans are (B, in_channels, *image_size) with 2 or 3 spatial sizes; the network gives out_channels numbers
    a scan (B, K) or a pixel (B, K, *image_size)."""

    in_channels: int
    out_channels: int
    image_size: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.image_size) not in (2, 3) or min(self.image_size) < 1:
            raise StudyError(bad_value("image_size", list(self.image_size), "must be 2 or 3 positive whole numbers"))
        if self.in_channels < 1 or self.out_channels < 1:
            both = f"in_channels={self.in_channels}, out_channels={self.out_channels}"
            raise StudyError(f"{both}: both must be at least 1.")

    @property
    def dims(self) -> int:
        """2 or 3."""
        return len(self.image_size)

    def require_divisible(self, by: int, network: str) -> None:
        """Error: StudyError unless every spatial size is a multiple of `by`, naming the nearest size that is."""
        if any(size % by for size in self.image_size):
            fits = [-(-size // by) * by for size in self.image_size]
            given = list(self.image_size)
            rule = f"does not fit {network}, which halves the image until it needs multiples of {by}"
            raise StudyError(bad_value("image_size", given, rule, f"use e.g. {fits}"))
