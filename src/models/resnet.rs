//! Deep residual networks (He et al. 2015, arXiv:1512.03385): those of 6n+2 layers for CIFAR-10, with which the paper shows
//! what shortcuts are for, and those for ImageNet, with the parameter names of torchvision.

use super::ImageModel;
use crate::nn::{
    self, BatchNorm2d, Conv2d, Conv2dConfig, Epilogue, Init, Linear, Mode, Model, Pool2d, Pool2dConfig,
    Pooling,
};
use candle_core::{Result, Tensor, bail};
use candle_nn::VarBuilder;
use serde::{Deserialize, Serialize};

/// What a network's first layers make of a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stem {
    /// A 3x3 convolution, as for CIFAR-10's small pictures.
    Small,
    /// A 7x7 convolution and 3x3 max-pooling, both at every second place, as for ImageNet.
    Large,
}

/// What a block adds to its input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Block {
    /// Two 3x3 convolutions.
    Basic,
    /// 1x1, 3x3 and 1x1 convolutions, the last with four times the channels of the others (figure 5). Where the picture is
    /// halved it is the 3x3 one that does it, as in torchvision; in the paper it is the first.
    Bottleneck,
}

/// How a block's input gets to its end (section 3.3).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub enum Shortcut {
    /// A: as it is; where shapes change every second row and column of it, with channels of zeros.
    #[default]
    Identity,
    /// B: as it is; where shapes change through a 1x1 convolution.
    Projection,
    /// Not at all: a plain network.
    None,
}

/// The shape of a network over `(channels, height, width)` pictures.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Config {
    /// Of the pictures.
    pub channels: usize,
    pub stem: Stem,
    pub block: Block,
    pub shortcut: Shortcut,
    /// Channels of the first stage; each further stage has twice as many, on half the height and width.
    pub width: usize,
    /// Blocks of each stage.
    pub blocks: Vec<usize>,
    pub classes: usize,
}

impl Config {
    /// A network of 6n+2 layers for CIFAR-10 (section 4.2): 20, 32, 44, 56, 110.
    ///
    /// # Errors
    /// When there is no n of 1 or more for these `layers`.
    pub fn cifar(layers: usize, shortcut: Shortcut, classes: usize) -> Result<Self> {
        if layers < 8 || layers % 6 != 2 {
            bail!("resnet: found {layers} layers, expected 6n+2 of them: 20, 32, 44, 56, 110");
        }
        let blocks = vec![layers / 6; 3];
        Ok(Self { channels: 3, stem: Stem::Small, block: Block::Basic, shortcut, width: 16, blocks, classes })
    }

    /// A network of 18, 34, 50, 101 or 152 layers for ImageNet (table 1).
    ///
    /// # Errors
    /// Any other number of `layers`.
    pub fn imagenet(layers: usize, classes: usize) -> Result<Self> {
        let (block, blocks) = match layers {
            18 => (Block::Basic, [2, 2, 2, 2]),
            34 => (Block::Basic, [3, 4, 6, 3]),
            50 => (Block::Bottleneck, [3, 4, 6, 3]),
            101 => (Block::Bottleneck, [3, 4, 23, 3]),
            152 => (Block::Bottleneck, [3, 8, 36, 3]),
            _ => bail!("resnet: found {layers} layers, expected 18, 34, 50, 101 or 152"),
        };
        let (stem, shortcut, blocks) = (Stem::Large, Shortcut::Projection, blocks.to_vec());
        Ok(Self { channels: 3, stem, block, shortcut, width: 64, blocks, classes })
    }
}

/// Parameters as in torchvision: `conv1.weight`, `bn1.weight`, .., `layer1.0.conv1.weight`, `layer1.0.bn1.weight`, ..,
/// `layer2.0.downsample.0.weight` (a projection), .., `fc.weight`, `fc.bias`.
///
/// Convolutions start normal with deviation √(2/fan-in), as the paper's (torchvision's with fan-out), the last layer as any
/// of PyTorch's.
#[derive(Debug, Clone)]
pub struct ResNet {
    conv1: Conv2d,
    bn1: BatchNorm2d,
    pool: Option<Pool2d>,
    stages: Vec<Vec<Residual>>,
    fc: Linear,
    /// So many of the first layers, the stages and the last layer stay as they are.
    frozen: usize,
}

