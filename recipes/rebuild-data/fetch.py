"""Pinned downloads: each package is fetched by its registry's own client and checked."""

import base64
import hashlib
import io
import lzma
import subprocess
import tarfile
from pathlib import Path


class FetchError(Exception):
    """A download that failed, or that is not the pinned file."""


def fetch(package: dict, cache: Path) -> Path:
    """The path of the package's file in `cache`, downloaded when it is not there yet."""
    path = cache / package["file"]
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        run_client(package, cache)
    if not path.exists():
        raise FetchError(f"the download left no `{path.name}` in {cache}; {by_hand(package)}")
    check(path, package)
    return path


def run_client(package: dict, cache: Path) -> None:
    if package["registry"] == "npm":
        spec = f"{package['name']}@{package['version']}"
        command = ["npm", "pack", "--silent", "--pack-destination", str(cache.resolve()), spec]
    else:
        command = ["apt-get", "download", f"{package['name']}={package['version']}"]
    print("fetching", package["name"], package["version"], flush=True)
    try:
        subprocess.run(command, cwd=cache, check=True, stdout=subprocess.DEVNULL)
    except (OSError, subprocess.CalledProcessError) as error:
        raise FetchError(f"`{' '.join(command)}` failed: {error}; {by_hand(package)}") from error


def by_hand(package: dict) -> str:
    return f"download {package['url']} by hand and put it into the cache as `{package['file']}`"


def check(path: Path, package: dict) -> None:
    """Compares the file with its pin: `sha512-BASE64` (npm) or `sha256:HEX` (Debian)."""
    algorithm, separator = ("sha512", "-") if package["registry"] == "npm" else ("sha256", ":")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, algorithm).digest()
    shown = base64.b64encode(digest).decode() if separator == "-" else digest.hex()
    if f"{algorithm}{separator}{shown}" != package["integrity"]:
        raise FetchError(f"`{path}` is not the pinned {package['name']} {package['version']}:"
                         f" {algorithm} {shown}; delete it and run again")


def open_npm(path: Path) -> dict[str, bytes]:
    """All regular files of an npm package, by path."""
    with tarfile.open(path) as archive:
        return {m.name: archive.extractfile(m).read() for m in archive if m.isfile()}


def open_deb(path: Path) -> tarfile.TarFile:
    """The data archive of a Debian package, unpacked in memory (no dpkg needed)."""
    content = path.read_bytes()
    offset = len(b"!<arch>\n")
    while offset + 60 <= len(content):
        name = content[offset:offset + 16].decode().strip()
        size = int(content[offset + 48:offset + 58])
        if name.startswith("data.tar.xz"):
            data = lzma.decompress(content[offset + 60:offset + 60 + size])
            return tarfile.open(fileobj=io.BytesIO(data))
        offset += 60 + size + size % 2  # members begin at even offsets
    raise FetchError(f"`{path}` holds no data.tar.xz")
