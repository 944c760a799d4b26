"""The whole protocol: sums that are right, vectors that say nothing, and lies that abort it."""

import dataclasses

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from scipy import stats

from fedimaging.aggregation.secure_sum import FixedPoint, SecureSumServer, SecureSumSite, Terms, default_threshold
from fedimaging.aggregation.secure_sum.terms import Advert, Left, Masked
from fedimaging.errors import FedimagingError, PrivacyError
from tests.aggregation.secure_sum.rounds import FIXED, Round, made


def allowed_error(n: int) -> float:
    return n * FIXED.limit / 2**FIXED.bits


@pytest.mark.parametrize("dropped", [(), ("h2",), ("h5",)], ids=str)
def test_15_five_hospitals_with_one_dropout_give_the_plain_sum(dropped: tuple[str, ...]) -> None:
    round = Round(5)
    round.drop(*dropped)
    total = round.total()
    plain = np.sum([round.vectors[name] for name in round.alive], axis=0, dtype=np.float64)
    assert 0 < np.abs(total - plain).max() <= allowed_error(5 - len(dropped))


def test_15_with_less_than_the_threshold_left_the_sum_aborts() -> None:
    round = Round(5)
    assert round.terms.threshold == 4
    round.drop("h1", "h4")
    with pytest.raises(PrivacyError, match="3 of 5 hospitals sent their vector, at least 4 are needed"):
        round.total()
    with pytest.raises(PrivacyError, match="aborted"):
        round.server.total([])


def test_hospitals_may_drop_out_before_every_step() -> None:
    round = Round(10)
    adverts = [round.sites[name].advertise() for name in round.alive[:9]]
    roster = round.server.roster(adverts)
    delivered = round.server.deliver([round.sites[name].share(roster) for name in round.alive[:8]])
    masked = [round.sites[name].mask(delivered[name], round.vectors[name]) for name in round.alive[:8]]
    left = round.server.receive(masked)
    vows = round.server.collect({name: round.sites[name].vow(left) for name in round.alive[:8]})
    total = round.server.total([round.sites[name].open_shares(vows) for name in round.alive[:7]])
    plain = np.sum([round.vectors[name] for name in round.alive[:8]], axis=0, dtype=np.float64)
    assert np.abs(total - plain).max() <= allowed_error(8)


def test_15_a_single_masked_vector_is_uniform() -> None:
    round = Round(4, size=200_000)
    for vector in round.vectors.values():
        vector[:] = 1.0  # as plain as can be
    round.mask()
    for masked in round.masked:
        low, high = masked.vector & 0xFFFF, masked.vector >> 16
        assert stats.chisquare(np.bincount(high >> 8, minlength=256)).pvalue > 1e-7
        assert stats.chisquare(np.bincount(low & 255, minlength=256)).pvalue > 1e-7
        assert stats.kstest(masked.vector / 2**32, "uniform").pvalue > 1e-7
    one, other = (masked.vector / 2**32 for masked in round.masked[:2])
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.01


def test_the_same_vectors_are_masked_anew_every_time() -> None:
    masked = []
    for _ in range(2):
        round = Round(4)
        round.mask()
        masked.append(round.masked[0].vector)
    assert (masked[0] == masked[1]).mean() < 0.01


def test_all_but_one_vector_known_gives_that_one_and_nothing_else_is_promised() -> None:
    """The sum is released: with it, peers who pool their own vectors know the last one. Hence at least three."""
    round = Round(3)
    last = round.total() - sum(round.vectors[name].astype(np.float64) for name in ("h1", "h2"))
    assert np.abs(last - round.vectors["h3"]).max() <= allowed_error(3)
    with pytest.raises(PrivacyError, match="at least 3"):
        Terms("s", dict.fromkeys(("a", "b"), bytes(32)), 2, 10, FIXED)


# A server that lies.


def test_never_both_secrets_of_one_hospital() -> None:
    """A server that tells one half that h5 is left and the other that it is not gets too few vows for either."""
    round = Round(5)
    round.mask()
    names, everyone = tuple(round.sites), tuple(round.sites)
    vows = {name: round.sites[name].vow(Left(names, everyone[:4] if name < "h3" else everyone)) for name in names[:4]}
    vows["h5"] = round.sites["h5"].vow(Left(names, everyone))
    for name in names:
        with pytest.raises(PrivacyError, match="vowed the same list"):
            round.sites[name].open_shares(vows)
    with pytest.raises(PrivacyError, match="what comes next is 'nothing"):
        round.sites["h1"].vow(Left(names, everyone))


