"""Sentences of frameworks and drivers that name a fault, as patterns without regard to case."""

from __future__ import annotations

__all__ = [
    "BAD_INPUT",
    "BAD_LABEL",
    "HALF_DEBUGGED",
    "KILLED",
    "OF_A_WORKER",
    "OUT_OF_MEMORY",
    "SCALER_MISUSE",
    "SCALE_FLOOR",
    "SKIPPED_BATCH",
    "UNSAFE_BACKWARD",
    "WORKER_KILLED",
]

UNSAFE_BACKWARD = (
    r"function '?\w+backward\d*'? returned nan"
    r"|\b(log|sqrt|div|pow|exp|norm|acos|asin|atanh|rsqrt|bce\w*)backward\d*\b.*nan"
    r"|divide by zero|division by zero|invalid value encountered in|log of (zero|a negative)"
)
"""Anomaly detection and NumPy name the operation."""
HALF_DEBUGGED = r"detected inf/nan during batch_number"
"""What Transformers' DebugUnderflowOverflow prints: a tool for fp16."""
BAD_INPUT = (
    r"\b(nan|inf|non-?finite)\w*\b.{0,30}\b(in|inside)\b.{0,25}\b(input|target|label|sample|image|data"
    r"|batch data|token|feature|annotation|ground.?truth|source|audio|pixel)"
    r"|\b(input|target|label|sample|image|data)\w*\b.{0,30}\b(contain|has|have|is|are|with)\w*\b"
    r".{0,12}\b(nan|inf|non-?finite)"
    r"|corrupt(ed)? (jpeg|image|label|file|sample|data)|truncated (file|image)"
    r"|image file is truncated"
)
"""The data is named as what is not a number, or as damaged."""
BAD_LABEL = (
    r"assertion.{0,30}t >= 0 && t < n_classes|target \d+ is out of bounds"
    r"|index out of (bounds|range).{0,40}(target|label|class)"
    r"|(class|label|target) (index|indices|id|value)s?.{0,30}out of (bounds|range)"
    r"|assertion.{0,20}srcIndex < srcSelectDimSize"
    r"|all elements of (target|input) should be between 0 and 1|target_val >= zero"
    r"|label class \d+ exceeds|non-?normalized or out of bounds coordinates"
)
"""A label that the model has no output for."""
SCALER_MISUSE = (
    r"no inf checks were recorded|unscale_\(\) has already been called"
    r"|unscale_\(\) is being called after step"
    r"|step\(\) has already been called since the last update"
    r"|attempting to unscale fp16 gradients|attempted unscale_ but _scale is none"
    r"|assert len\(optimizer_state\[.found_inf_per_device.\]\) > 0"
)
"""What GradScaler says of calls in the wrong order."""
SCALE_FLOOR = (
    r"minimum loss scale reached|loss scale (is )?(already )?at (its )?minimum"
    r"|current loss scale already at minimum|cannot decrease (the )?scale"
)
"""The scaler gives up."""
OUT_OF_MEMORY = r"out of memory|cuda_error_out_of_memory|cublas_status_alloc_failed|\boom\b"
KILLED = (
    r"\b(oom[- ]?kill\w*|killed process|killed by signal|exit code -?9\b|signal 9\b|sigkill)"
    r"|^killed$"
)
"""The system took the process."""
OF_A_WORKER = r"worker|bus error|shared memory|shm"
"""A process that was killed and was one of those that load data."""
WORKER_KILLED = r"dataloader worker.{0,60}(killed|exited unexpectedly)|bus error|shared memory.*shm"
SKIPPED_BATCH = (
    r"skip(ping|ped)?\b.{0,25}\b(batch|sample|iteration|step|item)|caught (an )?(exception|error)"
    r"|error (in|at|during) (batch|step|iteration|training)|failed (batch|step|iteration)"
    r"|exception (in|at|during) (batch|step|iteration|training)|continuing (after|despite|anyway)"
)
"""A loop that passes over what went wrong."""
