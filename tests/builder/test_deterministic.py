"""Equal inputs make equal plans, whatever the process did before."""

import hashlib
import subprocess
import sys
from pathlib import Path

import tactician

MODEL = Path(tactician.__file__).parent / "data" / "lenet_digits.onnx"
SCRIPT = """
import hashlib, sys, tactician
from tactician.ir.graph import Node
for _ in range(int(sys.argv[2])):
    Node("unary", [], None)  # numbers of nodes differ between the processes
engine = tactician.build(sys.argv[1], level=1, threads=1, timing_cache="t.timing")
print(hashlib.sha256(engine.cuda_engine.serialize()).hexdigest())
"""


def test_two_processes_one_timing_cache(tmp_path):
    paths = ":".join(p for p in sys.path if p)
    digests = [
        subprocess.run(
            [sys.executable, "-c", SCRIPT, str(MODEL), str(seed)], check=True, text=True,
            cwd=tmp_path, stdout=subprocess.PIPE,
            env={"PYTHONPATH": paths, "PYTHONHASHSEED": str(seed)},
        ).stdout
        for seed in (1, 2)
    ]
    assert digests[0] == digests[1] and len(digests[0]) == 2 * hashlib.sha256().digest_size + 1
