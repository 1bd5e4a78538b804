"""A policy that learns in parts: its matrices over the ranks of a copy, its answers over copies.

Between two steps of learning its parts come together, so that each rank writes with the whole model
(`shunter.parallel.resharding`), and are parts again afterwards; what a rank learns with is then held once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from shunter.data.tokens import IGNORE, Batch
from shunter.layout.generation import Hybrid
from shunter.layout.grid import Grid
from shunter.models.decoder import Decoder
from shunter.models.spec import DecoderSpec
from shunter.parallel.collective import add_up, spread
from shunter.parallel.mesh import Mesh, Peers, ProcessGroups
from shunter.parallel.part import DecoderPart
from shunter.parallel.resharding import Bill, Resharder
from shunter.parallel.tensor import first_row
from shunter.post.objective import Scores
from shunter.post.step import Scorer, segment_plan


class CutScorer(Scorer):
    """What a decoder of which each rank holds a part says of batches. The ranks of a copy have the same
    batches and get the same scores. Logits of this rank's words are kept for the backward pass."""

    def __init__(self, part: DecoderPart, peers: Peers, device: torch.device, temperature: float) -> None:
        super().__init__(part.decoder, device, temperature=temperature)
        self.part, self.peers = part, peers
        spec = part.decoder.spec
        self.first = first_row(part.held["embed.weight" if spec.tied else "head.weight"])

    def __call__(self, batch: Batch, needs: frozenset[str]) -> Scores:
        """Scores with gradients, unless inside no_grad."""
        assert "value" not in needs, "a value head is not cut"
        tokens, positions, targets, segments = (
            torch.from_numpy(array).to(self.device)
            for array in (batch.tokens, batch.positions, batch.targets, batch.segments)
        )
        hidden = self.decoder(tokens, positions, segment_plan(batch, segments))
        active = (targets != IGNORE).flatten().nonzero().flatten()
        flat = spread(hidden, self.peers).flatten(0, 1)[active]
        logits = flat @ self.decoder.head_weight.t() / self.temperature
        largest = logits.detach().amax(dim=-1)
        if self.peers.size > 1:
            dist.all_reduce(largest, dist.ReduceOp.MAX, group=self.peers.group)
        apart = logits - largest[:, None]
        total = add_up(apart.exp().sum(dim=-1), self.peers)
        row = targets.flatten()[active] - self.first
        mine = (row >= 0) & (row < logits.shape[1])
        picked = apart.gather(1, row.clamp(0, logits.shape[1] - 1)[:, None]).squeeze(1)
        picked = add_up(torch.where(mine, picked, 0.0), self.peers)
        empty = torch.zeros(targets.numel(), dtype=logits.dtype, device=self.device)
        logprob = empty.index_put((active,), picked - total.log()).view_as(targets)
        entropy = None
        if "entropy" in needs:
            # log Z - sum of p z, both after the largest was taken away.
            mean = add_up((apart.exp() * apart).sum(dim=-1), self.peers) / total
            entropy = empty.index_put((active,), total.log() - mean).view_as(targets)
        return Scores(logprob, entropy, None)


class CutModel:
    """The parts of a model on one rank, with what joins them.

    copies: ranks with the same parts and other answers. mates: with the other parts and the same answers.
    """

    def __init__(
        self, decoder: Decoder, layout: Hybrid, rank: int, groups: ProcessGroups, temperature: float
    ) -> None:
        """decoder: whole. Raises ShunterError for a layout that the model cannot have."""
        device = torch.device("cpu")
        self.spec: DecoderSpec = decoder.spec
        self.mesh = Mesh(Grid(dp=layout.d, tp=layout.t), rank, groups)
        self.resharder = Resharder(self.spec, layout, rank, groups)
        self.part = DecoderPart(decoder, self.mesh, [0, self.spec.num_layers], [0], device, sequence=False)
        self.copies, self.mates = self.mesh.peers("dp"), self.mesh.peers("tp")
        self.scorer = CutScorer(self.part, self.mates, device, temperature)
        self.bill = Bill()

    @torch.no_grad()
    def together(self) -> Decoder:
        """The whole model, in the place of the parts; `apart` takes it away again."""
        self.resharder.learning = {name: p.data for name, p in self.part.parameters.items()}
        for parameter in self.part.parameters.values():
            parameter.data = parameter.data.new_empty(0)
        weights = self.resharder.to_writing()
        self.bill = self.resharder.bill
        with torch.device("meta"):
            model = Decoder(self.spec)
        for name, tensor in weights.items():
            owner, _, last = name.rpartition(".")
            setattr(model.get_submodule(owner), last, nn.Parameter(tensor, requires_grad=False))
        return model

    @torch.no_grad()
    def apart(self) -> None:
        """Parts again. Nothing is sent."""
        for name, tensor in self.resharder.to_learning().items():
            self.part.parameters[name].data = tensor
        self.resharder.learning = {}

    def finish(self, clip: float) -> float:
        """Add gradients up where ranks have parts of them, and scale them down; returns their norm before."""
        self.part.finish()
        square = self.part.squared_norm()
        if self.mesh.everyone.size > 1:
            dist.all_reduce(square, group=self.mesh.everyone.group)
        norm = float(square.sqrt())
        if norm > clip:
            scale(list(self.part.parameters.values()), clip / (norm + 1e-6))
        return norm


@torch.no_grad()
def scale(parameters: Sequence[Tensor], factor: float) -> None:
    """Multiply every gradient."""
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad.mul_(factor)
