"""Attacks on the sandbox: each program gets what it deserves, and no other program's result changes.

What is not shown: that the kernel keeps its promises, and that programs side by side do not slow each other
down (they share the cores; CPU seconds are counted, not the clock's).
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from shunter.config.errors import ShunterError
from shunter.post.rewards import Grader, Item
from shunter.post.sandbox import box as boxes
from shunter.post.sandbox import jail
from shunter.post.sandbox.box import Case, Program, Sandbox
from shunter.post.sandbox.code import Passes, cases, same
from shunter.post.sandbox.languages import LANGUAGES, Language, Sample, language, last_program
from tests.post.sandbox.running import PYTHON, WHO, alive, run


def test_a_program_reads_and_prints(box: Sandbox) -> None:
    found = run(box, "import math\nprint(math.isqrt(int(input())))", "16", "26")
    assert [(case.status, case.output) for case in found] == [("ok", "4\n"), ("ok", "5\n")]


ATTACKS = {
    "infinite loop": ("while True: pass", "timeout"),
    "fork bomb": ("import os\nwhile True:\n  try: os.fork()\n  except OSError: pass", "timeout"),
    "huge output": ("while True: print('x' * 100000)", "output"),
    "memory": ("x = bytearray(1 << 40)", "error"),
    "os._exit": ("import os\nos._exit(0)", "ok"),
    "signal to all": ("import os, signal\nos.kill(-1, signal.SIGKILL)\nos.kill(os.getppid(), 9)", "error"),
    "crash": ("import ctypes\nctypes.string_at(0)", "error"),
    "closes its outputs and stays": (
        "import os\nfor fd in range(3): os.close(fd)\nwhile True: pass",
        "timeout",
    ),
    "a child that outlives it": (
        "import os, sys\nif os.fork() == 0:\n  os.setsid()\n  while True: pass\nsys.exit(0)",
        "ok",
    ),
    "fills its folder": ("for n in range(999):\n  open(str(n), 'w').write('x' * 10**6)", "error"),
    "network": ("import socket\nsocket.create_connection(('127.0.0.1', 22), timeout=1)", "error"),
    "becomes root": ("import os\nos.setuid(0)", "error"),
    "/proc": ("open('/proc/self/mem', 'r+b')", "error"),
    "mount": ("import ctypes\nctypes.CDLL(None).mount(b'x', b'/box', b'tmpfs', 0, b'') and exit(9)", "error"),
    "leaves its folder": ("import os\nos.listdir('/box')", "error"),
    "changes the system": ("open('/usr/bin/python', 'a')", "error"),
    "reads a descriptor of ours": ("import os\nfor fd in range(3, 500):\n  os.read(fd, 1)\n", "error"),
}  # fmt: skip


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_ends_and_its_neighbours_are_as_before(box: Sandbox, name: str) -> None:
    code, expected = ATTACKS[name]
    good = Program(PYTHON, "print(sum(map(int, input().split())))", ["1 2"], 5.0)
    # What ends by its time takes all of it; the others take milliseconds.
    found = box.run([good, Program(PYTHON, code, [""], 0.15 if expected == "timeout" else 0.5), good])
    assert found[1][0].status == expected
    assert [(case.status, case.output) for case in (found[0][0], found[2][0])] == [("ok", "3\n")] * 2
    assert box.starts == 1, "the zygote lives on"


def test_a_set_is_printed_alike_by_another_sandbox(box: Sandbox) -> None:
    code = "import sys\nprint({str(n) for n in range(99)}, sys.flags.safe_path, sys.flags.no_user_site)"
    with Sandbox(slots=1) as other:
        assert run(other, code) == run(box, code)
    assert run(box, code)[0].output.endswith("} True 1\n")


def test_programs_leave_no_processes_behind(box: Sandbox) -> None:
    run(box, ATTACKS["a child that outlives it"][0])
    run(box, ATTACKS["fork bomb"][0], seconds=0.3)
    assert alive(int(run(box, WHO)[0].output)) == 0


def test_nothing_passes_from_one_program_to_the_next(box: Sandbox) -> None:
    """Monkey-patching, modules, files, memory of IPC: each fork comes from the clean zygote."""
    spoil = (
        "import builtins, sys, math, json\n"
        "builtins.print = lambda *a: None\nmath.sqrt = lambda x: 42\njson.dumps = None\n"
        "open('note', 'w').write('mine')\n"
        "import ctypes\nctypes.CDLL(None).shmget(1234, 4096, 0o1666)\n"
    )
    look = (
        "import math, os, json, ctypes\n"
        "print(math.sqrt(4), os.listdir('.'), json.dumps(1), ctypes.CDLL(None).shmget(1234, 4096, 0))"
    )
    run(box, spoil)
    (found,) = run(box, look)
    assert found.output == "2.0 ['main.py'] 1 -1\n"


def test_no_file_of_ours_can_be_read_and_no_secret_is_in_the_environment(
    box: Sandbox, tmp_path: Path
) -> None:
    answers = tmp_path / "answers.json"
    answers.write_text("secret")
    answers.chmod(0o644)
    for folder in (tmp_path, *tmp_path.parents):
        if folder != Path("/") and folder.stat().st_uid == os.getuid() and folder != Path("/tmp"):
            folder.chmod(0o755)
    (found,) = run(box, f"print(open({str(answers)!r}).read())")
    assert found.status == "error"
    assert "No such file" in found.errors
    (found,) = run(box, "import os\nprint(sorted(os.environ))")
    assert found.output == "['HOME', 'LANG', 'PATH']\n"


def test_one_programs_request_is_not_in_another_ones_memory(box: Sandbox) -> None:
    """Requests are read in the fork: what a neighbour was given is nowhere in the zygote that is copied."""
    secret = "shibboleth-of-my-neighbour"
    half = len(secret) // 2
    search = (
        "import gc\n"
        f"needle = {secret[:half]!r} + {secret[half:]!r}\n"
        "mine = globals()\n"
        "seen = [o for o in gc.get_objects() if isinstance(o, (list, dict)) and o is not mine]\n"
        "print(any(needle in repr(v) for o in seen for v in (o.values() if isinstance(o, dict) else o)\n"
        "  if isinstance(v, (str, bytes)) and v is not needle))"
    )
    programs = [Program(PYTHON, f"print({secret!r})", [""]), Program(PYTHON, search, [""], 5.0)] * 2
    found = box.run(programs)
    assert [each[0].output for each in found] == [f"{secret}\n", "False\n"] * 2


def test_compiling_has_limits_of_its_own_and_the_first_failure_ends(box: Sandbox) -> None:
    lang = Language(name="checked", filename="main.py", compile="warm {file} --check", execute="warm {file}")
    code = "import sys\nif '--check' in sys.argv: sys.exit(3)\n"
    assert [case.status for case in run(box, code, lang=lang)] == ["compile-error"]
    found = run(box, "print(1 // int(input()))", "1", "0", "1")
    assert [case.status for case in found] == ["ok", "error"]
    spin = "import sys, time\nwhile '--check' in sys.argv and time.process_time() < 0.4: pass\n"
    assert [case.status for case in run(box, spin, "", "", lang=lang, seconds=0.2)] == ["ok", "ok"]
    hasty = lang.model_copy(update={"compile_seconds": 0.2})
    assert [case.status for case in run(box, spin, lang=hasty, seconds=5.0)] == ["compile-timeout"]
    with pytest.raises(ValueError, match="belongs to a language with `compile`"):
        Language(name="x", filename="x", execute="x", compile_seconds=3)


def test_a_program_that_waits_does_not_wait_in_each_case_anew(
    box: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One clock for all cases, beside that of each; with time for one that spends its CPU seconds in all."""
    monkeypatch.setattr(boxes, "LEAST", 0.5)
    monkeypatch.setattr(boxes, "WALL", 1.0)
    monkeypatch.setattr(boxes, "FURTHER", 0.5)
    statuses = [case.status for case in run(box, "import time\ntime.sleep(0.3)", *"abcde", seconds=0.2)]
    assert len(statuses) < 5
    assert statuses == ["ok"] * (len(statuses) - 1) + ["timeout"]
    monkeypatch.undo()
    for count, seconds in ((1, 2.0), (20, 2.0), (100, 0.1)):
        asked = box._request(Program(PYTHON, "", [""] * count, seconds))
        assert 2 * seconds * count <= asked["wall"] < max(5.0, 10 * seconds) + 2 * seconds * count


