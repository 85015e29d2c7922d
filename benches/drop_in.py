#!/usr/bin/env python3
"""Times candle's own training programs, with candle_nn and with this library in its place.

  benches/drop_in.py CANDLE [--data DIR] [--json FILE] [--rounds N] [--lines N] [--threads N] [PROGRAM...]

CANDLE is a folder with candle's sources. Its programs are copied to target/drop_in, and built twice: as they are, and with the line
`use candle_textbook::nn as candle_nn;` before their imports. A program that can load weights starts from the same ones on both sides.
MNIST comes from the folder `mnist` in --data (default: the variable TEXTBOOK_DATA). --lines N ends each program after N lines of
progress, for a quick trial.

Programs: NAMES; and simplified and tests, the book's simplified training and candle_nn's own tests, which pass or fail. All of them
run by default. An epoch takes the mean time from one line of progress to the next, and the median over the rounds counts.
`docs/results.py --drop-in FILE` records what --json FILE holds.
"""
import argparse, gzip, json, os, re, shutil, subprocess, sys, tempfile, time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
WORK = ROOT / "target" / "drop_in"

SIDES = ("stock", "ours")
IMPORT = "use candle_textbook::nn as candle_nn;\n"
POOL, OUR_POOL = ".max_pool2d(2)?", ".apply(&|xs: &Tensor| candle_nn::max_pool2d(xs, 2))?"
MNIST = r"loss:? +(?P<loss>[\d.]+) test acc: +(?P<accuracy>[\d.]+)%"
WEIGHTS = "model_weights.safetensors"
TESTS = ("batch_norm", "group_norm", "layer_norm", "loss", "one_hot", "ops", "optim", "rnn")


@dataclass
class Program:
    """A program of candle, and the lines of progress that it prints."""

    command: str  # DATA and SMALL stand for the folders of MNIST and of a twentieth of it.
    line: str  # A line of progress. Its groups are results, except `units`: the number of units that the line stands for.
    lines: int  # Number of lines after which the program has run long enough.
    start: str | None = None  # The command that makes the weights that it loads.
    per: int = 1  # Number of units that are timed.


def mnist(model, data, lines, binary="mnist"):
    return Program(f"{binary} {model} --load {WEIGHTS} --local-mnist {data}", MNIST, lines,
                   f"mnist {model} --epochs 0 --save {WEIGHTS} --local-mnist {data}")


PROGRAMS = {
    "linear": mnist("linear", "DATA", 11),
    "mlp": mnist("mlp", "DATA", 11),
    "cnn": mnist("cnn", "SMALL", 3),
    "cnn_pool": mnist("cnn", "SMALL", 3, "mnist_pool"),
    "tutorial": Program("tutorial_resumed DATA", MNIST.replace("accuracy", "fraction"), 9, "tutorial DATA"),
    "pg": Program("reinforcement pg", r"epoch: .* reward per episode: (?P<reward>[\d.]+)", 31),
    "dqn": Program("reinforcement dqn", r"Episode \d+ \| Rewards (?P<units>\d+)", 200, per=1_000),
    "ddpg": Program("reinforcement ddpg", r"episode \d+ with total reward of (?P<reward>-[\d.]+)", 4),
}
SUITES = {"simplified": ["simplified"], "tests": TESTS}

WORKSPACE = """[workspace]
members = ["datasets", "stock", "ours"]
resolver = "2"
"""
PACKAGE = """[package]
name = "{side}"
version = "0.0.0"
edition = "2021"

[dependencies]
anyhow = "1"
candle = {{ package = "candle-core", version = "0.11.1" }}
{layers}
candle-datasets = {{ path = "../datasets" }}
clap = {{ version = "4", features = ["derive"] }}
rand = "0.9"

[dev-dependencies]
tokio = {{ version = "1", features = ["macros", "rt"] }}
"""
# What the programs use of candle-datasets, without what it needs for downloads.
DATASETS = """[package]
name = "candle-datasets"
version = "0.0.0"
edition = "2021"

[dependencies]
byteorder = "1"
candle = { package = "candle-core", version = "0.11.1" }
"""
# Without candle_nn among the dependencies, a path that the import does not replace does not compile.
LAYERS = {
    "stock": 'candle-nn = "0.11.1"',
    "ours": f'candle-textbook = {{ path = "{ROOT}", default-features = false }}',
}


def fail(message):
    sys.exit(f"error: {message}")


def read(path):
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        fail(f"{path}: {error.strerror}; expected the sources of candle 0.11")


def replace(text, old, new, path):
    if old not in text:
        fail(f"{path}: found no `{old}`, expected the sources of candle 0.11")
    return text.replace(old, new)


def code_blocks(path):
    return re.findall(r"```rust\n(.*?)```", read(path), re.S)


