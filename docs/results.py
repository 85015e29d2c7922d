#!/usr/bin/env python3
"""Measures what README.md and docs/ report, and writes it into their tables.

  docs/results.py --list              name the entries
  docs/results.py [NAME...]           run the named entries, or all whose data are there, and record the results
  docs/results.py --cpu FILE          record the rows of `benches/compare.sh --json FILE`
  docs/results.py --gpu FILE          record the table that `benches/gpu.sh` printed, with --machine
  docs/results.py --drop-in FILE      record the rows of `benches/drop_in.py --json FILE`
  docs/results.py --tables            rewrite the tables in README.md and docs/*.md
  docs/results.py --check             fail if a table differs from results.json

--data DIR names the folder of the data sets, one folder each (default: the variable TEXTBOOK_DATA). --bin DIR names a folder
of built binaries (default: built by cargo). --busy records no times: use it while other programs run. --machine WORDS
describes the machine (default: its processor).

A table is what lies between `<!-- results: NAME -->` and `<!-- end of results -->`; TABLES, below, defines its rows.
"""
import argparse, datetime, json, os, re, subprocess, sys, tempfile, time
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
FILE = HERE / "results.json"

ACCURACY = r"test accuracy ([\d.]+)%"
PERCENT, FINE, F1, BLEU, NATS = "{:.1f}%", "{:.2f}%", "F1 {:.1f}%", "BLEU {:.1f}", "{:.2f} nats per character"
STEPS = "{:.2f} nats per step"


@dataclass
class Entry:
    """A command, which runs in an empty folder, and how to read its result."""

    command: str  # DIR stands for the folder of the data set.
    read: str = ACCURACY  # The group in its last match in the output is the result.
    form: str = PERCENT
    needs: str | None = None  # The data set.
    seeds: tuple = ()  # The result is the mean over these.
    after: str | None = None  # The entry whose run it uses.


ENTRIES = {
    "lenet": Entry("lenet"),
    "lenet_mnist": Entry("lenet --dataset mnist --data-dir DIR", form=FINE, needs="mnist", seeds=(1, 2, 3)),
    "lenet_nielsen": Entry("lenet --preset nielsen --dataset mnist --data-dir DIR", form=FINE, needs="mnist"),
    "lenet_pytorch": Entry("lenet --preset pytorch --dataset mnist --data-dir DIR", form=FINE, needs="mnist"),
    "lenet_transfer": Entry("lenet eval --dataset mnist --data-dir DIR", r"accuracy ([\d.]+)%", needs="mnist", after="lenet"),
    "mlp": Entry("mlp"),
    "mlp_chapter1": Entry("mlp --preset chapter1 --dataset mnist --data-dir DIR", needs="mnist", seeds=(1, 2, 3, 4, 5)),
    "mlp_chapter3": Entry("mlp --preset chapter3 --dataset mnist --data-dir DIR", needs="mnist"),
    "resnet": Entry("resnet"),
    "resnet_cifar10": Entry(
        "resnet --dataset image-folder --data-dir DIR --epochs 10 --shortcut projection --crop 1 --nesterov"
        " --weight-decay 5e-4 --schedule linear --warmup 400", needs="cifar10"),
    "rnn": Entry("rnn", form=FINE),
    "gru": Entry("gru", form=FINE),
    "lstm": Entry("lstm", form=FINE),
    "lstm_mr": Entry("lstm --dataset mr --data-dir DIR --epochs 4 --folds 10", needs="mr"),
    "textcnn": Entry("textcnn"),
    "textcnn_mr": Entry("textcnn --dataset mr --data-dir DIR --lower-case --folds 10", needs="mr"),
    "fasttext": Entry("fasttext"),
    "fasttext_words": Entry("fasttext --word-ngrams 1"),
    "birnn": Entry("birnn", r"F1 ([\d.]+)%", F1),
    "birnn_forward": Entry("birnn --direction forward", r"F1 ([\d.]+)%", F1),
    "seq2seq": Entry("seq2seq", r"test exact match ([\d.]+)%"),
    "seq2seq_none": Entry("seq2seq --attention none", r"test exact match ([\d.]+)%"),
    "multi30k": Entry("seq2seq --preset multi30k --data-dir DIR", r"BLEU ([\d.]+)", BLEU, "multi30k"),
    "multi30k_none": Entry(
        "seq2seq --preset multi30k --attention none --data-dir DIR", r"BLEU ([\d.]+)", BLEU, "multi30k"
    ),
    "multi30k_greedy": Entry("seq2seq eval --beam 1", r"BLEU ([\d.]+)", BLEU, "multi30k", after="multi30k"),
    "multi30k_de": Entry(
        "seq2seq --preset multi30k --source-lang de --target-lang en --data-dir DIR", r"BLEU ([\d.]+)", BLEU, "multi30k"
    ),
    "multi30k_de_greedy": Entry("seq2seq eval --beam 1", r"BLEU ([\d.]+)", BLEU, "multi30k", after="multi30k_de"),
    "char_lm": Entry("char_lm", r"test +([\d.]+) nats", NATS),
    "shakespeare": Entry(
        "char_lm --dataset tiny-shakespeare --data-dir DIR --preset shakespeare", r"val +([\d.]+) nats", NATS,
        "tinyshakespeare"),
    "music": Entry("music", r"test ([\d.]+) nats", STEPS),
    "music_jsb": Entry("music --preset jsb --data-dir DIR", r"test ([\d.]+) nats", STEPS, "jsb"),
    "music_jsb_independent": Entry(
        "music --preset jsb --data-dir DIR --output independent", r"test ([\d.]+) nats", STEPS, "jsb"),
}

