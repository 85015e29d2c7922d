//! Plots of models and training runs, as text in SVG or HTML.
//!
//! ```
//! use candle_textbook::plots::{Chart, Line, line_charts};
//!
//! fn main() -> anyhow::Result<()> {
//!     let losses = vec![(1.0, 0.92), (2.0, 0.41), (3.0, 0.35)];
//!     let lines = vec![Line::new("validation", losses)];
//!     let svg = line_charts(&[Chart { title: "loss", x_label: "epoch", lines, ..Chart::default() }])?;
//!     assert!(svg.starts_with("<svg"));
//!     Ok(())
//! }
//! ```
//!
//! - [`line_charts`]: values over epochs, steps or settings.
//! - [`confusion_matrix`]: which classes a classifier confuses.
//! - [`image_grid`]: misclassified images, filters, feature maps and heat maps.
//! - [`word_map`]: word vectors, projected onto their two leading principal components.
//! - [`principal_components`]: the directions of a map.
//! - [`alignments`]: the attention of translations.
//! - [`animation`]: values that change over time.
//! - [`neuron_page`]: a text coloured by the values of recurrent cells.
//! - [`piano_roll`], [`listen_page`]: a piece of music, to see and to hear.
//! - [`music_page`]: statistics of pieces.
//!
//! Each function returns the document; the caller decides where to write it. Colours suit colour-blind readers (the palette
//! of Okabe and Ito; blue against red or orange, never red against green).

mod alignment;
mod animation;
mod axis;
mod confusion_matrix;
mod image_grid;
mod line_charts;
mod music_page;
mod neuron_page;
mod page;
mod piano_roll;
mod principal_components;
mod svg;
mod word_map;

pub use alignment::{Alignment, alignments};
pub use animation::{Animation, animation};
pub use axis::Scale;
pub use confusion_matrix::confusion_matrix;
pub use image_grid::{GridSection, Tile, image_grid};
pub use line_charts::{Chart, Line, Mark, line_charts};
pub use music_page::{listen_page, music_page};
#[cfg(feature = "playground")]
pub(crate) use neuron_page::ranked_cells;
pub use neuron_page::{Neuron, neuron_page};
pub(crate) use page::{Section, figure, page, table};
pub use piano_roll::piano_roll;
pub use principal_components::{Component, components as principal_components};
pub(crate) use svg::escape;
pub use word_map::word_map;
