"""Tests 13 and 15: what leaves a hospital, and what can be read out of it."""

import itertools
import logging
import pickle
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import ArrayRecord, Message
from gradients import step_of
from rows import Row, all_of, below, refused
from scipy import stats
from torch import nn

from fedimaging.aggregation.secure_sum import FixedPoint, SecureSumServer, SecureSumSite, Terms
from fedimaging.aggregation.secure_sum.masks import add_mask, derived_key
from fedimaging.audits.inversion import audit_inversion
from fedimaging.data.spec import PhantomSpec
from fedimaging.data.synthetic import draw_scans, render
from fedimaging.federated import flower_internals, wire
from fedimaging.federated.client_app import build_client_app
from fedimaging.federated.in_process import InProcessGrid
from fedimaging.privacy.dpsgd import DpPlan, private_gradient
from fedimaging.privacy.noise import SimulatedNoise
from fedimaging.runs import hospitals
from fedimaging.site.simulated import open_simulated_site
from fedimaging.site.site import Site, TrainInstruction
from fedimaging.study.load import parse
from fedimaging.study.schema import Study
from fedimaging.training.tasks import cross_entropy_losses

ALLOWED = {
    "query": {"site": {"site", "model", "willing"}}, "train": {"site": {"site", "round"}, "update": {"update"}},
    "evaluate": {"site": {"site", "refused"}}, "evaluate.final": {"site": {"site", "refused"}},
}  # fmt: skip
STUDY: dict[str, Any] = {
    "name": "sceptic", "seed": 0,
    "data": {"source": "phantoms", "image_size": [16, 16], "channels": 1, "split": {"test": 0.25},
             "phantoms": {"patients": 24, "hospitals": 2, "scans_per_patient": [1, 2]}},
    "task": {"kind": "binary", "label": "lesion"}, "hospitals": {"by": "column"},
    "model": {"name": "wavelet_net", "options": {"scales": 2, "angles": 2, "grid": 2}},
    "training": {"optimizer": "sgd", "learning_rate": 0.5, "batch_size": 4, "local_epochs": 1},
    "privacy": {"target_epsilon": 8.0, "engine": "loop"}, "federation": {"rounds": 2},
    "policy": {"release_evaluation": "none"}, "runtime": {"device": "cpu"},
}  # fmt: skip


def release_surface() -> list[Row]:
    """Test 13."""
    logging.getLogger("fedimaging.site").setLevel(logging.CRITICAL)  # refusals are what is tested
    study = parse(STUDY, "sceptic")
    with tempfile.TemporaryDirectory() as name:
        site = _opened(study, Path(name) / "a")
        before = {kind: _reply(site, kind) for kind in ALLOWED}
        other = _flipped(_opened(study, Path(name) / "b"))
        after = {kind: _reply(other, kind) for kind in ALLOWED}
        told = [_bad(_opened(study, Path(name) / str(i)), weights) for i, weights in enumerate(_impossible(site))]
        trainable = sum(p.numel() for p in site.bench.model.parameters() if p.requires_grad)
        buffers = sum(buffer.numel() for buffer in site.bench.model.buffers())
        planted = _ids_in(pickle.dumps(site.train_records.patient_ids))
    update = _vector(before["train"])
    whole = b"".join(pickle.dumps(reply) for reply in before.values())
    changed = {f"{kind}/{record}/{key}" for kind in ALLOWED for record, key in _differing(before[kind], after[kind])}
    return [
        all_of("kinds of message that hold the allowed keys only", [_keys(before[kind]) == ALLOWED[kind] for kind in ALLOWED]),
        Row("numbers in an update (buffers of the network)", f"{trainable}, the trainable ones",
            f"{update.size} ({buffers})", update.size == trainable),
        Row("patient ids in any byte", "0", str(_ids_in(whole)), _ids_in(whole) == 0),
        Row("the same search, in the hospital's own list of patients", "> 0", str(planted), planted > 0),
        Row("what changes with one patient's label", "train/update/update", ", ".join(sorted(changed)),
            changed == {"train/update/update"}),
        all_of("weights of NaN, infinity, 0-d, int64, wrong length: a code, nothing charged", told), *_extreme_scans(),
    ]  # fmt: skip