# The rows of the benchmark that the speed table shows, with what they train.
SPEED = {
    "mlp": "MLP 784-30-10, batch 10",
    "lenet": "LeNet, batch 64",
    "lstm_small": "LSTM language model, 2 x 128 units, 50 x 50 characters",
    "gru_small": "GRU language model, 2 x 128 units, 50 x 50 characters",
    "lstm_large": "LSTM language model, 2 x 512 units, 64 x 100 characters",
    "birnn": "bidirectional LSTM tagger, 32 sentences",
    "textcnn": "sentence CNN, 50 sentences",
    "seq2seq": "translation with attention, 64 sentences",
    "resnet20": "ResNet-20, batch 32",
    "resnet20_128": "ResNet-20, batch 128",
}

# The programs of candle that `benches/drop_in.py` runs, with what their times are times of.
DROP_IN = {
    "linear": ("`mnist-training linear`", "epoch, MNIST in one batch"),
    "mlp": ("`mnist-training mlp`", "epoch, MNIST in one batch"),
    "cnn": ("`mnist-training cnn`", "epoch, a twentieth of MNIST"),
    "cnn_pool": ("the same with `candle_nn::max_pool2d`", "epoch, a twentieth of MNIST"),
    "tutorial": ("MNIST tutorial of the book", "epoch, MNIST in one batch"),
    "pg": ("`reinforcement-learning pg`", "epoch of 5,000 steps or more"),
    "dqn": ("`reinforcement-learning dqn`", "1,000 steps"),
    "ddpg": ("`reinforcement-learning ddpg`", "episode and 200 updates"),
}

