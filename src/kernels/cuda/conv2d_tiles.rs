//! The tiles of a direct convolution: constants of the kernels in `conv2d.cu` and `conv2d_filter.cu`.
//!
//! The choice depends only on the shape of one example, so that all batches of a model share their kernels. It
//! minimises an estimate in clock cycles for 64 examples on a GPU of 132 multiprocessors.

use crate::kernels::cpu::conv2d::Conv2d;
use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

/// Multiprocessors of the GPU that the estimates assume.
const PROCESSORS: usize = 132;
const EXAMPLES: usize = 64;
/// Bytes of shared memory that every GPU grants a block.
const SHARED: usize = 48 << 10;

/// A kernel compiled for one shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tiles {
    /// Names and values of the constants.
    pub constants: Vec<(&'static str, usize)>,
    /// Threads of a block.
    pub threads: usize,
    /// Bytes of shared memory of a block.
    pub shared: usize,
    /// Blocks per example; for the gradient of the weights, per piece.
    pub blocks: usize,
    /// Pieces of an example over which the gradient of the weights is summed; 1 for the other kernels.
    pub pieces: usize,
}

/// The result that a kernel computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Pass {
    Forward,
    InputGradient,
    /// The gradient of the weight and the bias.
    WeightGradient,
}

/// Returns the kernel of a direct convolution with elements of `size` bytes.
///
/// Returns `None` if the convolution does not take the direct kernels.
pub(crate) fn of(conv: &Conv2d, pass: Pass, size: usize) -> Option<Arc<Tiles>> {
    type Known = Mutex<HashMap<(Conv2d, Pass, usize), Option<Arc<Tiles>>>>;
    static KNOWN: LazyLock<Known> = LazyLock::new(Mutex::default);
    let conv = Conv2d { batch: 0, ..*conv };
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    let choose = || match pass {
        _ if !is_direct(&conv) => None,
        Pass::Forward => forward(&conv, size),
        Pass::InputGradient => input_gradient(&conv, size),
        Pass::WeightGradient => weight_gradient(&conv, size),
    };
    known.entry((conv, pass, size)).or_insert_with(|| choose().map(Arc::new)).clone()
}

/// A convolution as the kernel `conv2d` computes it: the forward pass, or the input gradient.
struct Sliding {
    channels: usize,
    outputs: usize,
    kernel: (usize, usize),
    padding: (usize, usize),
    stride: usize,
    /// The stride of the forward pass, if this is the gradient.
    up: usize,
    input: (usize, usize),
    output: (usize, usize),
}

/// Whether the direct kernels apply: one group, no dilation, a stride of 1 or 2 and a small kernel.
fn is_direct(conv: &Conv2d) -> bool {
    let Conv2d { kernel, stride, padding, .. } = *conv;
    let bounded = |kernel: usize, padding: usize| (1..=7).contains(&kernel) && padding < kernel;
    (conv.groups, conv.dilation) == (1, (1, 1))
        && stride.0 == stride.1
        && stride.0 <= 2
        && bounded(kernel.0, padding.0)
        && bounded(kernel.1, padding.1)
        // Products are faster for many channels and one tap.
        && (kernel != (1, 1) || stride != (1, 1) || conv.channels.max(conv.outputs) < 128)
        // Wide enough for the columns of a thread; offsets within an example and in the weights fit 31 bits.
        && conv.output.1 >= 3
        && [conv.channels * conv.input.0 * conv.input.1, conv.outputs * conv.output.0 * conv.output.1]
            .iter()
            .chain([&(conv.outputs * conv.channels * kernel.0 * kernel.1)])
            .all(|&size| size < 1 << 30)
}

/// The tiles of the forward pass for elements of `size` bytes; `None` if none fits.
fn forward(conv: &Conv2d, size: usize) -> Option<Tiles> {
    Sliding {
        channels: conv.channels,
        outputs: conv.outputs,
        kernel: conv.kernel,
        padding: conv.padding,
        stride: conv.stride.0,
        up: 1,
        input: conv.input,
        output: conv.output,
    }
    .best(size)
}

/// The tiles of the gradient with respect to the input; `None` if none fits.
fn input_gradient(conv: &Conv2d, size: usize) -> Option<Tiles> {
    let Conv2d { kernel, padding, .. } = *conv;
    let mut tiles = Sliding {
        channels: conv.outputs,
        outputs: conv.channels,
        kernel,
        padding: (kernel.0 - 1 - padding.0, kernel.1 - 1 - padding.1),
        stride: 1,
        up: conv.stride.0,
        input: conv.output,
        output: conv.input,
    }
    .best(size)?;
    tiles.constants.push(("FLIP", 1));
    Some(tiles)
}

