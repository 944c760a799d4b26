import pytest

from fedimaging.errors import PrivacyError
from fedimaging.privacy.accounting import epsilon
from fedimaging.privacy.budget import Charge
from fedimaging.privacy.group import group_epsilon, patient_epsilon, two_sites_epsilon


def test_four_records_of_one_patient() -> None:
    assert group_epsilon(1.0, 0.016, 3150, 4, 1e-5) == pytest.approx(31.56, rel=0.005)


def test_a_patient_in_two_hospitals() -> None:
    site = [Charge(1.0, 0.016, 3150, "patient")]
    assert two_sites_epsilon(site, site, 1e-5) == pytest.approx(8.248, abs=0.003)


def test_patient_figures_of_record_charges_need_the_number_of_scans() -> None:
    with pytest.raises(PrivacyError, match="scans per patient"):
        patient_epsilon([Charge(1.0, 0.016, 63, "record")], 1e-5)
    patient = [Charge(1.0, 0.016, 63, "patient")]
    assert patient_epsilon(patient, 1e-5) == epsilon(patient, 1e-5)
    assert group_epsilon(1.0, 0.016, 63, 1, 1e-5) == epsilon(patient, 1e-5)