# Name: (header, rows). `NAME` stands for the result of an entry, `NAME:time` for its wall time, `NAME:mean` for the result
# without the standard deviation.
TABLES = {
    "models": ("program | model | on built-in data | time | on real data", [
        "[`lenet`](docs/lenet.md) | LeNet (LeCun 1998), and Nielsen's networks of chapter 6 | {lenet} of digits | {lenet:time} | MNIST {lenet_mnist}; with Nielsen's last network {lenet_nielsen}",
        "[`mlp`](docs/mlp.md) | multi-layer perceptron (Nielsen, chapters 1 to 3) | {mlp} of digits | {mlp:time} | MNIST {mlp_chapter3}",
        "[`resnet`](docs/resnet.md) | residual networks of 18 to 152 layers (He 2015) | {resnet} of shapes | {resnet:time} | CIFAR-10 {resnet_cifar10} after 10 epochs",
        "[`rnn`, `gru`, `lstm`](docs/recurrent.md) | recurrent sentence classifiers (Elman 1990; Cho 2014; Hochreiter 1997) | {rnn}, {gru}, {lstm} of reviews | {lstm:time} | movie reviews (MR) {lstm_mr:mean}",
        "[`textcnn`](docs/textcnn.md) | convolutional sentence classifier (Kim 2014) | {textcnn} of reviews | {textcnn:time} | movie reviews (MR) {textcnn_mr:mean}",
        "[`fasttext`](docs/fasttext.md) | mean of word and n-gram vectors (Joulin 2016) | {fasttext} of reviews | {fasttext:time} |",
        "[`birnn`](docs/birnn.md) | bidirectional LSTM tagger (Huang 2015) | {birnn} on names | {birnn:time} |",
        "[`seq2seq`](docs/seq2seq.md) | encoder-decoder with attention (Bahdanau 2015) | {seq2seq} of dates exact | {seq2seq:time} | Multi30k {multi30k} in {multi30k:time}",
        "[`char_lm`](docs/char_lm.md) | language model that writes (Karpathy 2015) | {char_lm} | {char_lm:time} | Shakespeare {shakespeare}",
        "[`music`](docs/music.md) | network that composes (Boulanger-Lewandowski 2012) | {music} | {music:time} | Bach's chorales (JSB) {music_jsb}",
    ]),
    "lenet": ("command | test accuracy | time | published", [
        "`lenet` on the built-in digits | {lenet} | {lenet:time} |",
        "`lenet --dataset mnist --data-dir DIR` (mean of three seeds) | {lenet_mnist} | {lenet_mnist:time} | 99.05% (LeCun 1998, LeNet-5)",
        "`lenet --preset nielsen --dataset mnist --data-dir DIR` | {lenet_nielsen} | {lenet_nielsen:time} | 99.60% (Nielsen)",
        "`lenet --preset pytorch --dataset mnist --data-dir DIR` | {lenet_pytorch} | {lenet_pytorch:time} | 99.1 to 99.3% (PyTorch's example)",
        "`lenet`, then `lenet eval --dataset mnist --data-dir DIR`: handwriting that it has never seen | {lenet_transfer} | {lenet_transfer:time} |",
    ]),
    "mlp": ("command | test accuracy | time | published", [
        "`mlp` on the built-in digits | {mlp} | {mlp:time} |",
        "`mlp --preset chapter1 --dataset mnist --data-dir DIR` (mean of five seeds) | {mlp_chapter1} | {mlp_chapter1:time} | 95.42% (Nielsen, see below)",
        "`mlp --preset chapter3 --dataset mnist --data-dir DIR` | {mlp_chapter3} | {mlp_chapter3:time} | 98.04% (Nielsen)",
    ]),
    "resnet": ("command | test accuracy | time", [
        "`resnet` on the built-in shapes | {resnet} | {resnet:time}",
        "CIFAR-10, ten epochs, as below | {resnet_cifar10} | {resnet_cifar10:time}",
    ]),
    "recurrent": ("command | test accuracy | time", [
        "`rnn` on the built-in reviews | {rnn} | {rnn:time}",
        "`gru` | {gru} | {gru:time}",
        "`lstm` | {lstm} | {lstm:time}",
        "`lstm --dataset mr --data-dir DIR --epochs 4 --folds 10` | {lstm_mr} | {lstm_mr:time}",
    ]),
    "textcnn": ("command | test accuracy | time | published", [
        "`textcnn` on the built-in reviews | {textcnn} | {textcnn:time} |",
        "`textcnn --dataset mr --data-dir DIR --lower-case --folds 10` | {textcnn_mr} | {textcnn_mr:time} | 76.1% (Kim)",
    ]),
    "fasttext": ("command | test accuracy | time", [
        "`fasttext` on the built-in reviews | {fasttext} | {fasttext:time}",
        "`fasttext --word-ngrams 1`, without word pairs | {fasttext_words} | {fasttext_words:time}",
    ]),
    "birnn": ("command | test result | time", [
        "`birnn` on the built-in names | {birnn} | {birnn:time}",
        "`birnn --direction forward`, without the words to the right | {birnn_forward} | {birnn_forward:time}",
    ]),
    "seq2seq": ("command | test result | time", [
        "`seq2seq` on the built-in dates | {seq2seq} exact | {seq2seq:time}",
        "`seq2seq --attention none` | {seq2seq_none} exact | {seq2seq_none:time}",
        "`seq2seq --preset multi30k --data-dir DIR`, beam of 5 | {multi30k} | {multi30k:time}",
        "the same model, `eval --beam 1` | {multi30k_greedy} |",
        "the same with `--attention none`, beam of 5 | {multi30k_none} |",
        "the same with `--source-lang de --target-lang en`, beam of 5 | {multi30k_de} |",
        "the same model, `eval --beam 1` | {multi30k_de_greedy} |",
    ]),
    "char_lm": ("command | result | time", [
        "`char_lm` on the built-in source code | {char_lm}, test part | {char_lm:time}",
        "`char_lm --dataset tiny-shakespeare --data-dir DIR --preset shakespeare` | {shakespeare}, validation part | {shakespeare:time}",
    ]),
    "music": ("command | test loss | time | published", [
        "`music` on the built-in chorales | {music} | {music:time} |",
        "`music --preset jsb --data-dir DIR --output independent` | {music_jsb_independent} | {music_jsb_independent:time} | 8.45 (LSTM), 8.43 (GRU, Bai 2018)",
        "`music --preset jsb --data-dir DIR` | {music_jsb} | {music_jsb:time} |",
    ]),
}


