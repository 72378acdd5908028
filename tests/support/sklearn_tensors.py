"""Checks of fedround.sklearn, for a Python that has scikit-learn. A failed check raises an exception."""

from typing import Any

import numpy as np
from sklearn import cluster, linear_model, naive_bayes, neural_network  # type: ignore[import-not-found]

import fedround.sklearn
from fedround.errors import WrongWeights

ESTIMATORS: list[tuple[Any, dict[str, Any]]] = [
    (linear_model.SGDRegressor(), {}),
    (linear_model.LinearRegression(), {"outputs": 2}),
    (linear_model.LogisticRegression(), {"classes": "abc"}),
    (linear_model.Perceptron(), {"classes": [0, 1]}),
    (linear_model.SGDClassifier(), {"classes": range(10)}),
    (neural_network.MLPClassifier(), {"classes": [0, 1]}),
    (neural_network.MLPRegressor(), {}),
    (naive_bayes.GaussianNB(), {"classes": [3, 4, 5]}),
    (cluster.MiniBatchKMeans(4), {}),
    (cluster.KMeans(3), {}),
]


def complaint(call: Any, *arguments: Any, **options: Any) -> str:
    try:
        call(*arguments, **options)
    except WrongWeights as error:
        return str(error)
    return ""


def main() -> None:
    """Run all checks."""
    for estimator, options in ESTIMATORS:
        name = type(estimator).__name__
        assert f"{name} has none of coef_" in complaint(fedround.sklearn.tensors, estimator)
        begun = fedround.sklearn.begun(estimator, features=5, **options)
        more = {key: array + 1 for key, array in fedround.sklearn.tensors(begun).items()}
        fedround.sklearn.load(begun, more)
        found = fedround.sklearn.tensors(begun)
        assert found.keys() == more.keys()
        assert all(np.array_equal(found[key], array) for key, array in more.items()), name
        assert len(begun.predict(np.ones((2, 5)))) == 2
    model = fedround.sklearn.begun(linear_model.SGDClassifier(), features=2, classes="ab")
    assert "pass all its classes to begun()" in complaint(fedround.sklearn.begun, linear_model.SGDClassifier(), features=2)
    text = complaint(fedround.sklearn.load, model, {"coef_": np.ones((2, 2)), "more": np.ones(1)})
    for part in ("coef_ has shape (2, 2), the estimator (1, 2)", "intercept_ is missing", "more is not in the estimator"):
        assert part in text, text
    model.partial_fit([[1.0, 2.0], [2.0, 1.0]], ["a", "b"])
    print("all of it")


if __name__ == "__main__":
    main()
