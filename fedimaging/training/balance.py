"""Groups that weigh alike: who of the drawn patients stays in a step, by the group that the manifest names."""

from collections.abc import Collection, Mapping

import numpy as np

from fedimaging.errors import DataError, unknown_name
from fedimaging.privacy.units import Units
from fedimaging.training.spec import BalanceSpec
from fedimaging.training.workbench import SiteRecords


def relative_rates(spec: BalanceSpec) -> dict[str, float]:
    """Group -> how often its patients are drawn, over the group that is drawn most; "" for patients of none of the groups."""
    odds = spec.odds()
    most = max(odds.values())
    return {group: odd / most for group, odd in odds.items()} | {"": 1 / most}


def mean_relative(spec: BalanceSpec) -> float:
    """The mean of `relative_rates` over all patients, by the public shares."""
    rates, rest = relative_rates(spec), max(0.0, 1 - sum(spec.shares.values()))
    return min(1.0, sum(share * rates[group] for group, share in spec.shares.items()) + rest * rates[""])


def check_column(spec: BalanceSpec, columns: Collection[str]) -> None:
    """Error: DataError where the data have no such column."""
    if spec.column not in columns:
        raise DataError(unknown_name("training.balance.column", spec.column, columns))


def rates_of(records: SiteRecords, units: Units, column: str, rates: Mapping[str, float]) -> np.ndarray:
    """(U,) the relative rate of each unit, by the first of its rows that states a group."""
    texts = np.char.strip(records.dataset.columns[column][records.rows].astype(str))
    stated = (next((text for text in texts[units.rows(unit)].tolist() if text), "") for unit in range(len(units)))
    return np.array([rates.get(group, rates[""]) for group in stated])


def thinned(included: np.ndarray, rates: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """(U,) bool: of the included units those that a second coin with their relative rate keeps.

    A unit drawn with probability q and kept with probability r is in with q r, alone from all others. Whoever knew the second
    coins would face q or 0, so the guarantee is that of q and does not rest on these coins.
    """
    return included & (generator.random(len(rates)) < rates)
