"""What jobs that train adapters share: the optimizer, the model that learns, what is published."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shunter.config.errors import ShunterError
from shunter.surgery.config import AdapterConfig
from shunter.train.config import TrainConfig, TrainHow

if TYPE_CHECKING:
    from shunter.models.decoder import Decoder
    from shunter.parallel.part import Fill
    from shunter.train.loop import Milestone

FOLDER = "adapter"  # beside the merged model, in peft's format


def choose_optimizer(data: Any) -> Any:
    """A configuration as written, with `train.optimizer: adamw` where there is an adapter and none is named.

    Muon makes all directions of an update equally long, and an adapter lives of having few.
    """
    if not isinstance(data, dict) or data.get("adapter") is None:
        return data
    train = data.get("train")
    if isinstance(train, dict) and "optimizer" not in train:
        return {**data, "train": {**train, "optimizer": "adamw"}}
    if isinstance(train, TrainConfig) and "optimizer" not in train.model_fields_set:
        return {**data, "train": train.model_copy(update={"optimizer": "adamw"})}
    return data


def check(adapter: AdapterConfig | None, train: TrainConfig, how: TrainHow) -> None:
    """Raise ShunterError for a training that adapters cannot have."""
    if adapter is None:
        return
    if how.parallel is not None and how.parallel.recompute == "selective":
        raise ShunterError(
            "recompute: selective would keep what a product made, and adapters add to it in place",
            where="how.parallel",
            mend="Use recompute: full.",
        )
    if how.parallel is not None and how.parallel.gather == "bf16":
        raise ShunterError(
            "gather: bf16 would round adapters and the scales of packed weights",
            where="how.parallel",
            mend="Leave gather out.",
        )
    if train.restart is not None:
        raise ShunterError(
            "a planned restart draws all weights anew, and those under an adapter are not restored",
            where="train.restart",
            mend="Leave out either restart or adapter.",
        )


def load(
    folder: Path, adapter: AdapterConfig | None, seed: int, *, laid_out: bool = False
) -> tuple[Decoder, Fill | None]:
    """The model of a folder, ready to be trained: whole, or by adapters. laid_out: over several ranks, each
    of which reads what it holds; the second answer reads it."""
    from shunter.models.hf import load_model, open_model

    if adapter is None:
        return open_model(folder) if laid_out else (load_model(folder), None)
    from shunter.surgery.lora import attach, filler

    if laid_out:
        decoder, read = open_model(folder)
        attach(decoder, adapter, seed)
        return decoder, filler(decoder, seed, read)
    # As stored where it is quantised: there is no need for a whole model in float32.
    decoder = load_model(folder) if adapter.quantise == "none" else load_model(folder, None)
    attach(decoder, adapter, seed)
    return decoder, None


def publish(whole: Decoder, adapter: AdapterConfig, out: Path) -> Decoder:
    """Write the adapters of a trained model beside it; returns the model with them merged."""
    from shunter.surgery.adapter_folder import save_adapter
    from shunter.surgery.lora import merged

    save_adapter(whole, adapter, out / FOLDER)
    return merged(whole)


def looking(look: Milestone, plain: Decoder, whole: Decoder) -> Milestone:
    """A milestone that looks at `plain`, into which the present weights of `whole` are merged before."""
    from shunter.surgery.lora import merge_into

    def merge_and_look(step: int, tokens: int) -> Mapping[str, float]:
        merge_into(plain, whole)
        return look(step, tokens)

    return merge_and_look
