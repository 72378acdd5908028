"""Evaluates global models at the aggregator: on digits that no silo trains on."""

import numpy as np
from sklearn.metrics import log_loss

import fedround
import fedround.sklearn

from participant import digits, estimator

x, y = digits()
TEST = np.arange(len(y)) % 5 == 0
MODEL = estimator()


def evaluate(weights):
    fedround.sklearn.load(MODEL, weights)
    loss = log_loss(y[TEST], MODEL.predict_proba(x[TEST]), labels=MODEL.classes_)
    return fedround.Evaluation(int(TEST.sum()), accuracy=MODEL.score(x[TEST], y[TEST]), loss=loss)