def test_a_new_language_is_configuration_only(box: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "shout.yaml").write_text(
        "name: shout\nfilename: main.sed\nexecute: sed -f {file}\n"
        "sample: {program: s/.*/7/, input: '1', output: '7'}\n"
    )
    made = language("shout.yaml", tmp_path)
    made.check()
    assert run(box, "y/abc/ABC/", "cab", lang=made)[0].output.strip() == "CAB"
    assert run(box, "read read + print", "2 5", lang=LANGUAGES["stack"])[0].output == "7\n"
    assert run(box, "+ in * in 2", "3 4", lang=LANGUAGES["prefix"])[0].output == "11\n"
    with pytest.raises(ShunterError, match="no language is called"):
        language("shouting", tmp_path)
    with pytest.raises(ShunterError, match="needs 'no-such-program'"):
        Language(
            name="x", filename="x", execute="no-such-program", sample=Sample(program="7", output="7")
        ).check()
    with pytest.raises(ShunterError, match="no program that is known to run"):
        Language(name="x", filename="x", execute="sh").check()


def test_the_reward_of_programs(box: Sandbox) -> None:
    rule = Passes(box, PYTHON, seconds=0.4)
    target = json.dumps([{"input": "1 2", "output": "3"}, {"input": "4 5", "output": "9"}])
    answers = {
        "```python\nprint(sum(map(int, input().split())))\n```": 1.0,
        "first\n```\nprint(0)\n```\nthen\n```\nprint(sum(map(int, input().split())), ' ')\n```": 1.0,
        "```\nprint(3)\n```": 0.0,
        "print(sum(map(int, input().split())))": 0.0,
        "```\nwhile True: pass\n```": 0.0,
        "```\nimport os\nos._exit(0)\n```": 0.0,
    }
    graded = Grader([(rule, 1.0)]).grade([Item("q", answer, target) for answer in answers])
    assert [one.total for one in graded] == list(answers.values())
    assert rule.told == {"pass": 2, "wrong output": 2, "no block": 1, "timeout": 1}
    broken = Grader([(rule, 1.0)]).grade([Item("q", "a", target), Item("q", "a", "[]")])
    assert [len(one.failed) for one in broken] == [0, 1]
    partly = Passes(box, PYTHON, seconds=0.4, partial=0.2)
    graded = Grader([(partly, 1.0)]).grade([Item("q", answer, target) for answer in list(answers)[2:5]])
    assert [one.total for one in graded] == [0.2, 0.0, 0.0]


