"""Privacy: encrypted tiles, which tiles a protected rectangle needs, and where keys come from. See docs/bitstream.md.

A sealed tile is ChaCha20-Poly1305 (RFC 8439) of its entropy-coded bytes; the cipher is the `cryptography` package's,
loaded when a `Sealer` is made. There is one algorithm and no choice: plain code for this one is fast and constant-time
on every processor; AES-GCM needs AES instructions for that, which a Jetson Orin has and a Raspberry Pi 4 has not.

What stays visible: which tiles are sealed, how long each is, and everything outside the tiles (a thumbnail in the EXIF,
the digest of the pixels). A seal vouches for its own tile and the frame record, not for other tiles.
"""

from __future__ import annotations

import os
import re
import secrets
import stat
import struct
import threading
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field

from .bitstream import SALT_SIZE, FrameRecord, TilePlace
from .errors import InputError, MachineError, UsageError
from .tiles import Rect

KEY_SIZE = 32
SUBKEY_PURPOSE = b"linnet sealed tile 1"
_NONCE = struct.Struct("<8s4x")
_HEX_KEY = re.compile(rf"\s*([0-9A-Fa-f]{{{2 * KEY_SIZE}}})\s*")
_MAX_KEY_FILE = 4096
_MAKE_ONE = "a key is 64 random hex digits, and (umask 077; openssl rand -hex 32 > linnet.key) makes one"


def read_key(source: str) -> bytes:
    """The 32 bytes that `source` names: `file:PATH` or PATH (64 hex digits, or 32 raw bytes), or `env:NAME` (hex).

    A key file that everybody on the machine can read is a warning and no error: mounted secrets and memory cards often
    have fixed modes, and a camera that refuses to record protects nobody.
    """
    kind, colon, name = source.partition(":")
    if not colon or kind not in ("file", "env"):
        kind, name = "file", source
    if _HEX_KEY.fullmatch(name):
        raise UsageError("others may have seen this key itself: make another one and pass file:PATH or env:NAME")
    if not name:
        raise UsageError(f"{source!r} names no key: pass file:PATH or env:NAME; {_MAKE_ONE}")
    if kind == "env":
        if name not in os.environ:
            raise UsageError(f"the environment variable {name} is not set: it should hold the key; {_MAKE_ONE}")
        shown, content = f"the environment variable {name}", os.environ[name].encode(errors="surrogateescape")
    else:
        shown, content = name, _read_key_file(name)
        if len(content) == KEY_SIZE and not all(32 <= byte < 127 for byte in content):  # text is a password, no key
            return content
    digits = _HEX_KEY.fullmatch(content.decode("latin-1"))
    if not digits:
        raise InputError(f"{shown}: its {len(content)} bytes are no key; {_MAKE_ONE}")
    return bytes.fromhex(digits[1])


