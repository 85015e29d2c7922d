"""Times the operations of benches/ops.json here and in PyTorch, alternately, and prints a table.

    python benches/ops.py [--rounds N] [--threads N] [--seconds S] [NAME...]

NAME selects the operations whose names contain it. The ratio is PyTorch's time divided by ours, for the forward pass and
for forward and backward together: above 1, ours is faster. Each round runs both sides once; the table has the medians.
`--peer` runs PyTorch alone and prints one line of JSON per operation, like `cargo bench --bench ops`.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent


def operation(entry):
    """Returns the operation."""
    import torch
    from torch.nn import functional as F

    def random(shape):
        return torch.randn(shape, requires_grad=True)

    def ids(count, below):
        return torch.arange(count) * 7919 % below

    shape, stride, padding = entry.get("xs"), entry.get("stride", (1, 1)), entry.get("padding", (0, 0))
    match entry["op"]:
        case "conv2d":
            xs, weight, bias = random(shape), random(entry["weight"]), random(entry["weight"][:1])
            return lambda: F.conv2d(xs, weight, bias, stride, padding, groups=entry.get("groups", 1))
        case "linear":
            xs, weight, bias = random(shape), random(entry["weight"]), random(entry["weight"][:1])
            return lambda: F.linear(xs, weight, bias)
        case "max_pool2d":
            xs = random(shape)
            return lambda: F.max_pool2d(xs, entry["kernel"], stride, padding)
        case "avg_pool2d":
            xs = random(shape)
            return lambda: F.avg_pool2d(xs, entry["kernel"], stride, padding)
        case "max_over_time":
            xs = random(shape)
            return lambda: xs.max(1).values
        case "batch_norm":
            xs, weight, bias = random(shape), random(shape[1:2]), random(shape[1:2])
            mean, variance = torch.zeros(shape[1]), torch.ones(shape[1])
            return lambda: F.batch_norm(xs, mean, variance, weight, bias, True)
        case "cross_entropy":
            xs, targets = random(shape), ids(shape[0], shape[1])
            return lambda: F.cross_entropy(xs, targets)
        case "embedding":
            weight, rows = random(entry["weight"]), ids(entry["ids"], entry["weight"][0])
            return lambda: F.embedding(rows, weight)
        case op:
            sys.exit(f"error: {entry['name']}: unknown operation {op}")


def median(seconds, work):
    """Seconds that `work` takes: the median of blocks of a few milliseconds."""
    warm, start = 0, time.perf_counter()
    while warm < 2 or time.perf_counter() - start < seconds / 3:
        work()
        warm += 1
    block = int(0.005 * warm / (time.perf_counter() - start)) + 1
    blocks, start = [], time.perf_counter()
    while len(blocks) < 3 or time.perf_counter() - start < seconds:
        began = time.perf_counter()
        for _ in range(block):
            work()
        blocks.append((time.perf_counter() - began) / block)
    return statistics.median(blocks)


def peer(entries, arguments):
    import torch

    torch.set_num_threads(arguments.threads)
    for entry in entries:
        run = operation(entry)
        with torch.no_grad():
            forward = median(arguments.seconds, run)

        def forward_and_backward():
            ys = run()
            # Like ours, which begins with a gradient of ones.
            ys.backward(torch.ones_like(ys))

        both = median(arguments.seconds, forward_and_backward)
        print(json.dumps({"name": entry["name"], "forward": forward, "both": both}), flush=True)


def compare(entries, arguments):
    build = ["cargo", "build", "--manifest-path", HERE.parent / "Cargo.toml", "--bench", "ops"]
    built = subprocess.run([*build, "--message-format=json-render-diagnostics"], stdout=subprocess.PIPE, check=True)
    messages = [json.loads(line) for line in built.stdout.splitlines()]
    ours = next(m["executable"] for m in messages if m.get("target", {}).get("name") == "ops")
    options = ["--threads", str(arguments.threads), "--seconds", str(arguments.seconds)]
    sides = [[ours, *options], [sys.executable, __file__, "--peer", *options]]
    print(f"{'milliseconds':<48} {'forward: ours':>13} {'PyTorch':>8} {'ratio':>6} {'both: ours':>11} {'PyTorch':>8} {'ratio':>6}")
    for entry in entries:
        times = [[], []]
        for _ in range(arguments.rounds):
            for side, command in enumerate(sides):
                out = subprocess.run([*command, entry["name"]], stdout=subprocess.PIPE, check=True).stdout
                runs = map(json.loads, out.splitlines())
                times[side].append(next(run for run in runs if run["name"] == entry["name"]))
        row = f"{entry['name']:<48}"
        for what, widths in (("forward", (13, 8)), ("both", (11, 8))):
            ms = [1e3 * statistics.median(run[what] for run in side) for side in times]
            row += f" {ms[0]:>{widths[0]}.3f} {ms[1]:>{widths[1]}.3f} {ms[1] / ms[0]:>6.2f}"
        print(row, flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=0.3)
    parser.add_argument("--peer", action="store_true")
    arguments = parser.parse_args()
    entries = json.loads((HERE / "ops.json").read_text())
    wanted = [e for e in entries if not arguments.names or any(name in e["name"] for name in arguments.names)]
    (peer if arguments.peer else compare)(wanted, arguments)


main()