def tutorial(candle, loop):
    """The program of the book's MNIST tutorial with the training `loop`, which takes the folder of data as its argument."""
    guide = candle / "candle-book/src/guide/mnist"
    model = re.search(r"struct Model \{.*?\}\n", code_blocks(guide / "modeling.md")[-1], re.S)
    linear, layers, first_loop, main = code_blocks(guide / "training.md")
    uses = re.compile(r"^use .*\n", re.M)
    imports = "".join(uses.findall(first_loop)) + "use candle as candle_core;\n"
    main = replace(main, "mnist::load()", "mnist::load_dir(std::env::args().nth(1).unwrap())", guide)
    return imports + model[0] + uses.sub("", linear) + layers + loop + main


def datasets(candle):
    """The part of candle-datasets that reads MNIST from files."""
    vision = candle / "candle-datasets/src/vision"
    dataset = re.search(r"pub struct Dataset \{.*?\n\}\n", read(vision / "mod.rs"), re.S)[0]
    files = read(vision / "mnist.rs").split("fn load_parquet")[0]
    files = re.sub(r"^(use (hf_hub|parquet)::.*|//!.*)\n", "", files, flags=re.M).replace("DType, Device, Error,", "DType, Device,")
    load = 'pub fn load() -> Result<crate::vision::Dataset> { candle::bail!("expected --local-mnist") }'
    return f"pub mod vision {{\nuse candle::Tensor;\n{dataset}pub mod mnist {{\n{files}{load}\n}}\n}}\n"


def sources(candle):
    """The files of a package: candle's programs and tests, with the line that names the data replaced."""
    examples = candle / "candle-examples/examples"
    training = read(examples / "mnist-training/main.rs")
    learning = examples / "reinforcement-learning"
    save, resume = code_blocks(candle / "candle-book/src/guide/mnist/saving_loading.md")
    return {
        "src/bin/SIDE_mnist.rs": training,
        "src/bin/SIDE_mnist_pool.rs": replace(training, POOL, OUR_POOL, examples),
        "src/bin/SIDE_tutorial.rs": tutorial(candle, save),
        "src/bin/SIDE_tutorial_resumed.rs": tutorial(candle, resume),
        "src/bin/SIDE_reinforcement/main.rs": replace(read(learning / "main.rs"), "mod vec_gym_env;\n", "", learning),
        "src/bin/SIDE_reinforcement/gym_env.rs": read(HERE / "drop_in/gym_env.rs"),
        **{f"src/bin/SIDE_reinforcement/{name}.rs": read(learning / f"{name}.rs") for name in ("ddpg", "dqn", "policy_gradient")},
        "tests/simplified.rs": read(candle / "candle-book/src/simplified.rs"),
        **{f"tests/{name}.rs": read(candle / f"candle-nn/tests/{name}.rs") for name in TESTS},
    }


def write_packages(candle):
    WORK.mkdir(parents=True, exist_ok=True)
    (WORK / "Cargo.toml").write_text(WORKSPACE)
    shutil.copy(ROOT / "Cargo.lock", WORK)
    (WORK / "datasets/src").mkdir(parents=True, exist_ok=True)
    (WORK / "datasets/src/lib.rs").write_text(datasets(candle))
    (WORK / "datasets/Cargo.toml").write_text(DATASETS)
    for side in SIDES:
        shutil.rmtree(WORK / side, ignore_errors=True)
        for name, text in sources(candle).items():
            if side == "stock" and name.endswith("mnist_pool.rs"):
                continue
            if side == "ours" and "candle_nn" in text:
                text = re.sub(r"^use ", IMPORT + "use ", text, count=1, flags=re.M)
            file = WORK / side / name.replace("SIDE", side)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
        (WORK / side / "Cargo.toml").write_text(PACKAGE.format(side=side, layers=LAYERS[side]))


def write_mnist(data):
    """Unpacks MNIST, and the twentieth of it on which the convolutional network trains."""
    names = {"train-images-idx3-ubyte": 60_000, "train-labels-idx1-ubyte": 60_000,
             "t10k-images-idx3-ubyte": 10_000, "t10k-labels-idx1-ubyte": 10_000}
    for name, count in names.items():
        packed, plain = data / f"{name}.gz", data / name
        if not packed.is_file() and not plain.is_file():
            fail(f"{data}: found no {name}, expected the four files of MNIST")
        contents = gzip.decompress(packed.read_bytes()) if packed.is_file() else plain.read_bytes()
        header = 16 if "images" in name else 8
        size = (len(contents) - header) // count
        part = count // 20
        head = contents[:4] + part.to_bytes(4, "big") + contents[8:header]
        for folder, text in {"DATA": contents, "SMALL": head + contents[header:header + part * size]}.items():
            (WORK / folder).mkdir(exist_ok=True)
            (WORK / folder / name).write_bytes(text)


def build():
    command = ["cargo", "build", "--release", "--bins", "--target-dir", WORK / "target"]
    subprocess.run(command, cwd=WORK, check=True)


