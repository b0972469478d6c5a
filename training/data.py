"""Photographs for training: every readable image of a folder in memory, random flipped crops out of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from tqdm import tqdm

from ..calibration.qat import to_full_scale

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff"}


class Photographs:
    """All images below `folder`, RGB uint8 in memory; the last `held_out` of every 50 are kept aside for
    validation."""

    def __init__(self, folder: Path, smallest: int = 256, held_out: int = 1) -> None:
        paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
        if not paths:
            raise SystemExit(f"{folder} holds no images ({', '.join(sorted(SUFFIXES))}): give a folder of photographs")
        images, skipped = [], []
        for path in tqdm(paths, desc="reading images", unit="image", disable=None):
            try:
                with Image.open(path) as image:
                    pixels = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
            except (OSError, UnidentifiedImageError):
                skipped.append(path.name)
                continue
            if min(pixels.shape[:2]) >= smallest:
                images.append(pixels)
            else:
                skipped.append(path.name)
        if skipped:
            print(f"skipped {len(skipped)} broken or small (< {smallest} pixels) images: {', '.join(skipped[:5])} ...")
        self.train = [image for i, image in enumerate(images) if i % 50 >= held_out]
        self.validation = [image for i, image in enumerate(images) if i % 50 < held_out]

    def batch(self, size: int, crop: int, rng: np.random.Generator, device: torch.device | str = "cpu") -> Tensor:
        """Random flipped and transposed crops: (size, 3, crop, crop) float32 in full-scale units [-1, 127/128]."""
        out = np.empty((size, crop, crop, 3), np.uint8)
        for i in range(size):
            image = self.train[rng.integers(len(self.train))]
            y, x = (int(rng.integers(side - crop + 1)) for side in image.shape[:2])
            patch = image[y : y + crop, x : x + crop]
            if rng.random() < 0.5:
                patch = patch[:, ::-1]
            out[i] = patch.transpose(1, 0, 2) if rng.random() < 0.5 else patch
        return to_full_scale(out, device)
