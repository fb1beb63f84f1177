"""Source packages of a recipe: pinned, fetched with the `npm` client, checked, and read without unpacking.

A package is named with its version and the sha512 of its tarball, so the same recipe always starts from the same
bytes, whether they were fetched just now or lay in a folder.
"""

from __future__ import annotations

import base64
import hashlib
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from gouache.environment import Variable
from gouache.errors import DataError, MissingDependency

FETCH_SECONDS = 300


@dataclass(frozen=True, slots=True)
class Package:
    """One pinned npm package.

    Attributes:
        name: as on the registry, for example ``"@iconify-json/noto"``.
        version: exact version.
        integrity: ``"sha512-" + base64`` of the tarball, as the registry states it.
    """

    name: str
    version: str
    integrity: str

    @property
    def spec(self) -> str:
        """``name@version``, the form in which records and credits cite it."""
        return f"{self.name}@{self.version}"

    @property
    def tarball_name(self) -> str:
        """The file name that `npm pack` gives the tarball."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"


def integrity_of(content: bytes) -> str:
    """The subresource-integrity string of some bytes: ``sha512-`` and the digest in base64."""
    return "sha512-" + base64.b64encode(hashlib.sha512(content).digest()).decode("ascii")


def fetch(package: Package, folder: Path) -> Path:
    """Download a package's tarball into `folder` with `npm pack`; not yet verified.

    Raises:
        MissingDependency: there is no `npm` on this machine.
        DataError: the registry refused or can't be reached, or `GOUACHE_OFFLINE=1` forbids to ask it.
    """
    cure = f"Give a folder that holds {package.tarball_name} with --from DIR."
    if Variable.OFFLINE.is_on:
        raise DataError(
            package.spec, given=f"{Variable.OFFLINE} is set", expected="permission to download it", cure=cure
        )
    npm = shutil.which("npm")
    if npm is None:
        raise MissingDependency("npm", given="no such command", expected="the npm client on the PATH", cure=cure)
    command = [npm, "pack", package.spec, "--pack-destination", str(folder), "--loglevel", "error"]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=FETCH_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise DataError(
            package.spec, given=f"no answer in {FETCH_SECONDS} s", expected="a tarball", cure=cure
        ) from error
    tarball = folder / package.tarball_name
    if done.returncode != 0 or not tarball.is_file():
        lines = done.stderr.strip().splitlines()
        reason = lines[-1] if lines else f"npm exited with code {done.returncode}"
        raise DataError(package.spec, given=reason, expected="a tarball from npm pack", cure=cure)
    return tarball


@contextmanager
def tarballs(packages: tuple[Package, ...], folder: Path | None) -> Iterator[dict[str, Path]]:
    """Verified tarballs of all packages, by package name; fetched ones live as long as the context.

    Args:
        packages: what is needed.
        folder: a folder with the tarballs under their `npm pack` names; None fetches them.

    Raises:
        DataError: a tarball is absent, or its bytes are not the pinned ones.
        MissingDependency: fetching needs `npm`.
    """
    with tempfile.TemporaryDirectory(prefix="gouache-npm-") as temporary:
        found = {}
        for package in packages:
            path = fetch(package, Path(temporary)) if folder is None else folder / package.tarball_name
            verify(package, path)
            found[package.name] = path
        yield found


def verify(package: Package, path: Path) -> None:
    """Compare a tarball with the pinned sha512.

    Raises:
        DataError: it is not there, or other bytes.
    """
    if not path.is_file():
        cure = f"Run `npm pack {package.spec}` there, or leave --from out."
        raise DataError(str(path), given="no file", expected=f"the tarball of {package.spec}", cure=cure)
    actual = integrity_of(path.read_bytes())
    if actual != package.integrity:
        cure = "The file is damaged or another version; fetch it anew."
        raise DataError(str(path), given=actual, expected=package.integrity, cure=cure)


def members(tarball: Path) -> Iterator[tuple[str, bytes]]:
    """The regular files of an npm tarball as (name below ``package/``, content). Nothing is written to disk.

    Raises:
        DataError: it is no readable tarball.
    """
    try:
        with tarfile.open(tarball, "r:gz") as archive:
            for entry in archive:
                stream = archive.extractfile(entry) if entry.isfile() else None
                if stream is not None:
                    yield entry.name.partition("/")[2], stream.read()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DataError(str(tarball), given=str(error), expected="a gzipped tarball", cure="Fetch it anew.") from error
