"""`ns-tokens`: what nerfstudio's own commands have no place for."""

from __future__ import annotations

import sys
from typing import Annotated

import torch
import tyro

from token_methods.commands.detokenize import Detokenize
from token_methods.commands.export import Export
from token_methods.commands.export_weights import ExportWeights
from token_methods.commands.import_weights import ImportWeights
from token_methods.commands.reconstruct import Reconstruct
from token_methods.commands.tokenize import Tokenize
from token_methods.multiscene.plain_errors import PLAIN_ERRORS

Command = (
    Annotated[Reconstruct, tyro.conf.subcommand("reconstruct")]
    | Annotated[Tokenize, tyro.conf.subcommand("tokenize")]
    | Annotated[Detokenize, tyro.conf.subcommand("detokenize")]
    | Annotated[ImportWeights, tyro.conf.subcommand("import")]
    | Annotated[Export, tyro.conf.subcommand("export")]
    | Annotated[ExportWeights, tyro.conf.subcommand("export-weights")]
)
EXPECTED = (*PLAIN_ERRORS, ValueError, OSError, torch.cuda.OutOfMemoryError)
"""What users and machines do wrong. Anything else is a fault of ours and shows where it happened."""


def main(arguments: list[str] | None = None) -> None:
    """Run one subcommand; what the user got wrong ends in one sentence, not in a traceback."""
    command = tyro.cli(Command, args=arguments, prog="ns-tokens", description=__doc__)
    try:
        command.main()
    except EXPECTED as error:
        sys.exit(f"ns-tokens: {error}")
    except KeyboardInterrupt:
        sys.exit("ns-tokens: interrupted")
