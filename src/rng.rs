//! Randomness that is addressed, not consumed: every draw is a function of a seed and a purpose.
//!
//! No generator state needs saving. A resumed run draws the same mask for step 4,711 as an uninterrupted one, and the
//! initial values of the first layer do not depend on the layers after it.
//!
//! # Example
//!
//! Candle's `Tensor::randn` can't be seeded on the CPU. This noise is the same in every run, for example for an autoencoder or a
//! generator. It needs the crate `rand` in version 0.9 (`cargo add rand@0.9`):
//!
//! ```
//! use candle_core::{Device, Result, Tensor};
//! use candle_textbook::rng::{StandardNormal, stream};
//! use rand::Rng;
//!
//! /// Noise `(batch, size)` for one step of training.
//! fn noise(seed: u64, step: u64, batch: usize, size: usize) -> Result<Tensor> {
//!     let values = stream(seed, &format!("noise/step {step}")).sample_iter(StandardNormal);
//!     Tensor::from_vec(values.take(batch * size).collect::<Vec<f32>>(), (batch, size), &Device::Cpu)
//! }
//!
//! fn main() -> Result<()> {
//!     assert_eq!(noise(42, 7, 2, 3)?.to_vec2::<f32>()?, noise(42, 7, 2, 3)?.to_vec2::<f32>()?);
//!     Ok(())
//! }
//! ```
//!
//! In a [`Task`](crate::train::Task), seed and step come from the [`Mode`](crate::nn::Mode).

mod ziggurat;

pub use ziggurat::StandardNormal;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

/// Returns the random stream of `purpose`, such as `"init/conv1.weight"` or `"shuffle/epoch 3"`.
///
/// The generator is ChaCha8 keyed by `seed`, on the stream numbered by the FNV-1a hash of `purpose`. All draws happen
/// on the host, so every device gets the same values.
pub fn stream(seed: u64, purpose: &str) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let hash = purpose.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    rng.set_stream(hash);
    rng
}

#[cfg(test)]
mod tests {
    use super::stream;
    use rand::Rng;

    #[test]
    fn same_seed_and_purpose_give_the_same_values() {
        let draw = |seed, purpose| stream(seed, purpose).random::<[u64; 4]>();
        assert_eq!(draw(1, "shuffle/1"), draw(1, "shuffle/1"));
        assert_ne!(draw(1, "shuffle/1"), draw(1, "shuffle/2"));
        assert_ne!(draw(1, "shuffle/1"), draw(2, "shuffle/1"));
    }
}
