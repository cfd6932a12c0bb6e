"""What a file may say, and the one clear error where it says something else."""

from __future__ import annotations

import itertools

import pytest
import yaml
from sweeps import SMALL, small, write

from raysweep.api import load
from raysweep.cli import main, parser
from raysweep.commands.run import _point
from raysweep.errors import BadInput
from raysweep.sweep.file import load as load_file


def test_a_number_needs_no_dot(tmp_path):
    path = tmp_path / "sweep.yaml"
    path.write_text("name: x\nmodel: tiny\ngrid: {d_a: [kvr]}\ntrain: {lr: 5e-5}\n")
    assert load(path).sweep.train.lr == 5e-5


def test_defaults_are_those_of_the_paper(tmp_path):
    path = tmp_path / "sweep.yaml"
    path.write_text("name: x\nmodel: tiny\ngrid: {d_a: [popqa]}\n")
    sweep = load(path).sweep
    assert (sweep.examples, sweep.mixing.words, sweep.familiarity, sweep.prompt.strip) == (
        2000,
        50,
        "unfamiliar",
        "both",
    )
    assert sweep.train.model_dump(exclude={"stages"}) == {
        "lr": 5e-5, "batch_size": 32, "epochs": 20, "stop": "paper", "max_length": 2048, "precision": "bf16",
        "order": "reshuffled", "last_batch": "keep", "label_padding": "ignore", "weight_decay": 0.0, "warmup": 0.05,
        "clip": 1.0, "betas": (0.9, 0.95), "loss_mean": "tokens", "stop_loss": "batch", "padded_to": "trained_rows",
    }  # fmt: skip


def test_one_stage_may_have_its_own_settings(tmp_path):
    sweep = small(tmp_path, "train.b.lr=1e-5").sweep
    assert (sweep.train.of("a")["lr"], sweep.train.of("b")["lr"], sweep.train.of("b")["epochs"]) == (1e-3, 1e-5, 2)


def test_what_is_written_twice_may_be_an_alias(tmp_path):
    path = tmp_path / "sweep.yaml"
    path.write_text("name: x\nmodel: tiny\ngrid: {d_a: &sets [kvr], d_b: *sets, mixer: none/none}\n")
    assert load(path).grid.axes["d_b"] == ("kvr",)


def test_a_table_may_show_what_a_run_will_measure(tmp_path):
    for value in ("forgetting", "accuracy_b", "familiar_popqa", "asked_webqa", "loss_2", "retention_2", "seconds_1"):
        assert small(tmp_path, f"table.value={value}").sweep.table.value == value
    assert small(tmp_path, "table.rows=[mixer_2, model]", "table.columns=seed").sweep.table.columns == "seed"


def test_the_last_override_wins(tmp_path):
    assert small(tmp_path, "train.epochs=3", "train.epochs=5").sweep.train.epochs == 5