class Counted:
    """A sandbox that notes what it runs."""

    def __init__(self, box: Sandbox) -> None:
        self.box, self.ran = box, list[Program]()

    def run(self, programs: list[Program]) -> list[list[Case]]:
        self.ran += programs
        return self.box.run(programs)


def test_a_program_that_many_answers_hold_is_run_once_for_the_same_inputs(box: Sandbox) -> None:
    """And each answer is compared with its own target; a canary shares its run with no answer."""
    counted = Counted(box)
    rule = Passes(counted, LANGUAGES["prefix"])  # type: ignore[arg-type]
    counted.ran.clear()
    target, other, wrong = (
        json.dumps([{"input": given, "output": out}])
        for given, out in (("3 4", "7"), ("3 5", "8"), ("3 4", "8"))
    )
    plus, times, known = (f"```\n{each}\n```" for each in ("+ in in", "* in in", "+ in * in 2"))
    asked = [(plus, target), (times, target), (plus, target), (plus, other), (plus, wrong), (known, target)]
    items = [Item(f"q{n}", answer, given) for n, (answer, given) in enumerate(asked)]
    assert rule.grade(items) == [1.0, 0.0, 1.0, 1.0, 0.0, 0.0]
    assert [(each.code.strip(), each.inputs) for each in counted.ran] == [
        ("+ in in", ["3 4"]), ("* in in", ["3 4"]), ("+ in in", ["3 5"]), ("+ in * in 2", ["3 4"]),
    ]  # fmt: skip
    assert rule.told == {"pass": 3, "wrong output": 3}
    counted.ran.clear()
    first, second, *_ = rule.canaries(items[0])
    same_as_first = Item("q", first[0].answer, first[0].target)
    assert rule.grade([first[0], second[0], same_as_first, first[0]]) == [1.0] * 4
    assert len(counted.ran) == 4


