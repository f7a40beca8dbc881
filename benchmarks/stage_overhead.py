"""What a stage costs beside its script: the same training, natively and inside the pipeline's sandbox, in turn.

    python benchmarks/stage_overhead.py --quick            about 10 s of work, 3 rounds
    python benchmarks/stage_overhead.py --full             at least 60 s of work, 5 rounds: 15 minutes and more
    python benchmarks/stage_overhead.py --full --json F    also writes the numbers

The ratio compares the script's own wall-clock time: start of the interpreter, imports, training, writing the model. The
fixed cost is what the pipeline adds around it (attest, open, unpack, seal, register), stated in seconds. Keys come from
this process instead of key managers, so that no network is measured; see ``key_release.py`` for releases.

The work is a small CNN on CIFAR-10 (JPEG edition) where torch and the data are there, else gradient boosting on
synthetic data.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _machine import processor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.enclaves import World  # noqa: E402

from cloister.enclave import measure_installed  # noqa: E402
from cloister.enclave._bytecode import BYTECODE_KEY_LABEL, compiled  # noqa: E402
from cloister.enclave._confinement import Sandboxed  # noqa: E402
from cloister.enclave._launcher import launch  # noqa: E402
from cloister.manifest import Limits  # noqa: E402

TARGET = 1.05

CNN = """
import sys, time
import numpy, torch
steps, data, out = int(sys.argv[1]), sys.argv[2], sys.argv[3]
torch.manual_seed(0)
loaded = numpy.load(data + "/train.npz")
images = torch.from_numpy(loaded["images"]).permute(0, 3, 1, 2).float() / 255
labels = torch.from_numpy(loaded["labels"]).long()
layers = torch.nn
model = layers.Sequential(
    layers.Conv2d(3, 32, 3, padding=1), layers.ReLU(), layers.MaxPool2d(2),
    layers.Conv2d(32, 64, 3, padding=1), layers.ReLU(), layers.MaxPool2d(2),
    layers.Flatten(), layers.Linear(4096, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
for step in range(steps):
    pick = torch.randint(0, len(labels), (128,))
    loss = torch.nn.functional.cross_entropy(model(images[pick]), labels[pick])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
torch.save(model.state_dict(), out + "/model.pt")
open(out + "/cpu", "w").write(str(time.process_time()))
"""

BOOSTING = """
import sys, time
import numpy
from sklearn.datasets import make_classification
from sklearn.ensemble import GradientBoostingClassifier
steps, data, out = int(sys.argv[1]), sys.argv[2], sys.argv[3]
x, y = make_classification(4000, 30, random_state=0)
model = GradientBoostingClassifier(n_estimators=steps, random_state=0).fit(x, y)
numpy.save(out + "/score.npy", model.train_score_)
open(out + "/cpu", "w").write(str(time.process_time()))
"""


def main() -> None:
    options = arguments()
    script, data, first_guess = work()
    with tempfile.TemporaryDirectory(prefix="cloister-bench-") as scratch:
        folder = Path(scratch)
        small = native(folder / "warm", script, data, first_guess)
        smaller = native(folder / "warmer", script, data, max(1, first_guess // 4))
        per_step = max((small - smaller) / (first_guess - max(1, first_guess // 4)), 1e-6)
        steps = max(first_guess, round(options.work_s * 1.1 / per_step))
        print(f"work: {steps} steps, about {steps * per_step:.0f} s; {options.rounds} rounds", file=sys.stderr)
        rounds = [one_round(folder / str(index), script, data, steps, options.cold) for index in range(options.rounds)]
    report = summary(rounds, script is CNN, steps)
    print(text(report))
    if options.json:
        Path(options.json).write_text(json.dumps(report, indent=2, sort_keys=True) + "\n")
    if options.full and report["ratio_median"] > TARGET:
        sys.exit(1)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Cost of a stage beside its script.")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="about 10 s of work, 3 rounds (default)")
    size.add_argument("--full", action="store_true", help="at least 60 s of work, 5 rounds; exit 1 above the target")
    parser.add_argument("--rounds", type=int, help="how many rounds, in place of 5 or 3")
    parser.add_argument("--json", metavar="FILE", help="write the numbers there")
    parser.add_argument("--cold", action="store_true", help="without the launcher's compiled packages")
    options = parser.parse_args()
    options.work_s = 60 if options.full else 10
    options.rounds = options.rounds or (5 if options.full else 3)
    return options


def work() -> tuple[str, Path | None, int]:
    """The script, its data, and a number of steps that takes a few seconds."""
    data = Path(os.environ.get("CLOISTER_TEST_DATA", ROOT.parent / "shared" / "data")) / "cifar10"
    try:
        import torch  # noqa: F401
    except ImportError:
        return BOOSTING, None, 40
    return (CNN, data, 40) if (data / "train.npz").is_file() else (BOOSTING, None, 40)


def one_round(folder: Path, script: str, data: Path | None, steps: int, cold: bool) -> dict[str, object]:
    """One native run and one in the pipeline, on the same data."""
    native_s = native(folder / "native", script, data, steps)
    native_cpu_s = float((folder / "native" / "out" / "cpu").read_text())
    staged_s, fixed, staged_cpu_s = staged(folder / "staged", script, data, steps, cold)
    ratio, cpu_ratio = staged_s / native_s, staged_cpu_s / native_cpu_s
    print(f"native {native_s:.2f} s, stage {staged_s:.2f} s, ratio {ratio:.3f}, cpu {cpu_ratio:.3f}", file=sys.stderr)
    return {
        "native_s": native_s,
        "stage_s": staged_s,
        "ratio": ratio,
        "native_cpu_s": native_cpu_s,
        "stage_cpu_s": staged_cpu_s,
        "cpu_ratio": cpu_ratio,
        "fixed_ms": fixed,
    }


def native(folder: Path, script: str, data: Path | None, steps: int) -> float:
    """Wall-clock seconds of the script as a process of its own."""
    folder.mkdir(parents=True)
    (folder / "train.py").write_text(script)
    (folder / "out").mkdir()
    given = str(data or folder)
    started = time.monotonic()
    subprocess.run([sys.executable, "train.py", str(steps), given, str(folder / "out")], cwd=folder, check=True)
    return time.monotonic() - started


def staged(folder: Path, script: str, data: Path | None, steps: int, cold: bool) -> tuple[float, dict[str, int], float]:
    """Seconds of the script inside the pipeline, milliseconds of each step around it, and its processor time."""
    content = folder / "content"
    content.mkdir(parents=True)
    if data is None:
        (content / "x").write_text("unused")
    else:
        (content / "train.npz").write_bytes((data / "train.npz").read_bytes())
    argv = ("python", "train.py", str(steps), "/inputs/data", "/outputs/model")
    limits = Limits(memory_bytes=4 << 30, time_s=7200)
    world = World.build(
        folder / "world", script, data=content, stage={"argv": argv, "limits": limits}, max_bytes=64 << 20
    )
    private = Path("/dev/shm") / f"cloister-bench-{os.getpid()}-{folder.parent.name}"  # noqa: S108 - as in an enclave
    private.mkdir(mode=0o700)
    started = time.monotonic()
    measured = measure_installed("launcher")
    measure_ms = round((time.monotonic() - started) * 1000)
    attester = world.site.attester(bytes.fromhex(measured.measurement))
    key = attester.sealing_key(BYTECODE_KEY_LABEL)
    if not cold:
        names = ["torch", "numpy", "sklearn.ensemble", "sklearn.datasets"]
        compiled(names, state=measured.files, key=key, private=folder / "warm", max_bytes=1 << 30)
    try:
        with Sandboxed(limits, measured=None if cold else measured, bytecode_key=key) as confined:
            outcome = launch(
                world.job,
                attester=lambda tee: attester,
                confinement=lambda stage: confined,
                private=private,
                obtain=world.obtain,
            )
    finally:
        shutil.rmtree(private, ignore_errors=True)
    result = outcome.require()
    cpu_s = float((world.unpacked(outcome) / "cpu").read_text())
    return result.script_ms / 1000, {"measure": measure_ms, **result.fixed_ms}, cpu_s


def summary(rounds: list[dict[str, object]], torch: bool, steps: int) -> dict[str, object]:
    ratios = [round["ratio"] for round in rounds]
    fixed = {step: statistics.median(r["fixed_ms"][step] for r in rounds) for step in rounds[0]["fixed_ms"]}
    return {
        "work": "CNN on CIFAR-10, JPEG edition" if torch else "gradient boosting on synthetic data",
        "steps": steps,
        "native_s_median": statistics.median(r["native_s"] for r in rounds),
        "stage_s_median": statistics.median(r["stage_s"] for r in rounds),
        "ratio_median": statistics.median(ratios),
        "ratio_range": [min(ratios), max(ratios)],
        "cpu_ratio_median": statistics.median(r["cpu_ratio"] for r in rounds),
        "target": TARGET,
        "fixed_s_by_step": {step: milliseconds / 1000 for step, milliseconds in fixed.items()},
        "fixed_s": sum(fixed.values()) / 1000,
        "rounds": rounds,
        "machine": {
            "processor": processor(),
            "cores": len(os.sched_getaffinity(0)),
            "system": f"{platform.system()} {platform.release()}",
            "python": platform.python_version(),
            "load": os.getloadavg()[0],
        },
    }


def text(report: dict[str, object]) -> str:
    machine = report["machine"]
    steps = ", ".join(f"{step} {seconds:.2f}" for step, seconds in report["fixed_s_by_step"].items())
    low, high = report["ratio_range"]
    return "\n".join(
        [
            f"{report['work']}, {report['steps']} steps, {len(report['rounds'])} rounds in turn",
            f"machine   {machine['processor']}, {machine['cores']} cores, Python {machine['python']}, "
            f"load {machine['load']:.1f}",
            f"native    {report['native_s_median']:.2f} s (median)",
            f"stage     {report['stage_s_median']:.2f} s (median)",
            f"ratio     {report['ratio_median']:.3f} ({low:.3f} to {high:.3f}); target at most {TARGET}",
            f"cpu       {report['cpu_ratio_median']:.3f} times the processor time: tells more on a busy machine",
            f"fixed     {report['fixed_s']:.2f} s: {steps}",
        ]
    )


if __name__ == "__main__":
    main()
