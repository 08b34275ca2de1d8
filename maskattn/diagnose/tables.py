"""Tables that a model keeps in float32 and that are known to more digits."""

from __future__ import annotations

import numpy as np

from maskattn.typing import NumPyArray


def sharpened(values: NumPyArray) -> NumPyArray:
    """Frequencies of a rotary embedding, theta^(-i/n), as the float64 numbers that were rounded to float32; other
    values as they are (Su et al. 2021, RoFormer, section 3.2.2).
    """
    wide = values.astype(np.float64)
    if (
        values.dtype != np.float32
        or values.ndim != 1
        or values.size < 4
        or wide[0] != 1
        or not (np.diff(wide) < 0).all()
    ):
        return wide
    if wide[-1] <= 0:
        return wide
    theta = np.exp(-np.log(wide[-1]) * values.size / (values.size - 1))
    exact = float(np.round(theta)) ** (-np.arange(values.size) / values.size)
    return exact if np.allclose(exact, wide, rtol=2.0**-22, atol=0) else wide
