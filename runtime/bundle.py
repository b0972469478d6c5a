"""A codec bundle: one zip or directory with everything a device needs to run a codec.

`manifest.json` names the members with their SHA-256, the networks' structure and the coding steps. The SHA-256 of the
manifest is the codec's identity: it covers every member and stands in every stream. Reading checks each member against
the manifest; nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from functools import cache, cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from .core import EntropyTables
from .errors import InputError, MachineError
from .latents import TRELLIS_STATES, CodingStep
from .network import Network, rebuild

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
MAX_MEMBER = 1 << 28
SHIPPED = "camera"
"""Name of the bundle inside the package that is used when none is given."""


def _shipped_folder() -> Path:
    """Where the package keeps its own bundles, in the source tree as once installed."""
    return Path(str(files(__package__.partition(".")[0]))) / "bundles"


def shipped() -> dict[str, Path]:
    """The bundles inside the package by name."""
    return {path.stem: path for path in sorted(_shipped_folder().glob("*.lntb"))}


def locate(bundle: str | Path | None = None) -> Path:
    """Where a bundle is: a path, or the name of one inside the package; None is `SHIPPED`."""
    if bundle is None:
        return _shipped_folder() / f"{SHIPPED}.lntb"
    path = Path(bundle)
    return path if path.exists() else shipped().get(str(bundle), path)


@cache
def shipped_identities() -> dict[str, str]:
    """Name by identity of the bundles inside the package; reads no more than their manifests."""
    found = {}
    for name, path in shipped().items():
        with zipfile.ZipFile(path) as archive:
            found[hashlib.sha256(archive.read(MANIFEST)).hexdigest()] = name
    return found


class Bundle:
    """A read and verified bundle.

    `identity` (hex SHA-256), `name`, `steps` (coding steps in order), and the integer tables `gains` and
    `table_offsets` (100, latent + hyper channels) int16, `hyper_parameters` (2 * hyper channels,) int8,
    `companding` (256,) int8 and `entropy_tables`. `trellis` is how many states the trellis has along which symbols are
    quantised: the second half of the tables belongs to its second quantiser. Without one it is 0. `scale_tables` are
    those that scales choose from. `log_scales` (256,) int8 turns the scales that the networks give into log-scales;
    None where they give those.
    A codec without hyper-latents has 0 `hyper_channels` and `latent_parameters` (2 * latent channels,) int8 instead.
    """

    def __init__(self, members: Mapping[str, bytes], origin: str) -> None:
        self._members, self._origin = members, origin
        if MANIFEST not in members:
            raise InputError(f"bundle {origin} has no {MANIFEST}: it is not a linnet bundle")
        manifest = self._json(MANIFEST)
        if manifest.get("format_version") != FORMAT_VERSION:
            raise InputError(
                f"bundle {origin} has format {manifest.get('format_version')}, this version reads {FORMAT_VERSION}"
            )
        for name, digest in manifest["members"].items():
            if name not in members or hashlib.sha256(members[name]).hexdigest() != digest:
                raise InputError(
                    f"bundle {origin}: member {name} is missing or differs from the manifest: get the bundle again"
                )
        self.identity = hashlib.sha256(members[MANIFEST]).hexdigest()
        self.manifest = manifest
        self.name: str = manifest["name"]
        self.latent_channels: int = manifest["latent_channels"]
        self.hyper_channels: int = manifest["hyper_channels"]
        self.steps = tuple(CodingStep(**step) for step in manifest["coding_steps"])
        self.kmac_per_pixel: dict[str, float] = manifest["kmac_per_pixel"]
        tables = self._arrays("tables.npz")
        self.gains, self.mean_shifts = tables["gains"], tables["mean_shifts"]
        self.table_offsets = tables["table_offsets"]
        self.hyper_parameters, self.companding = tables["hyper_parameters"], tables["companding"]
        self.log_scales: np.ndarray | None = tables.get("log_scales")
        self.latent_parameters: np.ndarray | None = tables.get("latent_parameters")
        if (self.hyper_channels == 0) != (self.latent_parameters is not None):
            raise InputError(f"bundle {origin} must have either hyper-latents or latent parameters: get it again")
        self.entropy_tables = EntropyTables(tables["frequencies"], tables["radii"])
        stated = manifest.get("trellis", 0)
        self.trellis: int = 8 if stated is True else stated  # what `true` meant when there was one
        if self.trellis not in (0, 8, TRELLIS_STATES):
            raise InputError(
                f"bundle {origin} has a trellis of {stated} states, which is not known here: update linnet"
            )
        self.scale_tables = len(self.entropy_tables) // (2 if self.trellis else 1)
        first, second = np.split(self.entropy_tables.skip, [self.scale_tables])
        if self.trellis and not np.array_equal(first, second):
            raise InputError(f"bundle {origin}: the entropy tables of its two quantisers do not match: get it again")

    @classmethod
    def open(cls, path: str | Path | None = None) -> Bundle:
        """Read the zip or directory at `path`, or the bundle of that name in the package; None opens `SHIPPED`."""
        path = locate(path)
        if path.is_dir():
            members = {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}
            return cls(members, str(path))
        try:
            with zipfile.ZipFile(path) as archive:
                for entry in archive.infolist():
                    if entry.file_size > MAX_MEMBER:
                        raise InputError(
                            f"bundle {path}: member {entry.filename} claims {entry.file_size} bytes: too large"
                        )
                return cls({entry.filename: archive.read(entry) for entry in archive.infolist()}, str(path))
        except FileNotFoundError:
            raise MachineError(
                f"bundle {path} does not exist: name another with --bundle or reinstall linnet"
            ) from None
        except (OSError, zipfile.BadZipFile) as error:
            raise InputError(f"bundle {path} cannot be read ({error}): get it again") from error

    def _json(self, name: str) -> Any:
        try:
            return json.loads(self._members[name])
        except ValueError as error:
            raise InputError(f"bundle {self._origin}: {name} is not JSON ({error}): get the bundle again") from error

    def _arrays(self, name: str) -> dict[str, np.ndarray]:
        with np.load(io.BytesIO(self._members[name]), allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}

    @property
    def certificate(self) -> dict[str, Any]:
        """The proof sheet of the arithmetic contract (`calibration.certificate`)."""
        return self._json("certificate.json")

    @cached_property
    def networks(self) -> dict[str, Network]:
        """The integer networks by name."""
        stored = self._arrays("networks.npz")
        networks = {}
        for name, structure in self.manifest["networks"].items():
            prefix = f"{name}/"
            own = {key[len(prefix) :]: value for key, value in stored.items() if key.startswith(prefix)}
            networks[name] = rebuild(name, structure, own)
        return networks

    def inputs(self, network: str) -> dict[str, int]:
        """Channels of each input that `network` takes."""
        return self.manifest["networks"][network]["inputs"]

    @cached_property
    def _known_answers(self) -> dict[str, np.ndarray]:
        return self._arrays("known_answers.npz")

    def known_answer(self, network: str) -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
        """(inputs by name, expected outputs) of one network."""
        stored = self._known_answers
        structure = self.manifest["networks"][network]
        inputs = {name: stored[f"{network}/in/{name}"] for name in structure["inputs"]}
        return inputs, [stored[f"{network}/out/{name}"] for name in structure["outputs"]]

    def graphs(self, form: str) -> dict[str, bytes]:
        """Serialized ONNX models by network; `form` is "onnxruntime" or "qdq"."""
        for name in self.manifest["networks"]:
            if f"onnx/{name}.{form}.onnx" not in self._members:
                raise MachineError(
                    f"bundle {self._origin} has no {form} form of network {name}, since it is not all int8-exact: "
                    "use --backend onnxruntime"
                )
        return {name: self._members[f"onnx/{name}.{form}.onnx"] for name in self.manifest["networks"]}

    @property
    def rest_graphs(self) -> dict[str, bytes]:
        """Serialized ONNX models, by network, of what the native filters leave of it (`backends.filter_plan`)."""
        graphs = {name: self._members.get(f"onnx/{name}.rest.onnx") for name in self.manifest["networks"]}
        return {name: graph for name, graph in graphs.items() if graph is not None}


def write_bundle(path: Path, manifest: dict[str, Any], members: Mapping[str, bytes]) -> str:
    """Write a bundle as a zip, the same bytes for the same content, and return its identity."""
    manifest = {
        "format_version": FORMAT_VERSION,
        **manifest,
        "members": {name: hashlib.sha256(content).hexdigest() for name, content in sorted(members.items())},
    }
    text = json.dumps(manifest, indent=1).encode()
    temporary = path.with_suffix(".partial")
    with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, content in [(MANIFEST, text), *sorted(members.items())]:
            entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, content)
    temporary.replace(path)
    return hashlib.sha256(text).hexdigest()


def pack_arrays(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Arrays as an .npz whose bytes depend on the content alone (numpy dates every entry 1980)."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()
