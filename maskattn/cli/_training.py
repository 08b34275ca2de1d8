"""`maskattn parity --training`: the same training runs in both frameworks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from maskattn.cli._progress import counting


def main(
    pattern: str | None, kernel: str, faults: bool, json_path: Path | None, png_path: Path | None, console: Any
) -> int:
    """Runs the settings whose id matches, or contains, `pattern`, or plants the faults; the exit code."""
    from fnmatch import fnmatchcase

    from maskattn.parity.training import faults as faults_, report, run

    if faults:
        return faults_.show(console)
    every = run.settings(kernel)
    selected = [s for s in every if pattern is None or pattern in s.id or fnmatchcase(s.id, pattern)]
    if not selected:
        raise click.UsageError(f"--cases {pattern!r} matches none of {', '.join(setting.id for setting in every)}")
    outcomes = []
    with counting(console) as bar:
        task = bar.add_task("", total=len(selected))
        for setting in selected:
            try:
                outcomes.append(run.run(setting, progress=lambda text: bar.update(task, description=text)))
            except ImportError as error:
                raise click.ClickException(str(error)) from error
            bar.advance(task)
    report.render(outcomes, console, steps=run.STEPS)
    try:
        if json_path is not None:
            json_path.write_text(report.as_json(outcomes))
        if png_path is not None:
            from maskattn.parity.training import picture

            picture.write_png(outcomes, png_path)
    except OSError as error:
        raise click.ClickException(f"cannot write {error.filename}: {error.strerror}") from error
    except (ImportError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    return report.exit_code(outcomes)