def test_what_is_opened_is_one_secret_of_each_peer() -> None:
    round = Round(5)
    round.drop("h2")
    left = round.mask()
    vows = {name: round.sites[name].vow(left) for name in round.alive}
    for name in round.alive:
        opened = round.sites[name].open_shares(vows)
        assert set(opened.self_masks) == {"h1", "h3", "h4", "h5"}
        assert set(opened.mask_secrets) == {"h2"}
        with pytest.raises(PrivacyError, match=r"aborted|done"):
            round.sites[name].open_shares(vows)  # not twice


@pytest.mark.parametrize(
    "left",
    [
        Left(("h1", "h2", "h3", "h4", "h5"), ("h2", "h3", "h4", "h5")),  # without the one who is asked
        Left(("h1", "h2", "h3", "h4"), ("h1", "h2", "h3", "h4")),  # others shared than were masked for
        Left(("h1", "h2", "h3", "h4", "h5"), ("h1", "h2", "h3")),  # too few
        Left(("h1", "h2", "h3", "h4", "h5"), ("h1", "h2", "h3", "h3")),  # one twice
        Left(("h1", "h2", "h3", "h4", "h5"), ("h1", "h2", "h3", "h9")),  # nobody's name
    ],
)
def test_a_list_that_is_not_of_this_sum_is_not_signed(left: Left) -> None:
    round = Round(5)
    round.mask()
    with pytest.raises(PrivacyError):
        round.sites["h1"].vow(left)


def test_vows_of_others_and_forged_ones_do_not_count() -> None:
    round = Round(5)
    left = round.mask()
    vows = {name: round.sites[name].vow(left) for name in round.alive}
    with pytest.raises(PrivacyError, match="1 of 5 hospitals vowed"):
        round.sites["h1"].open_shares({"h1": vows["h1"], "h2": vows["h1"], "h3": bytes(64), "h4": b"", "x": vows["h2"]})


def _forged(round: Round, advert: Advert, **changed: object) -> Advert:
    """The server puts other keys in, signed by whoever it is."""
    unsigned = dataclasses.replace(advert, **changed)  # type: ignore[arg-type]
    return dataclasses.replace(unsigned, signature=Ed25519PrivateKey.generate().sign(unsigned.statement(round.terms)))


@pytest.mark.parametrize("what", ["forged", "repeated", "absent", "few", "from another sum"])
def test_a_roster_that_was_tampered_with_is_refused(what: str) -> None:
    round = Round(5)
    adverts = [site.advertise() for site in round.sites.values()]
    fresh = X25519PrivateKey.generate().public_key().public_bytes_raw()
    if what == "forged":
        adverts[1] = _forged(round, adverts[1], mask_key=fresh)
    elif what == "repeated":
        adverts[1] = adverts[2]
    elif what == "absent":
        adverts = adverts[1:]
    elif what == "few":
        adverts = adverts[:3]
    else:
        other = dataclasses.replace(round.terms, session="study/2")
        adverts[1] = SecureSumSite(other, "h2", round.identities["h2"]).advertise()
    with pytest.raises(PrivacyError, match="aborted"):
        round.sites["h1"].share(adverts)


def test_a_hospital_that_uses_one_key_twice_is_refused() -> None:
    round = Round(5)
    adverts = [site.advertise() for site in round.sites.values()]
    copied = dataclasses.replace(adverts[1], mask_key=adverts[2].mask_key)
    adverts[1] = dataclasses.replace(copied, signature=round.identities["h2"].sign(copied.statement(round.terms)))
    with pytest.raises(PrivacyError, match="are the same"):
        round.sites["h1"].share(adverts)


def test_shares_are_sealed_and_cannot_be_altered_or_swapped() -> None:
    round = Round(5)
    delivered = round.share_if_needed()
    swapped = {**delivered["h1"], "h2": delivered["h1"]["h3"]}
    flipped = {**delivered["h2"], "h3": bytes([delivered["h2"]["h3"][0] ^ 1]) + delivered["h2"]["h3"][1:]}
    for name, tampered in (("h1", swapped), ("h2", flipped)):
        with pytest.raises(PrivacyError, match="altered on the way"):
            round.sites[name].mask(tampered, round.vectors[name])
    few = dict(list(delivered["h3"].items())[:2])
    with pytest.raises(PrivacyError, match="3 of 5 hospitals shared their secrets"):
        round.sites["h3"].mask(few, round.vectors["h3"])


