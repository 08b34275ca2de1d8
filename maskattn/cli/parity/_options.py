"""What several of the programs take, and what they do alike."""

from __future__ import annotations

import importlib

import click

from maskattn.cli._written import NewFile, json, wide, writing

__all__ = ["NewFile", "cases", "json", "known", "wide", "writing"]


def known(kernel: str) -> str:
    """The kernel. The twins' kernels are their own to name; either twin can be asked, and whichever is installed is.

    Raises:
        click.UsageError: there is no such kernel.
    """
    for twin in ("maskattn_torch", "maskattn_jax"):
        try:
            names = importlib.import_module(f"{twin}.kernels").KERNELS
        except ImportError:
            continue
        if kernel not in names:
            raise click.UsageError(f"--kernel must be one of {', '.join(names)}, got {kernel!r}")
        break
    return kernel


cases = click.option("--cases", "pattern", metavar="GLOB", help="Only those whose id matches, or contains, this.")