impl ResNet {
    /// # Errors
    /// When `vb` holds the parameters in other shapes.
    pub fn new(config: &Config, vb: VarBuilder) -> Result<Self> {
        let &Config { channels, stem, block, shortcut, width, ref blocks, classes } = config;
        let (kernel, stride, pool) = match stem {
            Stem::Small => (3, 1, None),
            Stem::Large => (7, 2, Some(Pool2dConfig { kernel: (3, 3), stride: (2, 2), padding: (1, 1) })),
        };
        let mut inputs = width;
        let stage = |(i, &blocks): (usize, &usize)| {
            let vb = vb.pp(format!("layer{}", i + 1));
            let block = |j| {
                let stride = if i > 0 && j == 0 { 2 } else { 1 };
                let residual = Residual::new(inputs, width << i, stride, block, shortcut, vb.pp(j))?;
                inputs = residual.outputs;
                Ok(residual)
            };
            (0..blocks).map(block).collect::<Result<Vec<_>>>()
        };
        let stages = blocks.iter().enumerate().map(stage).collect::<Result<Vec<_>>>()?;
        Ok(Self {
            conv1: conv(channels, width, kernel, stride, vb.pp("conv1"))?,
            bn1: nn::batch_norm2d(width, vb.pp("bn1"))?,
            pool: pool.map(|window| Pool2d { pooling: Pooling::Max, window }),
            stages,
            fc: nn::linear(inputs, classes, vb.pp("fc"))?,
            frozen: 0,
        })
    }

    /// Leaves all before `layer`, `layer1`, `layer2`, .. or `fc`, as it is: no gradients, and in training the running
    /// statistics in place of the batch's.
    ///
    /// # Errors
    /// When there is no such layer.
    pub fn freeze_until(&mut self, layer: &str) -> Result<()> {
        let layers = (1..=self.stages.len()).map(|stage| format!("layer{stage}"));
        let layers: Vec<String> = layers.chain(["fc".into()]).collect();
        match layers.iter().position(|name| name == layer) {
            Some(at) => self.frozen = at + 1,
            None => bail!("resnet: found no layer {layer}, expected one of {}", layers.join(", ")),
        }
        Ok(())
    }

    /// What the first layers and each stage make of `xs`.
    fn maps(&self, xs: &Tensor, mode: Mode) -> Result<Vec<Tensor>> {
        let frozen = |part: usize| part < self.frozen;
        let mode_of = |part| if frozen(part) { Mode::Evaluate } else { mode };
        let mut xs = self.bn1.forward(&xs.apply(&self.conv1)?, RELU, mode_of(0))?;
        if let Some(pool) = self.pool {
            xs = xs.apply(&pool)?;
        }
        let mut maps = vec![if frozen(0) { xs.detach() } else { xs }];
        for (part, stage) in (1..).zip(&self.stages) {
            let mut xs = maps[part - 1].clone();
            for residual in stage {
                xs = residual.forward(&xs, mode_of(part))?;
            }
            maps.push(if frozen(part) { xs.detach() } else { xs });
        }
        Ok(maps)
    }
}

impl Model for ResNet {
    /// `(batch, channels, height, width)` to `(batch, classes)`: any height and width.
    fn forward(&self, xs: &Tensor, mode: Mode) -> Result<Tensor> {
        self.head(self.maps(xs, mode)?.last().unwrap_or(xs), mode)
    }
}

impl ImageModel for ResNet {
    fn filters(&self) -> &Tensor {
        self.conv1.weight()
    }

    fn feature_maps(&self, xs: &Tensor) -> Result<Vec<Tensor>> {
        self.maps(xs, Mode::Evaluate)
    }

