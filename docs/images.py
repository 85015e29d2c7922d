#!/usr/bin/env python3
"""Makes docs/images/strip.png, the picture of README.md, from finished runs and from docs/results.json.

  docs/images.py --runs DIR [--cell N] [--lines FIRST,LAST]

DIR holds the runs of these commands, as `runs/NAME/1`:

  lenet; resnet; seq2seq; seq2seq predict --attention "Sat the 5th of March 2016"; char_lm; char_lm neurons --file FILE

--cell and --lines choose the cell and the lines of the text that are shown of `neurons.html`. It needs Chromium (the variable
CHROMIUM names it; default: chromium) and Pillow.
"""
import argparse, html, json, os, re, subprocess, tempfile
from pathlib import Path

from PIL import Image

from results import SPEED

HERE = Path(__file__).resolve().parent
OUTPUT = HERE / "images" / "strip.png"
WIDTH, HEIGHT = 900, 436
BLUE, ORANGE = "0, 114, 178", "230, 159, 0"
SHORT = {
    "mlp": "MLP", "lenet": "LeNet", "lstm_small": "LSTM", "gru_small": "GRU", "birnn": "tagger", "textcnn": "sentence CNN",
    "seq2seq": "translation", "resnet20": "ResNet-20",
}
STYLE = """
  body { margin: 0; background: #fff; color: #222; font: 12px/1.35 'DejaVu Sans', sans-serif; width: 900px; }
  .row { display: flex; gap: 22px; padding: 10px 14px 0; }
  h2 { font-size: 12.5px; margin: 0 0 6px; }
  .grid { display: grid; gap: 5px 7px; justify-content: start; }
  figure { margin: 0; text-align: center; font-size: 10.5px; line-height: 1.25; }
  .pair { display: flex; gap: 4px; }
  img { image-rendering: pixelated; display: block; }
  pre { font: 11px/1.5 'DejaVu Sans Mono', monospace; margin: 0; width: 560px; overflow: hidden; }
  table { border-spacing: 0; font-size: 11.5px; } td { padding: 0 6px 1px 0; white-space: nowrap; }
  .bar { height: 7px; margin: 1px 0; font-size: 9px; line-height: 7px; white-space: nowrap; }
  .bar span { margin-left: 4px; }
"""


def panel(title, body):
    return f"<div><h2>{title}</h2>{body}</div>"


def pictures(svg):
    """The pictures of an SVG file with the lines of text below each: [(data, [lines])]."""
    found = [(*map(float, place), data) for *place, data in re.findall(
        r'<image x="([\d.]+)" y="([\d.]+)" width="([\d.]+)"[^>]*href="([^"]+)"', svg)]
    texts = re.findall(r'<text x="([\d.]+)" y="([\d.]+)"[^>]*text-anchor="middle"[^>]*>([^<]*)', svg)
    below = lambda x, y, side: [
        line for tx, ty, line in texts if abs(float(tx) - x - side / 2) < 2 and side < float(ty) - y < side + 36]
    return [(data, below(x, y, side)) for x, y, side, data in found]


def figure(pictures, caption):
    images = "".join(f'<img src="{data}" width="52" height="52">' for data in pictures)
    return f'<figure><div class="pair">{images}</div>{html.escape(caption)}</figure>'


def mistakes(run):
    svg = (run / "mistakes.svg").read_text(encoding="utf-8")
    counts = re.search(r">(\d+) of (\d+) wrong", svg)
    cells = "".join(figure([data], lines[0].replace(", predicted", " as")) for data, lines in pictures(svg)[:12])
    title = f"LeNet misreads {counts[1]} of {counts[2]} digits"
    return panel(title, f'<div class="grid" style="grid-template-columns: repeat(4, 52px)">{cells}</div>')


def grad_cam(run):
    shown = pictures((run / "grad-cam.svg").read_text(encoding="utf-8"))
    # Each image comes before its map.
    cells = "".join(
        figure([image, evidence], lines[0])
        for (image, lines), (evidence, _) in list(zip(shown[::2], shown[1::2]))[:6])
    return panel("ResNet-20's evidence (Grad-CAM)", f'<div class="grid" style="grid-template-columns: repeat(2, 108px)">{cells}</div>')


