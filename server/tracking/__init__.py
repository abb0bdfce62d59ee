"""Trackers of experiments (TensorBoard, MLflow, Weights & Biases) that are told how runs go, and nothing else.

`facts` says what they may be told, `tracking` tells them while a run goes on, `opening` makes them from what a person
asks for (`KIND=WHERE`). One file for each library.
"""

from server.tracking.facts import RunFacts, Tracker
from server.tracking.opening import KINDS, parse_trackers
from server.tracking.tracking import Tracking
from server.tracking.watcher import TrackingWatcher

__all__ = ["KINDS", "RunFacts", "Tracker", "Tracking", "TrackingWatcher", "parse_trackers"]
