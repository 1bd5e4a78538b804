"""`shunter export MODEL FOLDER`: a model as a Hugging Face folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from shunter.config.errors import ShunterError


def export(
    model: Annotated[str, typer.Argument(help="A job's name, NAME-ID, or a model's folder.")],
    folder: Annotated[Path, typer.Argument(help="Folder to write; must not exist or be empty.")],
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16; default: as stored.")] = "",
    max_shard_size: Annotated[str, typer.Option(help="Largest file, such as 5GB or 200MB.")] = "5GB",
    merge: Annotated[
        Path | None, typer.Option(help="Folder of a peft adapter of this model, merged into what is written.")
    ] = None,
    adapter: Annotated[
        bool, typer.Option("--adapter", help="Write the adapters that the job trained alone, for peft.")
    ] = False,
    store: Annotated[str, typer.Option(envvar="SHUNTER_STORE", help="The artefact store.")] = "shunter-store",
) -> None:
    """Write a model with its tokenizer so that transformers and vLLM load it."""
    from shunter.jobs import models

    if adapter and (dtype or merge):
        raise ShunterError("--adapter writes adapters as they are", mend="Leave out --dtype and --merge.")
    if adapter:
        typer.echo(models.export_adapter(store, model, folder))
    else:
        typer.echo(models.export(store, model, folder, dtype, max_shard_size, merge))