def start(side, command, folder, threads):
    """Starts a program in `folder`, with `threads` threads.

    Candle's own thread pool competes with the one that this library uses, so it has one thread there.
    """
    program, *arguments = command.split()
    arguments = [WORK / word if word in ("DATA", "SMALL") else word for word in arguments]
    variables = {"RAYON_NUM_THREADS": str(threads), "CANDLE_NUM_THREADS": str(threads if side == "stock" else 1)}
    binary = WORK / "target/release" / f"{side}_{program}"
    return subprocess.Popen([binary, *arguments], cwd=folder, stdout=subprocess.PIPE, text=True, env=os.environ | variables)


def write_weights(program, threads):
    """The weights that both sides start from, if the program can load weights."""
    if program.start is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        with start("stock", program.start, folder, threads) as process:
            process.communicate()
        if process.returncode:
            fail(f"`{program.start}` ended with {process.returncode}")
        return (Path(folder) / WEIGHTS).read_bytes()


def time_program(side, program, lines, weights, threads):
    """Runs a program until it has printed `lines` lines of progress, and returns the seconds per unit and its last results."""
    times, units = [], []
    with tempfile.TemporaryDirectory() as folder:
        if weights is not None:
            (Path(folder) / WEIGHTS).write_bytes(weights)
        with start(side, program.command, folder, threads) as process:
            for text in process.stdout:
                if found := re.search(program.line, text):
                    times.append(time.monotonic())
                    results = {name: float(value) for name, value in found.groupdict().items()}
                    units.append(results.pop("units", 1))
                if len(times) == lines:
                    break
            process.kill()
    if len(times) < lines:
        fail(f"{side}: `{program.command}` ended after {len(times)} lines of progress, expected {lines}")
    if "fraction" in results:
        results["accuracy"] = 100 * results.pop("fraction")
    return {"seconds": program.per * (times[-1] - times[0]) / sum(units[1:])} | results


def measure(name, options):
    program = PROGRAMS[name]
    lines = options.lines or program.lines
    sides = SIDES if name != "cnn_pool" else ("ours",)
    weights = write_weights(program, options.threads)
    runs = {side: [] for side in sides}
    for _ in range(options.rounds):
        for side in sides:
            runs[side].append(time_program(side, program, lines, weights, options.threads))
    medians = {side: {key: median(run[key] for run in runs[side]) for key in runs[side][0]} for side in sides}
    return {"name": name} | medians


def test(name):
    row = {"name": name}
    for side in SIDES:
        targets = [word for target in SUITES[name] for word in ("--test", target)]
        command = ["cargo", "test", "--release", "--no-fail-fast", "--target-dir", WORK / "target", "-p", side, *targets]
        output = subprocess.run(command, cwd=WORK, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
        counts = re.findall(r"test result: .* (\d+) passed; (\d+) failed", output)
        row[side] = {"passed": sum(int(passed) for passed, _ in counts), "failed": sum(int(failed) for _, failed in counts)}
    return row


def text(results):
    forms = {"seconds": "{:.3f} s", "loss": "loss {:.5f}", "accuracy": "{:.2f}%", "reward": "reward {:.1f}",
             "passed": "{} passed", "failed": "{} failed"}
    return ", ".join(forms[key].format(value) for key, value in results.items())


def main():
    description = __doc__.replace("NAMES", ", ".join(PROGRAMS))
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("candle", metavar="CANDLE", type=Path)
    parser.add_argument("programs", nargs="*", metavar="PROGRAM")
    parser.add_argument("--data", metavar="DIR", default=os.environ.get("TEXTBOOK_DATA"))
    parser.add_argument("--json", metavar="FILE", type=Path)
    for name, default in {"rounds": 3, "lines": None, "threads": 2}.items():
        parser.add_argument(f"--{name}", metavar="N", type=int, default=default)
    options = parser.parse_args()
    if not options.data:
        parser.error("--data DIR names the folder that holds mnist")
    if options.lines is not None and options.lines < 2:
        parser.error(f"--lines: found {options.lines}, expected 2 or more")
    unknown = [name for name in options.programs if name not in PROGRAMS | SUITES]
    if unknown:
        parser.error(f"unknown program {unknown[0]}: expected {', '.join(PROGRAMS | SUITES)}")
    write_packages(options.candle)
    write_mnist(Path(options.data) / "mnist")
    build()
    rows = []
    for name in options.programs or PROGRAMS | SUITES:
        rows.append(measure(name, options) if name in PROGRAMS else test(name))
        print(name, *(f"{side}: {text(rows[-1][side])}" for side in SIDES if side in rows[-1]), sep="; ", flush=True)
    if options.json:
        how = f"{options.threads} threads, median of {options.rounds} rounds in turn"
        options.json.write_text(json.dumps({"how": how, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
