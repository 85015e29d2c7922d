//! Deep residual networks (He et al. 2015, arXiv:1512.03385), with the parameter names of torchvision.
//!
//! [`Config::cifar`] gives the networks of 6n+2 layers for CIFAR-10, [`Config::imagenet`] the networks for ImageNet.

use super::ImageModel;
use crate::nn::{
    self, BatchNorm, Conv2d, Conv2dConfig, Epilogue, InitScheme, Linear, Mode, Model, Pool2d, Pool2dConfig,
    Pooling,
};
use crate::ops;
use candle_core::{ModuleT, Result, Tensor, bail};
use candle_nn::VarBuilder;
use serde::{Deserialize, Serialize};

/// The layers before the first stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stem {
    /// A 3x3 convolution, for small images (CIFAR-10).
    Small,
    /// A 7x7 convolution and 3x3 max-pooling, both with stride 2, for large images (ImageNet).
    Large,
}

/// The layers of a residual block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Block {
    /// Two 3x3 convolutions.
    Basic,
    /// 1x1, 3x3 and 1x1 convolutions, the last with four times the channels of the others (figure 5).
    ///
    /// If the block halves the image, the 3x3 convolution has stride 2, as in torchvision; in the paper the first one
    /// has.
    Bottleneck,
}

/// The connection from a block's input to its output (section 3.3).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub enum Shortcut {
    /// Option A: the identity. If shapes change, it takes every second row and column and adds channels of zeros.
    #[default]
    Identity,
    /// Option B: the identity, or a 1x1 convolution if shapes change.
    Projection,
    /// No shortcut: a plain network.
    None,
}

/// The shape of a network over `(channels, height, width)` images.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Config {
    /// Channels of the images.
    pub channels: usize,
    /// Layers before the first stage.
    pub stem: Stem,
    /// Layers of each block.
    pub block: Block,
    /// Shortcut of each block.
    pub shortcut: Shortcut,
    /// Channels of the first stage. Each further stage doubles the channels and halves height and width.
    pub width: usize,
    /// Number of blocks of each stage.
    pub blocks: Vec<usize>,
    /// Number of classes.
    pub classes: usize,
}

impl Config {
    /// A network of 6n+2 layers for CIFAR-10 (section 4.2): 20, 32, 44, 56, 110.
    ///
    /// # Errors
    /// Fails if `layers` is not 6n+2 for an n of at least 1.
    pub fn cifar(layers: usize, shortcut: Shortcut, classes: usize) -> Result<Self> {
        if layers < 8 || layers % 6 != 2 {
            bail!("resnet: found {layers} layers, expected 6n+2: 20, 32, 44, 56, 110");
        }
        let blocks = vec![layers / 6; 3];
        Ok(Self { channels: 3, stem: Stem::Small, block: Block::Basic, shortcut, width: 16, blocks, classes })
    }

    /// A network of 18, 34, 50, 101 or 152 layers for ImageNet (table 1).
    ///
    /// # Errors
    /// Fails if `layers` is another number.
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

    /// Height and width of the last feature maps of images of `height` x `width` pixels.
    pub fn last_maps(&self, height: usize, width: usize) -> (usize, usize) {
        let halvings = self.blocks.len().saturating_sub(1) + if self.stem == Stem::Large { 2 } else { 0 };
        let halved = |size: usize| (0..halvings).fold(size, |size, _| size.div_ceil(2));
        (halved(height), halved(width))
    }
}

/// A residual network.
///
/// Parameters as in torchvision: `conv1.weight`, `bn1.weight`, ..., `layer1.0.conv1.weight`, `layer1.0.bn1.weight`, ...,
/// `layer2.0.downsample.0.weight` (a projection), ..., `fc.weight`, `fc.bias`.
///
/// Convolutions start from N(0, 2/fan-in), as in the paper (torchvision uses the fan-out), the last layer from PyTorch's
/// default.
#[derive(Debug, Clone)]
pub struct ResNet {
    conv1: Conv2d,
    bn1: BatchNorm,
    pool: Option<Pool2d>,
    stages: Vec<Vec<Residual>>,
    fc: Linear,
    /// Number of frozen parts, counted from the stem; each stage is a part.
    frozen: usize,
}

