import numpy as np
import pytest

from ds2d2_yolo.report.precision import best_confidence


def test_of_equally_good_thresholds_the_highest_is_told():
    right = np.array([True, False, False, True])  # F1 is 2/3 after the first and after the last
    assert best_confidence(np.array([0.9, 0.8, 0.7, 0.4]), right, 2) == pytest.approx(0.9)
