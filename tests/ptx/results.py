"""What the cases gave, kept by the hash of all they depend on; what is new runs on two cores.

PYTHONPATH=tests python -m ptx.results    # rewrites tests/ptx/instructions.json; read the diff
"""

import json
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path

import cuda_static
from simt.build import digest

ROOT = cuda_static.ROOT
HERE = Path(__file__).parent
CACHE = ROOT / "build/ptx"
TABLE = HERE / "instructions.json"
JOBS = 2


def run(names):
    """{name: result} of cases, mutants and sweeps."""
    found = {name: json.loads(_path(name).read_text()) for name in names if _path(name).exists()}
    new = [name for name in names if name not in found]
    if not new:
        return found
    from . import build

    build.library()  # once, before the processes ask for it
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(JOBS, len(new)), mp_context=context) as pool:
        for name, result in zip(new, pool.map(run_one, new), strict=True):
            found[name] = result
            if "launches" not in result or result["error"] is None:
                _keep(_path(name), json.dumps(result))
    return found


def run_one(name):
    """One result, in this process."""
    import torch

    from . import host

    torch.set_num_threads(1)
    return tasks()[name].result(host.load())


@cache
def tasks():
    """All that has results, by name."""
    from . import cases, mutants

    everything = [*cases.CASES, *mutants.MUTANTS, *mutants.BARRIERS]
    by_name = {task.name: task for task in everything}
    assert len(by_name) == len(everything), "two of one name"
    return by_name


def table_of(results):
    """Rows of the table: instructions that warps execute, by case and kernel and by kind."""
    return {
        f"{name}: {kernel}": {"warps": warps, "all": sum(counts.values()), **counts}
        for name, result in results.items()
        for kernel, warps, counts in result["launches"]
    }


def write_table(results):
    """Write the table of this nvcc."""
    rows = [f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in table_of(results).items()]
    TABLE.write_text(
        f'{{\n "nvcc": "{cuda_static.nvcc_version()}",\n "launches": {{\n'
        + ",\n".join(rows)
        + "\n }\n}\n"
    )


def _path(name):
    """Where a result is kept: the task itself is in the hash, the PTX by what it follows from."""
    task = tasks()[name]
    source = ROOT / f"csrc/cuda/{task.stem}.cu"
    ptx = cuda_static.key(source, cuda_static.INTERPRETED)
    case = getattr(task, "case", "")
    change = [getattr(task, field, "") for field in ("pattern", "replacement")]
    return (
        CACHE / f"{'_'.join(name.split())}.{digest(name, case, *change, ptx, _common_key())}.json"
    )


@cache
def _common_key():
    """Hash of bindings, of Python beside the op, of the tests that make inputs, of this folder."""
    import numpy
    import torch

    patterns = [
        "csrc/torch/*.*",
        "csrc/include/*/*.h",
        "lpd_ext/ops/*.py",
        "tests/cases.py",
        "tests/ptx/host/**/*.*",
        *(f"tests/test_{path.stem}*.py" for path in (ROOT / "lpd_ext/ops").glob("*.py")),
    ]
    files = [path for pattern in patterns for path in sorted(ROOT.glob(pattern))]
    asking = ("test_", "mutants", "small")  # what results do not depend on
    files += [path for path in sorted(HERE.glob("*.py")) if not path.name.startswith(asking)]
    return digest(torch.__version__, numpy.__version__, *files)


def _keep(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    for stale in path.parent.glob(f"{path.name.split('.')[0]}.*"):
        stale.unlink(missing_ok=True)
    fresh = path.with_suffix(f".{multiprocessing.current_process().pid}")
    fresh.write_text(text)
    fresh.replace(path)


if __name__ == "__main__":
    if cuda_static.nvcc_version() is None:
        sys.exit("nvcc is missing: set PATH to a CUDA toolkit")
    from .cases import BY_NAME

    results = run(list(BY_NAME))
    failed = [f"{name}: {result['error']}" for name, result in results.items() if result["error"]]
    if failed:
        sys.exit("\n".join(failed))
    write_table(results)
