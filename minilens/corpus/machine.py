"""What decides how a machine rounds: its processor, and the libraries that take the products."""

import os
import platform
import re
from pathlib import Path
from typing import Any

import torch

LIBRARIES = r"Math Kernel Library Version \S+|MKL-DNN \S+|CUDA Runtime \S+|CuDNN \S+|\bBLAS_INFO=\w+"
ROUNDING = (  # what a user may set to have the libraries take another path, each in the environment
    "MKL_CBWR",
    "MKL_ENABLE_INSTRUCTIONS",
    "ONEDNN_MAX_CPU_ISA",
    "DNNL_MAX_CPU_ISA",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "OPENBLAS_CORETYPE",
)


def machine(device: torch.device) -> dict[str, Any]:
    """What decides how products and sums are rounded."""
    settings = [f"{name}={os.environ[name]}" for name in ROUNDING if name in os.environ]
    return {
        "torch": torch.__version__,
        "libraries": re.findall(LIBRARIES, torch.__config__.show()),
        "settings": [*settings, f"float32_matmul_precision={torch.get_float32_matmul_precision()}"],
        "device": device.type,
        "processor": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }


def _processor() -> str:
    """The processor's name: on Linux the kernel knows it, elsewhere Python does."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "CPU part"))]
    return named[0] if named else platform.processor() or platform.machine()
