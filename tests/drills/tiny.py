"""The smallest recipe with every kind of job: about two seconds of work in a warm process."""

from __future__ import annotations

from pathlib import Path

DATA = Path(__file__).resolve().parents[2] / "recipes" / "data"

# Checkpoints after steps 4, 8 and 12 of `base`, and after 3 and 6 of `chat`.
STEPS = {"base": 12, "chat": 6}
EVERY = {"base": 4, "chat": 3}

RECIPE = f"""\
version: 1
name: tiny
seed: 3
jobs:
  corpus:
    kind: curate
    heldout: 0.2
    section_chars: 1500
    limit: 3
    sources:
      - {{name: union, path: state_union.zip, members: "*.txt", licence: public domain}}
      - name: problems
        path: gsm8k_train.jsonl.gz
        template: "{{{{ question }}}}\\n{{{{ answer }}}}"
        licence: MIT
  tokenizer: {{kind: tokenizer, corpus: corpus, vocab_size: 320}}
  rows: {{kind: tokens, corpus: corpus, tokenizer: tokenizer, row_length: 48}}
  talks:
    kind: conversations
    arithmetic:
      source: {{name: problems, path: gsm8k_train.jsonl.gz, field: answer}}
      limit: 40
      heldout: {{name: problems-test, path: gsm8k_test.jsonl.gz, field: answer}}
  talk-rows: {{kind: tokens, conversations: talks, tokenizer: tokenizer, row_length: 48}}
  base:
    kind: pretrain
    tokens: rows
    model:
      {{dim: 32, num_layers: 2, num_heads: 2, num_kv_heads: 1, head_dim: 16, ffn_dim: 48, qk_norm: true,
        tied: true, family: qwen3}}
    train: {{steps: {STEPS["base"]}, batch_rows: 4, warmup: 2, validate_every: 6, validate_rows: 4}}
    how: {{micro_batch: 2, threads: 1, checkpoint_every: {EVERY["base"]}, keep: 2, log_every: 2, track: []}}
  chat:
    kind: sft
    model: base
    tokens: talk-rows
    train: {{steps: {STEPS["chat"]}, batch_rows: 4, warmup: 1, optimizer: adamw}}
    how: {{micro_batch: 4, threads: 1, checkpoint_every: {EVERY["chat"]}, keep: 1, log_every: 2, track: []}}
  scores:
    kind: evaluate
    models: [base, chat]
    tokens: rows
    conversations: talks
    tasks:
      - {{kind: bits-per-byte, documents: 2}}
      - {{kind: exact-match, task: arithmetic, items: 3, max_new_tokens: 4, compare: number}}
      - {{kind: samples, name: address, prompts: ["My fellow "], max_new_tokens: 6}}
  report: {{kind: report, title: tiny, of: [corpus, tokenizer, rows, base, talks, chat, scores]}}
"""

JOBS = ["corpus", "tokenizer", "rows", "talks", "talk-rows", "base", "chat", "scores", "report"]


def write(folder: Path) -> Path:
    """The recipe file, with links to the data beside it."""
    for name in ("state_union.zip", "gsm8k_train.jsonl.gz", "gsm8k_test.jsonl.gz"):
        (folder / name).symlink_to(DATA / name)
    path = folder / "recipe.yaml"
    path.write_text(RECIPE, encoding="utf-8")
    return path