# What is wrong, how it is written, and what the error must say: the place, the word, and what would be right.
BAD = [
    ("trian.lr=1", ["--set 'trian.lr=1'", "'trian'", "'train'"]),
    ("train.lrr=1", ["train.lrr", "'lr'", "warmup"]),
    ("train.b.lrr=1", ["train.b.lrr", "'lr'"]),
    ("train.lr=0", ["train.lr", "0", "greater than 0"]),
    ("train.lr=-1.0", ["train.lr", "-1.0"]),
    ("train.lr=.nan", ["train.lr", "nan"]),
    ("train.lr=.inf", ["train.lr", "inf", "finite"]),
    ("train.lr=fast", ["train.lr", "'fast'"]),
    ("train.stop=memorised", ["train.stop", "'memorised'", "'memorized'"]),
    ("train.stop={los: 1}", ["train.stop", "{loss: 1.0e-4, hits: 10}"]),
    ("train.betas=[0.9]", ["train.betas", "[0.9, 0.95]"]),
    ("train.precision=bf61", ["train.precision", "'bf16'"]),
    ("train=5", ["train", "5"]),
    ("examples=0", ["examples", "0"]),
    ("examples=2.5", ["examples", "2.5"]),
    ("examples=218340105584896", ["kvr", "436,680,211,169,792", "218,340,105,584,896"]),
    ("grid.d_a=[kvrr]", ["d_a", "'kvrr'", "'kvr'", "popqa"]),
    ("grid.d_a=[gsm8k]", ["'gsm8k' is not a factoid set", "kvr"]),
    ("grid.d_a=[]", ["'d_a' is empty"]),
    ("grid.d_b=[lamma]", ["d_b", "'lamma'", "'lama'"]),
    ("grid.d_d=[id]", ["d_d needs a d_c"]),
    ("grid.d_c=[id]", ["2 part(s)", "3 stage(s)", "none/none/none"]),
    ("grid.mixer=[none]", ["1 part(s)", "2 stage(s)", "none/none"]),
    ("grid.mixer=[randon/none]", ["'randon'", "'random'", "knowledge_pile"]),
    ("grid.mixer=[replay/none]", ["replay", "needs a D_A"]),
    ("grid.mixer=[text/none]", ["mixing.text"]),
    ("grid={d_a: kvr, d_b: id, mixer: none/replay, ratio: [0.1, 2]}", ["ratio", "2 with replay", "at most 1"]),
    ("grid.ratio=[0]", ["ratio", "above 0"]),
    ("grid.seed=[1.5]", ["seed", "1.5"]),
    ("grid.seed=[0, 0]", ["0 stands here twice"]),
    ("grid.sede=[0]", ["'sede'", "'seed'"]),
    ("grid.train.lrr=[1]", ["'train.lrr'", "'train.lr'"]),
    ("grid.train.lr=[0.1, -1]", ["'train.lr'", "-1"]),
    ("grid.train.lr=[0.1, true]", ["'train.lr'", "True", "number"]),
    ("grid.d_a=[{a: 1}]", ["d_a", "{'a': 1}", "kvr"]),
    ("grid.d_b=[[id]]", ["d_b", "['id']", "kvr"]),
    ("grid.mixer=[{a: 1}]", ["mixer", "{'a': 1}", "random"]),
    ("grid.d_B=[id]", ["unknown axis 'd_B'", "'d_b'"]),
    ("grid.d_=[id]", ["unknown axis 'd_'"]),
    ("grid.d_bb=[id]", ["unknown axis 'd_bb'", "'d_b'"]),
    ("grid.train.b=[{lr: 1}]", ["'train.b'", "no such setting", "'train.b.lr'"]),
    ("grid.train.stages=[{b: {lr: 1}}]", ["'train.stages'", "no such setting"]),
    ("grid.train.stages.lr=[1]", ["'train.stages.lr'", "'stages' is no stage", "a, b"]),
    ("grid.train.b.lr.lr=[1]", ["'train.b.lr.lr'", "no such setting"]),
    ("grid.train.ab.lr=[1, 2]", ["'ab' is no stage"]),
    ("grid.train.bb.lr=[1, 2]", ["--set", "'train.bb.lr'", "'bb' is no stage", "a, b"]),
    ("grid.train.lr.lr=[1, 2]", ["'train.lr.lr'", "'lr' is no stage"]),
    ("grid.train.c.lr=[1, 2]", ["'train.c.lr'", "'c' is no stage", "a, b"]),
    ("train.z.lr=5", ["--set 'train.z.lr=5'", "train.z", "'z' is no stage", "a, b"]),
    ("grid.mixing.text=[{path: x}]", ["'mixing.text'", "one corpus"]),
    ("grid.mixing.text.path=[x, y]", ["'mixing.text.path'", "one corpus"]),
    ("grid.sets.mine.path=[x, y]", ["'sets.mine.path'", "no such setting"]),
    ("exclude=[{d_bb: id}]", ["'d_bb'", "'d_b'"]),
    ("exclude=[{d_a: '*'}]", ["drops every point"]),
    ("evaluate=[familiar/popqaa]", ["'familiar/popqaa'", "popqa'"]),
    ("evaluate.every={steps: 1, epochs: 1}", ["exactly one of steps and epochs"]),
    ("evaluate.matrix=some", ["evaluate.matrix", "'some'", "all, last, or {every: 2}"]),
    ("evaluate.after=each", ["evaluate.after", "last, every"]),
    ("runtime.zero=4", ["runtime.zero", "0, 1, 2, 3"]),
    ("runtime.max_store=5Q", ["500GB"]),
    ("mixing.cut=relased", ["mixing.cut", "'released'"]),
    ("name=../up", ["'../up' is not a name"]),
    ("name=Upper", ["'Upper' is not a name"]),
    ("model={nmae: tiny}", ["model.nmae", "'name'"]),
    ("sets={kvr: {path: x, prompt: p, target: t}}", ["'kvr' is a built-in name"]),
    ("sets={mine: {prompt: p, target: t}}", ["exactly one of path and hub"]),
    ("train.lr=true", ["train.lr", "True", "number"]),
    ("train.betas=[true, 0.9]", ["train.betas", "[0.9, 0.95]"]),
    ("train.stop={loss: true}", ["train.stop", "{loss: 1.0e-4, hits: 10}"]),
    ("runtime.zero=true", ["runtime.zero", "True", "0, 1, 2, 3"]),
    ("runtime.gpus_per_worker=true", ["runtime.gpus_per_worker", "True"]),
    ("runtime={workers: 2, gpus_per_worker: 0.5}", ["gpus_per_worker 0.5", "2 workers", "a whole one"]),
    ("runtime.max_store=0GB", ["runtime.max_store", "0GB", "above 0"]),
    ("train.stages={b: {lr: 1}}", ["--set 'train.stages", "unknown key 'train.stages'", "warmup"]),
    ("train.stages={foo: {lr: 1}}", ["unknown key 'train.stages'"]),
    ("grid.seed=&a [*a]", ["--set 'grid.seed=&a [*a]':1", "alias"]),
    ("grid.seed=\0", ["U+0000"]),
    ("table.rows=nope", ["--set 'table.rows=nope'", "table.rows", "'nope'", "mixer_2"]),
    ("table.rows=[d_a, mixr]", ["'mixr'", "'mixer'"]),
    ("table.columns=d_c", ["table.columns", "'d_c'", "'d_b'"]),
    ("table.value=retension", ["table.value", "'retension'", "'retention'"]),
    ("nothing", ["KEY=VALUE"]),
    ("name.deeper=1", ["not a mapping"]),
]


