"""The cluster files pass what Ray does with them before it starts a machine; KubeRay's pass the schema of its resources."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from kuberay import validator
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil

ROOT = Path(__file__).resolve().parents[2]
CLOUDS = [ROOT / "cluster.yaml", ROOT / "experiments" / "clusters" / "gcp.yaml"]
LAUNCHED = [*CLOUDS, ROOT / "experiments" / "clusters" / "onprem.yaml"]
KUBERAY = sorted((ROOT / "experiments" / "clusters").glob("kuberay-*.yaml"))
by_name = pytest.mark.parametrize("file", LAUNCHED, ids=lambda file: file.name)


def filled(file: Path, **values: str) -> dict[str, Any]:
    """A cluster file with what a user fills in."""
    text = file.read_text(encoding="utf-8")
    for found, value in {"ami-FILL-IN": "ami-12c6146b", "FILL-IN": "raysweep", **values}.items():
        text = text.replace(found, value)
    return yaml.safe_load(text)


@by_name
def test_ray_accepts_the_file(file):
    prepared = prepare_config(filled(file))
    validate_config(prepared)
    assert prepared["setup_commands"] == filled(file)["setup_commands"]


@by_name
def test_an_unknown_field_would_be_refused(file):
    import jsonschema

    with pytest.raises(jsonschema.ValidationError):
        validate_config(prepare_config({**filled(file), "max_worker": 3}))


@by_name
def test_one_token_reaches_every_node_and_the_dashboard_stays_on_loopback(file):
    config = filled(file)
    assert config["file_mounts"]["~/raysweep/token"] == "~/.ray/auth_token"
    exported = " ".join(config["setup_commands"])
    assert "RAY_AUTH_MODE=token" in exported and "RAY_AUTH_TOKEN_PATH=~/raysweep/token" in exported
    assert any("--dashboard-host=127.0.0.1" in command for command in config["head_start_ray_commands"])
    assert "0.0.0.0" not in file.read_text()


@by_name
def test_the_wheel_comes_from_the_laptop_and_the_store_has_a_name_on_every_node(file):
    config = filled(file)
    assert config["file_mounts"]["~/raysweep/wheels"] == "./dist"
    installs = [
        command for command in config["setup_commands"] if "pip install" in command and "raysweep-*.whl" in command
    ]
    assert any("--force-reinstall" in command for command in installs), (
        "a changed wheel of the same version is installed"
    )
    (store,) = [command for command in config["setup_commands"] if "RAYSWEEP_STORE=" in command]
    assert store.split("RAYSWEEP_STORE=")[1].split("'")[0].startswith(("s3://", "gs://", "/"))


@pytest.mark.parametrize("file", CLOUDS, ids=lambda file: file.name)
def test_what_is_to_be_filled_in_stands_before_the_machines(file):
    text = file.read_text()
    assert text.rindex("FILL-IN") < text.index("docker:")


def launches(
    config: dict[str, Any], asked: dict[str, float], count: int, *, failed: tuple[str, ...] = ()
) -> dict[str, int]:
    """The nodes that Ray's autoscaler would start on a fresh head, where some kinds could not be had just now."""
    autoscaling = AutoscalingConfig(copy.deepcopy(config), skip_content_hash=True)
    request = SchedulingRequest(
        node_type_configs=autoscaling.get_node_type_configs(),
        max_num_nodes=autoscaling.get_max_num_nodes() - 1,  # the head is there already
        disable_launch_config_check=True,
        resource_requests=ResourceRequestUtil.group_by_count([ResourceRequestUtil.make(asked)] * count),
        cloud_resource_availabilities=dict.fromkeys(failed, 0.0),
        recoverable_resource_availabilities=dict.fromkeys(failed, 0.0),
    )
    reply = ResourceDemandScheduler().schedule(request)
    return {launch.instance_type: launch.count for launch in reply.to_launch if launch.instance_type != "head"}


@pytest.mark.parametrize("file", CLOUDS, ids=lambda file: file.name)
def test_gpu_nodes_come_when_asked_for_spot_first_and_on_demand_where_there_is_none(file):
    config = filled(file)
    gpus = config["available_node_types"]["gpu_spot"]["resources"]["GPU"]
    assert launches(config, {"CPU": 0.01}, 5) == {}
    assert launches(config, {"GPU": 1}, 2 * gpus) == {"gpu_spot": 2}
    assert launches(config, {"GPU": 1}, gpus, failed=("gpu_spot",)) == {"gpu_on_demand": 1}
    assert sum(launches(config, {"GPU": 1}, 1000).values()) == config["max_workers"]


