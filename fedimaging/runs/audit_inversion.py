"""Inversion: what one hospital's first step gives away of the one patient it drew, on patients who never lived.

The same attack is made twice: on the step as the study takes it, and, as a positive control, on a step without noise and
clip. Where the control fails, the attack proves nothing. Whatever its quality, the guess is compared with candidates, one of
which it is: under a guarantee, nobody names the right one more often than the ceiling at a prior of one in so many.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from fedimaging.audits.bounds import rate_at_least, rate_at_most
from fedimaging.audits.inversion import invert_dense_layer, ssim
from fedimaging.audits.inversion_search import Search, search_image
from fedimaging.privacy.budget import Charge
from fedimaging.privacy.dpsgd import DpPlan, private_gradient
from fedimaging.privacy.noise import SimulatedNoise
from fedimaging.runs.audit_entry import Claim, Entry, entry
from fedimaging.runs.audit_federation import kept
from fedimaging.runs.audit_phantoms import Phantoms, phantoms
from fedimaging.runs.audit_target import Target, ceiling
from fedimaging.runs.pictures import example_panel, save_png

CANDIDATES = 16
_ANALYTIC, _SEARCHED = 64, 8  # patients attacked
_SMALL = 100_000  # numbers that train, below which the search is patient
_SHOWN = 4

Attack = Callable[[list[Tensor], int], np.ndarray]
"""(gradients as sent, the patient's place among the candidates) -> a guess in the shape of a candidate."""


def audit_inversions(target: Target, confidence: float, say: Callable[[str], None]) -> list[Entry]:
    """The lines `inversion.analytic`, where the first layer that trains is dense, and `inversion.optimised`."""
    target.bench.load(target.bench.initial)
    people = phantoms(target, CANDIDATES)
    found = []
    layer = first_dense(target.bench.model, people.x)
    if layer is not None:
        inputs = layer.inputs.cpu().numpy()
        shape = tuple(people.x.shape[1:]) if layer.of_image else inputs.shape[1:]

        def invert(sent: list[Tensor], patient: int) -> np.ndarray:
            weight, bias = (sent[place].cpu().numpy() for place in layer.places)
            if not np.any(bias):
                return np.zeros(shape)
            return invert_dense_layer(weight, bias).reshape(shape)

        candidates = inputs.reshape(-1, *shape)
        found.append(_attacked(target, "inversion.analytic", people, invert, candidates, layer.of_image, _ANALYTIC, confidence))
        say("the first step is inverted by arithmetic.")

    def search(sent: list[Tensor], patient: int) -> np.ndarray:
        y = people.y[patient : patient + 1]
        guess = search_image(
            target.bench.model, target.bench.task.losses, sent, y, (1, *people.x.shape[1:]), search_of(target)
        )
        return np.asarray(guess[0].cpu().numpy())

    whole = people.x.cpu().numpy()
    found.append(_attacked(target, "inversion.optimised", people, search, whole, True, _SEARCHED, confidence))
    say("the first step is inverted by search.")
    return found


def search_of(target: Target) -> Search:
    """How hard the search tries: less for large networks, the same on every machine."""
    small = target.bench.initial.size <= _SMALL and math.prod(target.study.data.image_size) <= 4096
    return Search(seed=target.seed("search") % 10_000) if small else Search(120, 1, seed=target.seed("search") % 10_000)


@dataclass(frozen=True)
class DenseLayer:
    """A dense layer that sees each scan as it is (`of_image`), or fixed features of it. inputs (K, D): what enters it for each
    candidate; places: of its weight and bias among the tensors that train."""

    inputs: Tensor
    of_image: bool
    places: tuple[int, int]


def first_dense(model: nn.Module, x: Tensor) -> DenseLayer | None:
    """The dense layer with a bias that trains and whose input no trained number has touched; None where there is none."""
    trained = [p for p in model.parameters() if p.requires_grad]
    for layer in model.modules():
        if not isinstance(layer, nn.Linear) or layer.bias is None or not all(p.requires_grad for p in layer.parameters()):
            continue
        seen: list[Tensor] = []
        handle = layer.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0]))
        try:
            model(x)
        finally:
            handle.remove()
        if len(seen) == 1 and seen[0].ndim == 2 and not seen[0].requires_grad:  # else trained numbers came before it
            flat = seen[0].detach()
            of_image = flat.shape[1] == x[0].numel() and torch.equal(flat, x.reshape(len(x), -1))
            places = (_place(trained, layer.weight), _place(trained, layer.bias))
            return DenseLayer(flat, of_image, places)
    return None


def _place(trained: list[nn.Parameter], parameter: Tensor) -> int:
    return next(place for place, one in enumerate(trained) if one is parameter)


def _attacked(
    target: Target, name: str, people: Phantoms, attack: Attack, candidates: np.ndarray, is_image: bool, patients: int,
    confidence: float,
) -> Entry:
    site = target.largest_sites()[0]
    plan = target.federation.plans.get(site)
    bare = _bare(plan)

    def work() -> dict[str, np.ndarray]:
        tried = np.arange(patients) % len(candidates)
        steps = {"control": bare, "attack": plan or bare}
        return {
            which: np.stack([attack(_sent(target, people, int(one), step, number), int(one)) for number, one in enumerate(tried)])
            for which, step in steps.items()
        }

    found = kept(target.folder / name, target.key | {"patients": patients}, work)
    control, guesses = (_Quality.of(found[which], candidates, is_image) for which in ("control", "attack"))
    if is_image:
        _picture(target, name, candidates, found)
    claim = None
    if plan is not None:
        from fedimaging.privacy.accounting import epsilon_of_steps, steps_of

        charged = steps_of([Charge(plan.noise_multiplier, 1.0, 1, plan.unit)])
        claim = Claim(lambda fpr: ceiling((charged,), fpr), epsilon_of_steps(charged, plan.delta))
    groups = {
        "control": control.metrics(), "chance": 1 / len(candidates),
        "identification_ceiling": None if claim is None else claim.ceiling(1 / len(candidates)),
        "picture": f"audit/{name}.png" if is_image else None,
        "on": "generated patients (phantoms)" if is_image else "the fixed features of generated patients (phantoms)",
    }
    sizes = {"patients": patients, "candidates": len(candidates)}
    return entry(
        name, f"first step of {site}, one patient drawn", target.unit, sizes, guesses.metrics(), claim,
        _verdict(control, guesses, claim, 1 / len(candidates), confidence), groups,
    )


