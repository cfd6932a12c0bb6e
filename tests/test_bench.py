"""The benchmark of throughput: what it counts is right, and it runs through where no GPU is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import product
from types import SimpleNamespace

import pytest

from raysweep.errors import TrialFailed
from raysweep.learn.memory import ModelShape, shape_of
from raysweep.learn.model import prepare

GIB = 2**30


@pytest.fixture
def bench(root, monkeypatch):
    monkeypatch.syspath_prepend(root / "tests" / "bench")
    import devices
    import shapes
    import throughput

    return SimpleNamespace(devices=devices, shapes=shapes, throughput=throughput)


def test_shapes_have_as_many_weights_as_the_models_they_are_named_after(bench):
    weights = {name: shape.weights for name, shape in bench.shapes.SHAPES.items()}
    assert weights == {"small": 1_832_192, "llama_1b": 1_235_814_400, "llama_8b": 8_030_261_248}


def test_flops_of_the_tiny_shape_by_hand(bench):
    small = bench.shapes.SHAPES["small"]
    attention = 12 * 2 * 256 * (1 + 2 + 3 + 1 + 2 + 3 + 4 + 5)  # an example of three tokens and one of five
    assert bench.shapes.model_flops(small, [3, 5]) == 6 * 1_832_192 * 8 + attention
    layer = 4 * 256 * 256 + 3 * 256 * 680
    heads = 6 * 1024 * 256 * 2
    assert bench.shapes.product_flops(small, [3, 5], targets=2) == 6 * 2 * layer * 8 + heads + attention


def test_a_peak_is_told_by_the_name_of_the_device_or_not_at_all(bench):
    peak_of = bench.devices.peak_of
    names = ["NVIDIA H200", "NVIDIA H100 80GB HBM3", "NVIDIA H100 PCIe", "NVIDIA A100-SXM4-80GB", "NVIDIA L40S"]
    assert [peak_of(name) for name in names] == [989e12, 989e12, 756e12, 312e12, 362e12]
    assert [peak_of(name) for name in ("cpu", "NVIDIA A1000", "NVIDIA A100-SXM4-40GB MIG 1g.5gb")] == [None] * 3


def test_the_optimizer_is_offloaded_only_where_the_device_is_too_small(bench):
    llama_1b, llama_8b = bench.shapes.SHAPES["llama_1b"], bench.shapes.SHAPES["llama_8b"]

    def chosen(llama, device, host):
        return bench.devices.offload_that_fits(
            llama, training=bench.throughput.TRAINING, device=device * GIB, host=host * GIB
        )

    assert chosen(llama_1b, 80, 1) == "none"
    assert chosen(llama_8b, 180, 1) == "none"
    assert chosen(llama_8b, 80, 200) == "optimizer"
    for device, host in ((80, 100), (16, 200)):  # 16 bytes a weight of the machine's memory, 2 of the device's
        with pytest.raises(TrialFailed, match="119.6"):
            chosen(llama_8b, device, host)


def test_random_weights_make_a_whole_model(bench, tmp_path):
    from transformers import AutoModelForCausalLM

    folder = tmp_path / "random"
    bench.shapes.write_random(
        bench.shapes.SHAPES["small"], folder, tokenizer=prepare("tiny", None, cache=tmp_path / "cache")
    )
    _, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert shape_of(folder) == ModelShape(weights=1_832_192, layers=2, hidden=256, intermediate=680, vocabulary=1024)


def test_packed_is_compared_with_sorted_and_what_does_not_fit_leaves_a_line(bench, monkeypatch, tmp_path):
    """With a GPU's part played: seconds a step by stage and attention, and one way that is out of memory."""
    seconds = {("remix", "own"): 2.0, ("remix", "sdpa"): 3.0, ("long_tail", "own"): 5.0}
    asked = []

    def told(case, folder, data_dir):
        asked.append(case.name)
        if (case.stage, case.attention) not in seconds:
            raise TrialFailed("out of memory on cuda:0")
        measured = {"seconds": seconds[case.stage, case.attention], "tokens": 10.0, "peak_gib": 1.0}
        return measured | {"model_flops": 989e12, "product_flops": 494.5e12}

    monkeypatch.setattr(bench.throughput, "_ways", lambda: ("own", "sdpa"))
    monkeypatch.setattr(bench.throughput, "_chosen", lambda: ({"peak_flops": 989e12}, {"small": "none"}))
    monkeypatch.setattr(bench.throughput, "_in_own_process", told)
    result = bench.throughput.measure(data_dir=tmp_path, repeats=2)
    figures = result["figures"]
    assert result["ratios"] == {"packed_small_remix": 1.5}
    assert figures["small_long_tail_sorted_failed"] == "out of memory on cuda:0"
    assert asked.count("small_long_tail_sorted") == 1 and asked.count("small_long_tail") == 2
    assert (figures["small_remix_mfu"], figures["small_remix_mfu_products"]) == (0.5, 0.25)
    assert figures["small_remix_sorted_tokens_per_second"] == round(10 / 3)


@pytest.mark.slow
def test_the_small_shape_runs_through_where_no_gpu_is(bench, root, tmp_path):
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(root)}
    command = [sys.executable, root / "tests" / "bench" / "run.py", "throughput", "--repeats", "1"]
    done = subprocess.run(
        [*command, "--data", tmp_path, "--json", tmp_path / "told.json"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads((tmp_path / "told.json").read_text())
    figures = told["figures"]
    assert told["ratios"] == {}
    assert figures["llama_1b_left_out"] == figures["llama_8b_left_out"] == "there is no GPU here"
    assert figures["mfu_left_out"] == "no bf16 peak is known of cpu"
    assert not [name for name in figures if name.endswith("_failed")]
    for stage, name in product(("remix", "long_tail"), ("seconds", "tokens_per_second", "peak_gib", "predicted_gib")):
        assert figures[f"small_{stage}_{name}"] > 0
    for stage in ("remix", "long_tail"):
        assert figures[f"small_{stage}_mfu"] is None and figures[f"small_{stage}_packed"] is False
        assert figures[f"small_{stage}_model_flops"] > 6 * 1_832_192 * figures[f"small_{stage}_tokens"]
    assert figures["small_remix_model_flops"] == pytest.approx(remix_by_hand(bench, tmp_path), rel=1e-9)


def remix_by_hand(bench, place):
    """FLOPs a step of the examples after the warm-up."""
    case = bench.throughput.Case(shape="small", stage="remix", attention="own", offload="none")
    batches = bench.throughput.batches_of(case, prepare("tiny", None, cache=place / "cache"), place)
    lengths = [len(example) for batch in batches[2:] for example in batch.examples]
    assert len(lengths) == 16
    return sum(6 * 1_832_192 * length + 12 * 2 * 256 * length * (length + 1) // 2 for length in lengths) / 2