def duration(seconds):
    """Seconds in words, with a space that does not break: 12 s, 2.5 min, 52 min."""
    if seconds is None:
        return "-"
    if seconds < 99.5:
        return f"{seconds:.0f}\u00a0s"
    return f"{seconds / 60:.1f}\u00a0min".replace(".0\u00a0", "\u00a0") if seconds < 600 else f"{seconds / 60:.0f}\u00a0min"


def cell(results, name):
    """The text of `NAME`, `NAME:time` or `NAME:mean`."""
    name, _, part = name.partition(":")
    entry = results["models"].get(name, {})
    if part == "time":
        return duration(entry.get("seconds"))
    if entry.get("result") is None:
        return "-"
    text = ENTRIES[name].form.format(entry["result"])
    deviation = entry.get("deviation")
    return text if deviation is None or part == "mean" else f"{text} (standard deviation {deviation:.1f})"


def markdown(header, rows):
    lines = [header, " | ".join("---" for _ in header.split("|")), *rows]
    return "\n".join(f"| {line.strip()} |" for line in lines)


def milliseconds(value):
    return "-" if value is None else f"{value:#.3g}".rstrip(".")


def times(value):
    return "-" if value is None else f"{value:.1f}" if value < 10 else f"{value:.0f}"


def speed_table(results):
    cpu, gpu = results["cpu"]["rows"], results["gpu"]["rows"]
    rows = []
    for name, what in SPEED.items():
        ours, peer = (cpu.get(name, {}).get(side) for side in ("ours", "pytorch"))
        on_gpu = gpu.get(name, {})
        graph, eager, peer_graph = (on_gpu.get(side) for side in ("ours_graph", "pytorch_eager", "pytorch_graph"))
        factor = lambda a, b: None if a is None or b is None else b / a
        rows.append(" | ".join([
            what, milliseconds(ours), milliseconds(peer), f"**{times(factor(ours, peer))}**",
            milliseconds(graph), milliseconds(eager), milliseconds(peer_graph), f"**{times(factor(graph, eager))}**",
        ]).replace("**-**", "-"))
    header = "one training step, ms | CPU: ours | PyTorch | factor | GPU: ours | PyTorch eager | PyTorch CUDA graph | factor to eager"
    return markdown(header, rows)


