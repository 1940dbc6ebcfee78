"""Files that appear whole, all of them or none. Knows nothing about what is written into them."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def output_files(targets: Mapping[str, Path | None]) -> Iterator[dict[str, Path]]:
    """Yield a path to write for each target that is not None; the targets appear when the block ends well.

    On any exception, Ctrl-C included, what was written is removed and files that were there stay as they were.
    What is no regular file, such as a pipe, is written at the end.

    Args:
        targets: a name for each file, and where it shall stand.

    Raises:
        OSError: a file cannot be made.
    """
    wanted = {name: path for name, path in targets.items() if path is not None}
    drafts: dict[str, Path] = {}
    try:
        for name, path in wanted.items():
            drafts[name] = _draft(path)
        yield dict(drafts)
        for name, path in wanted.items():
            _put_in_place(drafts[name], path)
    finally:
        for draft in drafts.values():
            draft.unlink(missing_ok=True)


def _draft(path: Path) -> Path:
    """An empty new file: beside the target where it can take its name, else among the temporary files."""
    place = path.resolve()
    beside = _is_replaceable(place)
    folder = place.parent if beside else Path(tempfile.gettempdir())
    draft = folder / f".{place.name}.{secrets.token_hex(4)}.partial"
    draft.open("xb").close()
    if beside and place.exists():
        draft.chmod(place.stat().st_mode & 0o777)
    return draft


def _is_replaceable(place: Path) -> bool:
    return (place.is_file() or not place.exists()) and os.access(place.parent, os.W_OK)


def _put_in_place(draft: Path, path: Path) -> None:
    place = path.resolve()
    if _is_replaceable(place):
        draft.replace(place)
        return
    with draft.open("rb") as source, place.open("wb") as target:
        shutil.copyfileobj(source, target)
