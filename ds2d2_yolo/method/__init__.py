"""The method of the paper as pure functions on tensors: one module a section."""

from ds2d2_yolo.method.explicit import explicit_loss
from ds2d2_yolo.method.implicit import confidence_mass, dense_implicit_loss, roi_implicit_loss
from ds2d2_yolo.method.scale_weight import density_independent_scale_weight
from ds2d2_yolo.method.wavelet import dwt2, high_frequency_map

__all__ = [
    "confidence_mass",
    "dense_implicit_loss",
    "density_independent_scale_weight",
    "dwt2",
    "explicit_loss",
    "high_frequency_map",
    "roi_implicit_loss",
]