def _opened(study: Study, folder: Path) -> Site:
    hospitals.make_federation(study, hospitals.load_data(study), folder, "cpu").save()
    return open_simulated_site(folder, 0)


def _flipped(site: Site) -> Site:
    """The same hospital, one training patient's label turned round."""
    records = site.train_records
    labels = np.array(records.dataset.labels)
    mine = records.rows[records.patient_ids == records.patient_ids[0]]
    labels[mine] = 1 - labels[mine]
    site.train_records = replace(records, dataset=replace(records.dataset, labels=labels))
    return site


def _reply(site: Site, kind: str, weights: np.ndarray | None = None) -> Message:
    """What leaves the client app for a message of this kind."""
    flower_internals.take_server_identity(1)
    weights = site.bench.initial if weights is None else weights
    round = 2 if kind == "evaluate.final" else 1
    content = wire.write_instruction(TrainInstruction(site.fingerprint, round, weights))
    content = wire.write_enrolment(site.fingerprint) if kind == "query" else content
    with InProcessGrid(build_client_app(lambda context, study: site), 1) as grid:
        (reply,) = grid.send_and_receive([Message(content, 1, kind)])
    return reply


def _ids_in(content: bytes) -> int:
    """How often the beginning of a patient id stands there, in any encoding."""
    return sum(content.count("patient-0".encode(code)) for code in ("utf-8", "utf-16-le", "utf-32-le"))


def _keys(reply: Message) -> dict[str, set[str]]:
    return {name: set(record) for name, record in reply.content.items()}


def _differing(one: Message, other: Message) -> list[tuple[str, str]]:
    return [
        (name, key) for name, record in one.content.items() for key in record
        if not np.array_equal(_plain(record[key]), _plain(other.content[name][key]))
    ]  # fmt: skip


def _plain(value: Any) -> Any:
    return value.numpy() if hasattr(value, "numpy") else value


def _vector(reply: Message) -> np.ndarray:
    record = reply.content["update"]
    if not isinstance(record, ArrayRecord):
        raise TypeError("an update is an array record")
    return record["update"].numpy()


def _impossible(site: Site) -> list[np.ndarray]:
    right = site.bench.initial
    bad = [right.copy(), right.copy()]
    bad[0][3], bad[1][3] = np.nan, np.inf
    return [*bad, np.zeros((), np.float32), right.astype(np.int64), right[:-1], np.zeros(0, np.float32)]


def _bad(site: Site, weights: np.ndarray) -> bool:
    reply = _reply(site, "train", weights)
    spent = (site.folder / "ledger.sqlite").exists()
    return wire.refusal_of(reply.content) in ("weights_not_finite", "wrong_shape") and not spent


def _extreme_scans() -> list[Row]:
    """Scans that are all zero, NaN, infinite or huge through a step without noise: what leaves is finite and bounded."""
    plan = DpPlan("patient", 200, 0.1, 0.0, 1.0, 1e-5, 10, 5, engine="loop")
    steps = [step_of(torch.full((3, 4), value), plan) for value in (0.0, float("nan"), float("inf"), 1e30, 1e10)]
    finite = [bool(torch.isfinite(step).all()) for step in steps]
    bound = 3 / plan.denominator
    return [
        all_of("steps on scans of 0, NaN, infinity, 1e30 and 1e10 that are finite", finite),
        below("largest of their norms, over 3 C / 20", max(float(step.norm()) for step in steps) / bound, 1 + 1e-5),
    ]


FIXED = FixedPoint(limit=4.0)


class _Sum:
    """One secure sum among n hospitals with vectors of this size."""

    def __init__(self, n: int, vectors: dict[str, np.ndarray]) -> None:
        identities = {name: Ed25519PrivateKey.generate() for name in vectors}
        keys = {name: key.public_key().public_bytes_raw() for name, key in identities.items()}
        size = len(next(iter(vectors.values())))
        self.terms = Terms("sceptic", keys, 4 if n == 5 else 3, size, FIXED)
        self.sites = {name: SecureSumSite(self.terms, name, key) for name, key in identities.items()}
        self.server, self.vectors = SecureSumServer(self.terms), vectors

    def run(self, alive: list[str]) -> np.ndarray:
        """The sum of those alive after sharing."""
        roster = self.server.roster([site.advertise() for site in self.sites.values()])
        delivered = self.server.deliver([site.share(roster) for site in self.sites.values()])
        self.masked = {name: self.sites[name].mask(delivered[name], self.vectors[name]) for name in alive}
        left = self.server.receive(self.masked.values())
        vows = self.server.collect({name: self.sites[name].vow(left) for name in alive})
        return self.server.total([self.sites[name].open_shares(vows) for name in alive])


