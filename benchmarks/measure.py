"""The measurements of a rate-distortion run: every picture, codec and setting once, in this process or in several.

Encoding and decoding go through complete file bytes; a codec that returns anything but the picture's shape is an error.
Nothing is averaged here: the raw results are what the JSON file keeps and what `report` reads.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import lru_cache

from ..runtime.errors import LinnetError, MachineError
from . import metrics
from .codec import Codec
from .image_sets import Photograph

LOSSLESS_DB = 100.0  # stands for the infinite PSNR of identical pictures, so that means and JSON stay finite


class CodecFailure(LinnetError):
    """A codec under test raised an error or gave back something else than a picture."""


@dataclass(frozen=True)
class Measurement:
    """One picture through one codec at one setting."""

    set_name: str
    image: str
    digest: str
    codec: str
    fingerprint: str
    setting: float
    bytes: int
    bits_per_pixel: float
    psnr_rgb: float
    psnr_y: float
    ms_ssim: float | None  # None: the picture is too small for five scales

    @property
    def key(self) -> tuple[str, str, float]:
        """What was measured: pixels, codec (with version and fixed settings) and setting."""
        return self.digest, self.fingerprint, self.setting


@dataclass(frozen=True)
class Job:
    photograph: Photograph
    codec: str
    setting: float


def jobs(photographs: Iterable[Photograph], codecs: Mapping[str, Codec]) -> list[Job]:
    """Everything to measure, picture by picture, so that an interrupted run has whole pictures."""
    return [Job(p, name, setting) for p in photographs for name, codec in codecs.items() for setting in codec.settings]


def measure(job: Job, codec: Codec) -> Measurement:
    photograph = job.photograph
    picture = _pixels(photograph)
    try:
        data = codec.encode(picture, job.setting)
        decoded = codec.decode(data)
        psnr_rgb, psnr_y = metrics.psnr_rgb(picture, decoded), metrics.psnr_y(picture, decoded)
        ms_ssim = metrics.ms_ssim(picture, decoded)
    except Exception as error:
        raise CodecFailure(f"{photograph.name}: {codec.name} at setting {job.setting:g} failed: {error}") from error
    return Measurement(
        set_name=photograph.set_name,
        image=photograph.name,
        digest=photograph.digest,
        codec=codec.name,
        fingerprint=codec.fingerprint,
        setting=job.setting,
        bytes=len(data),
        bits_per_pixel=8 * len(data) / (photograph.width * photograph.height),
        psnr_rgb=min(psnr_rgb, LOSSLESS_DB),
        psnr_y=min(psnr_y, LOSSLESS_DB),
        ms_ssim=ms_ssim,
    )


def measure_all(pending: list[Job], codecs: Mapping[str, Codec], processes: int = 1) -> Iterator[Measurement]:
    """Yields results as they come. With several processes each opens the codecs anew and takes jobs one by one."""
    if processes == 1 or len(pending) < 2:
        for job in pending:
            yield measure(job, codecs[job.codec])
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, _remember, (dict(codecs),)) as pool:
        try:
            futures = [pool.submit(_measure_remembered, job) for job in pending]
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool as error:
            raise MachineError("a measuring process died, perhaps of memory; use fewer --processes") from error
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


@lru_cache(maxsize=2)
def _pixels(photograph: Photograph) -> metrics.Picture:
    return photograph.read()


_codecs: dict[str, Codec] = {}  # of a worker process


def _remember(codecs: dict[str, Codec]) -> None:
    import cv2

    cv2.setNumThreads(1)
    _codecs.update(codecs)


def _measure_remembered(job: Job) -> Measurement:
    return measure(job, _codecs[job.codec])
