"""Windows as ground stations use them: many at once, from one opened file."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

import linnet
from linnet.runtime.codec import Codec
from linnet.runtime.writer import RecordingWriter

FRAMES, LEVELS, WINDOWS, THREADS = 5, 5, 2000, 4


def test_2000_windows_from_4_threads_equal_their_crops(codec: Codec, photograph: np.ndarray, tmp_path: Path) -> None:
    """Random windows of random levels, stored or not, of random frames of a recording, through one opened file."""
    path = tmp_path / "a.lnt"
    with open(path, "wb") as output:
        writer = RecordingWriter(output)
        for number in range(FRAMES):
            frame = np.roll(photograph, 97 * number, axis=(0, 1))[: 190 + 20 * number, : 250 - 30 * number]
            codec.encode_frame(writer, frame, number=number, quality=50 + 9 * number, tile=64, levels=3)
        writer.close()
    with linnet.open(path, threads=1) as file:
        whole = {(n, level): file[n].read(level) for n in range(FRAMES) for level in range(LEVELS)}
        assert file[0].levels == [0, 2, 3]

        def check(seed: int) -> list[str]:
            rng, wrong = random.Random(seed), []
            for _ in range(WINDOWS // THREADS):
                n, level = rng.randrange(FRAMES), rng.randrange(LEVELS)
                full = whole[n, level]
                height, width = full.shape[:2]
                w, h = (min(side, int(2 ** rng.uniform(0, 6))) for side in (width, height))
                x, y = rng.randrange(width - w + 1), rng.randrange(height - h + 1)
                if not np.array_equal(file[n].read_region(x, y, w, h, level), full[y : y + h, x : x + w]):
                    wrong.append(f"frame {n} level {level}: {x},{y},{w},{h}")
            return wrong

        with ThreadPoolExecutor(THREADS) as pool:
            assert not [sentence for wrong in pool.map(check, range(THREADS)) for sentence in wrong]
