"""The event log survives kills: torn lines are skipped, repeated steps count once."""

import json
import math

from shunter.record.events import EventLog, read, read_metrics


def test_a_torn_last_line_costs_neither_its_neighbours_nor_the_next_attempt(tmp_path):
    path = tmp_path / "log" / "events.jsonl"
    log = EventLog(path)
    log.write("begin", note="größe")
    log.close()
    with path.open("a") as file:
        file.write('{"t": 1, "event": "metr')
    log = EventLog(path, attempt=2)
    log.write("again")
    log.close()
    assert [(event["event"], event["attempt"]) for event in read(path)] == [("begin", 1), ("again", 2)]


def test_a_resumed_attempt_supersedes_what_lay_beyond_its_checkpoint(tmp_path):
    path = tmp_path / "events.jsonl"
    log = EventLog(path, attempt=1)
    for step in (10, 20, 30, 40):
        log.metrics(step, **{"train/loss": 1.0, "train/lr": 0.1})
    log.metrics(20, **{"valid/loss": 5.0})
    log.close()
    log = EventLog(path, attempt=2)  # from the checkpoint of step 20, logging every 8 steps
    log.metrics(24, **{"train/loss": 2.0})
    log.metrics(32, **{"train/loss": 2.0})
    log.close()
    rows = read_metrics(path)
    assert [(row["step"], row["attempt"], row["train/loss"]) for row in rows] == [
        (10, 1, 1.0),
        (20, 1, 1.0),
        (24, 2, 2.0),
        (32, 2, 2.0),
    ]
    assert rows[1]["valid/loss"] == 5.0


def test_every_line_is_json_that_any_reader_takes(tmp_path):
    path = tmp_path / "events.jsonl"
    log = EventLog(path)
    log.metrics(1, loss=math.nan, norm=math.inf)
    with log.span("save", bytes=3):
        pass
    log.close()
    lines = [json.loads(line, parse_constant=lambda text: 1 / 0) for line in path.read_text().splitlines()]
    assert lines[0]["values"] == {"loss": "nan", "norm": "inf"}
    assert lines[1]["seconds"] >= 0
    assert read(tmp_path / "none.jsonl") == []


def test_lines_that_are_not_ours_are_left_out(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_text('[1]\n3\n{"event": "metrics"}\n{"event": "metrics", "step": 1, "values": 7}\n{"no": 1}\n')
    assert [row["step"] for row in read_metrics(path)] == [1]
