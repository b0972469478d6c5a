"""The sums of a codec's convolutions in the arithmetics of a GPU, compared with the reference bit by bit.

    python benchmarks/exact_on_gpu.py [--bundle B] [--device cuda|cpu] [--json FILE]

Every convolution of the bundle computes inputs that reach its largest sums: fp32, TF32, bf16 and int8, each where the
device has it. PyTorch, numpy and this tree are enough, installed or not. On a machine without CUDA the CPU computes
what it can, and the rest is named. Exit status 1 says that an arithmetic which `docs/integers.md` covers differed.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

if not __package__:  # run as a script: the tree's folders are the package's, as setup.py has them
    TREE = Path(__file__).resolve().parents[1]
    sys.path.insert(0, str(TREE))
    import linnet

    linnet.__path__.append(str(TREE))

from linnet.benchmarks.host import fingerprint
from linnet.runtime.backends.reference import convolve, requantise
from linnet.runtime.network import ACCUMULATOR_LIMIT, ACTIVATION_EXP, EXACT, FLOAT, Conv, Network, rebuild

SHIPPED = Path(__file__).resolve().parents[1] / "linnet" / "bundles" / "camera.lntb"


@dataclass(frozen=True)
class Arithmetic:
    """`sums(x, node)` gives the accumulators (N, O, h', w') of integers `x` (N, I, h, w), in units of 1 or, if
    `scaled`, of 2**-(7 + shift). `covered`: `docs/integers.md` says that it is exact, whatever kernel the library
    takes. `formats`: of the layers that it can compute."""

    name: str
    devices: tuple[str, ...]
    sums: Callable[[torch.Tensor, Conv], torch.Tensor]
    scaled: bool
    covered: bool = True
    formats: tuple[str, ...] = (EXACT, FLOAT)


@dataclass
class Outcome:
    """What one arithmetic did over all convolutions; `missing` says why it was not tried."""

    arithmetic: str
    covered: bool
    layers: int = 0
    layers_exact: int = 0
    sums: int = 0
    sums_that_differ: int = 0
    outputs_that_differ: int = 0
    largest_sum: int = 0
    missing: str = ""


def _scaled_parameters(node: Conv, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights and biases as fp32 values with their powers of two: exact."""
    step = np.exp2(-node.shift.astype(np.float64))
    weight = torch.from_numpy(node.weight * step[:, None, None, None]).float().to(device)
    return weight, torch.from_numpy(node.bias * step * 2.0**-ACTIVATION_EXP).float().to(device)


def _convolution(tf32: bool) -> Callable[[torch.Tensor, Conv], torch.Tensor]:
    def sums(x: torch.Tensor, node: Conv) -> torch.Tensor:
        weight, bias = _scaled_parameters(node, x.device)
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=tf32):
            return functional.conv2d(x.float() * 2.0**-ACTIVATION_EXP, weight, bias, node.stride, node.padding)

    return sums


Multiply = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def _product(multiply: Multiply) -> Callable[[torch.Tensor, Conv], torch.Tensor]:
    """A convolution as patches times a matrix: `multiply` (P, K) x (K, O) of fp32 values gives fp32 sums."""

    def sums(x: torch.Tensor, node: Conv) -> torch.Tensor:
        weight, bias = _scaled_parameters(node, x.device)
        return _as_planes(multiply(_patches(x, node) * 2.0**-ACTIVATION_EXP, weight.flatten(1).T) + bias, x, node)

    return sums


def _patches(x: torch.Tensor, node: Conv) -> torch.Tensor:
    columns = functional.unfold(x.float(), node.weight.shape[2], padding=node.padding, stride=node.stride)
    return columns.transpose(1, 2).flatten(0, 1)


