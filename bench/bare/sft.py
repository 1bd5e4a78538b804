"""Instruction tuning in plain torch; see recipes/tasks/sft.py."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.nn.functional as F
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from recipes.tasks import sft as task

EPOCHS, BATCH, RATE, EVERY = 2, 40, 0.004, 20
TP = int(os.environ.get("TP", "1"))
FOLDER = Path(os.environ.get("FOLDER", "bare-sft"))


# bare: begin
def lay_out(model, mesh):
    if mesh.size() == 1:
        return
    for layer in model.layers:
        plan = {name: ColwiseParallel() for name in ("q_attn", "k_attn", "v_attn", "fc1")}
        plan |= {name: RowwiseParallel() for name in ("o_attn", "fc2")}
        parallelize_module(layer, mesh, plan)


def collate(examples):
    texts = [prompt + answer for prompt, answer in examples]
    longest = max(map(len, texts))
    ids = torch.tensor([[task.WORDS.index(c) for c in text.ljust(longest, ".")] for text in texts])
    starts = torch.tensor([len(prompt) for prompt, _ in examples])
    place = torch.arange(1, longest)
    ends = torch.tensor([len(text) for text in texts])
    return {"ids": ids, "starts": starts, "mask": (place >= starts[:, None]) & (place < ends[:, None])}


def loss(model, batch):
    logits = model(batch["ids"])[:, :-1]
    each = F.cross_entropy(logits.transpose(1, 2), batch["ids"][:, 1:], reduction="none")
    return (each * batch["mask"]).sum(), batch["mask"].sum()


def predict(model, batch):
    ids, written = batch["ids"].clone(), ["" for _ in batch["starts"]]
    for place in range(int(batch["starts"].min()), ids.shape[1]):
        best = model(ids[:, :place])[:, -1].argmax(-1)
        for row, start in enumerate(batch["starts"].tolist()):
            if place >= start and not written[row].endswith("."):
                ids[row, place] = best[row]
                written[row] += task.WORDS[int(best[row])]
    return written


def metrics(examples, outputs):
    return {
        "right": sum(o == answer for (_, answer), o in zip(examples, outputs, strict=True)) / len(outputs)
    }


def whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def add_up(tensor, group):
    tensor = tensor.detach().clone()
    local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    dist.all_reduce(local, group=group)
    return tensor


def loss_of(model, rows, dp):
    """Sum and count over all ranks; the gradient of the sum on this one."""
    total, count = (
        loss(model, collate(rows)) if rows else (torch.zeros((), requires_grad=True), torch.zeros(()))
    )
    total.backward()
    told = torch.stack([total.detach(), torch.as_tensor(count, dtype=total.dtype)])
    dist.all_reduce(told, group=dp.get_group())
    return told.tolist()


def step(model, everyone, mine, number, dp, tp):
    total, count = loss_of(model, mine, dp)
    for p in model.parameters():
        p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        p.grad = add_up(p.grad, dp.get_group()) / count
    return total / count


def evaluate(model, dp):
    mine = list(range(len(task.heldout)))[dp.get_local_rank() :: dp.size()]
    found = {}
    model.eval()
    with torch.no_grad():
        for at in range(0, len(mine), BATCH):
            rows = mine[at : at + BATCH]
            outputs = predict(model, collate([task.heldout[i] for i in rows]))
            outputs = outputs.tolist() if isinstance(outputs, torch.Tensor) else outputs
            found |= dict(zip(rows, outputs, strict=True))
    model.train()
    every = [None] * dp.size()
    dist.all_gather_object(every, found, group=dp.get_group())
    joined = {number: output for each in every for number, output in each.items()}
    outputs = [joined[number] for number in range(len(task.heldout))]
    return next(iter(metrics(task.heldout, outputs).values()))


def main():
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (dist.get_world_size() // TP, TP), mesh_dim_names=("dp", "tp"))
    dp, rank = mesh["dp"], dist.get_rank()
    torch.manual_seed(0)
    model = task.model()
    lay_out(model, mesh["tp"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    done, best = 0, None
    state = {"model": model.state_dict(), "optimizer": {}, "done": torch.tensor(0)}
    if (FOLDER / "last" / ".metadata").exists():
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad = torch.zeros_like(p)
        optimizer.step()
        state["optimizer"] = optimizer.state_dict()
        dcp.load(state, checkpoint_id=FOLDER / "last")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        done = int(state["done"])
    FOLDER.mkdir(parents=True, exist_ok=True)
    evaluate(model, dp)
    number = 0
    for epoch in range(EPOCHS):
        order = list(range(len(task.train)))
        random.Random(epoch).shuffle(order)
        for at in range(0, len(order), BATCH):
            number += 1
            if number <= done:
                continue
            rows = [task.train[i] for i in order[at : at + BATCH]]
            optimizer.zero_grad()
            lost = step(model, rows, rows[dp.get_local_rank() :: dp.size()], number, dp, mesh["tp"])
            optimizer.step()
            if rank == 0:
                with (FOLDER / "log.jsonl").open("a") as log:
                    log.write(json.dumps({"step": number, "loss": lost}) + "\n")
            if number % EVERY == 0:
                state = {
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "done": torch.tensor(number),
                }
                dcp.save(state, checkpoint_id=FOLDER / "last")
        score = evaluate(model, dp)
        if rank == 0:
            print(epoch, score)
        if best is None or score > best:
            best = score
            dcp.save({"model": model.state_dict()}, checkpoint_id=FOLDER / "best")
    dist.destroy_process_group()


# bare: end
if __name__ == "__main__":
    main()
