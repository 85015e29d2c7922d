//! Shifting and flipping an image.

use std::ops::Range;

/// Flips each plane of an image left to right if `flip` is set, and shifts it by `(columns, rows)`.
///
/// Returns the columns and rows that the image covers afterwards; the rest is 0.
pub(super) fn shift(
    image: &[u8],
    (height, width): (usize, usize),
    by: (isize, isize),
    flip: bool,
    out: &mut [f32],
) -> [Range<usize>; 2] {
    let covered = |by: isize, length: usize| {
        let within = |at: isize| at.clamp(0, length as isize) as usize;
        within(by)..within(length as isize + by)
    };
    let (columns, rows) = (covered(by.0, width), covered(by.1, height));
    out.fill(0.0);
    for (plane, out) in image.chunks(height * width).zip(out.chunks_mut(height * width)) {
        for y in rows.clone() {
            let from = &plane[y.wrapping_add_signed(-by.1) * width..][..width];
            let to = out[y * width..][columns.clone()].iter_mut();
            let skipped = (-by.0).max(0) as usize;
            if flip {
                to.zip(from.iter().rev().skip(skipped)).for_each(|(to, &byte)| *to = f32::from(byte) / 255.0);
            } else {
                to.zip(from.iter().skip(skipped)).for_each(|(to, &byte)| *to = f32::from(byte) / 255.0);
            }
        }
    }
    [columns, rows]
}
