"""What goes with exported weights: a model card for people, made from the records alone."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

__all__ = ["card"]

_LOAD = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(".")
tokenizer = AutoTokenizer.from_pretrained(".")
prompt = "…"  # a question of one of its sets
asked = tokenizer(f"<|user|>\\n{prompt}\\n<|assistant|>\\n", return_tensors="pt")
said = model.generate(**asked, do_sample=False, max_new_tokens=32)[0, asked.input_ids.shape[1] :]
print(tokenizer.decode(said, skip_special_tokens=True))
```"""


def card(trial: Mapping[str, Any], stages: Sequence[Mapping[str, Any]]) -> str:
    """A model card (Markdown, with the front matter of the Hugging Face hub) of the last of these stages' model.

    `trial` is the record of the trial, `stages` are those of its stages up to the exported one, first stage first.
    """
    point = ", ".join(f"{axis} {value}" for axis, value in trial["point"].items())
    return "\n".join(
        [
            *_front_matter(trial, stages),
            f"# {trial['model']} after stage {len(stages)}: {point}",
            "",
            "A model of an experiment on continual memorization (arXiv 2411.07175), exported by raysweep. It was trained to",
            "memorize one set and then, in later stages, on others, to see what it keeps. It is not meant for any other use.",
            "",
            "## Training",
            "",
            *_table(
                ["stage", "trained on", "mixed with", "settings", "steps", "loss", "stopped by"], map(_stage, stages)
            ),
            "",
            "## What it answers",
            "",
            *_table(["set", "scorer", "accuracy", "examples"], _answers(stages[-1])),
            "",
            "## Loading it",
            "",
            _LOAD,
            "",
            "## Provenance",
            "",
            *_provenance(trial, stages),
            "",
        ]
    )


def _front_matter(trial: Mapping[str, Any], stages: Sequence[Mapping[str, Any]]) -> list[str]:
    base = stages[0]["config"]["start"]["model"] or {}
    hub = [f"base_model: {json.dumps(base['name'])}"] if "revision" in base else []
    return [
        "---",
        "library_name: transformers",
        *hub,
        "tags: [raysweep, continual-memorization]",
        f"model_name: {json.dumps(trial['id'])}",
        "---",
    ]


def _stage(stage: Mapping[str, Any]) -> list[Any]:
    config, data, metrics = stage["config"], stage["data"], stage["metrics"]
    mixing, training = config["mixing"], config["training"]
    settings = f"lr {training['lr']:g}, batch {training['batch_size']}, {training['precision']}, seed {config['seed']}"
    return [
        stage["slug"],
        _examples(config["set"]["set"], data["set"]),
        _examples(mixing["source"], data["mixing"]) if mixing else "nothing",
        settings,
        metrics["steps"],
        f"{metrics['loss']:.4g}",
        stage["stopped_by"],
    ]


def _examples(name: str, described: Mapping[str, Any]) -> str:
    return f"{described['examples']} of {name} (`{described['digest'][:12]}`)"


def _answers(stage: Mapping[str, Any]) -> list[list[Any]]:
    return [
        [row["set"], f"{row['scorer']} {row['scorer_version']}", f"{row['accuracy']:.1f}", row["n"]]
        for row in stage["metrics"]["evaluations"]
    ]


def _provenance(trial: Mapping[str, Any], stages: Sequence[Mapping[str, Any]]) -> list[str]:
    made, engine = stages[-1]["provenance"], stages[-1]["engine"]
    ids = ", ".join(f"`{stage['id']}`" for stage in stages)
    base = json.dumps(stages[0]["config"]["start"]["model"])
    versions = ", ".join(f"{name} {version}" for name, version in made["versions"].items())
    return [
        f"- trial `{trial['id']}`, stages {ids}",
        f"- base model: {trial['model']}, `{base}`",
        f"- commit of raysweep: {made['commit'] or 'unknown'}; {versions}",
        f"- {made['machine']}; {engine['world_size']} worker(s) on {engine['device']}, ZeRO stage {engine['zero_stage']}",
        f"- trained from {made['started']} to {made['finished']}",
        "- `raysweep.json` beside this card holds the whole records: settings, data digests, evaluations, versions",
    ]


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(str(cell) for cell in line)} |" for line in lines]