    fn head(&self, maps: &Tensor, _: Mode) -> Result<Tensor> {
        let (_, _, height, width) = maps.dims4()?;
        let all = Pool2dConfig { kernel: (height, width), stride: (1, 1), padding: (0, 0) };
        maps.apply(&Pool2d { pooling: Pooling::Average, window: all })?.flatten_from(1)?.apply(&self.fc)
    }
}

const RELU: Epilogue = Epilogue { add: None, relu: true };

/// A block: `relu(layers(x) + shortcut(x))`, each convolution followed by batch normalisation, a ReLU between them.
#[derive(Debug, Clone)]
struct Residual {
    layers: Vec<(Conv2d, BatchNorm2d)>,
    shortcut: Shortcut,
    /// Where shapes change.
    downsample: Option<(Conv2d, BatchNorm2d)>,
    stride: usize,
    outputs: usize,
}

impl Residual {
    fn new(
        inputs: usize,
        width: usize,
        stride: usize,
        block: Block,
        shortcut: Shortcut,
        vb: VarBuilder,
    ) -> Result<Self> {
        let shapes = match block {
            Block::Basic => vec![(inputs, width, 3, stride), (width, width, 3, 1)],
            Block::Bottleneck => {
                vec![(inputs, width, 1, 1), (width, width, 3, stride), (width, 4 * width, 1, 1)]
            }
        };
        let outputs = shapes[shapes.len() - 1].1;
        let layer = |(i, &(inputs, outputs, kernel, stride)): (usize, &(usize, usize, usize, usize))| {
            let conv = conv(inputs, outputs, kernel, stride, vb.pp(format!("conv{}", i + 1)))?;
            Ok((conv, nn::batch_norm2d(outputs, vb.pp(format!("bn{}", i + 1)))?))
        };
        let layers = shapes.iter().enumerate().map(layer).collect::<Result<Vec<_>>>()?;
        let downsample = match shortcut {
            Shortcut::Projection if stride > 1 || inputs != outputs => {
                let vb = vb.pp("downsample");
                Some((conv(inputs, outputs, 1, stride, vb.pp(0))?, nn::batch_norm2d(outputs, vb.pp(1))?))
            }
            _ => None,
        };
        Ok(Self { layers, shortcut, downsample, stride, outputs })
    }

    fn forward(&self, xs: &Tensor, mode: Mode) -> Result<Tensor> {
        let shortcut = match (&self.downsample, self.shortcut) {
            (Some((conv, norm)), _) => Some(norm.forward(&xs.apply(conv)?, Epilogue::default(), mode)?),
            (None, Shortcut::None) => None,
            (None, _) => Some(self.identity(xs)?),
        };
        let mut ys = xs.clone();
        for (i, (conv, norm)) in self.layers.iter().enumerate() {
            let add = if i + 1 < self.layers.len() { None } else { shortcut.as_ref() };
            ys = norm.forward(&ys.apply(conv)?, Epilogue { add, relu: true }, mode)?;
        }
        Ok(ys)
    }

    /// Every `stride`-th row and column, with zeros for the channels that there are more of at the block's end.
    fn identity(&self, xs: &Tensor) -> Result<Tensor> {
        let (one, stride) = ((1, 1), (self.stride, self.stride));
        let every = Pool2dConfig { kernel: one, stride, padding: (0, 0) };
        let xs = match self.stride {
            1 => xs.clone(),
            _ => xs.apply(&Pool2d { pooling: Pooling::Average, window: every })?,
        };
        match self.outputs - xs.dim(1)? {
            0 => Ok(xs),
            more => xs.pad_with_zeros(1, 0, more),
        }
    }
}

/// A convolution without bias, whose output is as large as its input where the stride is 1.
fn conv(inputs: usize, outputs: usize, kernel: usize, stride: usize, vb: VarBuilder) -> Result<Conv2d> {
    let (stride, padding) = ((stride, stride), (kernel / 2, kernel / 2));
    let geometry = Conv2dConfig { stride, padding, ..Default::default() };
    nn::conv2d_no_bias(inputs, outputs, kernel, geometry, Init::Kaiming, vb)
}
