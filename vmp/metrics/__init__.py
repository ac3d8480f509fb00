"""Pure functions of (scores, labels), and the ensemble of views; they know nothing of video."""

from vmp.metrics.classification import (
    METRICS,
    mean_average_precision,
    mean_class_accuracy,
    top1,
    top5,
)
from vmp.metrics.ensemble import Ensemble, ensemble_views
from vmp.metrics.tables import confusion_matrix, per_class_table

__all__ = [
    "METRICS",
    "Ensemble",
    "confusion_matrix",
    "ensemble_views",
    "mean_average_precision",
    "mean_class_accuracy",
    "per_class_table",
    "top1",
    "top5",
]