def secure_sum() -> list[Row]:
    """Test 15."""
    draw, names = np.random.default_rng(0), [f"h{i}" for i in range(5)]
    vectors = {name: draw.uniform(-4, 4, 100_000).astype(np.float32) for name in names}
    one = _Sum(5, vectors)
    total = one.run(names[:4])
    error = float(np.abs(total - np.sum([vectors[name] for name in names[:4]], axis=0, dtype=np.float64)).max())
    uniform = min(float(stats.kstest(masked.vector / 2**32, "uniform").pvalue) for masked in one.masked.values())
    secret = bytes(range(32))
    folded = secret[4:8] + secret[:4] + secret[8:]
    allowed = 5 * 2 * FIXED.limit / 2**FIXED.bits
    return [
        below("n = 5, one dropped out: largest error, over n × range / 2^bits", error / allowed, 1.0),
        Row("single masked vectors: least p of uniformity", "> 1e-6", f"{uniform:.3f}", uniform > 1e-6),
        below("secrets that XOR-fold to the same 32 bits: equal mask values", _equal_share(secret, folded), 0.001),
        refused("a sum with 3 of 5 left, threshold 4", lambda: _Sum(5, vectors).run(names[:3])), *_inversions(),
    ]  # fmt: skip


def _equal_share(one: bytes, other: bytes) -> float:
    masks = []
    for secret in (one, other):
        masks.append(np.zeros(100_000, np.uint32))
        add_mask(masks[-1], derived_key(secret, "pairwise mask", b"terms", "h1", "h2"), 1)
    return float((masks[0] == masks[1]).mean())


def _inversions() -> list[Row]:
    """A picture of somebody who never lived, out of one hospital's update of a network with a dense first layer."""
    spec = PhantomSpec(patients=1, hospitals=1, scans_per_patient=(1, 1), seed=4)
    (scan,) = itertools.islice(render(spec, draw_scans(spec), (32, 32)), 1)
    image = scan.image[0] / 255
    plain, clipped, private = (_update(image, clip, sigma) for clip, sigma in ((1e9, 0.0), (1.0, 0.0), (1.0, 1.0)))
    vectors = {f"h{i}": np.concatenate([clipped[0].ravel(), clipped[1]]) for i in range(3)}
    hidden = _Sum(3, vectors)
    hidden.run(list(vectors))
    sent = FIXED.decode(hidden.masked["h0"].vector)
    masked = sent[: clipped[0].size].reshape(clipped[0].shape), sent[clipped[0].size :]
    found = {name: audit_inversion(image, *one).ssim for name, one in (
        ("no noise", plain), ("clipped only", clipped), ("private, σ = 1", private), ("masked", masked))}  # fmt: skip
    return [
        Row("inversion of an update, no noise: SSIM", "1.000", f"{found['no noise']:.3f}", found["no noise"] > 0.9995),
        Row("clipped only: SSIM", "1.000", f"{found['clipped only']:.3f}", found["clipped only"] > 0.9995),
        *(Row(f"{name}: SSIM", "< 0.1", f"{found[name]:.3f}", found[name] < 0.1) for name in ("private, σ = 1", "masked")),
    ]


def _update(image: np.ndarray, clip: float, sigma: float) -> tuple[np.ndarray, np.ndarray]:
    plan = DpPlan("patient", 1, 1.0, sigma, clip, 1e-5, 1, 1, engine="loop")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(image.size, 64), nn.Tanh(), nn.Linear(64, 2))
    x, y = torch.tensor(image, dtype=torch.float32)[None, None], torch.tensor([1])
    unit, noise = torch.zeros(1, dtype=torch.int64), SimulatedNoise(0, "hospital_01", 1)
    gradient = private_gradient(model, cross_entropy_losses, x, y, unit, 1, plan, noise, 0)
    return -0.1 * gradient[0].numpy(), -0.1 * gradient[1].numpy()