def alignment(run):
    svg = (run / "alignment.svg").read_text(encoding="utf-8")
    svg = re.sub(r'width="(\d+)" height="(\d+)"', 'width="330"', svg, count=1)
    return panel("The attention that translates a date", svg)


def neurons(run, cell, first, last):
    page = (run / "neurons.html").read_text(encoding="utf-8")
    load = lambda name: json.loads(re.search(rf"^const {name} = (.*);$", page, re.M)[1])
    tokens, values = load("tokens"), load("cells")[cell]["values"]
    spans, line = [], 1
    for token, digit in zip(tokens, values):
        if first <= line <= last:
            value = (ord(digit) - 48) / 31.5 - 1
            colour = f"rgba({BLUE if value < 0 else ORANGE}, {0.8 * abs(value):.2f})"
            spans.append(f'<span style="background: {colour}">{html.escape(token)}</span>')
        line += token == "\n"
    title = "One cell of the character model tells prose from code"
    return panel(title, f"<pre>{''.join(spans)}</pre>")


def speed(results):
    cpu, gpu = results["cpu"]["rows"], results["gpu"]["rows"]
    factors = {
        name: (cpu[name]["pytorch"] / cpu[name]["ours"], gpu[name]["pytorch_eager"] / gpu[name]["ours_graph"])
        for name in SPEED if name in SHORT and name in cpu and name in gpu}
    scale = 165 / max(max(pair) for pair in factors.values())
    bar = lambda value, colour: (
        f'<div class="bar" style="width: {value * scale:.0f}px; background: rgb({colour})">'
        f'<span style="margin-left: {value * scale + 4:.0f}px">{value:.1f}</span></div>')
    rows = "".join(
        f"<tr><td>{SHORT[name]}</td><td style='border-left: 1px solid #222'>{bar(a, BLUE)}{bar(b, ORANGE)}</td></tr>"
        for name, (a, b) in factors.items())
    key = (f"<span style='color: rgb({BLUE})'>&#9632;</span> 2 CPU cores "
           f"<span style='color: rgb({ORANGE})'>&#9632;</span> GPU")
    return panel(f"Training steps: times as fast as PyTorch<br><span style='font-weight: normal'>{key}</span>", f"<table>{rows}</table>")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", metavar="DIR", type=Path, required=True)
    parser.add_argument("--cell", metavar="N", type=int, default=0)
    parser.add_argument("--lines", metavar="FIRST,LAST", default="1,10")
    options = parser.parse_args()
    run = lambda name: options.runs / "runs" / name / "1"
    first, last = map(int, options.lines.split(","))
    results = json.loads((HERE / "results.json").read_text(encoding="utf-8"))
    top = mistakes(run("lenet")) + grad_cam(run("resnet")) + alignment(run("seq2seq"))
    bottom = neurons(run("char_lm"), options.cell, first, last) + speed(results)
    page = f'<meta charset="utf-8"><style>{STYLE}</style><div class="row">{top}</div><div class="row">{bottom}</div>'
    with tempfile.TemporaryDirectory() as scratch:
        source, shot = Path(scratch, "strip.html"), Path(scratch, "strip.png")
        source.write_text(page, encoding="utf-8")
        subprocess.run(
            [os.environ.get("CHROMIUM", "chromium"), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
             "--force-device-scale-factor=2", f"--window-size={WIDTH},{HEIGHT}", f"--screenshot={shot}", source.as_uri()],
            check=True, stderr=subprocess.DEVNULL)
        OUTPUT.parent.mkdir(exist_ok=True)
        picture = Image.open(shot).convert("RGB").quantize(256, dither=Image.Dither.NONE)
        picture.save(OUTPUT, optimize=True)
    print(f"{OUTPUT}: {OUTPUT.stat().st_size // 1024} KB")


if __name__ == "__main__":
    main()
