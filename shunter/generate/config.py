"""How tokens are chosen. Imports without torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from shunter.config.base import Config


class SamplingConfig(Config):
    """How the next token is drawn from the model's distribution, and when to stop."""

    temperature: float = Field(
        1.0, ge=0, description="Divides the logits; 0 takes the likeliest token each time."
    )
    top_k: int = Field(0, ge=0, description="Draw among the k likeliest tokens; 0: among all.")
    top_p: float = Field(
        1.0, gt=0, le=1, description="Draw among the likeliest tokens that together have this probability."
    )
    max_new_tokens: int = Field(256, ge=1, description="Tokens to write at most.")
    batch: int = Field(32, ge=1, description="Prompts that are continued together.")


class ServerConfig(Config):
    """Where a server of vLLM or SGLang is that writes in the place of our own generator."""

    url: str = Field(pattern=r"^https?://[^/\s]+(/.*)?$", description="Where it listens, without a path.")
    model: str | None = Field(None, description="vllm: name of the model there; default: the first one.")
    folder: str | None = Field(
        None,
        description="Folder for new weights, which the server sees under the same name; default: of the job.",
    )
    key: str | None = Field(None, description="Environment variable that holds the server's key.")
    timeout: float = Field(600.0, gt=0, description="Seconds after which a request is given up.")


class ToolConfig(Config):
    """Tools that a model may ask while it answers, and how it writes a call."""

    tools: list[Literal["calculator", "python"]] = Field(
        ["calculator"],
        min_length=1,
        max_length=2,
        description="calculator; python: a program runs in a sandbox, and what it prints is the answer.",
    )
    form: Literal["note", "json"] = Field(
        "note",
        description='A call ends a turn. note: `<<12*7>>`; json: `<tool_call>{"name": ..., "arguments": ...}'
        "</tool_call>`, as Qwen and Hermes write it.",
    )
    most: int = Field(4, ge=1, le=100, description="Calls in one answer; the turn after the last ends it.")
    room: int = Field(32, ge=1, description="Tokens of what a tool says, about: memory set aside.")
    seconds: float = Field(
        2.0,
        gt=0,
        exclude_if=lambda value: value == 2.0,  # tools without are what they were before there was any
        description="python: CPU time of a program; by the clock twice that, and at least a second.",
    )

    @model_validator(mode="after")
    def _told_apart(self) -> ToolConfig:
        if len(set(self.tools)) < len(self.tools):
            raise ValueError("a tool is named twice")
        if self.form == "note" and len(self.tools) > 1:
            raise ValueError("a note names no tool: set form to json for several, or leave one")
        if self.form == "note" and "python" in self.tools:
            raise ValueError("a note is one line without < and >, which holds no program: set form to json")
        if self.seconds != 2.0 and "python" not in self.tools:
            raise ValueError("seconds is of programs, and there is no tool python")
        return self