def drop_in_factors(results):
    rows = results["drop_in"]["rows"]
    return {name: rows[name]["stock"]["seconds"] / rows[name]["ours"]["seconds"] for name in DROP_IN if "stock" in rows.get(name, {})}


def drop_in_table(results):
    measured, factors = results["drop_in"]["rows"], drop_in_factors(results)
    forms = {"loss": "loss {:.5f}", "accuracy": "{:.1f}%", "reward": "reward {:.0f}"}
    rows = []
    for name, (program, unit) in DROP_IN.items():
        sides = [measured.get(name, {}).get(side, {}) for side in ("stock", "ours")]
        seconds = [f"{side['seconds']:#.3g}\u00a0s" if side else "-" for side in sides]
        found = [", ".join(form.format(side[key]) for key, form in forms.items() if key in side) or "-" for side in sides]
        factor = f"**{times(factors[name])}**" if name in factors else "-"
        rows.append(" | ".join([program, unit, *seconds, factor, *found]))
    return markdown("program | time per | candle_nn | this library | factor | result with candle_nn | with this library", rows)


def drop_in_words(results, name):
    found = results["drop_in"]
    if name == "drop_in_factors":
        factors = drop_in_factors(results).values()
        return f"{min(factors):.0f} to {max(factors):.0f}"
    if name == "drop_in_tests":
        passed, failed = (found["rows"]["tests"]["ours"][key] for key in ("passed", "failed"))
        return f"{passed} of {passed + failed}"
    return f"{found['machine']}, {found['how']}, {found['date']}."


def table(results, name):
    if name == "speed":
        return speed_table(results)
    if name == "drop_in":
        return drop_in_table(results)
    if name.startswith("drop_in"):
        return drop_in_words(results, name)
    if name == "measured":
        cpu, gpu = results["cpu"], results["gpu"]
        return (f"CPU: {cpu['machine']}, {cpu['how']}, {cpu['date']}. GPU: {gpu['machine']}, {gpu['how']}, {gpu['date']}.")
    header, rows = TABLES[name]
    fill = lambda text: re.sub(r"\{([\w:]+)\}", lambda found: cell(results, found[1]), text)
    return markdown(header, [fill(row) for row in rows])


# A table or a paragraph between two lines, or words in a line.
MARKED = re.compile(r"(<!-- results: (\w+) -->(\n?)).*?(<!-- end of results -->)", re.S)


def rewrite(results, check):
    """Rewrites the tables in all pages, or lists the pages whose tables are stale."""
    stale = []
    for page in [ROOT / "README.md", *sorted(HERE.glob("*.md"))]:
        text = page.read_text(encoding="utf-8")
        fresh = MARKED.sub(lambda found: f"{found[1]}{table(results, found[2])}{2 * found[3]}{found[4]}", text)
        if fresh != text:
            stale.append(str(page.relative_to(ROOT)))
            if not check:
                page.write_text(fresh, encoding="utf-8")
    if check and stale:
        sys.exit(f"error: stale tables in {', '.join(stale)}: run docs/results.py --tables")
    for name in stale:
        print(f"rewrote the tables of {name}")


def processor():
    try:
        names = re.findall(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.M)
    except OSError:
        names = []
    return f"{names[0].strip() if names else 'unknown processor'}, {os.cpu_count()} cores"


def binaries(folder):
    if folder:
        return Path(folder).resolve()
    subprocess.run(["cargo", "build", "--bins"], cwd=ROOT, check=True)
    return ROOT / "target" / "debug"