/// The values up to `most` of a sequence that doubles from 1, and `most` itself.
fn doubling(most: usize) -> impl Iterator<Item = usize> {
    std::iter::successors(Some(1), |&n| Some(2 * n)).take_while(move |&n| n < most).chain([most])
}

/// `a / b` rounded down, like the macro FLOOR of the kernel.
fn floor(a: isize, b: usize) -> isize {
    a.div_euclid(b as isize)
}

/// Rounds a row of `wide` elements up to an odd number of quadruples.
fn odd_quadruples(wide: usize) -> usize {
    (wide + 3) / 8 * 8 + 4
}

/// The tile of a block of the kernel `conv2d`.
#[derive(Clone, Copy)]
struct Tile {
    /// Columns and output channels of a thread.
    columns: usize,
    outputs: usize,
    /// Threads along the columns, the rows and the output channels.
    across: usize,
    rows: usize,
    groups: usize,
    /// Input channels in shared memory at a time.
    chunk: usize,
}

impl Sliding {
    fn best(&self, size: usize) -> Option<Tiles> {
        let fits = |tile: &Tile| {
            (1..=512).contains(&tile.threads())
                && self.shared(tile) * size <= SHARED
                && self.registers(tile) * tile.threads() <= 65536
                && tile.columns.is_multiple_of(self.up)
        };
        let tiles = self.candidates().into_iter().filter(fits);
        let costs = tiles.map(|tile| (self.cost(&tile, size), tile));
        costs.min_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, tile)| self.tiles(&tile, size))
    }

    fn candidates(&self) -> Vec<Tile> {
        let mut shapes = vec![];
        for (columns, outputs) in [(8, 4), (4, 4), (4, 8), (8, 8)] {
            let across = self.output.1.div_ceil(columns);
            // Whole rows, or pieces of equal width.
            let across = (1..=4).map(|parts| across.div_ceil(parts)).filter(|&across| across <= 64);
            shapes.extend(across.map(|across| (columns, outputs, across)));
        }
        let mut tiles = vec![];
        for (columns, outputs, across) in shapes {
            for rows in doubling(self.output.0.div_ceil(self.up).min(32)) {
                for groups in doubling(self.outputs.div_ceil(outputs)) {
                    let chunks = doubling(self.channels.min(16));
                    let chunks = chunks.filter(|&chunk| self.channels.is_multiple_of(chunk));
                    tiles.extend(chunks.map(|chunk| Tile { columns, outputs, across, rows, groups, chunk }));
                }
            }
        }
        tiles
    }

    /// Input columns that a thread reads, in whole quadruples.
    fn span(&self, columns: usize) -> usize {
        let (low, pad) = (floor(-(self.padding.1 as isize), self.up), self.padding.1 as isize);
        let last = floor(((columns - 1) * self.stride + self.kernel.1 - 1) as isize - pad, self.up);
        ((last - low + 1) as usize).next_multiple_of(4)
    }

    /// Rows and columns of the input that a block reads.
    fn extent(&self, tile: &Tile) -> (usize, usize) {
        let (low, pad) = (floor(-(self.padding.0 as isize), self.up), self.padding.0 as isize);
        let last = floor((self.up - 1 + self.kernel.0 - 1) as isize - pad, self.up);
        let step = tile.columns * self.stride / self.up;
        (
            (tile.rows - 1) * self.stride + (last - low + 1) as usize,
            (tile.across - 1) * step + self.span(tile.columns),
        )
    }

    fn taps(&self) -> usize {
        self.kernel.0 * self.kernel.1
    }

    /// Registers of a thread.
    fn registers(&self, tile: &Tile) -> usize {
        48 + self.span(tile.columns) + tile.columns * tile.outputs * self.up
    }

    /// Elements of shared memory of a block.
    fn shared(&self, tile: &Tile) -> usize {
        let (high, wide) = self.extent(tile);
        tile.chunk * (high * odd_quadruples(wide) + self.taps() * (tile.groups * tile.outputs + 4))
    }

    /// Blocks per example.
    fn blocks(&self, tile: &Tile) -> usize {
        self.output.1.div_ceil(tile.across * tile.columns)
            * self.output.0.div_ceil(tile.rows * self.up)
            * self.outputs.div_ceil(tile.groups * tile.outputs)
    }

    /// Estimated cycles.
    fn cost(&self, tile: &Tile, size: usize) -> f64 {
        let (threads, (high, wide)) = (tile.threads() as f64, self.extent(tile));
        let channels = self.channels as f64;
        let rows_of_taps = channels * self.kernel.0 as f64;
        let products = rows_of_taps * (self.kernel.1 * tile.columns / self.up * tile.outputs) as f64;
        let quadruples = rows_of_taps * (self.span(tile.columns) / 4) as f64;
        let weights = rows_of_taps * (self.kernel.1 * tile.outputs / 4) as f64;
        let loaded = (high * wide + self.taps() * tile.groups * tile.outputs) as f64;
        let loads = channels * loaded / threads;
        let work = Work {
            threads: tile.threads(),
            registers: self.registers(tile),
            shared: self.shared(tile) * size,
            products,
            shared_cycles: 4. * quadruples + weights,
            loads,
            rounds: channels / tile.chunk as f64,
        };
        work.cycles(EXAMPLES * self.blocks(tile))
    }

    fn tiles(&self, tile: &Tile, size: usize) -> Tiles {
        let constants = vec![
            ("CIN", self.channels),
            ("COUT", self.outputs),
            ("KH", self.kernel.0),
            ("KW", self.kernel.1),
            ("PAD_Y", self.padding.0),
            ("PAD_X", self.padding.1),
            ("STRIDE", self.stride),
            ("UP", self.up),
            ("IN_H", self.input.0),
            ("IN_W", self.input.1),
            ("OUT_H", self.output.0),
            ("OUT_W", self.output.1),
            ("PX", tile.columns),
            ("CO", tile.outputs),
            ("ACROSS", tile.across),
            ("ROWS", tile.rows),
            ("GROUPS", tile.groups),
            ("CHUNK", tile.chunk),
        ];
        Tiles {
            constants,
            threads: tile.threads(),
            shared: self.shared(tile) * size,
            blocks: self.blocks(tile),
            pieces: 1,
        }
    }
}