def _as_planes(rows: torch.Tensor, x: torch.Tensor, node: Conv) -> torch.Tensor:
    grown = 2 * node.padding - node.weight.shape[2]
    height, width = ((side + grown) // node.stride + 1 for side in x.shape[2:])
    return rows.reshape(len(x), height, width, -1).permute(0, 3, 1, 2)


def _fp32(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    torch.backends.cuda.matmul.allow_tf32 = False
    return a @ b


def _tf32(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        return a @ b
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False


def _bf16(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Tensor cores multiply bf16 and sum in fp32; the result is asked for before it would be rounded to bf16."""
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    return torch.mm(a.bfloat16(), b.bfloat16(), out_dtype=torch.float32)


def _bf16_operands(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """What a CPU can show: operands rounded to bf16, products and sums in fp32. PyTorch's own CPU product of bf16
    rounds its result to bf16, which hides the sums."""
    return a.bfloat16().float() @ b.bfloat16().float()


def _int8(x: torch.Tensor, node: Conv) -> torch.Tensor:
    patches = _patches(x, node).to(torch.int8)
    weight = torch.from_numpy(node.weight).to(x.device).flatten(1).T
    inner, outer = -patches.shape[1] % 16, -weight.shape[1] % 16  # tensor cores want whole groups
    patches, weight = functional.pad(patches, (0, inner)), functional.pad(weight, (0, outer, 0, inner))
    rows = torch._int_mm(patches.contiguous(), weight.contiguous())[:, : len(node.bias)]
    return _as_planes(rows + torch.from_numpy(node.bias).to(x.device), x, node)


ARITHMETICS = (
    Arithmetic("fp32 product", ("cuda", "cpu"), _product(_fp32), scaled=True),
    Arithmetic("TF32 product, fp32 sums", ("cuda",), _product(_tf32), scaled=True),
    Arithmetic("bf16 product, fp32 sums", ("cuda",), _product(_bf16), scaled=True, formats=(EXACT,)),
    Arithmetic("bf16 operands, fp32 product", ("cpu",), _product(_bf16_operands), scaled=True, formats=(EXACT,)),
    Arithmetic("int8 product, int32 sums", ("cuda", "cpu"), _int8, scaled=False, formats=(EXACT,)),
    # cuDNN may take a Winograd or FFT algorithm, which transforms the values: those are not covered.
    Arithmetic("fp32 convolution", ("cuda", "cpu"), _convolution(tf32=False), scaled=True, covered=False),
    Arithmetic("TF32 convolution", ("cuda",), _convolution(tf32=True), scaled=True, covered=False),
)


def networks(path: Path) -> dict[str, Network]:
    """The integer networks of a bundle file, read without the native core."""
    with zipfile.ZipFile(path) as archive:
        structures = json.loads(archive.read("manifest.json"))["networks"]
        with np.load(io.BytesIO(archive.read("networks.npz")), allow_pickle=False) as stored:
            arrays = {key: stored[key] for key in stored.files}
    return {
        name: rebuild(name, structure, {k.partition("/")[2]: v for k, v in arrays.items() if k.startswith(f"{name}/")})
        for name, structure in structures.items()
    }


Layer = tuple[Conv, int]
"""A convolution and the bits of its input."""


def layers_of(found: Mapping[str, Network]) -> list[Layer]:
    return [
        (node, network.bits[node.source])
        for network in found.values()
        for node in network.nodes
        if isinstance(node, Conv)
    ]


def input_at_the_bounds(node: Conv, rng: np.random.Generator, channels: int, side: int, bits: int = 8) -> np.ndarray:
    """(2 * channels, side, side, I) int8, or int16, that drives the `channels` outputs with the largest bounds to both
    ends.

    `side` is at least that of the kernel. The window with the largest sum has the largest number of `bits` bits under
    positive weights and the smallest under negative ones; it stands wherever windows do not overlap, amid random values
    of which half are extremes.
    """
    least, largest = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    weight = node.weight.astype(np.int64)
    order = np.argsort(-np.abs(weight).reshape(len(weight), -1).sum(1))[:channels]
    kernel, taken = weight.shape[2], weight.shape[1]
    shape = (2 * len(order), side, side, taken)
    x = np.where(rng.random(shape) < 0.5, rng.choice([least, largest], shape), rng.integers(least, largest + 1, shape))
    apart = -(-kernel // node.stride) * node.stride
    first = -node.padding % node.stride if node.padding else 0
    for number, channel in enumerate(order):
        for half, sign in enumerate((1, -1)):
            window = np.where(sign * weight[channel] > 0, largest, least).transpose(1, 2, 0)
            for y in range(first, side - kernel + 1, apart):
                for left in range(first, side - kernel + 1, apart):
                    x[2 * number + half, y : y + kernel, left : left + kernel] = window
    return x.astype(np.int8 if bits == 8 else np.int16)


def compare(layers: Sequence[Layer], device: str, channels: int = 4, side: int = 16, seed: int = 1) -> list[Outcome]:
    """Every arithmetic on every layer, on the same inputs."""
    outcomes = [Outcome(arithmetic.name, arithmetic.covered) for arithmetic in ARITHMETICS]
    rng = np.random.default_rng(seed)
    for node, bits in layers:
        x = input_at_the_bounds(node, rng, channels, side, bits)
        want = convolve(x, node)
        shifts = np.maximum(node.shift.astype(int) + bits - node.bits, 1)  # that of a raw convolution may be 0
        wanted_outputs = requantise(want, shifts, node.bits)
        shift = torch.from_numpy(shifts.astype(np.float64)).to(device)[:, None, None]
        unit = torch.from_numpy(np.exp2(node.shift.astype(np.float64) + ACTIVATION_EXP)).to(device)[:, None, None]
        planes = torch.from_numpy(x.transpose(0, 3, 1, 2).copy()).to(device)
        for arithmetic, outcome in zip(ARITHMETICS, outcomes, strict=True):
            if device not in arithmetic.devices:
                outcome.missing = f"not on {device}"
            if outcome.missing or node.format not in arithmetic.formats:
                continue
            try:
                found = arithmetic.sums(planes, node)
            except (RuntimeError, NotImplementedError, TypeError) as error:
                outcome.missing = str(error).splitlines()[0][:200]
                continue
            exact = found.double() * (unit if arithmetic.scaled else 1)
            largest = 1 << (node.bits - 1)
            outputs = torch.round((exact * torch.exp2(-shift)).float()).clamp(-largest, largest - 1)  # ties to even
            _count(outcome, _nhwc(exact), want, _nhwc(outputs), wanted_outputs)
    return outcomes


def _nhwc(x: torch.Tensor) -> np.ndarray:
    return x.permute(0, 2, 3, 1).cpu().numpy()


def _count(outcome: Outcome, sums: np.ndarray, want: np.ndarray, outputs: np.ndarray, wanted: np.ndarray) -> None:
    wrong = int(np.count_nonzero(sums != want))
    outcome.layers += 1
    outcome.layers_exact += wrong == 0
    outcome.sums += want.size
    outcome.sums_that_differ += wrong
    outcome.outputs_that_differ += int(np.count_nonzero(outputs != wanted))
    outcome.largest_sum = max(outcome.largest_sum, int(np.abs(want).max()))


def as_text(outcomes: Sequence[Outcome], where: str) -> str:
    lines = [where, f"{'':28} {'layers exact':>13} {'sums':>10} {'differ':>8} {'outputs differ':>15}"]
    for outcome in outcomes:
        if outcome.missing:
            lines.append(f"{outcome.arithmetic:28} not tried: {outcome.missing}")
        else:
            exact = f"{outcome.layers_exact} of {outcome.layers}"
            note = "" if outcome.covered else "   the library chooses the algorithm"
            lines.append(
                f"{outcome.arithmetic:28} {exact:>13} {outcome.sums:10} {outcome.sums_that_differ:8} "
                f"{outcome.outputs_that_differ:15}{note}"
            )
    peak = max(outcome.largest_sum for outcome in outcomes)
    lines.append(f"largest sum {peak}, {peak / ACCUMULATOR_LIMIT:.1%} of 2^24")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Compares the arithmetics of a GPU with the reference, bit by bit.")
    parser.add_argument("--bundle", type=Path, default=SHIPPED, metavar="B", help="the codec, else the shipped one")
    parser.add_argument("--device", choices=("cuda", "cpu"), help="else cuda where there is one")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the outcome as JSON too")
    options = parser.parse_args(argv)
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        parser.error("PyTorch finds no CUDA device here: leave --device out")
    try:
        found = networks(options.bundle)
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        parser.error(f"{options.bundle} is not a bundle that can be read ({error}): name a .lntb file")
    outcomes = compare(layers_of(found), device)
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    print(as_text(outcomes, f"PyTorch {torch.__version__} on {name}"))
    if options.json:
        report: dict[str, Any] = {
            "format": "linnet-exact-on-gpu/1", "host": fingerprint(), "torch": torch.__version__, "device": name,
            "outcomes": [asdict(outcome) for outcome in outcomes],
        }  # fmt: skip
        options.json.write_text(json.dumps(report, indent=1), encoding="utf-8")
    return int(any(outcome.covered and outcome.sums_that_differ for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
