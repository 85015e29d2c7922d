//! Randomness that is addressed, not consumed: every draw is a function of a seed and of what it is for.
//!
//! Nothing about the generators needs saving: the mask of step 4,711 is the same whether the run got there in one
//! go or was resumed at step 4,710, and the first layer starts the same whatever layers follow it.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

/// The random numbers that belong to `purpose`, such as `"init/conv1.weight"` or `"shuffle/epoch 3"`.
///
/// ChaCha8 keyed by `seed`, on the stream whose number is the FNV-1a hash of `purpose`; drawn on the host, so that
/// every device starts from the same numbers.
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
    fn same_address_same_numbers() {
        let draw = |seed, purpose| stream(seed, purpose).random::<[u64; 4]>();
        assert_eq!(draw(1, "shuffle/1"), draw(1, "shuffle/1"));
        assert_ne!(draw(1, "shuffle/1"), draw(1, "shuffle/2"));
        assert_ne!(draw(1, "shuffle/1"), draw(2, "shuffle/1"));
    }
}