impl ResNet {
    /// Creates the model with its parameters in `vb`.
    ///
    /// # Errors
    /// Fails if a size is 0 or too large, or `vb` holds a parameter in another shape.
    pub fn new(config: &Config, vb: VarBuilder) -> Result<Self> {
        let &Config { channels, stem, block, shortcut, width, ref blocks, classes } = config;
        // At least the channels of the last stage, also of bottleneck blocks.
        let widest = u32::try_from(blocks.len())
            .ok()
            .and_then(|stages| 2usize.checked_pow(stages)?.checked_mul(4)?.checked_mul(width));
        if channels == 0 || width == 0 || classes == 0 || widest.is_none() {
            bail!(
                "resnet: found {channels} channels, width {width}, {} stages and {classes} classes, \
                 expected numbers of at least 1 that are not too large",
                blocks.len()
            );
        }
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
            bn1: nn::batch_norm(width, 1e-5, vb.pp("bn1"))?,
            pool: pool.map(|window| Pool2d { pooling: Pooling::Max, window }),
            stages,
            fc: nn::linear(inputs, classes, vb.pp("fc"))?,
            frozen: 0,
        })
    }

    /// Freezes all layers before `layer`: `layer1`, `layer2`, ... or `fc`.
    ///
    /// Frozen layers get no gradients and normalise with their running statistics, in training too.
    ///
    /// # Errors
    /// Fails if there is no such layer.
    pub fn freeze_until(&mut self, layer: &str) -> Result<()> {
        let layers = (1..=self.stages.len()).map(|stage| format!("layer{stage}"));
        let layers: Vec<String> = layers.chain(["fc".into()]).collect();
        match layers.iter().position(|name| name == layer) {
            Some(at) => self.frozen = at + 1,
            None => bail!("resnet: found no layer {layer}, expected one of {}", layers.join(", ")),
        }
        Ok(())
    }

    /// Computes the outputs of the stem and of each stage, `(batch, width * 2^i, height', width')` each.
    fn maps(&self, xs: &Tensor, mode: Mode) -> Result<Vec<Tensor>> {
        let frozen = |part: usize| part < self.frozen;
        let mode_of = |part| if frozen(part) { Mode::Evaluate } else { mode };
        let mut xs = self.bn1.forward_fused(&xs.apply(&self.conv1)?, RELU, mode_of(0).is_training())?; // (batch, width, ..)
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
    /// `(batch, channels, height, width)` to `(batch, classes)`, for any height and width.
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
        let window = Pool2dConfig { kernel: (height, width), stride: (1, 1), padding: (0, 0) };
        let xs = maps.apply(&Pool2d { pooling: Pooling::Average, window })?; // (batch, channels, 1, 1)
        ops::reshape(&xs, (xs.dim(0)?, ()))?.apply(&self.fc) // (batch, classes)
    }
}

const RELU: Epilogue = Epilogue { add: None, relu: true };

/// A residual block: `relu(layers(x) + shortcut(x))`.
///
/// A batch normalisation follows each convolution, and a ReLU lies between two layers.
#[derive(Debug, Clone)]
struct Residual {
    layers: Vec<(Conv2d, BatchNorm)>,
    shortcut: Shortcut,
    /// The projection of the shortcut, if shapes change.
    downsample: Option<(Conv2d, BatchNorm)>,
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
            Ok((conv, nn::batch_norm(outputs, 1e-5, vb.pp(format!("bn{}", i + 1)))?))
        };
        let layers = shapes.iter().enumerate().map(layer).collect::<Result<Vec<_>>>()?;
        let downsample = match shortcut {
            Shortcut::Projection if stride > 1 || inputs != outputs => {
                let vb = vb.pp("downsample");
                Some((conv(inputs, outputs, 1, stride, vb.pp(0))?, nn::batch_norm(outputs, 1e-5, vb.pp(1))?))
            }
            _ => None,
        };
        Ok(Self { layers, shortcut, downsample, stride, outputs })
    }

    fn forward(&self, xs: &Tensor, mode: Mode) -> Result<Tensor> {
        let shortcut = match (&self.downsample, self.shortcut) {
            (Some((conv, norm)), _) => Some(norm.forward_t(&xs.apply(conv)?, mode.is_training())?),
            (None, Shortcut::None) => None,
            (None, _) => Some(self.identity(xs)?),
        };
        let mut ys = xs.clone();
        for (i, (conv, norm)) in self.layers.iter().enumerate() {
            let add = if i + 1 < self.layers.len() { None } else { shortcut.as_ref() };
            ys = norm.forward_fused(&ys.apply(conv)?, Epilogue { add, relu: true }, mode.is_training())?;
        }
        Ok(ys)
    }

    /// Takes every `stride`-th row and column, and adds channels of zeros up to the block's outputs.
    fn identity(&self, xs: &Tensor) -> Result<Tensor> {
        let window = Pool2dConfig { kernel: (1, 1), stride: (self.stride, self.stride), padding: (0, 0) };
        let xs = match self.stride {
            1 => xs.clone(),
            _ => xs.apply(&Pool2d { pooling: Pooling::Average, window })?,
        };
        match self.outputs - xs.dim(1)? {
            0 => Ok(xs),
            more => ops::concat(&[xs], 1, more),
        }
    }
}

/// A convolution without bias; with stride 1 its output is as large as its input.
fn conv(inputs: usize, outputs: usize, kernel: usize, stride: usize, vb: VarBuilder) -> Result<Conv2d> {
    let config = Conv2dConfig { stride, padding: kernel / 2, ..Default::default() };
    nn::conv2d_no_bias_with(inputs, outputs, kernel, config, InitScheme::Kaiming, vb)
}