def test_every_step_is_taken_once_and_in_order() -> None:
    round = Round(4)
    site = round.sites["h1"]
    site.advertise()
    with pytest.raises(PrivacyError, match="asked to 'advertise', what comes next is 'share'"):
        site.advertise()
    with pytest.raises(PrivacyError, match="the sum is aborted"):
        site.share([])  # an error was the end


# Hospitals that lie.


def test_a_wrong_share_is_told_and_aborts() -> None:
    for wrong in ("self_masks", "mask_secrets"):
        round = Round(5)
        round.drop("h5")
        left = round.mask()
        vows = round.server.collect({name: round.sites[name].vow(left) for name in round.alive})
        opened = [round.sites[name].open_shares(vows) for name in round.alive]
        shares = dict(getattr(opened[0], wrong))
        first = next(iter(shares))
        shares[first] = bytes(65) + b"\x01"
        opened[0] = dataclasses.replace(opened[0], **{wrong: shares})  # type: ignore[arg-type]
        with pytest.raises(PrivacyError, match=r"do not belong together|are not what it shared"):
            round.server.total(opened)


@pytest.mark.parametrize(("name", "size", "dtype"), [("h1", 999, np.uint32), ("h1", 1000, np.uint64), ("x", 1000, np.uint32)])
def test_a_masked_vector_of_another_kind_is_refused(name: str, size: int, dtype: type) -> None:
    round, masked = Round(4), Masked(name, np.zeros(size, dtype))
    delivered = round.share_if_needed()
    good = [round.sites[name].mask(delivered[name], round.vectors[name]) for name in round.alive[1:]]
    with pytest.raises(PrivacyError, match="aborted"):
        round.server.receive([masked, *good])


@pytest.mark.parametrize("bad", [np.full(1000, 4.1), np.full(1000, np.nan), np.zeros(7)])
def test_a_vector_that_does_not_fit_the_terms_is_refused(bad: np.ndarray) -> None:
    round = Round(4)
    delivered = round.share_if_needed()
    with pytest.raises(FedimagingError, match=r"limit|NaN|shape"):
        round.sites["h1"].mask(delivered["h1"], bad)


def test_a_name_that_is_not_pinned_to_the_key_is_refused() -> None:
    terms, identities = made(4)
    with pytest.raises(PrivacyError, match="not pinned"):
        SecureSumSite(terms, "h2", identities["h1"])


@pytest.mark.parametrize(("n", "threshold"), [(3, 3), (4, 3), (5, 4), (6, 5), (10, 7), (50, 34)])
def test_the_default_threshold_is_above_two_thirds(n: int, threshold: int) -> None:
    assert default_threshold(n) == threshold
    assert 3 * threshold > 2 * n


@pytest.mark.parametrize(("n", "threshold"), [(6, 3), (5, 2), (3, 2), (4, 5)])
def test_a_threshold_that_protects_nobody_is_refused(n: int, threshold: int) -> None:
    with pytest.raises(PrivacyError, match="threshold"):
        made(n, threshold=threshold)


def test_more_hospitals_than_the_integers_hold_are_refused() -> None:
    keys = {str(i): bytes(32) for i in range(5)}
    with pytest.raises(PrivacyError, match="hospitals=5"):
        Terms("s", keys, 4, 10, FixedPoint(1.0, bits=30))


def test_other_terms_are_another_sum() -> None:
    terms, _ = made(4)
    assert len({terms.digest, *(dataclasses.replace(terms, **change).digest for change in (
        {"session": "study/4"}, {"size": 999}, {"threshold": 4}, {"fixed_point": FixedPoint(5.0)},
        {"keys": {**terms.keys, "h1": bytes(32)}},
    ))}) == 6  # fmt: skip
    with pytest.raises(PrivacyError, match="0 of 4 hospitals gave their keys"):
        SecureSumServer(dataclasses.replace(terms, session="study/4")).roster([])
