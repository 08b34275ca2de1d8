"""`maskattn parity training`: the same training runs in both frameworks."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path

import click

from maskattn.cli._progress import counting
from maskattn.cli.parity import _options

__all__ = ["command"]


@click.command(name="training")
@_options.cases
@click.option("--kernel", default="reference", show_default=True, help="The twins' kernel.")
@_options.json
@click.option("--png", "png_path", type=_options.NewFile(), help="Draw the losses here.")
@_options.wide
def command(pattern: str | None, kernel: str, json_path: Path | None, png_path: Path | None, wide: bool) -> None:
    """Train six models in both frameworks, step for step.

    Half way each run moves to the other framework too. --cases chooses among them, for example mlm/adamw/float32.

    Exit code 0: every run held. 1: one did not. 2: nothing was proven.
    """
    from rich.console import Console

    console, outcomes = Console(), []
    with counting("loading") as bar:
        from maskattn.parity.report import training as report
        from maskattn.parity.training import run

        every = run.settings(_options.known(kernel))
        selected = [s for s in every if pattern is None or pattern in s.id or fnmatchcase(s.id, pattern)]
        if not selected:
            raise click.UsageError(f"--cases {pattern!r} matches none of {', '.join(setting.id for setting in every)}")
        bar.expect(len(selected))
        for setting in selected:
            outcomes.append(run.run_setting(setting, progress=bar.doing))
            bar.advance()
    report.render(outcomes, console, steps=run.STEPS, wide=wide)
    with _options.writing():
        if json_path is not None:
            json_path.write_text(report.as_json(outcomes))
        if png_path is not None:
            from maskattn.parity.report.training_picture import write_png

            try:
                write_png(outcomes, png_path)
            except (ImportError, ValueError) as error:
                raise click.ClickException(str(error)) from error
    raise SystemExit(run.exit_code(outcomes))
