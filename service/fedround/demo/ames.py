"""House sales in Ames by silo, and the features that a model gets. No function here reads two silos together.

A silo is a group of adjacent neighbourhoods, and each participant has one. The file with all sales stands for the
separate databases of a real federation.
"""

import csv
import gzip
from collections.abc import Iterator, Mapping
from functools import cache
from math import log
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fedround.tensors.weights import Array

FILE = Path(__file__).with_name("ames.csv.gz")

SALES = {
    "Northridge_Heights": 166,
    "Northridge": 71,
    "Somerset": 182,
    "Bloomington_Heights": 28,
    "Gilbert": 165,
    "Stone_Brook": 51,
    "Northpark_Villa": 23,
    "Briardale": 30,
    "Northwest_Ames": 131,
    "Greens": 8,
    "Veenker": 24,
    "North_Ames": 443,
    "Brookside": 108,
    "Old_Town": 239,
    "Iowa_DOT_and_Rail_Road": 93,
    "Meadow_Village": 37,
    "Mitchell": 114,
    "Green_Hills": 2,
    "Timberland": 72,
    "Blueste": 10,
    "Crawford": 103,
    "South_and_West_of_Iowa_State_University": 48,
    "Edwards": 194,
    "Landmark": 1,
    "College_Creek": 267,
    "Clear_Creek": 44,
    "Sawyer": 151,
    "Sawyer_West": 125,
}
"""Number of sales by neighbourhood, in geographical order: from the north-west through the centre to the south and west."""

USUAL_PRICE = 165_000
"""US dollars. The model predicts how the logarithm of a price differs from this one's."""

# Worst to best. All silos use the same words, even without such a house, so that their models have the same weights.
CONDITIONS = ["Very_Poor", "Poor", "Fair", "Below_Average", "Average", "Above_Average", "Good", "Very_Good", "Excellent"]
QUALITIES = ["Poor", "Fair", "Typical", "Good", "Excellent"]

# The most common word comes first. It is the baseline, without a feature.
WORDS = {
    "MS_Zoning": "Residential_Low_Density Residential_Medium_Density Residential_High_Density"
    " Floating_Village_Residential C_all I_all A_agr",
    "Bldg_Type": "OneFam TwoFmCon Duplex TwnhsE Twnhs",
    "House_Style": "One_Story One_and_Half_Fin One_and_Half_Unf Two_Story Two_and_Half_Fin Two_and_Half_Unf SFoyer SLvl",
    "Bsmt_Exposure": "No Mn Av Gd No_Basement",
    "BsmtFin_Type_1": "GLQ ALQ BLQ Rec LwQ Unf No_Basement",
    "Exterior_1st": "VinylSd MetalSd HdBoard Wd_Sdng Plywood CemntBd BrkFace WdShing AsbShng Stucco BrkComm AsphShn CBlock"
    " Stone PreCast ImStucc",
    "Condition_1": "Norm Feedr Artery RRAn RRAe RRNn RRNe PosN PosA",
    "Functional": "Typ Min1 Min2 Mod Maj1 Maj2 Sev Sal",
    "Sale_Condition": "Normal Abnorml Partial Family Alloca AdjLand",
    "Paved_Drive": "Paved Partial_Pavement Dirt_Gravel",
    "Central_Air": "Y N",
}


class Sales(NamedTuple):
    """Houses and their prices."""

    features: Array
    """float64, a row for each house; the first column is 1."""
    prices: Array
    """float64, log(price / USUAL_PRICE)."""

    def error(self, weights: Array) -> float:
        """Return the mean squared error of a linear model's log prices. NaN if there are no sales."""
        return float(np.square(self.features @ weights - self.prices).mean()) if len(self.prices) else float("nan")


class Silo(NamedTuple):
    """The sales of one participant."""

    training: Sales
    held_out: Sales
    """Every fifth sale of each neighbourhood. They are the same sales for any number of silos."""


def neighbourhoods(count: int) -> list[tuple[str, ...]]:
    """Return the neighbourhoods of each of `count` silos. The smallest silo joins its smaller neighbour until there are `count`."""
    silos: list[tuple[str, ...]] = [(name,) for name in SALES]
    while len(silos) > max(count, 1):
        sizes = [sum(SALES[name] for name in silo) for silo in silos]
        smallest = sizes.index(min(sizes))
        beside = min((i for i in (smallest - 1, smallest + 1) if 0 <= i < len(silos)), key=sizes.__getitem__)
        first = min(smallest, beside)
        silos[first : first + 2] = [silos[first] + silos[first + 1]]
    return silos


@cache
def load(index: int, count: int) -> Silo:
    """Return silo `index` of `count`. There are at most 28; a higher index wraps around."""
    silos = neighbourhoods(count)
    training: list[Mapping[str, str]] = []
    held_out: list[Mapping[str, str]] = []
    seen = dict.fromkeys(silos[index % len(silos)], 0)
    for sale in _read():
        if (name := sale["Neighborhood"]) in seen:
            (held_out if seen[name] % 5 == 2 else training).append(sale)
            seen[name] += 1
    return Silo(_sales(training), _sales(held_out))


def _read() -> Iterator[Mapping[str, str]]:
    with gzip.open(FILE, "rt", encoding="utf-8", newline="") as lines:
        yield from csv.DictReader(lines)


def _sales(sales: list[Mapping[str, str]]) -> Sales:
    prices = [log(float(sale["Sale_Price"]) / USUAL_PRICE) for sale in sales]
    return Sales(np.array([_features(sale) for sale in sales]), np.array(prices))


def _features(sale: Mapping[str, str]) -> list[float]:
    """Return features on similar scales, so that gradient descent converges equally fast in all directions.

    The means and spreads are rough public knowledge, not measured: no silo reveals statistics of its houses.
    """
    year = (float(sale["Year_Built"]) - 1970) / 30
    return [
        1.0,
        3 * log(float(sale["Gr_Liv_Area"]) / 1500),
        2 * log(float(sale["Lot_Area"]) / 9500),
        year,
        year * year - 1,
        (float(sale["Year_Remod_Add"]) - 1985) / 20,
        (float(sale["Total_Bsmt_SF"]) - 1050) / 450,
        2 * float(sale["Bsmt_Full_Bath"]) - 1,
        (float(sale["Garage_Area"]) - 450) / 200,
        1.5 * float(sale["Fireplaces"]) - 1,
        float(sale["Bedroom_AbvGr"]) - 3,
        (float(sale["Wood_Deck_SF"]) - 100) / 125,
        float(sale["Screen_Porch"]) / 60,
        CONDITIONS.index(sale["Overall_Cond"]) - 4.5,
        QUALITIES.index(sale["Heating_QC"]) - 3.0,
        *(2.0 * (sale[column].replace(" ", "_") == word) for column, words in WORDS.items() for word in words.split()[1:]),
    ]
