"""Check task files of any origin: does gold run, is it grounded, does it keep the policy."""

from pathlib import Path

REPORT_COMMAND = "audit report"
"""Name under which a report and its plots are recorded, whichever command line wrote them."""
PLOT_KINDS = ("tools", "wishes", "sizes")


def report_files(path: Path) -> list[Path]:
    """Return the files of a report: the Markdown text and the plots that it may have."""
    stem = path.stem.lower()
    return [path, *(path.parent / "plots" / f"{stem}_{kind}.png" for kind in PLOT_KINDS)]
