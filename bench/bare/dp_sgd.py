"""Differential privacy in plain torch; see recipes/tasks/dp_sgd.py."""

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

from recipes.tasks import dp_sgd as task

EPOCHS, BATCH, RATE, EVERY = 3, 64, 0.01, 20
TP = int(os.environ.get("TP", "1"))
FOLDER = Path(os.environ.get("FOLDER", "bare-dp_sgd"))


# bare: begin
def lay_out(model, mesh):
    if mesh.size() == 1:
        return
    plan = {"0": ColwiseParallel(), "2": RowwiseParallel()}
    parallelize_module(model, mesh, plan)


def collate(examples):
    return torch.tensor([x for x, _ in examples]), torch.tensor([y for _, y in examples])


def loss(model, batch):
    x, y = batch
    return F.cross_entropy(model(x), y, reduction="sum"), len(y)


def predict(model, batch):
    return model(batch[0]).argmax(-1)


def metrics(examples, outputs):
    return {"accuracy": sum(y == o for (_, y), o in zip(examples, outputs, strict=True)) / len(outputs)}


def whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def add_up(tensor, group):
    tensor = tensor.detach().clone()
    local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    dist.all_reduce(local, group=group)
    return tensor


def step(model, everyone, mine, number, dp, tp):
    clip, noise, lost = 1.0, 0.5, 0.0
    summed = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for example in mine:
        total, _ = loss(model, collate([example]))
        names, weights = zip(*model.named_parameters(), strict=True)
        gradient = torch.autograd.grad(total, weights)
        norm = sum(whole(g.square().sum()) for g in gradient).sqrt()
        for name, g in zip(names, gradient, strict=True):
            summed[name] += g * min(1.0, clip / (float(norm) + 1e-12))
        lost += float(total.detach())
    for name, p in model.named_parameters():
        draw = torch.Generator().manual_seed(hash((number, name)) % 2**31)
        drawn = torch.randn(p.shape, generator=draw) * clip * noise
        if isinstance(p, DTensor):
            drawn = DTensor.from_local(drawn, tp).redistribute(tp, p.placements)
        p.grad = (add_up(summed[name], dp.get_group()) + drawn) / len(everyone)
    told = torch.tensor(lost)
    dist.all_reduce(told, group=dp.get_group())
    return float(told) / len(everyone)


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