def measure(name, folder, data, scratch):
    """Runs an entry once per seed; returns the mean result, its deviation if reported, and the mean wall time."""
    entry = ENTRIES[name]
    values, deviations, seconds = [], [], []
    if entry.after and not (scratch / entry.after).is_dir():
        measure(entry.after, folder, data, scratch)
    work = scratch / (entry.after or name)
    work.mkdir(exist_ok=True)
    for seed in entry.seeds or [None]:
        program, *arguments = entry.command.split()
        arguments = [str(data / entry.needs) if word == "DIR" else word for word in arguments]
        arguments += [] if seed is None else ["--seed", str(seed)]
        start = time.monotonic()
        done = subprocess.run([folder / program, *arguments], cwd=work, stdout=subprocess.PIPE, text=True)
        seconds.append(time.monotonic() - start)
        if done.returncode:
            sys.exit(f"error: {name}: `{entry.command}` ended with {done.returncode}")
        found = re.findall(entry.read, done.stdout)
        if not found:
            sys.exit(f"error: {name}: no `{entry.read}` in the output of `{entry.command}`")
        values.append(float(found[-1]))
        deviations += re.findall(r"standard deviation ([\d.]+)", done.stdout)
    return mean(values), float(deviations[-1]) if deviations else None, mean(seconds)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    for flag in ("list", "tables", "check", "busy"):
        parser.add_argument(f"--{flag}", action="store_true")
    for option in ("cpu", "gpu"):
        parser.add_argument(f"--{option}", metavar="FILE", type=Path)
    parser.add_argument("--drop-in", metavar="FILE", type=Path)
    parser.add_argument("--data", metavar="DIR", default=os.environ.get("TEXTBOOK_DATA"))
    parser.add_argument("--bin", metavar="DIR")
    parser.add_argument("--machine", metavar="WORDS")
    options = parser.parse_args()
    results = json.loads(FILE.read_text(encoding="utf-8"))
    today = datetime.date.today().isoformat()

    def save():
        FILE.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    if options.list:
        for name, entry in ENTRIES.items():
            print(f"{name:<16} {entry.command}{f', with data {entry.needs}' if entry.needs else ''}")
        return
    if options.tables or options.check:
        return rewrite(results, options.check)
    if options.cpu:
        measured = json.loads(options.cpu.read_text(encoding="utf-8"))
        results["cpu"].update(
            date=today, machine=options.machine or processor(), how=measured["how"],
            rows=results["cpu"]["rows"] | {row["name"]: {"ours": row["ours_ms"], "pytorch": row["pytorch_ms"]} for row in measured["rows"]})
        return save()
    if options.drop_in:
        measured = json.loads(options.drop_in.read_text(encoding="utf-8"))
        results["drop_in"] = {
            "date": today, "machine": options.machine or processor(), "how": measured["how"],
            "rows": {row.pop("name"): row for row in measured["rows"]}}
        return save()
    if options.gpu:
        if not options.machine:
            parser.error("--gpu needs --machine, such as --machine 'NVIDIA H200, PyTorch 2.11'")
        lines = options.gpu.read_text(encoding="utf-8").splitlines()
        number = lambda text: None if text == "-" else float(text)
        for name, *columns in (line.split() for line in lines):
            if name in SPEED and len(columns) == 4:
                sides = ("ours_eager", "ours_graph", "pytorch_eager", "pytorch_graph")
                results["gpu"]["rows"][name] = dict(zip(sides, map(number, columns)))
        results["gpu"].update(date=today, machine=options.machine)
        return save()

    unknown = [name for name in options.names if name not in ENTRIES]
    if unknown:
        parser.error(f"unknown entry {unknown[0]}: --list shows the known ones")
    data = Path(options.data).resolve() if options.data else None
    folder = binaries(options.bin)
    with tempfile.TemporaryDirectory() as scratch:
        for name in options.names or ENTRIES:
            needs = ENTRIES[name].needs
            if needs and not (data and (data / needs).is_dir()):
                print(f"{name}: skipped, no folder {needs} in --data")
                continue
            result, deviation, seconds = measure(name, folder, data, Path(scratch))
            results["models"][name] = {
                "command": ENTRIES[name].command, "result": result, "deviation": deviation,
                "seconds": None if options.busy else round(seconds, 1), "date": today,
                "machine": options.machine or processor()}
            save()
            print(f"{name}: {cell(results, name)}" + ("" if options.busy else f" in {duration(seconds)}"), flush=True)


if __name__ == "__main__":
    main()
