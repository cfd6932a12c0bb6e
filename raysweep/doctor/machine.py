"""What the machine has: GPUs, memory, shared memory, disk."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from raysweep.doctor.finding import Finding
from raysweep.learn.memory import free_memory

__all__ = ["look", "nearest_folder", "ray_folder"]

GIB = 2**30
MEMORY = (1 * GIB, 4 * GIB)  # free bytes below which nothing starts, and below which it may be killed
SHARED_MEMORY = 2 * GIB  # below, Ray keeps its objects on the disk
DISK = (1 * GIB, 20 * GIB)
RAY_DISK_SHARE = 0.95  # Ray stops spilling objects where its disk is fuller than that
DRIVERS = ("/proc/driver/nvidia/version", "/dev/nvidiactl", "/dev/kfd")


def look(store: str) -> Iterator[Finding]:
    """Findings about this machine, and about the disk of a store on it."""
    yield _gpus()
    yield _memory()
    yield _shared_memory()
    yield from _disk(store)


def _gpus() -> Finding:
    if not any(Path(path).exists() for path in DRIVERS):
        return Finding("ok", "GPUs", "no driver; trials train on the CPU")
    try:
        import torch
    except ImportError:
        return Finding("stop", "GPUs", "a driver, and no torch to use it", "pip install torch")
    count = torch.cuda.device_count()
    if not count:
        advice = "install a torch that is built for this driver, and look at CUDA_VISIBLE_DEVICES"
        return Finding("warn", "GPUs", f"a driver, and torch {torch.__version__} sees no GPU", advice)
    cards = {torch.cuda.get_device_properties(index).name for index in range(count)}
    least = min(torch.cuda.get_device_properties(index).total_memory for index in range(count))
    return Finding("ok", "GPUs", f"{count} × {', '.join(sorted(cards))}, {least / GIB:.0f} GiB each at least")


def _memory() -> Finding:
    free = free_memory()
    if free is None:
        return Finding("ok", "memory", "not known on this system")
    advice = "end other programs, or take a larger machine; Ray kills workers when memory runs out"
    return _amount("memory", f"{free / GIB:.1f} GiB free", free, MEMORY, advice)


def _shared_memory() -> Finding:
    place = Path("/dev/shm")
    if not place.is_dir():
        return Finding("ok", "shared memory", "not used on this system")
    size = shutil.disk_usage(place).total
    if size < SHARED_MEMORY:
        advice = "give the container more (docker run --shm-size=8g); with so little Ray keeps its objects on disk"
        return Finding("warn", "shared memory", f"{size / GIB:.1f} GiB at {place}", advice)
    return Finding("ok", "shared memory", f"{size / GIB:.1f} GiB")


def _disk(store: str) -> Iterator[Finding]:
    if "://" not in store:
        usage = shutil.disk_usage(nearest_folder(Path(store)))
        advice = "use another --store, `raysweep prune`, or `keep: none` in the sweep file"
        yield _amount("disk", f"{usage.free / GIB:.0f} GiB free for the store", usage.free, DISK, advice)
    temporary = nearest_folder(ray_folder())
    usage = shutil.disk_usage(temporary)
    share = 1 - usage.free / usage.total
    if share > RAY_DISK_SHARE:
        advice = "free some, or point RAY_TMPDIR at another disk; Ray writes no objects to a disk that full"
        yield Finding("warn", "Ray's disk", f"{share:.0%} of {temporary}'s disk is used", advice)


def _amount(about: str, found: str, free: int, limits: tuple[int, int], advice: str) -> Finding:
    verdict = "stop" if free < limits[0] else "warn" if free < limits[1] else "ok"
    return Finding(verdict, about, found, "" if verdict == "ok" else advice)


def nearest_folder(path: Path) -> Path:
    """The path itself, or the nearest folder above it that is there."""
    path = path.expanduser().absolute()
    return next(one for one in (path, *path.parents) if one.is_dir())


def ray_folder() -> Path:
    """Where Ray keeps its sessions on this machine."""
    return Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()) / "ray"