def test_amazon_starts_the_machines_that_the_file_describes(monkeypatch, tmp_path):
    import boto3
    import moto
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

    monkeypatch.setenv("HOME", str(tmp_path))  # a key pair is written there
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "none")
    with moto.mock_aws():
        boto3.client("iam", "us-west-2").create_instance_profile(InstanceProfileName="raysweep")
        config = AWSNodeProvider.fillout_available_node_types_resources(prepare_config(filled(ROOT / "cluster.yaml")))
        validate_config(config)
        config = AWSNodeProvider.bootstrap_config(config)
        provider = AWSNodeProvider(config["provider"], config["cluster_name"])
        for kind, node in config["available_node_types"].items():
            role = "head" if kind == config["head_node_type"] else "worker"
            tags = {"ray-node-type": role, "ray-user-node-type": kind, "ray-launch-config": "", "ray-node-name": kind}
            provider.create_node(node["node_config"], tags, 1)
        found = boto3.client("ec2", "us-west-2").describe_instances()["Reservations"]
    machines = {
        next(tag["Value"] for tag in one["Tags"] if tag["Key"] == "Name"): (
            one["InstanceType"],
            one.get("InstanceLifecycle"),
            one["IamInstanceProfile"]["Arn"].rsplit("/", 1)[1],
        )
        for reservation in found
        for one in reservation["Instances"]
    }
    assert machines == {
        "head": ("m5.2xlarge", None, "raysweep"),
        "gpu_spot": ("p4de.24xlarge", "spot", "raysweep"),
        "gpu_on_demand": ("p4de.24xlarge", None, "raysweep"),
    }
    gpu = config["available_node_types"]["gpu_spot"]["resources"]
    assert (gpu["CPU"], gpu["GPU"]) == (96, 8)


@pytest.mark.parametrize("file", KUBERAY, ids=lambda file: file.name)
def test_kuberay_and_kubernetes_know_every_field(file):
    resource = filled(file)
    assert list(validator().iter_errors(resource)) == []
    assert _cluster(resource)["authOptions"] == {"mode": "token"}


def misspelled(resource, pod):
    resource["spec"]["shutdownAfterJobFinish"] = True


def of_the_wrong_kind(resource, pod):
    _cluster(resource)["workerGroupSpecs"][0]["maxReplicas"] = "8"


def of_an_unknown_word(resource, pod):
    _cluster(resource)["authOptions"]["mode"] = "tokens"


def missing(resource, pod):
    del _cluster(resource)["headGroupSpec"]["template"]


def misspelled_in_a_pod(resource, pod):
    pod["containers"][0]["volumeMount"] = []


def of_the_wrong_kind_in_a_pod(resource, pod):
    pod["tolerations"] = {"key": "nvidia.com/gpu"}


def no_quantity(resource, pod):
    pod["containers"][0]["resources"]["limits"]["memory"] = "300 GB"


def a_number_where_a_word_belongs(resource, pod):
    _cluster(resource)["headGroupSpec"]["rayStartParams"]["num-cpus"] = 2


@pytest.mark.parametrize("file", KUBERAY, ids=lambda file: file.name)
@pytest.mark.parametrize(
    "break_",
    [
        misspelled, of_the_wrong_kind, of_an_unknown_word, missing, misspelled_in_a_pod, of_the_wrong_kind_in_a_pod,
        no_quantity, a_number_where_a_word_belongs,
    ],
)  # fmt: skip
def test_what_kuberay_or_kubernetes_would_refuse_is_found(file, break_):
    resource = copy.deepcopy(filled(file))
    break_(resource, _cluster(resource)["workerGroupSpecs"][0]["template"]["spec"])
    assert list(validator().iter_errors(resource))


def test_the_table_of_kuberays_types_names_only_types_that_there_are():
    known = validator()
    types = known.schema["$defs"]
    references = set(re.findall(r'"\$ref": "([^"]*)"', json.dumps(known.schema)))
    for reference in references:
        list(known.evolve(schema={"$defs": types, "$ref": reference}).iter_errors({}))  # raises where there is none
    assert {one.rsplit("/", 1)[1] for one in references if one.startswith("#")} == set(types) - {"RayCluster", "RayJob"}


def _cluster(resource):
    return resource["spec"].get("rayClusterSpec", resource["spec"])


@pytest.mark.parametrize("file", KUBERAY, ids=lambda file: file.name)
def test_every_volume_that_a_pod_mounts_is_declared(file):
    cluster = filled(file)["spec"]
    cluster = cluster.get("rayClusterSpec", cluster)
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        mounted = {mount["name"] for container in pod["containers"] for mount in container.get("volumeMounts", [])}
        assert mounted == {volume["name"] for volume in pod.get("volumes", [])}


def test_every_file_runs_the_ray_that_is_installed_here():
    import ray

    for file in (*CLOUDS, *KUBERAY):
        assert ray.__version__ in file.read_text(), file.name
