"""What this machine has: memory, disk, cores, library versions."""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import shutil
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path


def available_memory() -> int:
    """Bytes a new allocation can have without swapping, within this process's control group.

    Source: Linux's Documentation/filesystems/proc.rst (MemAvailable) and admin-guide/cgroup-v2.rst (memory.max).
    """
    free = _meminfo()
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            free = min(free, int(Path(limit).read_text()) - int(Path(used).read_text()))
        except (OSError, ValueError):
            continue
    return max(0, free)


def _meminfo() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")


def free_disk(path: Path) -> int:
    """Bytes free where `path` is or would be created."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def cores() -> int:
    """Processors this process may run on."""
    return len(os.sched_getaffinity(0))


def resident_memory() -> int:
    """Bytes of this process in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def trim_memory() -> None:
    """Give blocks that were freed back to the system, where the C library can."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:  # glibc has it, other libraries have not
        trim(0)


def peak_memory() -> int:
    """Bytes of this process in memory at most so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def neuron_instance_type() -> str | None:
    """Family of the AWS instance this is, such as "inf2", where it has Neuron devices; None elsewhere.

    Source: aws-neuron/aws-neuronx-dkms: device nodes /dev/neuron<N>; Linux's
    Documentation/ABI/testing/sysfs-firmware-dmi (product_name), which EC2 fills with the instance type.
    """
    if not Path("/dev/neuron0").exists():
        return None
    try:
        name = Path("/sys/devices/virtual/dmi/id/product_name").read_text().strip()
    except OSError:
        return None
    return name.partition(".")[0] if name != "" else None


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Python's version and those of the `packages` that are installed."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