def _bare(plan: DpPlan | None) -> DpPlan:
    """A step without noise, whose clip binds nobody."""
    private = plan or DpPlan("patient", 1, 1.0, 0.0, 1.0, 1e-5, 1, 1, "loop")
    return replace(private, noise_multiplier=0.0, clip_norm=1e9)


def _sent(target: Target, people: Phantoms, patient: int, plan: DpPlan, number: int) -> list[Tensor]:
    """The gradient of one step that drew this patient alone, at the first weights."""
    x, y = people.x[patient : patient + 1], people.y[patient : patient + 1]
    one = torch.zeros(1, dtype=torch.int64, device=x.device)
    noise = SimulatedNoise(target.seed("inversion"), "first step", number)
    # The whole network, not the part that trains alone, and one patient: any engine gives the same, the plain loop takes all.
    plan = replace(plan, engine="loop")
    return private_gradient(target.bench.model, target.bench.task.losses, x, y, one, 1, plan, noise, step=0)


@dataclass(frozen=True)
class _Quality:
    """How good guesses are: right among the candidates, and near the image (NaN for what is no image)."""

    right: int
    patients: int
    ssim: float
    psnr: float

    @classmethod
    def of(cls, guesses: np.ndarray, candidates: np.ndarray, is_image: bool) -> "_Quality":
        truth = np.arange(len(guesses)) % len(candidates)
        right = int((nearest(guesses, candidates) == truth).sum())
        if not is_image:
            return cls(right, len(guesses), math.nan, math.nan)
        pairs = [(np.clip(guess, 0, 1), candidates[one]) for guess, one in zip(guesses, truth, strict=True)]
        like = [np.mean([ssim(a, b) for a, b in zip(guess, image, strict=True)]) for guess, image in pairs]
        error = [max(1e-12, float(np.mean((guess - image) ** 2))) for guess, image in pairs]
        return cls(right, len(guesses), float(np.mean(like)), float(np.mean(-10 * np.log10(error))))

    def metrics(self) -> dict[str, dict[str, float | None] | None]:
        """As JSON."""
        figures: dict[str, dict[str, float | None] | None] = {
            name: None if math.isnan(value) else {"value": value, "low": None, "high": None}
            for name, value in (("ssim", self.ssim), ("psnr", self.psnr))
        }
        low, high = (bound(self.right, self.patients, 0.975) for bound in (rate_at_least, rate_at_most))
        return figures | {"identification": {"value": self.right / self.patients, "low": low, "high": high}}


def nearest(guesses: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """(N,) for each guess (N, *shape) the candidate (K, *shape) with which it correlates most."""

    def standard(images: np.ndarray) -> np.ndarray:
        flat = images.reshape(len(images), -1).astype(np.float64)
        flat = flat - flat.mean(1, keepdims=True)
        return np.asarray(flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-12))

    known = standard(candidates)
    common = known.mean(0)  # what all candidates share says nothing about which it is
    return np.argmax(standard(guesses) @ (known - common).T, axis=1)


def _verdict(control: _Quality, found: _Quality, claim: Claim | None, chance: float, confidence: float) -> tuple[str, str]:
    said = f"{found.right} of {found.patients} patients were named among {round(1 / chance)} candidates"
    if rate_at_least(control.right, control.patients, 0.95) <= chance:
        return "inconclusive", (
            f"the same attack without noise and clip names only {control.right} of {control.patients}: it is too weak to prove "
            "anything about this network."
        )
    if claim is None:
        return "consistent", f"{said}."
    allowed, low = claim.ceiling(chance), rate_at_least(found.right, found.patients, confidence)
    if low > allowed:
        return "violation", f"{said}: at least {low:.1%}, where the guarantee allows at most {allowed:.1%}."
    if rate_at_least(found.patients, found.patients, confidence) <= allowed:
        return "inconclusive", f"the guarantee of one step allows {allowed:.1%}; no number of hits could disprove it."
    return "consistent", (
        f"{said} (chance {chance:.1%}, allowed {allowed:.1%}); without noise and clip {control.right} of {control.patients}."
    )


def _picture(target: Target, name: str, candidates: np.ndarray, found: dict[str, np.ndarray]) -> None:
    """Three rows: the phantoms, the guesses without privacy, the guesses of the attack."""
    from PIL import Image

    rows = [candidates, found["control"], found["attack"]]
    tile, gap = 96, 4
    sheet = Image.new("RGB", (_SHOWN * (tile + gap) - gap, len(rows) * (tile + gap) - gap), (255, 255, 255))
    for down, images in enumerate(rows):
        for across in range(_SHOWN):
            panel = example_panel(np.clip(images[across], 0, 1).astype(np.float32), None, None, size=tile)
            sheet.paste(panel, (across * (tile + gap), down * (tile + gap)))
    save_png(sheet, target.folder / f"{name}.png")
