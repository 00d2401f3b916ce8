"""From a scanner's own colours to sRGB, by the ICC profile that the slide carries."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from napari_lrmil.errors import SlideError


class SRGBTransform:
    """Applies one ICC profile. Calls from several threads are safe.

    Parameters
    ----------
    profile : bytes
        Of an RGB device.

    Raises
    ------
    SlideError
        Where the profile is damaged or isn't one of RGB colours.
    """

    def __init__(self, profile: bytes) -> None:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            self._transform = ImageCms.buildTransform(
                source,
                ImageCms.createProfile("sRGB"),
                "RGB",
                "RGB",
                ImageCms.Intent(ImageCms.getDefaultIntent(source)),
            )
        except (ImageCms.PyCMSError, OSError, ValueError) as error:
            raise SlideError(
                f"the slide's ICC profile can't be applied ({error}). Open it without colour management."
            ) from error

    def __call__(self, rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """(height, width, 3) uint8 in the slide's colours -> the same in sRGB."""
        if not rgb.size:
            return rgb
        image = Image.fromarray(np.ascontiguousarray(rgb))
        converted = ImageCms.applyTransform(image, self._transform)
        if converted is None:  # only in-place transforms return None
            raise SlideError("the slide's ICC profile gave no image")
        return np.asarray(converted)