def test_ends_are_told_since_the_last_step(box: Sandbox) -> None:
    grader = Grader([(Passes(box, LANGUAGES["stack"]), 1.0)])
    target = json.dumps([{"input": "2 5", "output": "7"}])
    for _ in range(2):
        grader.grade([Item("q", "```\nread read + print\n```", target)])
        assert grader.ends() == {"code_pass": 1}


def test_a_dead_zygote_is_replaced(box: Sandbox) -> None:
    with Sandbox(slots=1) as other:
        assert other._process is not None
        other._process.kill()
        other._process.wait()
        assert run(other, "print(1)")[0].output == "1\n"
        assert other.starts == 2


def test_a_program_sees_the_system_read_only(box: Sandbox) -> None:
    code = "import os\nflags = os.statvfs('/usr').f_flag\nprint(flags & os.ST_RDONLY, flags & os.ST_NOSUID)"
    assert run(box, code)[0].output == "1 2\n"


HIDDEN = {
    "System V": "c.shmget(0, 1 << 20, 0o1600)",
    "a file in memory": "c.memfd_create(b'x', 0)",
    "a key": f"c.syscall({217 if os.uname().machine == 'aarch64' else 248}, b'user', b'x', b'y', 1, -3)",
    "a namespace": "c.unshare(0x20000)",
    "datagrams": "c.socket(1, 2, 0)",
    "a large socket": "c.setsockopt(c.socket(1, 1, 0), 1, 7, ctypes.byref(ctypes.c_int(1 << 20)), 4)",
}


@pytest.mark.parametrize("name", HIDDEN)
def test_no_memory_is_had_that_the_limit_does_not_count(box: Sandbox, name: str) -> None:
    code = f"import ctypes\nc = ctypes.CDLL(None, use_errno=True)\nprint({HIDDEN[name]}, ctypes.get_errno())"
    assert run(box, code)[0].output == "-1 1\n", "refused with EPERM"


def test_a_program_ends_as_an_interpreter_ends_it(box: Sandbox) -> None:
    """exit and quit are there, threads are waited for, and what was registered is done."""
    assert [(c.status, c.output) for c in run(box, "print(1)\nexit()")] == [("ok", "1\n")]
    assert run(box, "quit(3)")[0].code == 3
    code = (
        "import atexit, threading, time\natexit.register(print, 'last')\n"
        "threading.Thread(target=lambda: (time.sleep(0.1), print('late'))).start()"
    )
    assert run(box, code)[0].output == "late\nlast\n"


def test_seconds_are_of_a_program_with_its_children(box: Sandbox) -> None:
    spin = "import os, time\ndef spin():\n  while time.process_time() < 0.3: pass\n"
    family = spin + "for _ in range(3):\n  if os.fork() == 0: spin(); os._exit(0)\n  os.wait()\n"
    assert run(box, spin + "spin()", seconds=0.2)[0].status == "timeout"
    assert run(box, family, seconds=0.6)[0].status == "timeout"
    assert run(box, spin + "spin()", seconds=1.0)[0].status == "ok"


