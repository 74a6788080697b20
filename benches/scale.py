"""Times glueless on 1, 2, 4 and 8 times the case narrow, and plots time and memory.

    python scale.py --glueless BINARY --generate BINARY --work DIR [--picture FILE]

Changes and keys grow together; the memory limit stays the same.
"""

import os
import pathlib
import shutil
import statistics

import matplotlib

from measure import BENCHES, inspect, make, parser_of, print_machine, run_glueless, spread

TIMES = [1, 2, 4, 8]


def main():
    parser = parser_of(__doc__, "glueless", "generate", "work")
    parser.add_argument("--picture", type=pathlib.Path, default=BENCHES / "scale.svg")
    parser.add_argument("--runs", type=int, default=3, help="turns per size (default 3)")
    arguments = parser.parse_args()
    print_machine(arguments.glueless)
    print("\n### scale: 1, 2, 4 and 8 times the case narrow\n")
    print("| changes | raw MB | wall s | CPU s | peak memory MB | wall, of one = 1 |")
    print("|---|---|---|---|---|---|")
    measured = {}
    for times in TIMES:
        measured[times] = measure(arguments, times)
        print_line(measured, times)
    draw(measured, arguments.picture)


def measure(arguments, times):
    rows, keys, files = 20_000_000 * times, 5_000_000 * times, 40 * times
    case = "narrow" if times == 1 else f"narrow-{times}"
    raw = make(arguments, case, "narrow", f"--rows {rows} --keys {keys} --files {files}")
    _, _, size = inspect(raw)
    runs = []
    for _ in range(arguments.runs):
        work = arguments.work / "runs" / "scale"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        os.sync()
        runs.append(run_glueless(arguments, "narrow", raw, work))
        shutil.rmtree(work)
    return {"rows": rows, "size": size, "runs": runs}


def values(measured, times, name):
    return [run[name] for run in measured[times]["runs"]]


def print_line(measured, times):
    seconds = lambda times: statistics.median(values(measured, times, "seconds"))
    peaks = [peak / 1e6 for peak in values(measured, times, "peak_bytes")]
    cells = [
        f"{measured[times]['rows']:,}",
        f"{measured[times]['size'] / 1e6:,.0f}",
        spread(values(measured, times, "seconds"), "{:.1f}"),
        spread(values(measured, times, "cpu_seconds"), "{:.1f}"),
        spread(peaks, "{:,.0f}"),
        f"{seconds(times) / seconds(1):.2f}",
    ]
    print("| " + " | ".join(cells) + " |", flush=True)


def draw(measured, picture):
    matplotlib.use("svg")
    # Makes the picture reproducible.
    matplotlib.rcParams["svg.hashsalt"] = "scale"
    from matplotlib import pyplot

    figure, (time, memory) = pyplot.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    rows = [measured[times]["rows"] / 1e6 for times in TIMES]
    median = lambda name: [statistics.median(values(measured, times, name)) for times in TIMES]
    seconds, peaks = median("seconds"), median("peak_bytes")
    time.plot(rows, seconds, marker="o", label="measured")
    linear = [seconds[0] * times for times in TIMES]
    time.plot(rows, linear, linestyle=":", color="gray", label="the first one, times its size")
    time.set_ylabel("wall time, s")
    time.legend()
    memory.plot(rows, [peak / 1e6 for peak in peaks], marker="o")
    memory.axhline(900, linestyle=":", color="gray", label="limits.memory")
    memory.set_ylabel("peak memory, MB")
    memory.legend()
    for axes in (time, memory):
        axes.set_xlabel("changes, millions")
        axes.set_ylim(bottom=0)
        axes.set_xlim(left=0)
    figure.savefig(picture, metadata={"Date": None})


if __name__ == "__main__":
    main()
