"""The method once more in float64 numpy, as literally as loops allow: what the fast versions are checked against."""

import math

import numpy as np
import pywt

# Which sign each pixel of a 2x2 block (a b; c d) takes in LL, LH, HL, HH; every band is the signed sum over 2.
HAAR_SIGNS = np.array([[[1, 1], [1, 1]], [[1, 1], [-1, -1]], [[1, -1], [1, -1]], [[1, -1], [-1, 1]]], dtype=float)


def sigmoid(z):
    return 1 / (1 + np.exp(-np.asarray(z, dtype=float)))


def haar_bands(x):
    """(B, C, H, W) -> (B, C, 4, ceil(H/2), ceil(W/2)), an odd map padded with zeros on its right and bottom border."""
    x = np.asarray(x, dtype=float)
    x = np.pad(x, [(0, 0), (0, 0), (0, x.shape[2] % 2), (0, x.shape[3] % 2)])
    bands = np.zeros((*x.shape[:2], 4, x.shape[2] // 2, x.shape[3] // 2))
    for band in range(4):
        for i in range(bands.shape[3]):
            for j in range(bands.shape[4]):
                block = x[:, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
                bands[:, :, band, i, j] = (block * HAAR_SIGNS[band]).sum(axis=(2, 3)) / 2
    return bands


def haar_bands_transposed(bands, height, width):
    """Adjoint of `haar_bands`: carries a gradient at the bands back to the map."""
    x = np.zeros((*bands.shape[:2], 2 * bands.shape[3], 2 * bands.shape[4]))
    for band in range(4):
        for i in range(bands.shape[3]):
            for j in range(bands.shape[4]):
                x[:, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2] += (
                    bands[:, :, band, i, j, None, None] * HAAR_SIGNS[band] / 2
                )
    return x[:, :, :height, :width]


def pywt_bands(x, wavelet, mode):
    """(B, C, H, W) -> (B, C, 4, h, w) by PyWavelets itself."""
    low, (horizontal, vertical, diagonal) = pywt.dwt2(np.asarray(x, dtype=float), wavelet, mode)
    return np.stack((low, horizontal, vertical, diagonal), axis=2)


def bilinear(x, height, width):
    """Resize (..., h, w) with half-pixel centres (align_corners=False)."""

    def source(index, size_in, size_out):
        position = min(max((index + 0.5) * size_in / size_out - 0.5, 0), size_in - 1)
        first = int(position)
        return first, min(first + 1, size_in - 1), position - first

    out = np.zeros((*x.shape[:-2], height, width))
    for i in range(height):
        top, bottom, v = source(i, x.shape[-2], height)
        for j in range(width):
            left, right, u = source(j, x.shape[-1], width)
            out[..., i, j] = (1 - v) * ((1 - u) * x[..., top, left] + u * x[..., top, right])
            out[..., i, j] += v * ((1 - u) * x[..., bottom, left] + u * x[..., bottom, right])
    return out


def high_frequency_map(x, wavelet="haar", mode="zero"):
    return bilinear(pywt_bands(x, wavelet, mode)[:, :, 1:].sum(axis=2), *x.shape[2:])


def residual_map(x, wavelet="haar", mode="zero"):
    x, mode = np.asarray(x, dtype=float), "constant" if mode == "replicate" else mode
    low, _ = pywt.dwt2(x, wavelet, mode)
    return x - pywt.idwt2((low, (None, None, None)), wavelet, mode)[..., : x.shape[2], : x.shape[3]]


def scale_weight(boxes_by_image, image_hw, map_hw):
    """Paint the boxes one by one: list of (N_i, 4) -> (B, h, w)."""
    (height, width), (h, w) = image_hw, map_hw
    weight = np.ones((len(boxes_by_image), h, w))
    for image, boxes in enumerate(boxes_by_image):
        for x1, y1, x2, y2 in np.asarray(boxes, dtype=float).tolist():
            columns = _cells(x1, x2, w, width)
            rows = _cells(y1, y2, h, height)
            for i in rows:
                for j in columns:
                    weight[image, i, j] += 1 / (len(rows) * len(columns))
    return weight


def _cells(low, high, cells, pixels):
    first = min(max(math.floor(low * cells / pixels), 0), cells - 1)
    last = min(max(math.ceil(high * cells / pixels), 0), cells - 1)
    return range(first, max(first, last) + 1)


def normalized(student, teacher, how):
    axes = (0, 2, 3)
    if how == "channel":
        return tuple((x - x.mean(axes, keepdims=True)) / x.std(axes, keepdims=True) for x in (student, teacher))
    if how == "teacher":
        return student / teacher.std(axes, keepdims=True), teacher / teacher.std(axes, keepdims=True)
    return student, teacher


def explicit_terms(students, teachers, weights, wavelet="haar", mode="zero", normalize="none"):
    """Lists of levels -> (ex_low, ex_high); weights (B, h, w) a level or None."""
    low = high = 0.0
    for level, (s, t) in enumerate(zip(students, teachers, strict=True)):
        s, t = normalized(np.asarray(s, dtype=float), np.asarray(t, dtype=float), normalize)
        error = (pywt_bands(s, wavelet, mode) - pywt_bands(t, wavelet, mode)) ** 2
        if weights is not None:
            error = error * weights[level][:, None, None]
        low += error[:, :, 0].mean()
        high += error[:, :, 1:].mean()
    return low, high


def explicit_gradient(student, adapter, teacher, weight):
    """Gradient of ex_low + ex_high of one level (Haar, zero padding) at the student map before its adapter (T, S)."""
    adapted = np.einsum("ts,bshw->bthw", adapter, student)
    error = 2 * weight[:, None, None] * (haar_bands(adapted) - haar_bands(teacher))
    error[:, :, 0] /= error[:, :, 0].size
    error[:, :, 1:] /= error[:, :, 1:].size
    return np.einsum("ts,bthw->bshw", adapter, haar_bands_transposed(error, *student.shape[2:]))


def giou(a, b):
    """Of two xyxy boxes with extent."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return width * height / union - (hull - union) / hull


def dense_implicit(student_logits, student_boxes, teacher_logits, teacher_boxes, normalizer, u=None, v=None):
    """Anchor by anchor, class by class -> (cls, box)."""
    cls = box = 0.0
    for image, anchor in np.ndindex(*student_logits.shape[:2]):
        gate = 1.0 if u is None else float(u[image, anchor])
        confidence = 0.0
        for z, z_t in zip(student_logits[image, anchor].tolist(), teacher_logits[image, anchor].tolist(), strict=True):
            p, q = 1 / (1 + math.exp(-z)), 1 / (1 + math.exp(-z_t))
            cls += gate * abs(p - q) * -(q * math.log(p) + (1 - q) * math.log(1 - p))
            confidence = max(confidence, q)
        weight = gate * confidence if v is None else float(v[image, anchor])
        pair = student_boxes[image, anchor].tolist(), teacher_boxes[image, anchor].tolist()
        box += weight * (1 - giou(*pair))
    return cls / normalizer, box / normalizer


def roi_implicit(student_cls, teacher_cls, student_deltas, teacher_deltas, temperature=3.0):
    """Region by region -> (cls averaged over regions, box)."""
    divergence = error = gates = 0.0
    for i in range(len(student_cls)):
        target = _softmax(teacher_cls[i] / temperature)
        prediction = _softmax(student_cls[i] / temperature)
        divergence += (target * np.log(target / prediction)).sum()
        foreground = _softmax(teacher_cls[i])[:-1]
        best = int(foreground.argmax())
        delta = student_deltas[i, 4 * best : 4 * best + 4] - teacher_deltas[i, 4 * best : 4 * best + 4]
        error += foreground[best] * np.abs(delta).sum()
        gates += foreground[best]
    return temperature**2 / 2 * divergence / len(student_cls), error / (4 * gates)


def _softmax(z):
    e = np.exp(np.asarray(z, dtype=float) - np.max(z))
    return e / e.sum()


def decode_deltas(anchors, deltas):
    """Boxes xyxy from (dx, dy, dw, dh) on xyxy anchors, log ratios clamped at log(1000/16)."""
    out = np.zeros(np.broadcast_shapes(anchors.shape, deltas.shape))
    bound = math.log(1000 / 16)
    for index in np.ndindex(*out.shape[:-1]):
        x1, y1, x2, y2 = np.broadcast_to(anchors, out.shape)[index].tolist()
        dx, dy, dw, dh = deltas[index].tolist()
        width, height = x2 - x1, y2 - y1
        x, y = (x1 + x2) / 2 + dx * width, (y1 + y2) / 2 + dy * height
        half_w = width * math.exp(min(max(dw, -bound), bound)) / 2
        half_h = height * math.exp(min(max(dh, -bound), bound)) / 2
        out[index] = x - half_w, y - half_h, x + half_w, y + half_h
    return out
