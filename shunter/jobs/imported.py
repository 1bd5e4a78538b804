"""The job `import`: a model from a Hugging Face folder on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from shunter.config.errors import ShunterError
from shunter.jobs.models import special
from shunter.models.families import from_config
from shunter.recipe import disk
from shunter.recipe.job import JobConfig, JobContext
from shunter.surgery.peft_config import CONFIG, WEIGHTS, check_config

ENDINGS = (".safetensors", ".json", ".jinja", ".model", ".txt")


class ImportConfig(JobConfig):
    """Takes a model that was made elsewhere: to be tuned, trained further, evaluated, exported."""

    path: str = Field(
        description="Folder with config.json, safetensors and tokenizer.json, relative to the recipe."
    )
    adapter: str | None = Field(
        None,
        exclude_if=lambda value: value is None,
        description="Folder of a peft adapter for this model, relative to the recipe; it is merged.",
    )


class ImportJob:
    """Writes a Hugging Face model folder."""

    kind: ClassVar[str] = "import"
    produces: ClassVar[str] = "model"
    version: ClassVar[int] = 1
    Config: ClassVar[type[JobConfig]] = ImportConfig

    def check(self, config: ImportConfig, base: Path) -> Sequence[str]:
        folder = base / config.path
        if not (folder / "config.json").is_file():
            raise ShunterError(
                "this folder holds no model (no config.json)",
                where=str(folder),
                mend="Correct the path, or download the model into it.",
            )
        told = disk.read_json(folder / "config.json")
        if told is None:
            raise ShunterError("holds no JSON object", where=str(folder / "config.json"))
        from_config(told, str(folder / "config.json"))
        if not any(folder.glob("*.safetensors")):
            raise ShunterError(
                "there are no weights (*.safetensors)",
                where=str(folder),
                mend="Convert pickled weights with a tool that you trust: loading them can run code.",
            )
        if config.adapter is not None:
            check_config(base / config.adapter)
        if not (folder / "tokenizer.json").is_file():
            return [f"{config.path} has no tokenizer.json: the model can be exported, but not talked to"]
        return []

    def reads(self, config: ImportConfig, base: Path) -> Sequence[Path]:
        found = sorted(path for path in (base / config.path).iterdir() if path.name.endswith(ENDINGS))
        if config.adapter is not None:
            found += [base / config.adapter / name for name in (CONFIG, WEIGHTS)]
        return found

    def disk_bytes(self, config: ImportConfig, base: Path) -> int:
        return sum(path.stat().st_size for path in self.reads(config, base))

    def run(self, context: JobContext[ImportConfig]) -> dict[str, Any]:
        from shunter.models.hf import load_model, save_model
        from shunter.surgery.adapter_folder import merge_adapter

        folder = context.base / context.config.path
        # Loaded and written anew: what is published is known to be whole, and to be read here.
        model = load_model(folder)
        if context.config.adapter is not None:
            merge_adapter(model, context.base / context.config.adapter)
        save_model(model, context.out, tokenizer_folder=folder, **special(folder))
        spec = model.spec
        return {
            "parameters": spec.num_parameters,
            "context": spec.max_positions,
            "vocab_size": spec.vocab_size,
        }


JOB = ImportJob()
