"""Files that appear whole, all of them or none. Knows nothing about what is written into them."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path


@contextmanager
def output_files(targets: Mapping[str, Path | None]) -> Iterator[dict[str, Path]]:
    """Yield a path to write for each target that is not None; the targets appear when the block ends well.

    On any exception, Ctrl-C included, what was written is removed and files that were there stay as they were, or are
    put back where it comes while they are replaced. What is no regular file, such as a pipe, is written at the end and
    before the others; what went into it cannot be taken back.

    Args:
        targets: a name for each file, and where it shall stand.

    Raises:
        OSError: a target cannot be written.
    """
    wanted = {name: path for name, path in targets.items() if path is not None}
    drafts: dict[str, Path] = {}
    try:
        for name, path in wanted.items():
            drafts[name] = _draft(path)
        yield dict(drafts)
        _put_in_place([(drafts[name], _place(path)) for name, path in wanted.items()])
    finally:
        for draft in drafts.values():
            draft.unlink(missing_ok=True)


def _draft(path: Path) -> Path:
    """An empty new file: beside the target where it can take its name, else among the temporary files."""
    place = _place(path)
    beside = _is_replaceable(place)
    draft = _new_name(place, "partial", beside=beside)
    draft.open("xb").close()
    if beside and place.exists():
        draft.chmod(place.stat().st_mode & 0o777)
    return draft


def _place(path: Path) -> Path:
    """What a link means, which itself stays a link; what a link to a pipe means can be opened by the link alone."""
    return path.resolve() if path.is_file() or not path.exists() else path


def _new_name(place: Path, ending: str, *, beside: bool) -> Path:
    folder = place.parent if beside else Path(tempfile.gettempdir())
    return folder / f".{place.name}.{secrets.token_hex(4)}.{ending}"


def _is_replaceable(place: Path) -> bool:
    return (place.is_file() or not place.exists()) and os.access(place.parent, os.W_OK)


def _put_in_place(pairs: list[tuple[Path, Path]]) -> None:
    """Move drafts to their places; on an exception everything is as it was.

    What must be copied comes first, for it can fail halfway, where a rename cannot.
    """
    with ExitStack() as copies, ExitStack() as undoing:
        for draft, place in sorted(pairs, key=lambda pair: _is_replaceable(pair[1])):
            replaceable = _is_replaceable(place)
            undoing.callback(_kept(place, copies, beside=replaceable))
            if replaceable:
                draft.replace(place)
            else:
                _copy(draft, place)
        undoing.pop_all()


def _kept(place: Path, copies: ExitStack, *, beside: bool) -> Callable[[], object]:
    """Keep what a place holds until ``copies`` is closed; what is returned puts it back."""
    if not place.exists():
        return lambda: place.unlink(missing_ok=True)
    if not place.is_file():
        return lambda: None  # a pipe keeps nothing
    copy = _new_name(place, "before", beside=beside)
    copies.callback(copy.unlink, missing_ok=True)
    if not beside:
        shutil.copy2(place, copy)
        return lambda: _copy(copy, place)
    try:
        os.link(place, copy)
    except OSError:  # a file system without links
        shutil.copy2(place, copy)
    return lambda: copy.replace(place)


def _copy(source: Path, place: Path) -> None:
    with source.open("rb") as content, place.open("wb") as target:
        shutil.copyfileobj(content, target)
