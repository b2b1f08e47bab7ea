"""``state-manager doctor``: shows what the checks in ``doctor/`` find.

Rules: as in ``cli_commands``. A finding is one line, and one more for what to write instead; problems come first. The
exit code is 1 if there is a problem; advice is no reason to fail. Flask and the app are imported in other processes.
"""

from __future__ import annotations

import argparse
import os
import textwrap

from .cli_commands import OK, show
from .cli_output import terminal_width
from .doctor import comparing, installation
from .doctor.findings import ORDER, Finding
from .settings import resolve_address

PROBLEM = 1
INDENT = " " * 9


def doctor(args: argparse.Namespace) -> int:
    if args.app == "":
        raise ValueError("--app names no app: write MODULE:NAME")
    address = resolve_address(args.dir)
    findings = list(installation.look(address))
    if args.app:
        findings += comparing.look(args.app)
    findings.sort(key=lambda finding: ORDER.index(finding.severity))
    counts = {severity: sum(finding.severity == severity for finding in findings) for severity in ORDER}
    document = {"address": str(address), "app": args.app, "counts": counts}
    lines = [line for finding in findings for line in lines_of(finding, terminal_width())]
    summary = f"{counts['problem']} problem{'s' * (counts['problem'] != 1)}, {counts['advice']} advice"
    show(args, document | {"findings": [finding._asdict() for finding in findings]}, "\n".join([*lines, summary]))
    return PROBLEM if counts["problem"] else OK


def lines_of(finding: Finding, width: int | None) -> list[str]:
    """Return a finding as lines, which are broken only for a terminal."""
    where = "" if finding.file is None else f"{shortest(finding.file)}:{finding.line}: "
    said = [f"{finding.severity:8} {where}{finding.check}: {finding.message}"]
    if finding.fix is not None:
        said.append(f"{INDENT}fix: {finding.fix}")
    if width is None:
        return said
    return [
        part
        for line in said
        for part in textwrap.wrap(
            line, max(width, 40), subsequent_indent=INDENT, break_on_hyphens=False, break_long_words=False
        )
    ]


def shortest(file: str) -> str:
    """Return a path as it would be typed here."""
    relative = os.path.relpath(file)
    return file if relative.startswith("..") else relative
