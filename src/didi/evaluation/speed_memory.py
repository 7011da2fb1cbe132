"""Peak memory of sampling, measured in a separate process."""

import contextlib
import multiprocessing
from collections.abc import Callable
from pathlib import Path

import torch

from didi.errors import UsageError
from didi.evaluation.speed_work import Method, Variant, Workload, draw_function
from didi.models.bundle import Bundle
from didi.models.inference import for_inference


def peak_memory(load_bundle: Callable[[], Bundle], method: Method, workload: Workload, variant: Variant) -> float:
    """Peak memory in MiB of sampling one batch, without the weights, measured in a separate process.

    Raises:
        UsageError: the system does not report the peak memory of a process (Windows).
    """
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_peak, (load_bundle, method, workload, variant, torch.get_num_threads()))


def _peak(
    load_bundle: Callable[[], Bundle], method: Method, workload: Workload, variant: Variant, num_threads: int
) -> float:
    torch.set_num_threads(num_threads)
    bundle = for_inference(load_bundle(), variant.numerics, is_compiled=variant.is_compiled)
    draw = draw_function(bundle, method, workload, is_whole_batch=variant.is_compiled)
    if next(iter(bundle.network().parameters())).device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        draw()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    reset = Path("/proc/self/clear_refs")
    with contextlib.suppress(OSError):  # where the peak cannot be reset, it includes the peak of loading
        reset.write_text("5", encoding="utf-8")
    loaded = _resident_mib("VmRSS")
    draw()
    return _resident_mib("VmHWM") - loaded


def _resident_mib(name: str) -> float:
    status = Path("/proc/self/status")
    if not status.exists():  # not Linux: only the peak is available, in bytes on macOS
        try:
            import resource
        except ImportError as error:
            raise UsageError(
                "this system does not report peak memory: measure time only, for example by didi bench --no-memory"
            ) from error
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    line = next(line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith(name))
    return int(line.split()[1]) / 2**10
