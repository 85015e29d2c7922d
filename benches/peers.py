"""The work of benches/steps.rs in PyTorch:
`python peers.py ROW... [--threads N] [--seconds S] [--examples N] [--device cpu|cuda] [--graph]`.

Prints one line of JSON per row: its name, the milliseconds of one training step (forward, loss, backward, optimizer
step; the median of blocks of steps timed for S seconds after a warm-up) and the most memory the process held.
"""

import argparse
import json
import math
import resource
import statistics
import sys
import time

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence


DEVICE = "cpu"


def adamw(model):
    # A graph needs the number of the step on the GPU.
    return torch.optim.AdamW(model.parameters(), lr=1e-3, capturable=DEVICE == "cuda")


def classifier(model, optimizer, inputs, labels):
    """One training step on the same batch again and again."""
    model.to(DEVICE)
    inputs, labels = inputs.to(DEVICE), labels.to(DEVICE)

    def step():
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model(inputs), labels).backward()
        optimizer.step()

    return step


def lenet_model():
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10),
    )  # fmt: skip


def mlp(_):
    model = nn.Sequential(nn.Linear(784, 30), nn.Sigmoid(), nn.Linear(30, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    return classifier(model, optimizer, torch.rand(10, 784), torch.randint(10, (10,)))


def lenet(_):
    model = lenet_model()
    optimizer = adamw(model)
    return classifier(model, optimizer, torch.rand(64, 1, 28, 28), torch.randint(10, (64,)))


def lenet_epoch(examples):
    """`lenet` as a training run sees it: shuffled each epoch, bytes converted to floats per batch, the loss read."""
    model = lenet_model().to(DEVICE)
    optimizer = adamw(model)
    images = torch.randint(256, (examples, 1, 28, 28), dtype=torch.uint8, device=DEVICE)
    labels = torch.randint(10, (examples,), device=DEVICE)

    def batches():
        while True:
            yield from torch.randperm(examples, device=DEVICE).split(64)

    order = batches()

    def step():
        batch = next(order)
        inputs = images[batch].to(torch.float32).div_(255)
        optimizer.zero_grad(set_to_none=True)
        loss = F.cross_entropy(model(inputs), labels[batch])
        loss.backward()
        optimizer.step()
        loss.item()

    return step


class LanguageModel(nn.Module):
    def __init__(self, kind, size):
        super().__init__()
        self.embedding, self.recurrent = nn.Embedding(65, size), kind(size, size, 2)
        self.output = nn.Linear(size, 65)

    def forward(self, ids):
        return self.output(self.recurrent(self.embedding(ids))[0]).flatten(0, 1)


def mnist_pytorch(_):
    model = nn.Sequential(
        nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.25),
        nn.Flatten(), nn.Linear(9216, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, 10),
    )  # fmt: skip
    optimizer = torch.optim.Adadelta(model.parameters(), lr=1.0, capturable=DEVICE == "cuda")
    return classifier(model, optimizer, torch.rand(64, 1, 28, 28), torch.randint(10, (64,)))


def language_model(kind, size, steps, batch):
    def row(_):
        model = LanguageModel(kind, size)
        optimizer = adamw(model)
        ids, targets = torch.randint(65, (steps, batch)), torch.randint(65, (steps * batch,))
        return classifier(model, optimizer, ids, targets)

    return row


class BiRnn(nn.Module):
    def __init__(self, lengths):
        super().__init__()
        self.lengths = lengths
        self.embedding = nn.Embedding(20_000, 100)
        self.recurrent = nn.LSTM(100, 200, 2, bidirectional=True, batch_first=True)
        self.output = nn.Linear(400, 9)

    def forward(self, ids):
        packed = pack_padded_sequence(self.embedding(ids), self.lengths, batch_first=True, enforce_sorted=False)
        return self.output(self.recurrent(packed)[0].data)


def birnn(_):
    # 32 lengths from 5 to 40, 705 words in total.
    lengths = torch.tensor([5 + i * 35 // 31 for i in range(32)])
    model = BiRnn(lengths)
    optimizer = adamw(model)
    return classifier(model, optimizer, torch.randint(20_000, (32, 40)), torch.randint(9, (int(lengths.sum()),)))


class Music(nn.Module):
    """Four voices; 16 pieces of 128 steps."""

    def __init__(self):
        super().__init__()
        self.input, self.notes = nn.EmbeddingBag(405, 128, mode="sum"), nn.EmbeddingBag(5552, 128, mode="sum")
        self.recurrent = nn.GRU(128, 128)
        self.state, self.output = nn.Linear(128, 128), nn.Linear(128, 177)

    def forward(self, steps, notes, mask):
        states, _ = self.recurrent(self.input(steps).view(128, 16, 128))
        states = self.state(states.flatten(0, 1))[:, None].expand(-1, 4, -1).flatten(0, 1)
        return self.output(torch.tanh(states + self.notes(notes))) + mask


def music(_):
    model = Music().to(DEVICE)
    optimizer = adamw(model)
    inputs = [torch.randint(405, (2048, 9)), torch.randint(5552, (8192, 8)), torch.zeros(8192, 177)]
    inputs, classes = [part.to(DEVICE) for part in inputs], torch.randint(177, (8192,)).to(DEVICE)

    def step():
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model(*inputs), classes).backward()
        optimizer.step()

    return step


class TextCnn(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(18_766, 300)
        self.convs = nn.ModuleList([nn.Conv1d(300, 100, width, padding=4) for width in (3, 4, 5)])
        self.dropout, self.output = nn.Dropout(0.5), nn.Linear(300, 2)

    def forward(self, ids):
        words = self.embedding(ids).transpose(1, 2)
        return self.output(self.dropout(torch.cat([F.relu(conv(words)).amax(2) for conv in self.convs], 1)))


def textcnn(_):
    model = TextCnn()
    optimizer = adamw(model)
    return classifier(model, optimizer, torch.randint(18_766, (50, 56)), torch.randint(2, (50,)))


class Seq2Seq(nn.Module):
    """Packed sequences for both networks, padded ones for the attention, and the output layer on real words only."""

    def __init__(self, lengths, words=10_000, size=256):
        super().__init__()
        self.lengths = lengths
        steps = [torch.arange(int(side.max()))[None] < side[:, None] for side in lengths]
        self.source_mask, self.target_mask = steps
        self.source_embedding, self.target_embedding = nn.Embedding(words, size), nn.Embedding(words, size)
        self.encoder = nn.GRU(size, size, bidirectional=True, batch_first=True)
        self.decoder = nn.GRU(size, size, batch_first=True)
        self.bridge = nn.Linear(2 * size, size)
        self.query, self.key = nn.Linear(size, size, bias=False), nn.Linear(2 * size, size, bias=False)
        self.v = nn.Linear(size, 1, bias=False)
        self.combine, self.output = nn.Linear(3 * size, size), nn.Linear(size, words)
        self.dropout = nn.Dropout(0.3)

    def run(self, network, xs, side, state=None):
        packed = pack_padded_sequence(self.dropout(xs), self.lengths[side], batch_first=True, enforce_sorted=False)
        ys, end = network(packed, state)
        return pad_packed_sequence(ys, batch_first=True)[0], end

    def encode(self, sources):
        values, end = self.run(self.encoder, self.source_embedding(sources), 0)
        return values, self.key(values), torch.tanh(self.bridge(torch.cat([end[0], end[1]], 1)))

    def attend(self, hs, values, keys):
        scores = self.v(torch.tanh(self.query(hs)[:, :, None] + keys[:, None])).squeeze(-1)
        weights = scores.masked_fill(~self.source_mask[:, None], -torch.inf).softmax(-1)
        return torch.cat([weights @ values, hs], -1), weights

    def predict(self, vectors):
        return self.output(self.dropout(torch.tanh(self.combine(vectors))))

    def forward(self, ids):
        sources, targets = ids
        values, keys, start = self.encode(sources)
        hs, _ = self.run(self.decoder, self.target_embedding(targets), 1, start[None])
        return self.predict(self.attend(hs, values, keys)[0][self.target_mask])

    def translate(self, sources, beam, steps):
        """Beam search over a whole batch; no translation ends early."""
        batch, size = len(sources), self.decoder.hidden_size
        values, keys, start = self.encode(sources)
        state = start[:, None].expand(-1, beam, -1)
        scores = torch.tensor([0.0] + [-torch.inf] * (beam - 1)).expand(batch, -1)
        tokens, history = torch.full((batch, beam), 2), []
        for _ in range(steps):
            xs = self.target_embedding(tokens).view(batch * beam, 1, -1)
            hs = self.decoder(xs, state.reshape(1, batch * beam, size))[0].view(batch, beam, size)
            vectors, weights = self.attend(hs, values, keys)
            scores, best = (scores[:, :, None] + self.predict(vectors).log_softmax(-1)).flatten(1).topk(beam)
            parents, tokens = best // self.output.out_features, best % self.output.out_features
            state = hs.gather(1, parents[:, :, None].expand(-1, -1, size))
            history.append((parents, tokens, weights))
        return history


def caption_lengths(batch):
    i = torch.arange(batch)
    return [5 + 7 * i % 9 + 5 * i % 8, 5 + 11 * i % 9 + 3 * i % 8]


def seq2seq(batch):
    def row(_):
        lengths = caption_lengths(batch)
        model = Seq2Seq(lengths).to(DEVICE)
        model.source_mask, model.target_mask = model.source_mask.to(DEVICE), model.target_mask.to(DEVICE)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        ids = [torch.randint(10_000, (batch, int(side.max())), device=DEVICE) for side in lengths]
        labels = torch.randint(10_000, (int(lengths[1].sum()),), device=DEVICE)

        def step():
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(model(ids), labels).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()

        return step

    return row


def translate(beam):
    def row(_):
        lengths = caption_lengths(64)
        model = Seq2Seq(lengths).eval()
        sources = torch.randint(10_000, (64, int(lengths[0].max())))
        return torch.inference_mode()(lambda: model.translate(sources, beam, 15))

    return row


class Residual(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.stride, self.more = outputs // inputs, outputs - inputs
        self.conv1 = nn.Conv2d(inputs, outputs, 3, self.stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn1, self.bn2, self.relu = nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)

    def forward(self, x):
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        if self.more:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.more))
        return self.relu(y + x)


def resnet20(batch):
    def row(_):
        widths = [16, 16, 16, 16, 32, 32, 32, 64, 64, 64]
        model = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True),
            *map(Residual, widths, widths[1:]),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
        )  # fmt: skip
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
        return classifier(model, optimizer, torch.randn(batch, 3, 32, 32), torch.randint(10, (batch,)))

    return row