impl Tile {
    fn threads(&self) -> usize {
        self.across * self.rows * self.groups
    }
}

/// The work of a block, for an estimate of its time.
struct Work {
    threads: usize,
    /// Registers per thread.
    registers: usize,
    /// Bytes per block.
    shared: usize,
    /// Multiplications and additions of a thread.
    products: f64,
    /// Cycles that the loads of a warp from shared memory keep it busy.
    shared_cycles: f64,
    /// Elements that a thread loads from global memory.
    loads: f64,
    /// How often the block waits for global memory.
    rounds: f64,
}

impl Work {
    /// Estimates the cycles of `blocks` blocks: the larger of their instruction time and waiting time.
    fn cycles(&self, blocks: usize) -> f64 {
        // Instructions to move one element from global to shared memory, and cycles until it arrives.
        const PER_LOAD: f64 = 12.;
        const LATENCY: f64 = 1500.;
        let warps = self.threads.div_ceil(32);
        let resident = (2048 / (32 * warps))
            .min(65536 / (self.registers * 32 * warps))
            .min((224 << 10) / self.shared.max(1));
        let here = blocks.div_ceil(PROCESSORS);
        let busy = (self.products / 4.).max(self.shared_cycles) + PER_LOAD / 4. * self.loads;
        let alone =
            1.3 * (self.products + PER_LOAD * self.loads) + self.shared_cycles + LATENCY * (self.rounds + 1.);
        let throughput = blocks as f64 / PROCESSORS as f64 * warps as f64 * busy;
        throughput + here.div_ceil(resident.clamp(1, 32)) as f64 * alone
    }
}

/// The tile of a block of the kernel `conv2d_filter`.
#[derive(Clone, Copy)]
struct FilterTile {
    /// Input channels, and quadruples of output channels.
    channels: usize,
    fours: usize,
    /// Rows of the kernel of a thread.
    kernel_rows: usize,
    /// Groups of rows of a piece.
    row_groups: usize,
    /// Rows and columns of a piece.
    band: usize,
    line: usize,
}

/// The tiles of the gradient with respect to the weights and the bias; `None` if none fits.
fn weight_gradient(conv: &Conv2d, size: usize) -> Option<Tiles> {
    let kernel_rows = if conv.kernel.0 * conv.kernel.1 <= 9 { conv.kernel.0 } else { 1 };
    let mut best: Option<(f64, FilterTile)> = None;
    for channels in doubling(conv.channels.min(32)) {
        for fours in doubling(conv.outputs.div_ceil(4).min(16)) {
            for row_groups in doubling(conv.output.0.min(16)) {
                for rows in [1, 2, 4] {
                    let line = conv.output.1.div_ceil(conv.output.1.div_ceil(64)).next_multiple_of(4);
                    let band = row_groups * rows;
                    let tile = FilterTile { channels, fours, kernel_rows, row_groups, band, line };
                    let fits = (1..=256).contains(&tile.threads(conv)) && tile.shared(conv) * size <= SHARED;
                    let cost = if fits { tile.cost(conv, size) } else { continue };
                    if best.is_none_or(|(least, _)| cost < least) {
                        best = Some((cost, tile));
                    }
                }
            }
        }
    }
    best.map(|(_, tile)| tile.tiles(conv, size))
}

