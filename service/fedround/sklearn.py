"""scikit-learn estimators as named tensors, for `train_round` of a `NumPyParticipant`.

Example::

    def __init__(self):
        self.model = fedround.sklearn.begun(SGDClassifier(), features=64, classes=range(10))

    def train_round(self, weights, /):
        if weights is not None:
            fedround.sklearn.load(self.model, weights)
        self.model.partial_fit(self.x, self.y)
        return fedround.Update(len(self.y), fedround.sklearn.tensors(self.model))

What travels is what the estimator has learned, such as `coef_` and `intercept_`. The state of its optimiser stays. It works for
linear models, multi-layer perceptrons, Gaussian naive Bayes and k-means, and for what has their attributes. Trees have no tensors.
Needs scikit-learn: `pip install fedround[sklearn]`.
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
"""The attributes that an estimator may have after it was fitted. `coefs_` and `intercepts_` are lists of arrays."""
_ZERO = ("coef_", "intercept_")

Estimator = TypeVar("Estimator")


def begun(estimator: Estimator, *, features: int, classes: Iterable[Any] = (), outputs: int = 1) -> Estimator:
    """Return the estimator, fitted to noise, so that it has its attributes before it has seen data. Linear models then predict 0.

    All participants must say the same: the classes of all silos, not only those of their own.

    Args:
        estimator: Not fitted.
        features: Columns of the data.
        classes: Labels of a classifier, two or more.
        outputs: Columns of what a regressor predicts.
    """
    labels, noise = np.asarray(list(classes)), np.random.default_rng(0)
    rows = max(len(labels), getattr(estimator, "n_clusters", 0), 2)
    x, y = noise.normal(size=(rows, features)), noise.normal(size=rows if outputs == 1 else (rows, outputs))
    if is_classifier(estimator):
        if len(labels) < 2:
            raise WrongWeights(f"{type(estimator).__name__} is a classifier: give begun() all its classes, two or more")
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
    """Return what the estimator has learned, by the names of its attributes, without a copy.

    Raises:
        WrongWeights: It is not fitted, or has learned nothing that can be averaged.
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
            "fedround.sklearn.begun(estimator, features=...) gives it attributes before it has seen data"
        )
    return found


def load(estimator: Any, tensors: Mapping[str, Array]) -> None:
    """Copy tensors into a fitted estimator (see `begun`), which then predicts with them.

    Args:
        estimator: Fitted, or begun.
        tensors: All of `tensors(estimator)`. Local tensors of the running participant may be missing: they stay.

    Raises:
        WrongWeights: A tensor is missing, unknown, or of another shape. Nothing was copied then.
    """
    own = _learned(estimator)
    refuse(differences({name: (array.shape, True) for name, array in own.items()}, tensors, "estimator"), type(estimator).__name__)
    for name, array in tensors.items():
        attribute, _, number = name.partition(".")
        if number:
            getattr(estimator, attribute)[int(number)] = array.copy()
        else:
            setattr(estimator, attribute, array.copy())


_learned = tensors  # by a name that no argument hides
