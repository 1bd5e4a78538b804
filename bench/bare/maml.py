"""Learning to learn in plain torch; see recipes/tasks/maml.py. Without tensor parallelism: DTensor does not
differentiate a gradient again."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.func import functional_call

from recipes.tasks import maml as task

EPOCHS, BATCH, RATE, EVERY = 2, 16, 0.002, 20
TP = int(os.environ.get("TP", "1"))
FOLDER = Path(os.environ.get("FOLDER", "bare-maml"))


# bare: begin
def collate(examples):
    return {key: torch.tensor([each[key] for each in examples])[..., None] for key in ("x", "y")}


def adapted(model, x, y, rate=0.02):
    """The weights after a step on these points."""
    names, weights = zip(*model.named_parameters(), strict=True)
    error = (model(x) - y).square().mean()
    gradients = torch.autograd.grad(error, weights, create_graph=True)
    return {n: w - rate * g for n, w, g in zip(names, weights, gradients, strict=True)}


def loss(model, batch):
    total = 0.0
    for x, y in zip(batch["x"], batch["y"], strict=True):
        with torch.enable_grad():
            moved = adapted(model, x[:10], y[:10])
        total = total + (functional_call(model, moved, (x[10:],)) - y[10:]).square().mean()
    return total, len(batch["x"])


def add_up(tensor, group):
    tensor = tensor.detach().clone()
    dist.all_reduce(tensor, group=group)
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
    told = torch.zeros(2)
    mine = task.heldout[dp.get_local_rank() :: dp.size()]
    for at in range(0, len(mine), BATCH):
        total, count = loss(model, collate(mine[at : at + BATCH]))
        told += torch.tensor([float(total), count])
    dist.all_reduce(told, group=dp.get_group())
    return float(told[0] / told[1])


def main():
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (dist.get_world_size() // TP, TP), mesh_dim_names=("dp", "tp"))
    dp, rank = mesh["dp"], dist.get_rank()
    torch.manual_seed(0)
    model = task.model()
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
        if best is None or score < best:
            best = score
            dcp.save({"model": model.state_dict()}, checkpoint_id=FOLDER / "best")
    dist.destroy_process_group()


# bare: end
if __name__ == "__main__":
    main()