impl FilterTile {
    fn kernel_groups(&self, conv: &Conv2d) -> usize {
        conv.kernel.0.div_ceil(self.kernel_rows)
    }

    fn threads(&self, conv: &Conv2d) -> usize {
        self.fours * self.channels * self.kernel_groups(conv) * self.row_groups
    }

    /// Input columns that a thread reads for four positions, in whole quadruples.
    fn span(conv: &Conv2d) -> usize {
        (3 * conv.stride.1 + conv.kernel.1).next_multiple_of(4)
    }

    /// Elements of the input and of the gradient that a block holds of a piece.
    fn sizes(&self, conv: &Conv2d) -> (usize, usize) {
        let high = (self.band - 1) * conv.stride.0 + self.kernel_groups(conv) * self.kernel_rows;
        let wide = (self.line - 4) * conv.stride.1 + Self::span(conv);
        (self.channels * odd_quadruples(high * wide), self.band * self.line * (4 * self.fours + 4))
    }

    /// Elements of shared memory of a block: a piece or, at the end, the sums.
    fn shared(&self, conv: &Conv2d) -> usize {
        let (input, gradient) = self.sizes(conv);
        let taps = self.kernel_groups(conv) * self.kernel_rows * conv.kernel.1;
        (input + gradient).max(taps * 4 * self.channels * self.fours + 4 * self.fours)
    }

    fn blocks(&self, conv: &Conv2d) -> usize {
        conv.channels.div_ceil(self.channels) * conv.outputs.div_ceil(4 * self.fours)
    }

    fn pieces(&self, conv: &Conv2d) -> usize {
        conv.output.0.div_ceil(self.band) * conv.output.1.div_ceil(self.line)
    }

    /// Estimated cycles.
    fn cost(&self, conv: &Conv2d, size: usize) -> f64 {
        let positions = (self.band / self.row_groups * self.line / 4) as f64;
        let (input, gradient) = self.sizes(conv);
        let parallel = (PROCESSORS * 2).div_ceil(self.blocks(conv)).min(EXAMPLES * self.pieces(conv));
        let each = (EXAMPLES * self.pieces(conv)) as f64 / parallel as f64;
        // Lanes of a warp that read the same place share the access.
        let quadruples = |distinct: usize| (distinct as f64 / 8.).max(1.);
        let of_input =
            (self.kernel_rows * Self::span(conv) / 4) as f64 * quadruples((32 / self.fours).max(1));
        let of_gradient = 4. * quadruples(self.fours.min(32));
        let sums =
            (self.kernel_groups(conv) * self.kernel_rows * conv.kernel.1 * 4 * self.channels * self.fours)
                as f64;
        let work = Work {
            threads: self.threads(conv),
            registers: 50 + self.kernel_rows * conv.kernel.1 * 4,
            shared: self.shared(conv) * size,
            products: each * positions * (self.kernel_rows * conv.kernel.1 * 16) as f64,
            shared_cycles: each * positions * (of_input + of_gradient),
            loads: (each * (input + gradient) as f64 + 2. * sums) / self.threads(conv) as f64,
            rounds: each + self.row_groups as f64 / 8.,
        };
        // The sums of the parts go through memory: 2 KB a cycle.
        let weights = (conv.channels * conv.outputs * conv.kernel.0 * conv.kernel.1) as f64;
        work.cycles(parallel * self.blocks(conv)) + parallel as f64 * weights * 2. * size as f64 / 2048.
    }

    fn tiles(&self, conv: &Conv2d, size: usize) -> Tiles {
        let constants = vec![
            ("CIN", conv.channels),
            ("COUT", conv.outputs),
            ("KH", conv.kernel.0),
            ("KW", conv.kernel.1),
            ("PAD_Y", conv.padding.0),
            ("PAD_X", conv.padding.1),
            ("STRIDE", conv.stride.0),
            ("IN_H", conv.input.0),
            ("IN_W", conv.input.1),
            ("OUT_H", conv.output.0),
            ("OUT_W", conv.output.1),
            ("CHANNELS", self.channels),
            ("FOURS", self.fours),
            ("RG", self.row_groups),
            ("KR", self.kernel_rows),
            ("BAND", self.band),
            ("LINE", self.line),
        ];
        Tiles {
            constants,
            threads: self.threads(conv),
            shared: self.shared(conv) * size,
            blocks: self.blocks(conv),
            pieces: self.pieces(conv),
        }
    }
}
