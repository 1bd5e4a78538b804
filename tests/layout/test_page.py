"""The Python of docs/sharding.md runs, top to bottom, in one fresh process, without torch."""

from __future__ import annotations

import subprocess
import sys

from tests.cli.documents import ROOT, blocks


def test_the_page_s_python_runs() -> None:
    code = [it.text for it in blocks(ROOT / "docs" / "sharding.md") if it.language == "python"]
    assert len(code) == 4
    code.append("import sys; assert 'torch' not in sys.modules")
    done = subprocess.run([sys.executable, "-c", "\n".join(code)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "4 devices move 786,432 bytes in all" in done.stdout
    shown = next(it.text for it in blocks(ROOT / "docs" / "sharding.md") if it.language == "text")
    assert all(line in done.stdout for line in shown.splitlines())
