"""The MNIST that travels with the package: decoded once into a cache folder, checked by SHA-256."""

from __future__ import annotations

import hashlib
import logging
import lzma
from importlib import resources
from pathlib import Path

import numpy as np

from dpexp.errors import DataError
from dpexp.machine.files import user_cache, write_atomically

log = logging.getLogger(__name__)

# Of the four original IDX files, byte for byte (LeCun, Cortes and Burges; see mnist/LICENSE.md).
SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}


def cache_folder(configured: str | None) -> Path:
    """The folder for decoded and downloaded data: as configured, else the user's cache folder."""
    return Path(configured).expanduser() if configured else user_cache()


def read_split(split: str, cache: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, 28, 28) and labels (n,) of "train" or "t10k", both uint8. Raises DataError."""
    images = _content(f"{split}-images-idx3-ubyte", cache)
    labels = _content(f"{split}-labels-idx1-ubyte", cache)
    return (
        np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28),
        np.frombuffer(labels, np.uint8, offset=8),
    )


def _content(name: str, cache: Path) -> bytes:
    """The checked content of one IDX file, from the cache, or decoded and cached."""
    cached = cache / "mnist" / name
    try:
        content = cached.read_bytes()
    except FileNotFoundError:
        pass
    except OSError as error:
        raise DataError(f"can't read the data cache {cached}: {error.strerror}; set data.cache") from error
    else:
        if hashlib.sha256(content).hexdigest() == SHA256[name]:
            return content
        log.warning("%s is damaged (its SHA-256 is wrong): decoding it again", cached)
    content = _decode(name)
    try:
        # Written beside and renamed: a second process, or a death half-way, never leaves half a file.
        cached.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(cached, content)
    except OSError as error:
        raise DataError(
            f"can't write the data cache {cached}: {error.strerror}; set data.cache to a writable folder"
        ) from error
    return content


def _decode(name: str) -> bytes:
    packed = resources.files("dpexp.data") / "mnist" / f"{name}.xz"
    try:
        content = lzma.decompress(packed.read_bytes())
    except (OSError, lzma.LZMAError) as error:
        raise DataError(f"the packaged file {packed} is damaged: {error}; install dpexp again") from error
    if hashlib.sha256(content).hexdigest() != SHA256[name]:
        raise DataError(f"the packaged file {packed} is damaged: wrong SHA-256; install dpexp again")
    return content
