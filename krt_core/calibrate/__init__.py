"""Probabilities and thresholds from images that were held out."""

from .fit import Fitted, fit
from .sessions import Calibrating
from .thresholds import aimed_threshold
