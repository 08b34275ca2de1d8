"""`maskattn parity`: prove on this machine that implementations of attention agree."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import click

from maskattn.cli._progress import counting

__all__ = ["command"]


@click.command(name="parity")
@click.option("--cases", "pattern", metavar="GLOB", help="Only cases whose id matches, or contains, this.")
@click.option(
    "--kernel",
    help="The twins' kernel. exact (the default): every bit equal; any other: within the bounds of the float64 oracle, "
    "which is also what --impl is held to unless this says exact. blockwise: in tiles so small that most cases have "
    "several.",
)
@click.option(
    "--samples", type=click.IntRange(min=0), default=0, metavar="N", help="Draw random cases until N numbers."
)
@click.option("--impl", "specs", multiple=True, metavar="PKG.MOD:ADAPTER", help="Judge this instead of the twins.")
@click.option("--checkpoint", metavar="PATH", help="Prove it on a checkpoint of a known layout.")
@click.option("--layout", default="auto", show_default=True, help="The checkpoint's layout.")
@click.option("--heads", type=click.IntRange(min=1), help="Its attention heads, where no config.json says.")
@click.option("--kv-heads", type=click.IntRange(min=1), help="Its key/value heads, where fewer.")
@click.option("--against", metavar="PATH", help="A second checkpoint that must hold the same tensors.")
@click.option("--real", is_flag=True, help="Prove it on a real checkpoint and real sentences (all-MiniLM-L6-v2).")
@click.option("--faults", is_flag=True, help="Plant the known faults in each twin and show that each is caught.")
@click.option(
    "--training",
    is_flag=True,
    help="Train four models in both frameworks, step for step, and move runs across half way. --cases chooses among "
    "them (mlm/adamw/float32), the kernel is reference unless given; with --faults, plant faults in training.",
)
@click.option("--list", "list_only", is_flag=True, help="List the cases and run none.")
@click.option("--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="Write the results here.")
@click.option("--html", "html_path", type=click.Path(dir_okay=False, path_type=Path), help="Write a page of it here.")
@click.option(
    "--png", "png_path", type=click.Path(dir_okay=False, path_type=Path), help="Draw the losses of --training here."
)
@click.option("--verbose", is_flag=True, help="Show every failure, not the first 20.")
def command(
    pattern: str | None,
    kernel: str | None,
    samples: int,
    specs: tuple[str, ...],
    checkpoint: str | None,
    layout: str,
    heads: int | None,
    kv_heads: int | None,
    against: str | None,
    real: bool,
    faults: bool,
    training: bool,
    list_only: bool,
    json_path: Path | None,
    html_path: Path | None,
    png_path: Path | None,
    verbose: bool,
) -> None:
    """Run the same attention in every implementation and compare.

    By default both twins (and, for the exact kernel, NumPy itself) run every case; a float64 oracle judges each, and in
    exact mode every bit of output and gradients must agree. Exit code 0: every case ran and held. 1: something failed
    or nothing ran. 3: nothing failed, but some cases did not run (the table says which, and why).
    """
    from rich.console import Console

    console = Console()
    kernel = kernel or ("given" if specs else "reference" if training else "exact")
    runs = {"--real": real, "--checkpoint": checkpoint, "--training": training, "--faults": faults and not training}
    other = [name for name, on in runs.items() if on]
    of_cases = {"--samples": samples, "--impl": specs, "--html": html_path, "--list": list_only}
    if not training or faults:
        of_cases["--cases"] = pattern
    if png_path is not None and (not training or faults):
        raise click.UsageError("--png draws the runs of --training")
    _refuse_together(other, [name for name, on in of_cases.items() if on])
    _refuse_unknown(kernel, specs)
    for path in (json_path, html_path, png_path):
        if path is not None and not path.absolute().parent.is_dir():
            raise click.UsageError(f"cannot write {path}: there is no folder {path.absolute().parent}")
    if training:
        from maskattn.cli import _training

        raise SystemExit(_training.main(pattern, kernel, faults, json_path, png_path, console))
    if real or checkpoint:
        from maskattn.parity import checkpoint as on_checkpoint

        given: dict[str, Any] = {"layout": layout, "num_heads": heads, "num_kv_heads": kv_heads, "against": against}
        raise SystemExit(on_checkpoint.main(checkpoint, kernel=kernel, json_path=json_path, console=console, **given))
    if faults:
        from maskattn.parity.faults import show

        raise SystemExit(show(console))
    from maskattn.parity import cases as cases_

    selected = cases_.select(pattern)
    if list_only:
        for case in selected:
            click.echo(case.id)
        return
    if not selected and not samples:
        raise click.UsageError(f"--cases {pattern!r} matches none of the cases; --list shows their ids")
    raise SystemExit(_run(console, selected, kernel, samples, specs, json_path, html_path, verbose))


def _refuse_together(other: list[str], of_cases: list[str]) -> None:
    if len(other) > 1:
        raise click.UsageError(f"{' and '.join(other)} are runs of their own: give one")
    if other and of_cases:
        raise click.UsageError(f"{', '.join(of_cases)} belong to a run of cases: not with {other[0]}")


def _refuse_unknown(kernel: str, specs: tuple[str, ...]) -> None:
    """The twins' kernels are their own to name; either twin can be asked, and whichever is installed is."""
    if specs:
        return
    for twin in ("maskattn_torch", "maskattn_jax"):
        try:
            known = importlib.import_module(f"{twin}.kernels").KERNELS
        except ImportError:
            continue
        if kernel not in known:
            raise click.UsageError(f"--kernel must be one of {', '.join(known)}, got {kernel!r}")
        return


def _run(
    console: Any,
    selected: list[Any],
    kernel: str,
    samples: int,
    specs: tuple[str, ...],
    json_path: Path | None,
    html_path: Path | None,
    verbose: bool,
) -> int:
    from maskattn.parity import adapters, report, run

    implementations = _implementations(kernel, specs)
    with counting(console) as bar:
        task = bar.add_task("", total=len(selected))

        def advance(case: adapters.Case, elements: int) -> None:
            bar.update(task, advance=1, description=f"{elements:,} numbers · {case.id}")

        result = run.run(selected, implementations, kernel=kernel, samples=samples, progress=advance)
    report.render(result, console, verbose=verbose)
    try:
        if json_path is not None:
            json_path.write_text(report.as_json(result))
        if html_path is not None:
            from maskattn.parity import page

            page.write(result, html_path)
    except OSError as error:
        raise click.ClickException(f"cannot write {error.filename}: {error.strerror}") from error
    return result.exit_code


def _implementations(kernel: str, specs: tuple[str, ...]) -> list[Any]:
    from maskattn.parity import adapters

    try:
        if specs:
            return [adapters.load(spec) for spec in specs]
        return adapters.standard(kernel)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise click.ClickException(f"cannot load an implementation: {error}") from error
