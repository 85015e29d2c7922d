//! Drawing the next token from a model's logits.

use crate::kernels::cpu::Real;
use rand::Rng;

/// How to choose the next token: by temperature, and optionally from the most probable tokens only.
///
/// [`Default`] samples from the model's own distribution.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// The divisor of the logits.
    ///
    /// Below 1 probable tokens become more probable, above 1 less; 0 always chooses the most probable token (greedy
    /// decoding).
    pub temperature: f64,
    /// Sample from this number of most probable tokens only; at least one is kept.
    pub top_k: Option<usize>,
    /// Sample from the smallest set of most probable tokens with at least this total probability.
    ///
    /// This is nucleus sampling (Holtzman et al. 2020). It applies after `top_k`; at least one token is kept.
    pub top_p: Option<f64>,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { temperature: 1.0, top_k: None, top_p: None }
    }
}

impl Sampling {
    /// Draws the index of one of `logits`, or `None` if no token is possible.
    ///
    /// Tokens with a logit of negative infinity or NaN are never drawn. The first of several equal logits counts as the
    /// most probable.
    pub fn sample(&self, logits: &[f32], rng: &mut impl Rng) -> Option<u32> {
        let mut tokens: Vec<(u32, f64)> = (0..)
            .zip(logits)
            .filter(|(_, logit)| **logit > f32::NEG_INFINITY)
            .map(|(token, &logit)| (token, f64::from(logit)))
            .collect();
        let (best, highest) =
            tokens.iter().copied().reduce(|best, other| if other.1 > best.1 { other } else { best })?;
        if self.temperature == 0.0 || highest == f64::INFINITY {
            return Some(best);
        }
        // The exponential in f32, the precision of the logits, is twice as fast.
        let weight = |logit: f64| f64::from(Real::exp(((logit - highest) / self.temperature) as f32));
        tokens.iter_mut().for_each(|(_, logit)| *logit = weight(*logit));
        if self.top_k.is_some() || self.top_p.is_some() {
            // The sort is stable: equally probable tokens keep their order.
            tokens.sort_by(|a, b| b.1.total_cmp(&a.1));
            tokens.truncate(self.top_k.unwrap_or(usize::MAX).max(1));
        }
        let mut total = total_weight(&tokens);
        if let Some(top_p) = self.top_p {
            let mut sum = 0.0;
            let last = tokens.iter().position(|(_, weight)| {
                sum += weight;
                sum >= top_p * total
            });
            tokens.truncate(last.map_or(tokens.len(), |last| last + 1));
            total = total_weight(&tokens);
        }
        let mut remaining = rng.random::<f64>() * total;
        let drawn = tokens.iter().find(|(_, weight)| {
            remaining -= weight;
            remaining < 0.0
        });
        // Rounding may leave a remainder after the last token.
        drawn.or(tokens.last()).map(|&(token, _)| token)
    }
}

fn total_weight(tokens: &[(u32, f64)]) -> f64 {
    tokens.iter().map(|(_, weight)| weight).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng;

    /// The frequency of each token in 10,000 draws.
    fn frequencies(sampling: Sampling, logits: &[f32]) -> Vec<f64> {
        let mut frequencies = vec![0.0; logits.len()];
        let rng = &mut rng::stream(3, "sampling");
        (0..10_000).for_each(|_| frequencies[sampling.sample(logits, rng).unwrap() as usize] += 1e-4);
        frequencies
    }

    fn close(found: &[f64], expected: &[f64]) -> bool {
        found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 0.02)
    }

    #[test]
    fn tokens_are_drawn_with_the_probabilities_of_the_model() {
        let logits = [0.5f32, 0.2, 0.3].map(f32::ln);
        let default = Sampling::default();
        assert!(close(&frequencies(default, &logits), &[0.5, 0.2, 0.3]));
        // Temperature 0.5 squares the probabilities.
        let colder = Sampling { temperature: 0.5, ..default };
        assert!(close(&frequencies(colder, &logits), &[0.25 / 0.38, 0.04 / 0.38, 0.09 / 0.38]));
        let greedy = Sampling { temperature: 0.0, ..default };
        assert_eq!(greedy.sample(&logits, &mut rng::stream(0, "")), Some(0));
    }

    #[test]
    fn top_k_and_top_p_restrict_the_draw_to_the_most_probable_tokens() {
        let logits = [0.1f32, 0.2, 0.4, 0.3].map(f32::ln);
        let default = Sampling::default();
        let two = Sampling { top_k: Some(2), ..default };
        assert!(close(&frequencies(two, &logits), &[0.0, 0.0, 4.0 / 7.0, 3.0 / 7.0]));
        // 0.4 + 0.3 is below 0.75, 0.4 + 0.3 + 0.2 is not.
        let nucleus = Sampling { top_p: Some(0.75), ..default };
        assert!(close(&frequencies(nucleus, &logits), &[0.0, 2.0 / 9.0, 4.0 / 9.0, 3.0 / 9.0]));
        let none = Sampling { top_p: Some(0.0), top_k: Some(0), ..default };
        assert_eq!(frequencies(none, &logits)[2].round(), 1.0);
    }

    #[test]
    fn impossible_tokens_are_never_drawn() {
        let rng = &mut rng::stream(0, "");
        let out = f32::NEG_INFINITY;
        assert_eq!(Sampling::default().sample(&[out, 1.0, f32::NAN], rng), Some(1));
        assert_eq!(Sampling::default().sample(&[out, out], rng), None);
        assert_eq!(Sampling::default().sample(&[1.0, f32::INFINITY], rng), Some(1));
    }
}
