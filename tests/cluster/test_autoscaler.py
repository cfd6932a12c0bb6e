"""A cluster that grows for a sweep and shrinks after it: Ray's own autoscaler, with nodes that are processes here."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from heads import nodes, started, wait_for_nodes
from sweeps import write

from raysweep.cluster import autoscaler
from raysweep.cluster.capacity import NodeKind, nodes_of_cluster
from raysweep.errors import BadInput

WORKER = {"resources": {"CPU": 2}, "node_config": {}, "min_workers": 0, "max_workers": 1}


@pytest.mark.ray
@pytest.mark.slow
def test_a_sweep_that_fits_no_node_yet_makes_one_come_and_lets_it_go(tmp_path):
    file = write(tmp_path, runtime={"cpus_per_worker": 2})
    with started(cpus=1, workers={"worker": WORKER}) as head:
        wait_for_nodes(head, 1)
        environment = {**os.environ, **head.environment, "OMP_NUM_THREADS": "1"}
        environment.pop("RAY_ADDRESS", None)
        command = [sys.executable, "-m", "raysweep.cli", "run", str(file), "--store", str(tmp_path / "store")]
        run = subprocess.Popen(
            [*command, "--address", head.address], env=environment, stderr=subprocess.PIPE, text=True
        )
        seen = {1}
        while run.poll() is None:
            seen.add(nodes(head))
            time.sleep(1)
        assert run.returncode == 0, run.stderr.read()[-3000:]
        assert seen - {0} == {1, 2}
        wait_for_nodes(head, 1)


def test_the_kinds_of_a_cluster_file_are_counted_as_far_as_it_lets_them_grow(root):
    import yaml

    kinds = autoscaler._kinds(yaml.safe_load((root / "cluster.yaml").read_text()))
    assert [(kind.resources.get("GPU", 0), kind.count) for kind in kinds] == [(0, 1), (8, 8), (8, 2)]


def test_where_the_autoscaler_is_elsewhere_a_variable_tells_what_may_come(monkeypatch, root):
    import yaml

    for file in sorted((root / "experiments" / "clusters").glob("kuberay-*.yaml")):
        spec = yaml.safe_load(file.read_text())["spec"]
        spec = spec.get("rayClusterSpec", spec)
        container = spec["headGroupSpec"]["template"]["spec"]["containers"][0]
        (declared,) = [one["value"] for one in container["env"] if one["name"] == autoscaler.VARIABLE]
        monkeypatch.setenv(autoscaler.VARIABLE, declared)
        (kind,) = autoscaler.growing_nodes()
        (group,) = spec["workerGroupSpecs"]
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        assert kind.count == group["maxReplicas"]
        assert kind.resources == {"CPU": float(limits["cpu"]), "GPU": float(limits["nvidia.com/gpu"])}


def own_machines(root: Path, monkeypatch, *, age: float, there: tuple[str, ...], dead: tuple[str, ...] = ()) -> None:
    """As if the on-prem file were brought up so many seconds ago, and these machines had come, and some died since."""
    import yaml
    from ray.autoscaler._private.local.config import prepare_local

    config, _ = prepare_local(yaml.safe_load((root / "experiments" / "clusters" / "onprem.yaml").read_text()))
    nodes = [
        {"NodeManagerAddress": address, "Alive": address not in dead, "Resources": {"CPU": 8.0}} for address in there
    ]
    monkeypatch.setattr(autoscaler, "_autoscaler", lambda: autoscaler._Autoscaler(config, time.time() - age))
    monkeypatch.setattr("ray.nodes", lambda: nodes)


def test_ones_own_machines_have_what_ray_found_on_them_and_the_file_says_nothing(monkeypatch, root):
    own_machines(root, monkeypatch, age=60, there=("10.0.0.1", "10.0.0.2", "10.0.0.3"))
    assert autoscaler.growing_nodes() == [] and autoscaler.machines_to_come() == []
    assert nodes_of_cluster() == [NodeKind({"CPU": 8.0}, 1)] * 3


def test_a_machine_that_is_being_set_up_is_waited_for_and_a_dead_one_is_not(monkeypatch, root):
    own_machines(root, monkeypatch, age=60, there=("10.0.0.1",))
    assert autoscaler.machines_to_come() == ["10.0.0.2", "10.0.0.3"]
    own_machines(root, monkeypatch, age=autoscaler.SETUP_SECONDS + 1, there=("10.0.0.1", "10.0.0.3"))
    assert autoscaler.machines_to_come() == []
    own_machines(root, monkeypatch, age=60, there=("10.0.0.1", "10.0.0.2", "10.0.0.3"), dead=("10.0.0.2",))
    assert nodes_of_cluster() == [NodeKind({"CPU": 8.0}, 1)] * 2


@pytest.mark.parametrize(
    "text", ["8 GPUs", "{}x", '[{"count": 3}]', '["node"]', '[{"resources": {"CPU": "x"}, "count": 1}]']
)
def test_a_variable_that_says_something_else_is_refused(monkeypatch, text):
    monkeypatch.setenv(autoscaler.VARIABLE, text)
    with pytest.raises(BadInput, match="RAYSWEEP_NODES: found"):
        autoscaler.growing_nodes()
