"""Save what the Triton kernel gives for each case: `TRITON_INTERPRET=1 python THIS OUT.pt`.

A process of its own, since Triton looks at the variable when it is imported.
"""

import sys

import torch

from tests.prompts.kernel_cases import CASES, run

if __name__ == "__main__":
    results = {name: tuple(run(case, "triton")) for name, case in CASES.items()}
    results["again"] = tuple(run(CASES["bytes"], "triton"))
    torch.save(results, sys.argv[1])