def test_no_request_and_no_lost_supervisor_ends_a_run(box: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    good, half = Program(PYTHON, "print(1)", [""]), Program(PYTHON, "print(input())", ["\ud800"])
    found = box.run([half, good])
    assert [found[0][0].output, found[1][0].output] == ["?\n", "1\n"]
    assert box.starts == 1
    request = box._request

    def spoilt(program: Program) -> dict[str, object]:
        asked = request(program)
        return {**asked, "limits": None} if program is half else asked

    monkeypatch.setattr(box, "_request", spoilt)
    assert [each[0].status for each in box.run([half, good])] == ["error", "ok"]
    send = box._send
    monkeypatch.setattr(
        box, "_send", lambda asked, slot: send({} if asked["limits"] is None else asked, slot)
    )
    assert [each[0].status for each in box.run([half, good])] == ["error", "ok"]


def test_half_a_reply_is_none_and_its_program_runs_again(
    box: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = boxes.LENGTH.pack(2) + b"[]"
    assert boxes.reply(whole) == []
    assert [boxes.reply(whole[:n]) for n in range(len(whole))] == [None] * len(whole)
    read, lost = boxes.reply, []

    def cut(said: bytes) -> list[Case] | None:
        return read(said) if lost else lost.append(said) or read(said[:-1])  # type: ignore[func-returns-value]

    monkeypatch.setattr(boxes, "reply", cut)
    assert run(box, "print(1)")[0].output == "1\n"
    assert len(lost) == 1


def test_a_runner_that_is_killed_makes_no_answer_wrong(box: Sandbox) -> None:
    """As by the machine's memory. Its program, which ends with it, runs again."""
    asked = Program(PYTHON, "import time\ntime.sleep(0.5)\nprint(1)", [""], 5.0)
    killed = []

    def kill() -> None:
        end = time.monotonic() + 10
        while not killed and time.monotonic() < end:
            for path in Path("/proc").glob("[0-9]*"):
                with suppress(OSError, IndexError):
                    if path.stat().st_uid // jail.USERS == user // jail.USERS:
                        parent = int((path / "stat").read_text().rsplit(")", 1)[1].split()[1])
                        os.kill(parent, signal.SIGKILL)
                        killed.append(parent)
                        break
            time.sleep(0.01)

    user = int(run(box, WHO)[0].output)
    thread = threading.Thread(target=kill)
    thread.start()
    found = box.run([asked])
    thread.join()
    assert len(killed) == 1
    assert (found[0][0].status, found[0][0].output, box.starts) == ("ok", "1\n", 1)


@pytest.mark.parametrize("what", ["enter", "build"])
def test_where_programs_cannot_be_shut_in_nothing_is_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, what: str
) -> None:
    """A zygote without the rights that it needs refuses with a sentence."""
    text = boxes.ENTRY.read_text()
    refuse = (
        "    from shunter.post.sandbox import jail\n\n    def no(*_):\n        raise OSError('no')\n\n"
        f"    jail.{what} = no\n    main()"
    )
    copy = tmp_path / "entry.py"
    copy.write_text(text.replace("    main()", refuse))
    monkeypatch.setattr(boxes, "ENTRY", copy)
    with pytest.raises(
        ShunterError, match=r"cannot be run here: the system does not allow it \(no\)"
    ) as refused:
        Sandbox()
    assert "rewards of code and checkers, and the tool python" in str(refused.value.mend)


def test_blocks_outputs_and_targets() -> None:
    assert last_program("a\n```py\nx\n```\nb\n```\ny\n```") == "y\n"
    assert last_program("```\nunfinished") is None
    assert same("a  \nb\n\n", "a\nb")
    assert not same("a b", "a  b")
    assert last_program("```\n" * 20001) is not None
    deep, half = "[" * 100000, '[{"input": "\\ud800", "output": ""}]'
    for bad in ("{}", "[]", "[1]", '[{"input": 1}]', "no json", deep, half):
        with pytest.raises(ValueError):
            cases(bad)