def _read_key_file(path: str) -> bytes:
    try:
        with open(os.path.expanduser(path), "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            content = file.read(_MAX_KEY_FILE)
    except OSError as error:
        raise InputError(f"{path}: {(error.strerror or str(error)).lower()}; {_MAKE_ONE}") from error
    if os.name == "posix" and stat.S_ISREG(mode) and mode & stat.S_IROTH:
        warnings.warn(f"{path}: every user of this machine can read this key; chmod 600 {path}", stacklevel=3)
    return content


class Sealer:
    """Encrypts and opens tiles under a subkey, which HKDF-SHA256 makes of the key and the salt in the frame's record.

    **No nonce repeats under one subkey**, or two tiles would give each other away. The nonce is the tile's place (frame
    number, tile number, quality), then 4 zero bytes. Under one salt frames must ascend, each tile comes once, and a
    forked process may not go on; whatever breaks this is refused. So a nonce can repeat only if a salt does, and nobody
    chooses a salt to seal with: it is drawn from the system's random numbers (128 bits; two of 2^40 are alike with a
    chance of 2^-49), while a Sealer with the salt of a file only opens. A frame that is encoded again and a recording
    that goes on after a power cut therefore have new subkeys, although their numbers begin again.
    """

    def __init__(self, key: bytes, salt: bytes | None = None, record: bytes = b"") -> None:
        """`salt` is that of a frame to open; None draws a new one, to seal with.

        `record` is the packed frame record: a seal vouches for it, so that no tile can be shown under another quality,
        size or bundle. It holds the salt, so whoever seals sets it after that was drawn.
        """
        self.record = record
        try:
            from cryptography.exceptions import InvalidTag, UnsupportedAlgorithm
            from cryptography.hazmat.primitives import hashes
            from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
            from cryptography.hazmat.primitives.kdf.hkdf import HKDF
        except ImportError as error:
            raise MachineError(f"encrypted tiles need a package: pip install 'linnet[privacy]' ({error})") from error
        self._process = os.getpid() if salt is None else None
        self.salt = secrets.token_bytes(SALT_SIZE) if salt is None else salt
        if (len(key), len(self.salt)) != (KEY_SIZE, SALT_SIZE):
            raise UsageError(f"key of {len(key)} and salt of {len(self.salt)} bytes: {KEY_SIZE} and {SALT_SIZE} needed")
        try:
            self._cipher = ChaCha20Poly1305(HKDF(hashes.SHA256(), KEY_SIZE, self.salt, SUBKEY_PURPOSE).derive(key))
        except UnsupportedAlgorithm as error:
            raise MachineError(f"this OpenSSL lacks ChaCha20-Poly1305 (is it in FIPS mode?): {error}") from error
        self._invalid_tag = InvalidTag
        self._lock, self._frame, self._sealed = threading.Lock(), -1, set[int]()

    def seal(self, payload: bytes, place: TilePlace) -> bytes:
        """Ciphertext and tag of the tile at `place`."""
        frame, tile = place.frame, place.tile
        with self._lock:
            if self._process != os.getpid() or frame < self._frame or (frame == self._frame and tile in self._sealed):
                raise UsageError(f"frame {frame}, tile {tile}: this salt has served already, make a new Sealer")
            if frame > self._frame:
                self._frame, self._sealed = frame, set()
            self._sealed.add(tile)
        return self._cipher.encrypt(_NONCE.pack(place.pack()), payload, self._vouched(place))

    def _vouched(self, place: TilePlace) -> bytes:
        return self.salt + place.pack() + self.record

    def open(self, sealed: bytes, place: TilePlace) -> bytes:
        """What `seal` was given; InputError where the key is another one or a byte or the place has changed."""
        try:
            return self._cipher.decrypt(_NONCE.pack(place.pack()), sealed, self._vouched(place))
        except self._invalid_tag:
            raise InputError(
                f"frame {place.frame}, tile {place.tile}: wrong key or modified tile; try another key"
            ) from None


@dataclass(frozen=True)
class Protection:
    """What to encrypt: `rectangles` in pixels of the frame, None for all of it. Each frame gets a Sealer of its own."""

    key: bytes = field(repr=False)
    rectangles: Sequence[Rect] | None = None


def sealed_tiles(record: FrameRecord, rectangles: Sequence[Rect] | None, margin: int) -> frozenset[int]:
    """Numbers, through all stored levels, of the tiles that say anything about a pixel in `rectangles` (None: all).

    The latents of a tile next to a rectangle were computed from pixels inside it, as far as the analysis sees. `margin`
    is that reach in pixels of each level, `halo["analysis"]` of the bundle's manifest times `tiles.BLOCK`; a rectangle
    grows by it on every level, where its edges were first rounded outwards. What sticks out of the frame is cut off.
    """
    if rectangles is None:
        return frozenset(range(record.tile_count))
    frame, sealed = Rect(0, 0, record.grid.width, record.grid.height), set[int]()
    for rectangle in rectangles:
        inside = Rect(*rectangle).common(frame)
        if inside.width <= 0 or inside.height <= 0:
            raise UsageError(f"rectangle {tuple(rectangle)} has no pixel in the frame of {frame.width}x{frame.height}")
        for level, grid in record.levels.items():
            area = inside.aligned(1 << level).scaled(1, 1 << level).grown(margin, grid.padded)
            sealed.update(record.first_tile(level) + number for number in grid.touching(area))
    return frozenset(sealed)
