"""`ns-tokens`: what nerfstudio's own commands have no place for."""

from __future__ import annotations

import sys
from typing import Annotated, Union

import tyro

from token_methods.commands.export import Export
from token_methods.commands.export_weights import ExportWeights
from token_methods.commands.import_weights import ImportWeights
from token_methods.commands.reconstruct import Reconstruct

Command = Union[
    Annotated[Reconstruct, tyro.conf.subcommand("reconstruct")],
    Annotated[ImportWeights, tyro.conf.subcommand("import")],
    Annotated[Export, tyro.conf.subcommand("export")],
    Annotated[ExportWeights, tyro.conf.subcommand("export-weights")],
]


def main(arguments: list[str] | None = None) -> None:
    """Run one subcommand; what the user got wrong ends in one line, not in a traceback."""
    command = tyro.cli(Command, args=arguments, prog="ns-tokens", description=__doc__)  # type: ignore[call-overload]
    try:
        command.main()
    except (ValueError, RuntimeError, OSError) as error:
        sys.exit(f"ns-tokens: {error}")
