"""Why no layout has what a person fixed: the first of the reasons, from the model outwards. Imports without
torch."""

from __future__ import annotations

from math import prod

from shunter.plan.choices import SCHEDULES, Question
from shunter.plan.space import Fixed, divisors, row_parts, space

AXES = ("pp", "dp", "fsdp", "cp", "tp")
SHOWN = 12


def why_none(question: Question, fixed: Fixed) -> tuple[str, str]:
    """(why, what to do) where `space(question, fixed)` is empty."""
    for reason in (_unknown, _experts, _model, _degrees, _row, _batch, _pipeline):
        if (found := reason(question, fixed)) is not None:
            return found
    return _together(question, fixed)


def _given(fixed: Fixed, name: str) -> int | None:
    value = fixed.get(name)
    return value if isinstance(value, int) else None


def _either(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:SHOWN])) + (" ..." if len(numbers) > SHOWN else "")


def _unknown(question: Question, fixed: Fixed) -> tuple[str, str] | None:
    """What the practice does not do."""
    practised = question.practice
    for axis in (*AXES, "ep", "etp"):
        if axis not in practised.axes and (_given(fixed, axis) or 1) > 1:
            return f"{practised.name} has no {axis}", f"Leave {axis} out, or plan with another --practice."
    for name, known in (("schedule", practised.schedules), ("recompute", practised.recompute)):
        if name in fixed and fixed[name] not in known:
            verb = "has no schedule" if name == "schedule" else "does not recompute by"
            return f"{practised.name} {verb} {fixed[name]}", f"{name} may be {', '.join(known)}."
    return None


def _experts(question: Question, fixed: Fixed) -> tuple[str, str] | None:
    experts, ep, etp = question.spec.experts, _given(fixed, "ep"), _given(fixed, "etp")
    if experts is None:
        for name, degree in (("ep", ep), ("etp", etp)):
            if (degree or 1) > 1:
                return f"the model has no experts, which {name} would divide", f"Leave {name} out."
        return None
    if ep is not None and experts.num_experts % ep:
        legal = _either(divisors(experts.num_experts))
        return f"{experts.num_experts} experts do not divide by {ep}", f"ep may be {legal}."
    if etp is not None and experts.ffn_dim % etp:
        return f"experts of width {experts.ffn_dim} do not divide by {etp}", "Use another etp."
    return None


def _model(question: Question, fixed: Fixed) -> tuple[str, str] | None:
    """What layers and heads do not allow."""
    spec, pp, tp = question.spec, _given(fixed, "pp"), _given(fixed, "tp")
    world = question.fabric.world
    if pp is not None and pp > spec.num_layers:
        legal = [size for size in divisors(world) if size <= spec.num_layers]
        return f"{spec.num_layers} layers make no {pp} stages", f"pp may be {_either(legal)}."
    chunks = _given(fixed, "chunks")
    if chunks is not None and chunks * (pp or 1) > spec.num_layers:
        stages = chunks * (pp or 1)
        return f"{spec.num_layers} layers make no {stages} stages", "Use fewer chunks."
    if tp is not None and not _heads(question, tp):
        legal = [size for size in divisors(world) if _heads(question, size)]
        whose = f"{spec.num_heads} heads with {spec.num_kv_heads} of keys and values"
        return f"{whose} do not divide by {tp}", f"tp may be {_either(legal)}."
    return None


def _heads(question: Question, tp: int) -> bool:
    heads, keys = question.spec.num_heads, question.spec.num_kv_heads
    return heads % tp == 0 and max(keys, tp) % min(keys, tp) == 0


def _degrees(question: Question, fixed: Fixed) -> tuple[str, str] | None:
    """Degrees that the devices do not divide by."""
    world = question.fabric.world
    given = {axis: degree for axis in AXES if (degree := _given(fixed, axis)) is not None}
    for axis, degree in given.items():
        if world % degree:
            legal = [size for size in divisors(world) if axis != "tp" or _heads(question, size)]
            return f"{world} devices do not divide by {degree}", f"{axis} may be {_either(legal)}."
    whole = prod(given.values())
    names = " x ".join(f"{axis} {degree}" for axis, degree in given.items())
    if world % whole or (len(given) == len(AXES) and whole != world):
        name = max(given, key=given.__getitem__)
        rest = world // (whole // given[name]) if world % (whole // given[name]) == 0 else None
        mend = f"With the others {name} may be {_either(divisors(rest))}." if rest else f"Leave {name} out."
        return f"{names} is {whole} devices", mend
    ranks = world // (_given(fixed, "pp") or 1)
    spread = (_given(fixed, "ep") or 1) * (_given(fixed, "etp") or 1)
    if ranks % spread:
        return f"ep x etp is {spread}, and a stage has {ranks} devices", "Use a divisor of them."
    return None


