"""What this machine can do: the device, the precision that is fast on it, and a place to run in."""

import ctypes
import gc
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from capgap_core.recipes import Dtype, Execution

Precision = Literal["float32", "bfloat16"]
KINDS: dict[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}
RandomState = dict[str, torch.Tensor]
"""Kind of device → the state of its random generator."""

EXACT = 2e-6
"""Largest relative error of a product that counts as fp32's own; bfloat16's is a thousand times that."""
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""What glibc's ``malloc.h`` calls these."""
WIDE = 256
"""Hidden size from which bfloat16 pays on a CPU."""


def device_of(execution: Execution) -> torch.device:
    """Return the device an execution names; ``auto`` is cuda where there is one."""
    if execution.device != "auto":
        return torch.device(execution.device)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def threads_of(execution: Execution) -> int:
    """Return how many CPU threads an execution means."""
    return execution.threads or torch.get_num_threads()


def precision(dtype: Dtype, device: torch.device, *, hidden: int) -> Precision:
    """Return the precision that ``auto`` stands for.

    bfloat16 where the machine multiplies it in hardware and the model is wide enough for the products to outweigh
    the casts. On one CPU float32 took 1.5 times as long to train hidden size 384; at 192 it took 0.8 times as long to
    distil a student of scale 0.1, but 1.3 times as long to train the teacher, so the line drawn here is a rough one.
    """
    if dtype != "auto":
        return dtype
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    return "bfloat16" if hidden >= WIDE and torch.cpu._is_avx512_bf16_supported() else "float32"


@contextmanager
def ready(execution: Execution, *, seed: int = 0) -> Iterator[torch.device]:
    """Give the device with threads set and the random state of torch seeded; put all back afterwards."""
    device = device_of(execution)
    # Moments of embeddings that no batch touches decay until they are denormal, which a CPU adds several times
    # slower; threads that start after this inherit it.
    kept = _keeps_denormals()
    torch.set_flush_denormal(True)
    _reuse_memory()
    before = torch.get_num_threads()
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), _deterministic(execution.deterministic), _faster_products(device):
        torch.manual_seed(seed)
        if execution.threads is not None:
            torch.set_num_threads(execution.threads)
        try:
            yield device
        finally:
            torch.set_num_threads(before)
            torch.set_flush_denormal(not kept)
            give_back()


@contextmanager
def _faster_products(device: torch.device) -> Iterator[None]:
    """Let oneDNN multiply fp32 matrices on a CPU, where it is as exact as torch's own choice.

    torch asks MKL, which on some processors runs at half of what oneDNN does. The setting that asks oneDNN also allows
    it bfloat16, which it uses where the processor has matrix units, and which is not wanted.
    """
    before = torch.get_float32_matmul_precision()
    try:
        if device.type == "cpu" and before == "highest":
            torch.set_float32_matmul_precision("medium")
            if _error_of_a_product() > EXACT:
                torch.set_float32_matmul_precision(before)
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _error_of_a_product() -> float:
    """Return the relative error of an fp32 product against fp64; draws from a generator of its own."""
    draw = torch.Generator().manual_seed(0)
    a, b = (torch.randn(256, 256, generator=draw) for _ in range(2))
    exact = a.double() @ b.double()
    return float((a @ b - exact).norm() / exact.norm())


@contextmanager
def _deterministic(asked: bool) -> Iterator[None]:
    """Refuse operations whose result may differ from one time to the next, where that was asked for."""
    before = torch.are_deterministic_algorithms_enabled()
    if asked:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS needs for it, before its first use
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def _reuse_memory() -> None:
    """Have the C library use what one step has freed for the next, for as long as this process lives.

    Left alone glibc may ask the system for each larger tensor and return it, as what was allocated before makes it
    guess: a student of 60 ms a step lost 5 to 12 ms so. What is kept is given back after a stage.
    """
    options = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc's own
    if options is not None:
        options(MMAP_THRESHOLD, 2**25)  # glibc takes no more
        options(TRIM_THRESHOLD, 2**30)


def give_back() -> None:
    """Have the C library return the memory that is free to the system: it keeps gigabytes after many sizes of batch."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's own
    if trim is not None:
        trim(0)


def free_memory() -> None:
    """Give back what only circles of references and torch's own cache still hold."""
    gc.collect()
    give_back()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def random_state(device: torch.device) -> RandomState:
    """Return the states of torch's generators, the only ones that training draws from."""
    states = {"cpu": torch.get_rng_state()}
    return states | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def set_random_state(states: RandomState, device: torch.device) -> None:
    """Put the states of torch's generators back."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)


def _keeps_denormals() -> bool:
    smallest = float("5e-324")
    return smallest + smallest != 0.0


def name(device: torch.device) -> str:
    """Return the name of the processor that a device computes on."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    about = Path("/proc/cpuinfo")
    lines = about.read_text(encoding="utf8").splitlines() if about.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def keep_in(model: nn.Module, dtype: Precision) -> None:
    """Store the weights of linear layers at a precision once, for a model that does not train.

    Autocast would cast them at every forward pass, to the same values.
    """
    if dtype == "bfloat16":
        for module in model.modules():
            if isinstance(module, nn.Linear):
                module.to(torch.bfloat16)


def autocast(device: torch.device, dtype: Precision) -> torch.autocast:
    """Return the context in which a forward pass runs at a precision; fp32 switches autocast off."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == "bfloat16")
