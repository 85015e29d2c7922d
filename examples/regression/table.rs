//! Tables of numbers.

use anyhow::{Context, Result, ensure};
use candle_core::{Device, Tensor};
use std::path::Path;

/// Reads a CSV file: a line of names, then lines of numbers.
pub fn read(file: impl AsRef<Path>) -> Result<Tensor> {
    let file = file.as_ref();
    let rows = csv::Reader::from_path(file).and_then(|mut lines| lines.deserialize().collect());
    let rows: Vec<Vec<f32>> = rows.with_context(|| file.display().to_string())?;
    ensure!(!rows.is_empty(), "{}: found no line of numbers below the line of names", file.display());
    Ok(Tensor::new(rows, &Device::Cpu)?)
}

/// Angles in degrees, speeds in metres per second, and how far a ball flies, in metres.
pub fn balls() -> Result<Tensor> {
    let ball = |i: u16| {
        let (angle, speed) = (f32::from(i) * 67.9 % 90.0, f32::from(i) * 11.4 % 20.0);
        vec![angle, speed, speed.powi(2) * (2.0 * angle.to_radians()).sin() / 9.81]
    };
    Ok(Tensor::new((0..2_000).map(ball).collect::<Vec<_>>(), &Device::Cpu)?)
}

/// Splits a table into inputs and targets: the last column, `(rows, 1)`.
///
/// The order becomes 0, 10, 20, .., 1, 11, 21, .., so that each tenth of a sorted table has rows from everywhere.
pub fn split(rows: &Tensor) -> Result<(Tensor, Tensor)> {
    let (count, columns) = rows.dims2()?;
    let expected = "expected at least 10 rows of 2";
    ensure!(count >= 10 && columns >= 2, "found {count} rows of {columns} numbers, {expected}");
    let order: Vec<u32> = (0..10).flat_map(|start| (start..count as u32).step_by(10)).collect();
    let rows = rows.index_select(&Tensor::new(order, &Device::Cpu)?, 0)?;
    Ok((rows.narrow(1, 0, columns - 1)?, rows.narrow(1, columns - 1, 1)?))
}

/// Mean and standard deviation of columns, `(1, columns)`.
pub struct Scale {
    mean: Tensor,
    deviation: Tensor,
}

impl Scale {
    pub fn new(rows: &Tensor) -> Result<Self> {
        // The lower limit keeps a column of equal values from dividing by 0.
        let deviation = rows.var_keepdim(0)?.sqrt()?.maximum(1e-6)?;
        Ok(Self { mean: rows.mean_keepdim(0)?, deviation })
    }

    pub fn standardise(&self, rows: &Tensor) -> Result<Tensor> {
        let (found, expected) = (rows.dim(1)?, self.mean.dim(1)?);
        ensure!(found == expected, "found rows of {found} numbers, expected {expected}");
        Ok(rows.broadcast_sub(&self.mean)?.broadcast_div(&self.deviation)?)
    }

    /// Brings standardised values back to their unit.
    pub fn restore(&self, rows: &Tensor) -> Result<Tensor> {
        Ok(rows.broadcast_mul(&self.deviation)?.broadcast_add(&self.mean)?)
    }
}
