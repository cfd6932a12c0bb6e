"""Where things are found: a folder by content, the cache, the hub; and errors that say what was tried."""

from __future__ import annotations

import json
import shutil
import time

import pytest
from fakehub import COMMIT, FakeHub, point_to, serving

from raysweep.data import hub
from raysweep.data.examples import candidates, digest_of
from raysweep.data.origin import write_origin
from raysweep.data.sources import find, find_text
from raysweep.data.texts import documents
from raysweep.errors import BadData, BadInput, SourceMissing
from raysweep.sweep.catalog import DATASETS, TEXT_ROWS
from raysweep.sweep.spec import OwnSet, Text

ROWS = [{"question": f"How many is {n}?", "answer": f"It is.\n#### {n}"} for n in range(30)]
LINES = "\n".join(map(json.dumps, ROWS)).encode()


@pytest.fixture(autouse=True)
def private_cache(tmp_path, monkeypatch):
    """An empty Hugging Face cache, and no network but what a test serves."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(hub, "_failed", {})


@pytest.fixture
def serve(monkeypatch):
    """Serves repositories and points the client there."""
    servers = []

    def start(repositories):
        fake = FakeHub(repositories)
        server = serving(fake)
        point_to(server.__enter__(), monkeypatch)
        servers.append(server)
        return fake

    yield start
    for server in servers:
        server.__exit__(None, None, None)


def parquet(rows) -> bytes:
    import pyarrow
    from pyarrow import parquet

    sink = pyarrow.BufferOutputStream()
    parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
    return sink.getvalue().to_pybytes()


def digest(source) -> str:
    return digest_of(list(candidates(source, data_seed=0)))


def test_a_file_is_known_by_its_columns_whatever_it_is_called(tmp_path):
    (tmp_path / "mine.json").write_text(json.dumps(ROWS))
    (tmp_path / "notes.json").write_text('{"a": 1}')
    source = find("gsm8k", data_dir=tmp_path)
    assert [file.shown for file in source.files] == ["mine.json"]
    assert "webqa" not in {file.set for file in source.files}


def test_files_of_other_splits_are_not_used(tmp_path):
    (tmp_path / "test").mkdir()
    (tmp_path / "train.jsonl").write_bytes(LINES)
    (tmp_path / "test" / "a.jsonl").write_bytes(LINES.replace(b"How many", b"How few"))
    assert [file.shown for file in find("gsm8k", data_dir=tmp_path).files] == ["train.jsonl"]
    (tmp_path / "train.jsonl").unlink()
    with pytest.raises(SourceMissing, match="only its test split, and train is used"):
        find("gsm8k", data_dir=tmp_path)


def test_a_file_called_as_the_set_wins_over_others_with_its_columns(tmp_path):
    (tmp_path / "gsm8k").mkdir()
    (tmp_path / "gsm8k" / "a.jsonl").write_bytes(LINES)
    (tmp_path / "mine.jsonl").write_bytes(LINES)
    assert [file.shown for file in find("gsm8k", data_dir=tmp_path).files] == ["gsm8k/a.jsonl"]


def test_a_name_within_a_name_is_not_that_name(tmp_path):
    (tmp_path / "llama").mkdir()
    (tmp_path / "llama" / "config.json").write_text('{"hidden_size": 1}')
    with pytest.raises(SourceMissing, match="no file with its columns"):
        find("lama", data_dir=tmp_path)


def test_a_long_array_is_known_by_its_first_rows(tmp_path):
    rows = [{"question": f"{n}?", "answer": "#### 1", "more": "x" * 1000} for n in range(3000)]
    (tmp_path / "long.json").write_text(json.dumps(rows, indent=1))
    (tmp_path / "cut.json").write_text(json.dumps(rows)[:-50])
    assert {file.shown for file in find("gsm8k", data_dir=tmp_path).files} == {"cut.json", "long.json"}
    with pytest.raises(BadData, match="cut.json: not JSON"):
        list(candidates(find("gsm8k", data_dir=tmp_path), data_seed=0))


def test_identity_is_what_files_hold_and_not_what_they_are_called(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(LINES)
    first = find("gsm8k", data_dir=tmp_path).identity
    (tmp_path / "a.jsonl").rename(tmp_path / "b.jsonl")
    assert find("gsm8k", data_dir=tmp_path).identity == first
    (tmp_path / "b.jsonl").write_bytes(LINES + b"\n" + LINES[:0] + json.dumps(ROWS[0]).encode())
    assert find("gsm8k", data_dir=tmp_path).identity != first


def test_a_folder_comes_before_the_hub(tmp_path, serve):
    fake = serve({"openai/gsm8k": {"main/train.jsonl": LINES}})
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.jsonl").write_bytes(LINES)
    assert "files" in find("gsm8k", data_dir=tmp_path / "data").identity
    assert fake.asked == []


def test_folder_cache_and_hub_give_the_same_examples(tmp_path, serve):
    serve({"openai/gsm8k": {"main/train-00000-of-00001.parquet": parquet(ROWS), "socratic/train-0.parquet": b""}})
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.jsonl").write_bytes(LINES)
    local = digest(find("gsm8k", data_dir=tmp_path / "data"))
    remote = find("gsm8k", data_dir=None)
    assert not remote.here
    assert digest(remote) == local
    cached = find("gsm8k", data_dir=None)
    assert cached.here
    assert cached.identity == remote.identity


def test_the_hub_is_asked_for_the_pinned_commit(serve):
    fake = serve({"openai/gsm8k": {"main/train.jsonl": LINES}})
    pinned = DATASETS["gsm8k"].hub.revision
    assert find("gsm8k", data_dir=None).identity["revision"] == pinned
    assert any(pinned in request for request in fake.asked)


def test_an_unpinned_set_is_pinned_to_the_commit_that_was_found(serve, monkeypatch):
    serve({"stanfordnlp/web_questions": {"data/train-0.jsonl": b'{"url": "u", "question": "q?", "answers": ["a"]}'}})
    source = find("webqa", data_dir=None)
    assert source.identity["revision"] == COMMIT
    digest(source)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert find("webqa", data_dir=None).identity == source.identity


def test_finding_downloads_nothing(serve):
    fake = serve({"openai/gsm8k": {"main/train.jsonl": LINES}})
    find("gsm8k", data_dir=None)
    assert not any("/resolve/" in request for request in fake.asked)


def test_a_large_corpus_is_read_only_as_far_as_it_is_wanted(serve, monkeypatch):
    line = json.dumps({"content": "word " * 120}).encode() + b"\n"
    fake = serve({"Query-of-CC/Knowledge_Pile": {f"{n}.jsonl": line * 30_000 for n in range(8)}})
    source = find_text("knowledge_pile", text=None, data_dir=None)
    assert sum(1 for _ in documents(source)) == TEXT_ROWS
    assert fake.sent < 2 * 30_000 * len(line), "of eight files, the buffers around the rows of the first"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    again = find_text("knowledge_pile", text=None, data_dir=None)
    assert again.here and again.identity == source.identity


def test_offline_without_a_copy_says_what_was_tried_and_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(SourceMissing) as raised:
        find("math", data_dir=tmp_path)
    text = str(raised.value)
    for part in ("the set math", str(tmp_path), "cache: EleutherAI/hendrycks_math", "HF_HUB_OFFLINE", "data fetch"):
        assert part in text


def test_no_network_is_found_out_once_and_fast(tmp_path):
    import huggingface_hub  # noqa: F401  (not what is measured)

    begun = time.monotonic()
    for name in ("math", "gsm8k", "webqa", "evolcode", "apps"):
        with pytest.raises(SourceMissing, match="cannot be reached"):
            find(name, data_dir=None)
    assert time.monotonic() - begun < 4


def test_a_cache_with_a_missing_shard_is_not_used(tmp_path, serve, monkeypatch):
    files = {f"data/train-0000{n}-of-00002.parquet": parquet(ROWS) for n in range(2)}
    serve({"me/mine": files})
    own = OwnSet(hub="me/mine", prompt="{question}", target="answer")
    digest(find("mine", data_dir=None, own=own))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert find("mine", data_dir=None, own=own).here
    next((tmp_path / "hf" / "hub").rglob("train-00001-of-00002.parquet")).unlink()
    with pytest.raises(SourceMissing, match="cache: me/mine is not in it"):
        find("mine", data_dir=None, own=own)


def test_a_repository_of_several_configurations_needs_one_named(serve):
    serve({"me/mine": {f"{config}/train.jsonl": LINES for config in ("en", "fr")}})
    with pytest.raises(BadInput, match=r"several configurations \(en, fr\); name one with config"):
        find("mine", data_dir=None, own=OwnSet(hub="me/mine", prompt="{question}", target="answer"))
    own = OwnSet(hub="me/mine", config="fr", prompt="{question}", target="answer")
    assert find("mine", data_dir=None, own=own).identity["files"] == ["fr/train.jsonl"]


def test_an_unknown_set_and_a_missing_folder_are_named(tmp_path):
    with pytest.raises(BadInput, match="'popqq' is not a set; sets are kvr, popqa"):
        find("popqq", data_dir=None)
    with pytest.raises(BadInput, match="no-such-folder is not there"):
        find("popqa", data_dir=tmp_path / "no-such-folder")


def test_ones_own_set_is_a_template_and_a_field(tmp_path):
    (tmp_path / "mine.csv").write_text("q,a,who\nBorn where?,Rome,Ada\n")
    own = OwnSet(path="mine.csv", prompt="{{Q}} {q}", target="a", subject="who")
    (example,) = candidates(find("mine", data_dir=tmp_path, own=own), data_seed=0)
    assert example.turns == (("{Q} Born where?", "Rome"),)
    assert example.subject == "Ada"
    other = own.model_copy(update={"prompt": "{q}"})
    assert find("mine", data_dir=tmp_path, own=own).identity != find("mine", data_dir=tmp_path, own=other).identity


@pytest.mark.parametrize(
    ("prompt", "reason"), [("{q", "expected '}'"), ("{0}", "plain name"), ("q", "no field"), ("{q:d}", "stands alone")]
)
def test_a_wrong_template_is_an_error_of_the_file(tmp_path, prompt, reason):
    (tmp_path / "mine.csv").write_text("q,a\n1,2\n")
    with pytest.raises(BadInput, match=f"sets.mine.prompt: .*{reason}"):
        find("mine", data_dir=tmp_path, own=OwnSet(path="mine.csv", prompt=prompt, target="a"))


@pytest.mark.parametrize("name", ["corpus.txt", "corpus.jsonl"])
def test_a_text_corpus_of_ones_own(tmp_path, name):
    texts = ["one two three", "four five"]
    lines = texts if name.endswith(".txt") else [json.dumps({"body": text}) for text in texts]
    (tmp_path / name).write_text("\n".join(lines))
    source = find_text("text", text=Text(path=name, field="body"), data_dir=tmp_path)
    assert list(documents(source)) == texts


def test_a_corpus_in_a_folder_is_known_by_its_name(tmp_path):
    folder = tmp_path / "knowledge-pile"
    folder.mkdir()
    (folder / "part.jsonl").write_text('{"content": "one two"}')
    assert list(documents(find_text("knowledge_pile", text=None, data_dir=tmp_path))) == ["one two"]
    shutil.rmtree(folder)
    with pytest.raises(SourceMissing, match="the corpus of the mixer knowledge_pile"):
        find_text("knowledge_pile", text=None, data_dir=tmp_path)


def test_a_folder_read_by_another_field_is_another_corpus(tmp_path, serve):
    """What was fetched is noted with the field of then; what is read now decides."""
    line = json.dumps({"text": "one two", "title": "three four"}).encode()
    serve({"me/texts": {"train.jsonl": line}})
    found = find_text("text", text=Text(hub="me/texts", field="text"), data_dir=None)
    folder = tmp_path / "data" / "text"
    folder.mkdir(parents=True)
    for file in found.located():
        shutil.copy(file.path, folder)
    write_origin(folder, name="text", identity=found.identity, where=found.where)
    by_field = {
        field: find_text("text", text=Text(path=str(folder), field=field), data_dir=None) for field in ("text", "title")
    }
    assert [list(documents(source)) for source in by_field.values()] == [["one two"], ["three four"]]
    assert by_field["text"].identity != by_field["title"].identity
    assert by_field["text"].identity == found.identity, "the same bytes, read the same way"


def test_a_fetched_folder_of_another_repository_is_not_taken_for_the_one_that_is_asked(tmp_path, serve, monkeypatch):
    serve({id: {"train.jsonl": LINES} for id in ("me/mine", "me/other")})
    own = OwnSet(hub="me/mine", prompt="{question}", target="answer")
    found = find("mine", data_dir=None, own=own)
    folder = tmp_path / "data" / "mine"
    folder.mkdir(parents=True)
    for file in found.located():
        shutil.copy(file.path, folder)
    write_origin(folder, name="mine", identity=found.identity, where=found.where)
    assert find("mine", data_dir=tmp_path / "data", own=own).files
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(SourceMissing, match="it was fetched as me/mine at aaaaaaaaaaaa, train"):
        find("mine", data_dir=tmp_path / "data", own=own.model_copy(update={"hub": "me/other"}))


def test_of_several_commits_in_the_cache_none_is_guessed(tmp_path, serve, monkeypatch):
    """Two downloads at commits that were named leave no note of which one `main` is."""
    serve({"stanfordnlp/web_questions": {"data/train-0.jsonl": b'{"url": "u", "question": "q?", "answers": ["a"]}'}})
    hub_set = DATASETS["webqa"].hub
    for commit in ("b" * 40, "c" * 40):
        digest(find("webqa", data_dir=None, pins={f"datasets/{hub_set.id}": commit}))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(SourceMissing, match="web_questions is not in it"):
        find("webqa", data_dir=None)
    found = find("webqa", data_dir=None, pins={f"datasets/{hub_set.id}": "b" * 40})
    assert found.here and found.revision == "b" * 40
