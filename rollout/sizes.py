"""Sizes in bytes, as people write and read them."""

import re

_UNITS = {
    "B": 1,
    "kB": 10**3,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 1 << 10,
    "MiB": 1 << 20,
    "GiB": 1 << 30,
    "TiB": 1 << 40,
}
SIZE_PATTERN = rf"^[0-9]+(\.[0-9]+)? ?({'|'.join(_UNITS)})$"


def parse_size(text: str) -> int:
    """Bytes, of `500 MB` or `1.5 GiB`. Raises ValueError for anything else."""
    found = re.fullmatch(r"([0-9.]+) ?(\w+)", text) if re.match(SIZE_PATTERN, text) else None
    if found is None:
        raise ValueError(f"{text!r} is no size")
    return round(float(found[1]) * _UNITS[found[2]])


def show_size(size_bytes: int) -> str:
    """1.5 GiB, 300.0 MiB, 17 bytes."""
    for unit in ("GiB", "MiB", "KiB"):
        if size_bytes >= _UNITS[unit]:
            return f"{size_bytes / _UNITS[unit]:.1f} {unit}"
    return f"{size_bytes} bytes"
