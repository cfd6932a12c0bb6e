"""What a sweep file may say.

`Settings` is what is computed: every field of it is identity, and any of its dotted paths may be an axis of the grid.
`Runtime` is where and how: nothing of it ever reaches an id. `Sweep` is a file: settings, a grid, what to evaluate, what
to keep, and a runtime. Names that refer to the catalog are checked in `grid`, where a point is known as a whole.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

__all__ = [
    "Answers",
    "Contrast",
    "Evaluate",
    "LATER",
    "Mix",
    "Model",
    "OwnSet",
    "Prompt",
    "Runtime",
    "Settings",
    "Stop",
    "Sweep",
    "TableSection",
    "Text",
    "Train",
    "TrainPart",
    "impossible",
    "size_in_bytes",
]

NAME_PATTERN = r"^[a-z0-9][a-z0-9_-]{0,63}$"

Count = Annotated[int, Field(ge=1, strict=True)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False, strict=True)]
Fraction = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False, strict=True)]
Seed = Annotated[int, Field(ge=0, strict=True)]
Precision = Literal["fp32", "bf16", "bf16_pure"]
Answers = Literal["decided", "whole"]


# Marks a setting that came after sweeps were recorded: while it has its default, it is not part of what a name stands for.
LATER = "later"


class Strict(BaseModel):
    """Frozen, and without room for keys that nobody reads."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Model(Strict):
    """A model: a hub id, a local folder, a `.gguf` file, or a built-in one (`tiny`, `smollm2-135m`). A word is its name."""

    name: Annotated[str, Field(min_length=1)]
    revision: str | None = None
    trust_remote_code: bool = False

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


class Stop(Strict):
    """When a stage ends before its last epoch: `hits` steps, not necessarily in a row, whose loss is below `loss`."""

    loss: Positive
    hits: Count = 10


StopRule = Literal["paper", "epochs", "memorized"] | Stop
LossMean = Literal["tokens", "micro_batches"]
StopLoss = Literal["batch", "last_micro_batch"]
PaddedTo = Literal["trained_rows", "further_rows"]


class TrainPart(Strict):
    """Training settings that one stage may set for itself; `None` means as for all stages."""

    lr: Positive | None = None
    batch_size: Count | None = None
    epochs: Count | None = None
    stop: StopRule | None = None
    max_length: Count | None = None
    precision: Precision | None = None
    order: Literal["reshuffled", "fixed", "sampler"] | None = None
    last_batch: Literal["keep", "drop"] | None = None
    label_padding: Literal["ignore", "eos"] | None = None
    weight_decay: NotNegative | None = None
    warmup: Fraction | None = None
    clip: Positive | None = None
    betas: tuple[Fraction, Fraction] | None = None
    loss_mean: Annotated[LossMean | None, LATER] = None
    stop_loss: Annotated[StopLoss | None, LATER] = None
    padded_to: Annotated[PaddedTo | None, LATER] = None