def product(_):
    """A product of 2 * 1024^3 operations, which measures the machine's peak rate."""
    ones = torch.ones(1024, 1024, device=DEVICE)
    return lambda: ones @ ones.T


def graphed(step):
    """The step as a CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def synchronize():
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def median_step(step, seconds, block):
    """Median seconds of a step, over blocks of `block` steps (0: as many as take some 50 ms)."""
    warm, start = 0, time.perf_counter()
    while warm < 3 or time.perf_counter() - start < 0.5:
        step()
        synchronize()
        warm += 1
    block = block or math.ceil(0.05 / ((time.perf_counter() - start) / warm))
    blocks, end = [], time.perf_counter() + seconds
    while not blocks or time.perf_counter() < end:
        start = time.perf_counter()
        for _ in range(block):
            step()
        synchronize()
        blocks.append((time.perf_counter() - start) / block)
    return statistics.median(blocks)


def main():
    rows = {
        "mlp": mlp,
        "lenet": lenet,
        "lenet_epoch": lenet_epoch,
        "mnist_pytorch": mnist_pytorch,
        "lstm_small": language_model(nn.LSTM, 128, 50, 50),
        "gru_small": language_model(nn.GRU, 128, 50, 50),
        "lstm_large": language_model(nn.LSTM, 512, 100, 64),
        "birnn": birnn,
        "textcnn": textcnn,
        "seq2seq": seq2seq(64),
        "seq2seq_128": seq2seq(128),
        "translate": translate(1),
        "translate_5": translate(5),
        "music": music,
        "resnet20": resnet20(32),
        "resnet20_128": resnet20(128),
        "product": product,
    }
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", choices=rows, nargs="+", metavar="ROW")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--examples", type=int, default=60_000, help="of an epoch")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--graph", action="store_true", help="replay the step as a CUDA graph")
    args = parser.parse_args()
    global DEVICE
    DEVICE = args.device
    # What we compute with, too. The fastest algorithm of cuDNN is chosen by trial.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    torch.set_num_threads(args.threads)
    for name in args.rows:
        torch.manual_seed(1)
        # An epoch is timed whole, because its steps differ.
        block = math.ceil(args.examples / 64) if name == "lenet_epoch" else 0
        try:
            step = rows[name](args.examples)
            seconds = median_step(graphed(step) if args.graph else step, args.seconds, block)
        except RuntimeError as error:
            print(f"{name}: {str(error).splitlines()[0]}", file=sys.stderr)
            continue
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        line = {"name": name, "milliseconds_per_step": 1e3 * seconds, "peak_rss_mb": peak / 1e6}
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
