"""``taskedge doctor``: checks of the installation."""

from __future__ import annotations

from dataclasses import asdict

import click

from taskedge.cli.shared_options import json_option, print_json

EPILOG = """\b
Examples:
  taskedge doctor
  taskedge doctor --json
\b
Exit codes: 0 everything works, though it may be slow; 2 something is broken.
"""


@click.command(epilog=EPILOG)
@json_option
def command(as_json: bool) -> int:
    """Check versions, threads, kernels and memory, and print what is slow or broken and why."""
    from taskedge.profiling.doctor import BROKEN, check_installation

    findings = check_installation()
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        for finding in findings:
            click.echo(f"{finding.state:6} {finding.subject:11} {finding.found}")
            if finding.advice:
                click.echo(f"{'':18} -> {finding.advice}")
    return 2 if any(finding.state == BROKEN for finding in findings) else 0
