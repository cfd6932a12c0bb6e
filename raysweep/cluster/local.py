"""The Ray that a sweep runs on: one that is started here and ends with it, or one that runs already."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator

import ray

from raysweep.errors import BadInput

__all__ = ["connected"]

_SETTINGS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # a worker group's reports wait for this poll
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "1800",  # nodes that replace lost ones may take that long to come
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # records are ours
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


@contextlib.contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Connect to the Ray at `address` (`auto`: the one of this machine), or start one here when it is None.

    RAY_ADDRESS stands for an address that is not given; in a Ray job it is set, so a job runs on its own cluster.
    """
    address = address or os.environ.get("RAY_ADDRESS")
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    logging.getLogger("ray").setLevel(logging.ERROR)  # its advice is for people who call it themselves
    already = ray.is_initialized()
    if not already:
        _connect(address)
    try:
        yield
    finally:
        if not already:
            ray.shutdown()


def _connect(address: str | None) -> None:
    environment = {"env_vars": {name: os.environ[name] for name in (*_SETTINGS, *_passed_on())}}
    try:
        ray.init(
            address=address or "local",
            log_to_driver=False,
            logging_level=logging.ERROR,
            configure_logging=False,
            include_dashboard=None if address else True,
            runtime_env=environment,
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise BadInput(f"--address {address}: no Ray answers there ({error}); `raysweep doctor` says more") from None


def _passed_on() -> list[str]:
    """Variables of this process that change what workers can reach: offline switches, never secrets."""
    names = ("HF_HUB_OFFLINE", "HF_HOME", "TORCH_EXTENSIONS_DIR", "NLTK_DATA", "DS_ACCELERATOR")
    return [name for name in names if name in os.environ]
