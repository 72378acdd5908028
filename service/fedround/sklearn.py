"""scikit-learn estimators as named tensors, for `train_round` of a `NumPyParticipant`.

Example::

    def __init__(self):
        self.model = fedround.sklearn.begun(SGDClassifier(), features=64, classes=range(10))

    def train_round(self, weights, /):
        if weights is not None:
            fedround.sklearn.load(self.model, weights)
        self.model.partial_fit(self.x, self.y)
        return fedround.Update(len(self.y), fedround.sklearn.tensors(self.model))

Participants exchange the learned attributes of the estimator, such as `coef_` and `intercept_`. Its optimiser's state stays local.
This works for linear models, multi-layer perceptrons, Gaussian naive Bayes, k-means, and other estimators with these attributes.
Trees have no tensors. Requires scikit-learn: `pip install fedround[sklearn]`.
"""

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import numpy as np
from sklearn.base import is_classifier  # type: ignore[import-not-found, import-untyped, unused-ignore]  # an extra

from fedround.errors import WrongWeights
from fedround.participant.local import differences, refuse
from fedround.tensors.weights import Array

__all__ = ["begun", "load", "tensors"]

LEARNED = ("coef_", "intercept_", "coefs_", "intercepts_", "cluster_centers_", "theta_", "var_", "class_prior_")
"""Attributes of fitted estimators. `coefs_` and `intercepts_` are lists of arrays."""
_ZERO = ("coef_", "intercept_")

Estimator = TypeVar("Estimator")


def begun(estimator: Estimator, *, features: int, classes: Iterable[Any] = (), outputs: int = 1) -> Estimator:
    """Fit an estimator to noise, so that it has its learned attributes without data. Linear models then predict 0.

    All participants must pass the same arguments, with the classes of all silos.

    Args:
        estimator: An estimator that is not fitted.
        features: Number of columns of the data.
        classes: Labels of a classifier, at least two.
        outputs: Number of columns that a regressor predicts.

    Returns:
        The same estimator.

    Raises:
        WrongWeights: A classifier has fewer than two classes.
    """
    labels, noise = np.asarray(list(classes)), np.random.default_rng(0)
    rows = max(len(labels), getattr(estimator, "n_clusters", 0), 2)
    x, y = noise.normal(size=(rows, features)), noise.normal(size=rows if outputs == 1 else (rows, outputs))
    if is_classifier(estimator):
        if len(labels) < 2:
            raise WrongWeights(f"{type(estimator).__name__} is a classifier: pass all its classes to begun(), at least two")
        y = labels[np.arange(rows) % len(labels)]
    model: Any = estimator
    if not hasattr(model, "partial_fit"):
        model.fit(x, y)
    elif is_classifier(estimator):
        model.partial_fit(x, y, classes=labels)
    else:
        model.partial_fit(x, y)
    for name in _ZERO:
        if hasattr(model, name):
            setattr(model, name, np.zeros_like(getattr(model, name)))
    return estimator


def tensors(estimator: Any) -> dict[str, Array]:
    """Return the learned attributes of an estimator by name.

    Args:
        estimator: A fitted estimator.

    Returns:
        The arrays of the attributes, not copies, with their shapes and dtypes. Those of a list have names such as `coefs_.0`.

    Raises:
        WrongWeights: The estimator is not fitted, or has no attributes that can be averaged.
    """
    found: dict[str, Array] = {}
    for name in LEARNED:
        value = getattr(estimator, name, None)
        if isinstance(value, list):
            found |= {f"{name}.{number}": np.asarray(array) for number, array in enumerate(value)}
        elif value is not None:
            found[name] = np.asarray(value)
    if not found:
        raise WrongWeights(
            f"{type(estimator).__name__} has none of {', '.join(LEARNED)}: is it not fitted? "
            "fedround.sklearn.begun(estimator, features=...) gives it attributes without data"
        )
    return found


def load(estimator: Any, tensors: Mapping[str, Array]) -> None:
    """Copy tensors into a fitted estimator (see `begun`), which then predicts with them.

    Args:
        estimator: A fitted estimator.
        tensors: All of `tensors(estimator)`. Only local tensors of the running participant may be missing.

    Raises:
        WrongWeights: A tensor is missing, unknown, or of another shape. Nothing is copied then.
    """
    own = _learned(estimator)
    refuse(differences({name: (array.shape, True) for name, array in own.items()}, tensors, "estimator"), type(estimator).__name__)
    for name, array in tensors.items():
        attribute, _, number = name.partition(".")
        if number:
            getattr(estimator, attribute)[int(number)] = array.copy()
        else:
            setattr(estimator, attribute, array.copy())


_learned = tensors  # `load` has an argument of that name
