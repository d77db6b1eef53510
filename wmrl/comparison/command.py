"""The command `wmrl compare`: measure, print, and write the page."""

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from wmrl import files, interrupts, stdout
from wmrl.comparison import page, table
from wmrl.comparison.comparison import Options, compare
from wmrl.errors import ArtifactError, ConfigError
from wmrl.log import SCHEMA_VERSION, Log

NAME = "compare"


def run(
    logdirs: Sequence[Path],
    options: Options,
    out: Path,
    *,
    as_json: bool = False,
    quiet: bool = False,
    progress: bool | None = None,
) -> None:
    """Compare, print the table (or one JSON object) on stdout, and write the page to `out`.

    Raises:
        ConfigError: if `out` is a folder.
        UserError: as `compare`; and if the page cannot be written.
        Stopped: if a signal asked to stop; nothing is written.
    """
    if out.is_dir():
        raise ConfigError(f"--out {out} is a folder; name a file: {out / 'compare.html'}")
    _check_writable(out)
    interrupts.install()
    with (
        tempfile.TemporaryDirectory() as folder,  # logdirs are only read: what a log keeps goes where it is forgotten
        Log(NAME, folder, progress=progress, verbosity=-int(quiet), as_json=as_json) as log,
    ):
        found = compare(logdirs, options, log)
        files.atomic_text(out, page.render(found))
        log.say(f"wrote {out}")
    if as_json:
        values = {"schema_version": SCHEMA_VERSION, **table.record(found), "page": str(out)}
        stdout.write(json.dumps(values, indent=2) + "\n")
    else:
        stdout.write(table.render(found))


def _check_writable(out: Path) -> None:
    """Tell before hours of measuring, and without making a folder, that the page cannot be written."""
    there = next(folder for folder in out.absolute().parents if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise ArtifactError(f"{out} cannot be written: {there} is no folder that can be written to")
