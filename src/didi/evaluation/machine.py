"""Description of the machine on which times are measured."""

import os
import platform
import re
from pathlib import Path

import torch


def machine_name(device: str | torch.device = "cpu") -> str:
    """Hardware and torch version, without a host name: ``2-core x86_64 CPU (AMD EPYC), torch 2.13.0, 2 threads``."""
    version = f"torch {torch.__version__.split('+')[0]}"
    if torch.device(device).type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, {version}, CUDA {torch.version.cuda}"
    cpuinfo = Path("/proc/cpuinfo")
    match = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text(encoding="utf-8")) if cpuinfo.exists() else None
    model = match[1].strip() if match else platform.processor()
    cpu = f"{os.cpu_count()}-core {platform.machine()} CPU" + (f" ({model})" if model else "")
    return f"{cpu}, {version}, {torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)}"