# Seven short lines that mean ten million values.
MANY = "a: &a [1]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n" for old, new in itertools.pairwise("abcdefgh")
)


@pytest.mark.parametrize(("override", "says"), BAD, ids=[override for override, _ in BAD])
def test_bad_input_is_one_clear_error(override, says, tmp_path, capsys):
    code = main(["run", str(write(tmp_path)), "--set", override, "--store", str(tmp_path / "store")])
    said = capsys.readouterr().err
    assert code == 2
    assert "Traceback" not in said
    for part in says:
        assert part in said
    assert not (tmp_path / "store").exists(), "nothing may be started"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name: x\nname: y\n", ["sweep.yaml:2", "'name'", "line 1"]),
        ("name: x\nmodel: !!python/object:os.system {}\n", ["sweep.yaml:2", "tag"]),
        ("name: x\nmodel: [\n", ["sweep.yaml:3", "YAML"]),
        (
            "name: x\nmodel: tiny\ngrid:\n  d_a: [kvr]\n  d_b:\n    - id\n    - lamma\n",
            ["sweep.yaml:7", "'lamma'", "'lama'"],
        ),
        ("name: x\nmodel: tiny\ngrid: {d_a: [kvr]}\ntrain:\n  lr: 1\n  warmpu: 0.1\n", ["sweep.yaml:6", "'warmup'"]),
        ("model: tiny\ngrid: {d_a: [kvr]}\n", ["'name' is missing"]),
        ("name: x\nmodel: tiny\ngrid: {d_b: [id]}\n", ["sweep.yaml:3", "'d_a' is missing"]),
        ("name: x\na: &a {b: *a}\n", ["sweep.yaml:2", "alias"]),
        ("name: x\nmodel:\n  " + "[" * 2000, ["sweep.yaml:3", "64 levels"]),
        ("name: x\nmodel: \0\n", ["sweep.yaml:2", "U+0000"]),
        ("name: x\n" + MANY, ["sweep.yaml", "100,000 values"]),
        ("- a\n- b\n", ["name, model and grid"]),
        ("", ["name, model and grid"]),
    ],
)
def test_errors_name_the_line(text, says, tmp_path):
    path = tmp_path / "sweep.yaml"
    path.write_text(text)
    with pytest.raises(BadInput) as caught:
        load(path)
    for part in says:
        assert part in str(caught.value)