class Train(Strict):
    """How every stage trains. The defaults are the paper's settings for Llama-3-8B.

    A key that is one letter holds the settings of that stage alone: `b: {lr: 1e-5}`, or `train.b.lr` as an axis.
    `loss_mean` says what the loss is a mean over, `stop_loss` which loss the stop rule compares, and `padded_to` which rows
    count for the width to which `label_padding: eos` pads.
    """

    lr: Positive = 5e-5
    batch_size: Count = 32
    epochs: Count = 20
    stop: StopRule = "paper"
    max_length: Count = 2048
    precision: Precision = "bf16"
    order: Literal["reshuffled", "fixed", "sampler"] = "reshuffled"
    last_batch: Literal["keep", "drop"] = "keep"
    label_padding: Literal["ignore", "eos"] = "ignore"
    weight_decay: NotNegative = 0.0
    warmup: Fraction = 0.05
    clip: Positive = 1.0
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    loss_mean: Annotated[LossMean, LATER] = "tokens"
    stop_loss: Annotated[StopLoss, LATER] = "batch"
    padded_to: Annotated[PaddedTo, LATER] = "trained_rows"
    stages: dict[str, TrainPart] = {}

    @model_validator(mode="before")
    @classmethod
    def _gather_stages(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        letters = {key: part for key, part in value.items() if isinstance(key, str) and re.fullmatch("[a-z]", key)}
        rest = {key: part for key, part in value.items() if key not in letters}
        return {**rest, "stages": letters} if letters else rest

    def of(self, letter: str) -> dict[str, Any]:
        """The settings of one stage, by field name, without later ones that say nothing but what was always meant."""
        common = {
            name: getattr(self, name)
            for name, declared in type(self).model_fields.items()
            if name != "stages" and not (LATER in declared.metadata and getattr(self, name) == declared.default)
        }
        part = self.stages.get(letter)
        own = {name: getattr(part, name) for name in TrainPart.model_fields} if part else {}
        return common | {name: value for name, value in own.items() if value is not None}


class Text(Strict):
    """A corpus for the mixer `text`: a local file or folder, or a hub id, and the field that holds the text."""

    path: str | None = None
    hub: str | None = None
    revision: str | None = None
    config: str | None = None
    split: str = "train"
    field: str = "text"

    @model_validator(mode="after")
    def _one_place(self) -> Text:
        if (self.path is None) == (self.hub is None):
            raise ValueError("give exactly one of path and hub")
        return self


class Mix(Strict):
    """How mixing data is drawn: by `seed` (None: by `data_seed`; `trial`: by the trial's own seed), for each stage anew, or
    the `same` in all stages of a trial that mix the same source."""

    words: Annotated[int, Field(ge=2, strict=True)] = 50
    cut: Literal["described", "released"] = "described"
    overlap: Literal["drop", "keep"] = "drop"
    seed: Annotated[Seed | Literal["trial"] | None, LATER] = None
    draws: Annotated[Literal["per_stage", "same"], LATER] = "per_stage"
    order: Annotated[Literal["seeded", "shuffled"], LATER] = "seeded"
    text: Text | None = None


class Prompt(Strict):
    """Whether prompts are stripped of outer white space (in training and evaluation, or in training only), and what else
    of a conversation's form the released code has otherwise than the paper."""

    strip: Literal["both", "train_only"] = "both"
    targets: Annotated[Literal["kept", "stripped"], LATER] = "kept"
    line_ends: Annotated[Literal["untrained", "trained"], LATER] = "untrained"
    control_tokens: Annotated[Literal["text", "parsed"], LATER] = "text"
    apps: Annotated[Literal["plain", "marked"], LATER] = "plain"
    last_word: Annotated[Literal["dropped", "kept"], LATER] = "dropped"


class Settings(Strict):
    """What is computed. Every field is identity."""

    model: Model
    examples: Count = 2000
    data_seed: Seed = 0
    familiarity: Literal["unfamiliar", "all"] = "unfamiliar"
    mixing: Mix = Mix()
    train: Train = Train()
    prompt: Prompt = Prompt()

    def recorded(self) -> dict[str, Any]:
        """As JSON, without later settings that say nothing but what was always meant."""
        return _recorded(self, self.model_dump(mode="json"))


def _recorded(model: BaseModel, dumped: Mapping[str, Any]) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for name, value in dumped.items():
        own, declared = getattr(model, name), type(model).model_fields[name]
        if LATER in declared.metadata and own == declared.default:
            continue
        kept[name] = _recorded_value(own, value)
    return kept


def _recorded_value(own: Any, value: Any) -> Any:
    if isinstance(own, BaseModel):
        return _recorded(own, value)
    if isinstance(own, dict):
        return {key: _recorded_value(part, value[key]) for key, part in own.items()}
    return value


class OwnSet(Strict):
    """A set of one's own: where its rows are, a prompt template over their fields, and the field of the target."""

    path: str | None = None
    hub: str | None = None
    revision: str | None = None
    config: str | None = None
    split: str = "train"
    prompt: Annotated[str, Field(min_length=1)]
    target: Annotated[str, Field(min_length=1)]
    subject: str | None = None
    factoid: bool = True
    scorer: Literal["exact", "contains", "numeric", "rouge_l"] | None = "exact"

    @model_validator(mode="after")
    def _one_place(self) -> OwnSet:
        if (self.path is None) == (self.hub is None):
            raise ValueError("give exactly one of path and hub")
        return self


class Every(Strict):
    """How often D_A is asked along a stage: every so many steps, or every so many epochs."""

    steps: Count | None = None
    epochs: Count | None = None

    @model_validator(mode="after")
    def _one_unit(self) -> Every:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give exactly one of steps and epochs")
        return self


class EveryStages(Strict):
    """After every so many stages, and after the last one."""

    every: Count


class Evaluate(Strict):
    """What is evaluated beyond D_A after each stage and each scored set after its own. A list is short for `sets`.

    `after` says when further sets are evaluated: after the last stage, or on the base model and after every stage.
    `matrix` says after which stages all earlier stages' own examples are; None is `all` in chains of up to five stages,
    then `last`. `answers` says how much of an answer is generated: until its score is decided, or the whole of it.
    `familiar` is the form of the few-shot prompt, bare or inside the chat template; `cut` where an answer's text begins:
    after the prompt's tokens, or after as many characters as the prompt has. `empty` says whether an empty answer is right
    where an answer is right that the gold text contains (webqa), `tasks` how the sets that are not factoid are scored: by
    what is parsed out of an answer, or by the whole of its text.
    """

    sets: tuple[str, ...] = ()
    after: Literal["last", "every"] = "last"
    matrix: Literal["all", "last"] | EveryStages | None = None
    every: Every = Every(epochs=1)
    max_new_tokens: Count | None = None
    answers: Answers = "decided"
    familiar: Literal["plain", "chat"] = "plain"
    cut: Literal["tokens", "characters"] = "tokens"
    empty: Literal["wrong", "right"] = "wrong"
    tasks: Literal["parsed", "whole_text"] = "parsed"

    @model_validator(mode="before")
    @classmethod
    def _from_list(cls, value: Any) -> Any:
        return {"sets": value} if isinstance(value, list | tuple) else value


class TableSection(Strict):
    """The pivot that is printed after a run."""

    rows: tuple[str, ...] = ("d_a", "mixer")
    columns: str = "d_b"
    value: str = "retention"

    @model_validator(mode="before")
    @classmethod
    def _rows_from_word(cls, value: Any) -> Any:
        if isinstance(value, dict) and isinstance(value.get("rows"), str):
            return {**value, "rows": [value["rows"]]}
        return value


class Contrast(Strict):
    """What a sweep is run to find out, fixed before it: two mixers by D_A's accuracy after the last stage, at the points
    that `where` matches (a partial point, as in `exclude`), and within how many points they would count as the same.

    A pair of mixers is short for `mixers`.
    """

    mixers: tuple[str, str]
    where: dict[str, Any] = {}
    margin: Positive | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_pair(cls, value: Any) -> Any:
        return {"mixers": value} if isinstance(value, list | tuple) else value


def _size(text: str) -> str:
    if not re.fullmatch(r"\d+(\.\d+)?\s*[kKMGT]?i?B?", text.strip()):
        raise ValueError("write a size such as 500GB, 1.5TB or 800MiB")
    if size_in_bytes(text) < 1:
        raise ValueError(f"{text} is no room at all; write a size above 0, such as 500GB")
    return text


def _not_a_truth_value(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError(f"found {value}; allowed: 0, 1, 2, 3")
    return value


def _several(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class Runtime(Strict):
    """Where and how: never part of an identity."""

    workers: Count = 1
    zero: Annotated[Literal[0, 1, 2, 3], BeforeValidator(_not_a_truth_value)] = 3
    micro_batch: Count | None = None
    offload: Literal["none", "optimizer", "all"] = "none"
    gradient_checkpointing: bool | None = None
    gpus_per_worker: NotNegative | None = None
    cpus_per_worker: Positive | None = None
    deterministic: bool = False
    isolate: bool = False
    max_trials: Count | None = None
    priority: Annotated[int, Field(strict=True)] = 0
    max_failures: Annotated[int, Field(ge=0, strict=True)] = 1
    max_preemptions: Annotated[int, Field(ge=0, strict=True)] = 20
    checkpoint_every: Positive = 600.0
    max_store: Annotated[str, AfterValidator(_size)] | None = None
    loggers: Annotated[tuple[Literal["tensorboard", "wandb", "mlflow"], ...], BeforeValidator(_several)] = ()

    @model_validator(mode="after")
    def _can_be_trained(self) -> Runtime:
        if why := impossible("fp32", zero=self.zero, offload=self.offload):
            raise ValueError(why)
        if self.workers > 1 and (self.gpus_per_worker or 1) < 1:
            raise ValueError(
                f"found gpus_per_worker {self.gpus_per_worker:g} with {self.workers} workers, which would share a GPU: NCCL "
                "refuses that; give each worker a whole one, or use one worker"
            )
        return self


def impossible(precision: str, *, zero: int, offload: str) -> str | None:
    """Why DeepSpeed cannot train like this, and what to change; None where it can."""
    if offload == "all" and zero != 3:
        return f"runtime.offload all needs runtime.zero 3, found {zero}; use 3, or offload optimizer"
    if offload == "optimizer" and zero == 0:
        return "runtime.offload optimizer needs runtime.zero 1, 2 or 3, found 0"
    if offload != "none" and precision == "bf16_pure":
        return "train.precision bf16_pure cannot be offloaded; use runtime.offload none, or precision bf16"
    return None


# What `profile: released` stands for: the released code's departures from the paper, each a switch of its own.
PROFILES: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "released": {
        "mixing": {"cut": "released", "overlap": "keep", "seed": "trial", "draws": "same", "order": "shuffled"},
        "train": {
            "order": "sampler",
            "last_batch": "drop",
            "label_padding": "eos",
            "padded_to": "further_rows",
            "loss_mean": "micro_batches",
            "stop_loss": "last_micro_batch",
            "precision": "bf16_pure",
        },
        "prompt": {
            "strip": "train_only",
            "targets": "stripped",
            "line_ends": "trained",
            "control_tokens": "parsed",
            "apps": "marked",
            "last_word": "kept",
        },
        "evaluate": {"familiar": "chat", "cut": "characters", "empty": "right", "tasks": "whole_text"},
    }
}
Axis = tuple[Any, ...]


def _as_mapping(section: Any) -> Any:
    """`evaluate: [popqa]` is short for its sets; a section that is no mapping is refused where it is read."""
    return {"sets": section} if isinstance(section, list | tuple) else section


def _by_letters(train: Any) -> Any:
    """A file gives a stage's settings under its letter; `stages` is how they are kept."""
    if isinstance(train, dict) and "stages" in train:
        problem = {"type": "extra_forbidden", "loc": ("stages",), "input": train["stages"]}
        raise ValidationError.from_exception_data("Train", [problem])
    return train


class Sweep(Settings):
    """A sweep file: a model, training settings, and axes to vary."""

    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    train: Annotated[Train, BeforeValidator(_by_letters)] = Train()
    grid: dict[str, Axis]
    exclude: tuple[dict[str, Any], ...] = ()
    sets: dict[Annotated[str, Field(pattern=NAME_PATTERN)], OwnSet] = {}
    evaluate: Evaluate = Evaluate()
    keep: Literal["shared", "all", "none"] = "shared"
    table: TableSection = TableSection()
    primary: Contrast | None = None
    runtime: Runtime = Runtime()
    profile: Literal["released"] | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_profile(cls, value: Any) -> Any:
        """A profile sets what the file does not set itself."""
        chosen = PROFILES.get(value.get("profile")) if isinstance(value, dict) else None
        if chosen is None:
            return value
        own = {part: _as_mapping(value.get(part)) for part in chosen}
        parts = {
            part: {**settings, **(own[part] or {})}
            for part, settings in chosen.items()
            if own[part] is None or isinstance(own[part], dict)
        }
        return {**value, **parts}

    @model_validator(mode="before")
    @classmethod
    def _axes_from_scalars(cls, value: Any) -> Any:
        if isinstance(value, dict) and isinstance(value.get("grid"), dict):
            grid = {
                axis: values if isinstance(values, list | tuple) else [values] for axis, values in value["grid"].items()
            }
            return {**value, "grid": grid}
        return value

    @model_validator(mode="after")
    def _can_be_trained(self) -> Sweep:
        parts = (part.precision for part in self.train.stages.values())
        precisions = {self.train.precision, *parts, *self.grid.get("train.precision", ())} - {None}
        for precision in sorted(map(str, precisions)):
            if why := impossible(precision, zero=self.runtime.zero, offload=self.runtime.offload):
                raise ValueError(why)
        return self

    def settings(self) -> Settings:
        """The part that is computed, without the file's other sections."""
        return Settings.model_construct(**{name: getattr(self, name) for name in Settings.model_fields})


def size_in_bytes(text: str) -> int:
    """`500GB` → 500 · 10⁹, `1GiB` → 2³⁰."""
    number, unit, binary = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kKMGT]?)(i?)B?", text.strip()).groups()
    base = 1024 if binary else 1000
    return math.floor(float(number) * base ** " kMGT".index(unit.replace("K", "k") or " "))
