"""How close a decoded picture is to its original (PSNR, luma PSNR, MS-SSIM), and how much rate a codec saves (BD-rate).

All functions take uint8 pictures of shape (H, W, 3) in RGB order, or plain (rate, quality) pairs. They hand on plain
floats; they read no files and know no codecs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]
Floats = NDArray[np.float64]

PEAK = 255.0
LUMA_BT601 = (0.299, 0.587, 0.114)  # full range, not rounded

MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang, Simoncelli, Bovik 2003, finest scale first
MS_SSIM_TAPS = 11
MS_SSIM_SIGMA = 1.5
MS_SSIM_K1, MS_SSIM_K2 = 0.01, 0.03
MS_SSIM_SMALLEST = 161  # pixels a side: 10 * 2**4 + 1, so that one window still fits at the coarsest scale


def _check_pair(reference: Picture, test: Picture) -> None:
    if reference.shape != test.shape or reference.ndim != 3 or reference.shape[2] != 3:
        raise ValueError(f"expected two RGB pictures of one size, got {reference.shape} and {test.shape}")
    if reference.dtype != np.uint8 or test.dtype != np.uint8:
        raise ValueError(f"expected uint8 pictures, got {reference.dtype} and {test.dtype}")


def _psnr_from_mse(mean_squared_error: float) -> float:
    return math.inf if mean_squared_error == 0 else 10 * math.log10(PEAK**2 / mean_squared_error)


def psnr_rgb(reference: Picture, test: Picture) -> float:
    """Decibels from the mean squared error over all three channels together; infinite for identical pictures."""
    _check_pair(reference, test)
    squared_error = cv2.norm(reference, test, cv2.NORM_L2SQR)
    return _psnr_from_mse(squared_error / reference.size)


def psnr_y(reference: Picture, test: Picture) -> float:
    """Decibels from the error of the BT.601 full-range luma, unrounded; infinite for identical luma."""
    _check_pair(reference, test)
    weights = np.array([LUMA_BT601])
    error = cv2.transform(cv2.subtract(reference, test, dtype=cv2.CV_32F), weights)
    return _psnr_from_mse(float(np.square(error, dtype=np.float64).mean()))


def ms_ssim(reference: Picture, test: Picture) -> float | None:
    """Multi-scale structural similarity, 0 to 1, the mean over R, G and B; None when a side is below 161 pixels.

    Five scales, 11-tap Gaussian windows of sigma 1.5 that lie wholly inside the picture, 2x2 averages between scales.
    Odd sides are padded with zeros on both ends, as the `pytorch-msssim` package does, so that figures compare with
    the learned-compression literature. Smaller pictures have no fifth scale, and four would mean something else.
    """
    _check_pair(reference, test)
    if min(reference.shape[:2]) < MS_SSIM_SMALLEST:
        return None
    channels = [_ms_ssim_plane(reference[..., c].astype(np.float64), test[..., c].astype(np.float64)) for c in range(3)]
    return float(np.mean(channels))


def _ms_ssim_plane(x: Floats, y: Floats) -> float:
    product = 1.0
    for scale, weight in enumerate(MS_SSIM_WEIGHTS):
        similarity, contrast_structure = ssim_plane(x, y)
        is_last = scale == len(MS_SSIM_WEIGHTS) - 1
        product *= max(similarity if is_last else contrast_structure, 0.0) ** weight
        if not is_last:
            x, y = _half(x), _half(y)
    return product


def ssim_plane(x: Floats, y: Floats) -> tuple[float, float]:
    """Mean SSIM and mean contrast-structure term of two planes (H, W) in 0..255, over all windows that fit."""
    kernel = cv2.getGaussianKernel(MS_SSIM_TAPS, MS_SSIM_SIGMA, cv2.CV_64F)
    edge = MS_SSIM_TAPS // 2

    def windows(plane: Floats) -> Floats:
        return cv2.sepFilter2D(plane, cv2.CV_64F, kernel, kernel)[edge:-edge, edge:-edge]

    c1, c2 = (MS_SSIM_K1 * PEAK) ** 2, (MS_SSIM_K2 * PEAK) ** 2
    mean_x, mean_y = windows(x), windows(y)
    mean_xx, mean_yy, mean_xy = mean_x * mean_x, mean_y * mean_y, mean_x * mean_y
    variances = windows(x * x + y * y) - mean_xx - mean_yy
    covariance = windows(x * y) - mean_xy
    contrast_structure = (2 * covariance + c2) / (variances + c2)
    luminance = (2 * mean_xy + c1) / (mean_xx + mean_yy + c1)
    return float((luminance * contrast_structure).mean()), float(contrast_structure.mean())


def _half(plane: Floats) -> Floats:
    pad_y, pad_x = plane.shape[0] % 2, plane.shape[1] % 2
    if pad_y or pad_x:
        plane = np.pad(plane, ((pad_y, pad_y), (pad_x, pad_x)))
    plane = plane[: plane.shape[0] // 2 * 2, : plane.shape[1] // 2 * 2]
    return (plane[::2, ::2] + plane[1::2, ::2] + plane[::2, 1::2] + plane[1::2, 1::2]) / 4


def ms_ssim_db(value: float) -> float:
    """MS-SSIM on the decibel scale -10 log10(1 - value), on which rate curves are nearly straight."""
    return math.inf if value >= 1 else -10 * math.log10(1 - value)


def bd_rate(reference: Sequence[tuple[float, float]], test: Sequence[tuple[float, float]]) -> float | None:
    """Bjontegaard delta rate in percent: the mean rate change of `test` against `reference` at equal quality.

    Points are (rate, quality) in any order. The logarithm of the rate is interpolated over quality by monotone
    piecewise cubics (PCHIP) and averaged over the qualities both curves cover. Negative means `test` is cheaper. None
    when the curves share no quality range or one has fewer than two points of different, finite quality.
    """
    reference_quality, reference_log_rate = _curve(reference)
    test_quality, test_log_rate = _curve(test)
    if min(len(reference_quality), len(test_quality)) < 2:
        return None
    low = max(reference_quality[0], test_quality[0])
    high = min(reference_quality[-1], test_quality[-1])
    if high <= low:
        return None
    difference = _pchip_mean(test_quality, test_log_rate, low, high)
    difference -= _pchip_mean(reference_quality, reference_log_rate, low, high)
    return 100 * math.expm1(difference)


def _curve(points: Sequence[tuple[float, float]]) -> tuple[Floats, Floats]:
    """Qualities ascending and the logarithm of their rates; of equal qualities only the cheapest point counts."""
    cheapest: dict[float, float] = {}
    for rate, quality in points:
        if math.isfinite(quality) and rate > 0:
            cheapest[quality] = min(rate, cheapest.get(quality, math.inf))
    ordered = sorted(cheapest.items())
    return np.array([q for q, _ in ordered]), np.log([r for _, r in ordered])


def _pchip_slopes(x: Floats, y: Floats) -> Floats:
    """Derivatives at the knots after Fritsch and Butland 1984, one-sided three-point formula at the ends."""
    step, secant = np.diff(x), np.diff(y) / np.diff(x)
    if len(x) == 2:
        return np.repeat(secant, 2)
    slopes = np.zeros_like(y)
    turning = secant[:-1] * secant[1:] <= 0
    left, right = np.where(turning, 1, secant[:-1]), np.where(turning, 1, secant[1:])
    w_left, w_right = step[:-1] + 2 * step[1:], 2 * step[:-1] + step[1:]
    slopes[1:-1] = np.where(turning, 0, (w_left + w_right) / (w_left / left + w_right / right))
    slopes[0] = _pchip_end_slope(step[0], step[1], secant[0], secant[1])
    slopes[-1] = _pchip_end_slope(step[-1], step[-2], secant[-1], secant[-2])
    return slopes


def _pchip_end_slope(step: float, next_step: float, secant: float, next_secant: float) -> float:
    slope = ((2 * step + next_step) * secant - step * next_secant) / (step + next_step)
    if slope * secant <= 0:
        return 0.0
    if secant * next_secant <= 0 and abs(slope) > 3 * abs(secant):
        return 3 * secant
    return slope


def _pchip_values(x: Floats, y: Floats, slopes: Floats, at: Floats) -> Floats:
    piece = np.clip(np.searchsorted(x, at, side="right") - 1, 0, len(x) - 2)
    step = x[piece + 1] - x[piece]
    t = (at - x[piece]) / step
    start = (1 + 2 * t) * (1 - t) ** 2 * y[piece] + t * (1 - t) ** 2 * step * slopes[piece]
    stop = t**2 * (3 - 2 * t) * y[piece + 1] - t**2 * (1 - t) * step * slopes[piece + 1]
    return start + stop


def _pchip_mean(x: Floats, y: Floats, low: float, high: float) -> float:
    """Mean of the interpolant over [low, high]; Simpson's rule between neighbouring knots is exact for cubics."""
    slopes = _pchip_slopes(x, y)
    cuts = np.concatenate([[low], x[(x > low) & (x < high)], [high]])
    values = _pchip_values(x, y, slopes, cuts)
    middles = _pchip_values(x, y, slopes, (cuts[:-1] + cuts[1:]) / 2)
    integral = (np.diff(cuts) * (values[:-1] + 4 * middles + values[1:]) / 6).sum()
    return float(integral / (high - low))
