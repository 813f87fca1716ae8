"""Spectra of windows in time, and their inverse, as windows, products and Fourier transforms.

Torch's own operators read strided memory, whose gradient no plan splits, and ask whether the squared
windows vanish anywhere.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, fft
from torch.nn import functional

from ...errors import TraceError
from ..locate import current_user_line

# arguments of both in their order, and what stands for those that are not given
SHARED = ("input", "n_fft", "hop_length", "win_length", "window", "center")
FORWARD = (*SHARED, "pad_mode", "normalized", "onesided", "return_complex", "align_to_window")
INVERSE = (*SHARED, "normalized", "onesided", "length", "return_complex")
DEFAULTS = {"center": True, "pad_mode": "reflect", "normalized": False}


class Frames(NamedTuple):
    """Windows of `size` samples, each `step` behind the one before it; `weights` [size] or none."""

    size: int
    step: int
    weights: Tensor | None
    centred: bool
    norm: str

    @classmethod
    def of(cls, options: dict[str, Any], like: Tensor) -> Frames:
        size, step, width = (options[n] for n in ("n_fft", "hop_length", "win_length"))
        width = size if width is None else width
        weights = options["window"]
        if weights is None and width != size:
            weights = torch.ones(width, dtype=like.real.dtype)
        if weights is not None:
            left = (size - width) // 2
            weights = functional.pad(weights, (left, size - width - left))
        norm = "ortho" if options["normalized"] else "backward"
        return cls(size, size // 4 if step is None else step, weights, options["center"], norm)


def stft(*args: Any, **kwargs: Any) -> Tensor | None:
    """`torch.stft` of [n] or [b n]: [… frequencies frames]."""
    options = _bound(FORWARD, args, kwargs)
    signal: Tensor = options["input"]
    frames = Frames.of(options, signal)
    if options["align_to_window"] is not None:
        return None
    x = signal if signal.dim() == 2 else signal[None]
    if frames.centred:
        x = functional.pad(x[:, None], (frames.size // 2,) * 2, options["pad_mode"])[:, 0]
    x = x.unfold(-1, frames.size, frames.step)
    x = x if frames.weights is None else x * frames.weights
    half = options["onesided"]
    transform = fft.rfft if (not x.is_complex() if half is None else half) else fft.fft
    spectrum = transform(x, norm=frames.norm).transpose(1, 2)
    spectrum = spectrum if signal.dim() == 2 else spectrum[0]
    return spectrum if options["return_complex"] else torch.view_as_real(spectrum)


def istft(*args: Any, **kwargs: Any) -> Tensor:
    """`torch.istft` of [… frequencies frames]: [n] or [b n]. That no sum of squared windows vanishes is
    not asked."""
    options = _bound(INVERSE, args, kwargs)
    spectrum, length = options["input"], options["length"]
    if options["return_complex"] or options["onesided"] is False:
        raise TraceError(
            f"{current_user_line()}: istft of a two-sided spectrum: give the one-sided one, whose "
            "signal is real"
        )
    windows = Frames.of(options, spectrum)
    size, step = windows.size, windows.step
    rows = (spectrum if spectrum.dim() == 3 else spectrum[None]).transpose(1, 2)
    frames = fft.irfft(rows, n=size, norm=windows.norm)
    weights = windows.weights
    weights = torch.ones(size, dtype=frames.dtype) if weights is None else weights
    signal = _added(frames * weights, step)
    squares = (weights * weights).expand(1, frames.shape[1], size)
    first = size // 2 if windows.centred else 0
    whole = signal.shape[1]
    last = whole - first if length is None else min(first + length, whole)
    signal = signal[:, first:last] / _added(squares, step)[:, first:last]
    if length is not None and length > last - first:
        signal = functional.pad(signal, (0, length - (last - first)))
    return signal if spectrum.dim() == 3 else signal[0]


def _bound(names: tuple[str, ...], args: Any, kwargs: Any) -> dict[str, Any]:
    named = dict(zip(names, args, strict=False))
    return {**dict.fromkeys(names), **DEFAULTS, **named, **kwargs}


def _added(frames: Tensor, step: int) -> Tensor:
    """Frames [b t n], each `step` behind the one before it, added up: [b n + step (t - 1)]."""
    _, count, size = frames.shape
    shape = (1, size + step * (count - 1))
    return functional.fold(frames.transpose(1, 2), shape, (1, size), stride=(1, step))[:, 0, 0]
