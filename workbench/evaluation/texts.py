"""The texts that models are judged on: :mod:`workbench.quantization.texts`, whose ``test`` part is held out."""

from workbench.quantization.texts import offline_part, offline_text, text_sha256, windows

__all__ = ["offline_part", "offline_text", "text_sha256", "windows"]