def _row(question: Question, fixed: Fixed) -> tuple[str, str] | None:
    cp, tp = _given(fixed, "cp") or 1, _given(fixed, "tp") or 1
    parts = row_parts(question.practice, cp, tp)
    if question.row % parts:
        near = [size for size in (question.row // parts * parts, -(-question.row // parts) * parts) if size]
        names = " and ".join(f"{name} {degree}" for name, degree in (("cp", cp), ("tp", tp)) if degree > 1)
        return (
            f"rows of {question.row} tokens do not divide into the {parts} parts of {names}",
            f"Use rows of {' or '.join(map(str, near))} tokens, or leave {names.replace(' and ', ', ')} out.",
        )
    return None


def _batch(question: Question, fixed: Fixed) -> tuple[str, str] | None:
    """Rows that data ranks, or micro-batches, do not divide."""
    data = (_given(fixed, "dp") or 1) * (_given(fixed, "fsdp") or 1)
    if question.batch % data:
        near = f"{question.batch // data * data} or {-(-question.batch // data) * data}"
        return (
            f"a batch of {question.batch} does not divide by the {data} data ranks",
            f"Use a batch of {near.removeprefix('0 or ')}, or leave dp and fsdp out.",
        )
    size = _given(fixed, "microbatch")
    if size is not None:
        free = {name: value for name, value in fixed.items() if name in (*AXES, "ep", "etp")}
        legal = sorted(set(space(question, free).rows.tolist()))
        if legal and size not in legal:
            return (
                f"no rank's share of a batch of {question.batch} divides into micro-batches of {size}",
                f"microbatch may be {_either(legal)}.",
            )
    if not fixed or not space(question, {}):
        return (
            f"on {question.fabric.world} devices with {question.spec.num_layers} layers, "
            f"{question.spec.num_heads} heads and a batch of {question.batch} no degrees come to all devices",
            "Use a batch that divides by the devices, a row that does, or another number of devices.",
        )
    return None


def _pipeline(question: Question, fixed: Fixed) -> tuple[str, str] | None:
    """Schedules that need stages, or micro-batches, that are not there."""
    name, pp, chunks = fixed.get("schedule"), _given(fixed, "pp"), _given(fixed, "chunks")
    if pp == 1 and (chunks or 1) > 1:
        return f"one stage has no {chunks} chunks", "Leave chunks out, or give pp."
    one = {"1f1b": 1, "zb1p": 1, "gpipe": 1, "zbv": 2}
    if chunks is not None and isinstance(name, str) and one.get(name, chunks) != chunks:
        return f"{name} has {one[name]} stages a rank, not {chunks}", "Leave chunks out."
    if name == "interleaved-1f1b" and chunks == 1:
        return "interleaved-1f1b has several stages a rank", "Use chunks of 2 or more."
    if name is not None and fixed.get("recompute") == "layer" and name in ("zb1p", "zbv"):
        return (
            f"{name} holds what single layers compute again until its second half of the backward",
            "Use another schedule, or recompute=stage or none.",
        )
    return None


def _together(question: Question, fixed: Fixed) -> tuple[str, str]:
    """The first choice without which there are layouts, and what it may be beside the others."""
    for name, value in fixed.items():
        free = {key: other for key, other in fixed.items() if key != name}
        choices = space(question, free)
        if not len(choices):
            continue
        if name == "schedule":
            known = [SCHEDULES[number] for number in sorted(set(choices.schedule.tolist()))]
        elif name == "recompute":
            known = sorted({str(choices.settings(n)["recompute"]) for n in range(len(choices))})
        else:
            array = choices.rows if name == "microbatch" else getattr(choices, name)
            known = [str(number) for number in sorted(set(array.tolist()))[:SHOWN]]
        rest = ", ".join(f"{key} {other}" for key, other in free.items()) or "this model and batch"
        return f"{name} {value} does not go with {rest}", f"Beside it {name} may be {', '.join(known)}."
    return "these choices exclude each other", "Leave some of them out."
