"""The version of NVIDIA's driver, which torch does not tell. Asks the driver's own library; knows no GPUs."""

from __future__ import annotations

import ctypes

LIBRARIES = ("libnvidia-ml.so.1", "nvml.dll")
UNKNOWN = "unknown"
_LENGTH = 80  # NVML_SYSTEM_DRIVER_VERSION_BUFFER_SIZE


def driver_version() -> str:
    """As nvidia-smi shows it, such as "580.65.06"; "unknown" where the library is missing or refuses.

    By NVML (https://docs.nvidia.com/deploy/nvml-api/), ``nvmlSystemGetDriverVersion``.
    """
    nvml = _library()
    if nvml is None or nvml.nvmlInit_v2() != 0:
        return UNKNOWN
    try:
        text = ctypes.create_string_buffer(_LENGTH)
        failed = nvml.nvmlSystemGetDriverVersion(text, ctypes.c_uint(_LENGTH))
        return UNKNOWN if failed else text.value.decode("ascii", "replace")
    finally:
        nvml.nvmlShutdown()


def _library() -> ctypes.CDLL | None:
    for name in LIBRARIES:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None
