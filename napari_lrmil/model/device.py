"""Which device computes."""

from __future__ import annotations

import torch

from napari_lrmil.errors import DeviceError


def available_devices() -> list[str]:
    """Names that `resolve_device` takes here, the fastest first."""
    names = (
        [f"cuda:{index}" for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    )
    if torch.backends.mps.is_available():
        names.append("mps")
    return [*names, "cpu"]


def resolve_device(name: str = "auto") -> torch.device:
    """``auto`` (CUDA, else MPS, else CPU), or a device by name.

    Raises
    ------
    DeviceError
        Where the named device isn't there.
    """
    devices = available_devices()
    if name == "auto":
        return torch.device(devices[0])
    if name == "cuda" and any(device.startswith("cuda") for device in devices):
        return torch.device("cuda")
    if name not in devices:
        raise DeviceError(f"no device {name!r} here; there is: auto, {', '.join(devices)}")
    return torch.device(name)