def test_a_file_that_is_not_there_or_not_text(tmp_path):
    with pytest.raises(BadInput, match="cannot be read"):
        load(tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"name: \xff\xfe")
    with pytest.raises(BadInput, match="UTF-8"):
        load(tmp_path / "binary.yaml")


def test_everything_that_a_file_says_is_read(tmp_path):
    """No key is taken and ignored: each one changes the loaded sweep."""
    plain, _ = load_file(write(tmp_path))
    changes = {
        "examples": 9, "data_seed": 1, "familiarity": "all", "mixing": {"words": 6}, "prompt": {"strip": "train_only"},
        "exclude": [{"seed": 7}], "evaluate": ["popqa"], "keep": "all", "table": {"value": "forgetting"},
        "runtime": {"workers": 2}, "sets": {"mine": {"path": "x", "prompt": "{q}", "target": "a"}},
        "train": {**SMALL["train"], "clip": 2.0}, "model": "smollm2-135m", "name": "other",
        "grid": {**SMALL["grid"], "seed": [0, 1]}, "primary": ["none/none", "random/none"], "profile": "released",
    }  # fmt: skip
    assert set(changes) == set(type(plain).model_fields)
    for key, value in changes.items():
        changed, _ = load_file(write(tmp_path, **{key: value}))
        assert changed != plain, key


def test_the_experiments_load(root):
    files = sorted((root / "experiments").glob("*.yaml"))
    assert len(files) >= 3
    names = [load(file).name for file in files if "text/" not in file.read_text()]
    assert len(set(names)) == len(names)
    assert yaml.safe_load((root / "experiments" / "table2.yaml").read_text())["name"] == "table2"


# A grid of six axes: what an option of `trial` may say is what stands there, and nothing that merely resembles it.
POINT = {"seed": "1", "train.betas": "[0.9, 0.95]", "train.stop": "{loss: 0.5}", "train.lr": "1", "data_seed": "1"}
WIDE = {**SMALL["grid"], "mixer": ["none/none"], "seed": [0, 1], "train.betas": [[0.9, 0.95], [0.9, 0.9]],
        "train.stop": [{"loss": 0.5}, "epochs"], "train.lr": [1, 0.5], "data_seed": [0, 1]}  # fmt: skip


def point_of(folder, **changes):
    given = [f"--axis={axis}={text}" for axis, text in (POINT | changes).items()]
    options = parser().parse_args(["trial", str(write(folder, grid=WIDE)), *given])
    return _point(load(options.file), options)


def test_a_point_is_named_as_in_the_file(tmp_path):
    point = point_of(tmp_path, seed="1.0")
    assert (point["seed"], point["train.betas"], point["train.lr"]) == (1, (0.9, 0.95), 1.0)
    assert (point["train.stop"].loss, point["d_b"], point["ratio"]) == (0.5, "id", 1.0)
    assert point_of(tmp_path, **{"train.stop": "{loss: 0.5, hits: 10}"}) == point_of(tmp_path)


@pytest.mark.parametrize(
    ("axis", "text"),
    [("ratio", "abc"), ("ratio", "[1]"), ("ratio", "true"), ("seed", "true"), ("seed", "{a: 1}"), ("seed", "&a [*a]"),
     ("d_a", "kvrr"), ("d_c", "id"), ("train.lr", "true"), ("train.betas", "0.9"), ("train.stop", "{loss: 0.4}")],
)  # fmt: skip
def test_a_point_that_is_not_in_the_grid_is_bad_input(axis, text, tmp_path, capsys):
    named = axis in ("ratio", "seed", "d_a", "d_c")
    given = [f"--{axis.replace('_', '-')}", text] if named else ["--axis", f"{axis}={text}"]
    others = [f"--axis={other}={value}" for other, value in POINT.items() if other != axis]
    code = main(["trial", str(write(tmp_path, grid=WIDE)), *others, *given, "--store", str(tmp_path / "store")])
    assert (code, capsys.readouterr().err.split()[1].split(":")[0]) == (2, given[0])
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("every", ["-1", "0", "nan", "inf"])
def test_top_waits_for_a_time_that_there_is(every, tmp_path, capsys):
    assert main(["top", f"--every={every}", "--store", str(tmp_path)]) == 2
    assert f"--every {every}" in capsys.readouterr().err
