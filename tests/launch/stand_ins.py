"""Stand-ins for ssh and SLURM's programs: real processes behind the real quoting, on this machine."""

from __future__ import annotations

from pathlib import Path

# As ssh does: the words after the host are joined with spaces and read by a shell, elsewhere.
SSH = """#!/bin/bash
while [[ $1 == -* && $1 != -- ]]; do shift; done
[[ $1 == -- ]] && shift
host=$1; shift
if [[ $host == lost* ]]; then echo "ssh: connect to host $host port 22: Connection refused" >&2; exit 255; fi
cd /
exec sh -c "$*"
"""

SCONTROL = """#!/bin/bash
if [[ $1 == show ]]; then echo localhost; echo other; else echo "$@" >> "$STAND_IN/said"; fi
"""

# Two nodes on this machine; a step that is told to end tells both.
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
pids=()
for n in 0 1; do SLURM_NODEID=$n SHUNTER_HOST=node$n "$@" & pids+=($!); done
trap 'kill -TERM "${pids[@]}"' TERM
code=0
for p in "${pids[@]}"; do wait "$p" || code=$?; done
exit $code
"""

SBATCH = """#!/bin/bash
echo "Submitted batch job 7"
"""

# In the place of Python on a machine: writes its words, its folder and a variable, each ended by a zero.
WORDS = """#!/bin/bash
printf '%s\\0' "$PWD" "${VALUE-}" "${SHUNTER_HOST-}" "$@" > "$STAND_IN/words"
"""

# The same: a run that works until it is asked to stop, over ssh or by SLURM's file.
RUN = """#!/bin/bash
echo "working"
echo "noise" >&2
echo "warning: small" >&2
if [[ -n ${SHUNTER_STOP-} ]]; then
  until [[ -e $SHUNTER_STOP ]]; do sleep 0.05; done
else
  read -r word
  [[ $word == kill ]] && exit 9
fi
echo "saved"
exit 143
"""


def install(folder: Path, **programs: str) -> Path:
    """Write executables into `folder/bin`, which is returned: it belongs at the head of PATH."""
    place = folder / "bin"
    place.mkdir(exist_ok=True)
    for name, text in programs.items():
        path = place / name
        path.write_text(text, encoding="utf-8")
        path.chmod(0o755)
    return place
