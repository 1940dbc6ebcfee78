"""How the command line writes sizes and times."""

from __future__ import annotations


def size(size_bytes: int) -> str:
    """Bytes as "1.5 GB"; decimal prefixes, as disks are sold."""
    value = float(size_bytes)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} GB"


def count(number: int) -> str:
    """A count as "135 million"."""
    if number >= 10**9:
        return f"{number / 10**9:.1f} billion"
    return f"{number / 10**6:.0f} million" if number >= 10**6 else f"{number:,}"
