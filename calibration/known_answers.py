"""Known answers: inputs that drive every network to its bounds, with the outputs the reference gives.

Half of the values are extremes (-128 and 127), since arithmetic that saturates or rounds early differs there first;
the rest are uniform.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..runtime.backends.reference import run_network
from ..runtime.network import Network

SIDE = {"analysis": 32, "hyper_analysis": 8, "hyper_synthesis": 3, "synthesis": 5}
"""Width and height of the inputs; 8 where not named. Small, because every session start computes them."""


def known_answers(networks: Mapping[str, Network], seed: int = 1) -> dict[str, np.ndarray]:
    """Arrays named "network/in/tensor" and "network/out/tensor", NHWC."""
    rng = np.random.default_rng(seed)
    answers = {}
    for name, network in networks.items():
        side = SIDE.get(name, 8)
        inputs = {}
        for tensor, channels in network.inputs.items():
            shape = (1, side, side, channels)
            uniform = rng.integers(-128, 128, shape)
            extreme = np.where(rng.random(shape) < 0.5, -128, 127)
            inputs[tensor] = np.where(rng.random(shape) < 0.5, extreme, uniform).astype(np.int8)
            answers[f"{name}/in/{tensor}"] = inputs[tensor]
        for tensor, value in zip(network.outputs, run_network(network, inputs), strict=True):
            answers[f"{name}/out/{tensor}"] = value
    return answers
