//! Drawing what comes next from a model's logits.

use rand::Rng;

/// How to choose among the tokens that a model holds likely.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// What logits are divided by: below 1 the likely becomes likelier still; 0 always takes the likeliest.
    pub temperature: f64,
    /// Only so many of the likeliest.
    pub top_k: Option<usize>,
    /// Only the likeliest that together have this probability (Holtzman et al. 2020, nucleus sampling).
    pub top_p: Option<f64>,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { temperature: 1.0, top_k: None, top_p: None }
    }
}

impl Sampling {
    /// The index of one of `logits`, drawn; one of negative infinity, or that is no number, is never drawn. None where
    /// there are no others.
    pub fn sample(&self, logits: &[f32], rng: &mut impl Rng) -> Option<u32> {
        let mut tokens: Vec<(u32, f64)> = (0..)
            .zip(logits)
            .filter(|(_, logit)| **logit > f32::NEG_INFINITY)
            .map(|(token, &logit)| (token, f64::from(logit)))
            .collect();
        let (likeliest, highest) =
            tokens.iter().copied().reduce(|best, other| if other.1 > best.1 { other } else { best })?;
        if self.temperature == 0.0 || highest == f64::INFINITY {
            return Some(likeliest);
        }
        // In f32, in which the logits are: twice as fast.
        let weight = |logit: f64| f64::from((((logit - highest) / self.temperature) as f32).exp());
        tokens.iter_mut().for_each(|(_, logit)| *logit = weight(*logit));
        if self.top_k.is_some() || self.top_p.is_some() {
            // Equally likely ones in their order.
            tokens.sort_by(|a, b| b.1.total_cmp(&a.1));
            tokens.truncate(self.top_k.unwrap_or(usize::MAX).max(1));
        }
        let mut total = total_of(&tokens);
        if let Some(top_p) = self.top_p {
            let mut reached = 0.0;
            let enough = tokens.iter().position(|(_, weight)| {
                reached += weight;
                reached >= top_p * total
            });
            tokens.truncate(enough.map_or(tokens.len(), |last| last + 1));
            total = total_of(&tokens);
        }
        let mut left = rng.random::<f64>() * total;
        let drawn = tokens.iter().find(|(_, weight)| {
            left -= weight;
            left < 0.0
        });
        // Rounding may leave a little beyond the last.
        drawn.or(tokens.last()).map(|&(token, _)| token)
    }
}

fn total_of(tokens: &[(u32, f64)]) -> f64 {
    tokens.iter().map(|(_, weight)| weight).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng;

    /// How often each of `logits` is drawn in 10,000 times.
    fn shares(sampling: Sampling, logits: &[f32]) -> Vec<f64> {
        let mut counts = vec![0.0; logits.len()];
        let rng = &mut rng::stream(3, "sampling");
        (0..10_000).for_each(|_| counts[sampling.sample(logits, rng).unwrap() as usize] += 1e-4);
        counts
    }

    fn close(found: &[f64], expected: &[f64]) -> bool {
        found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 0.02)
    }

    #[test]
    fn each_token_is_drawn_as_often_as_the_model_holds_it_likely() {
        let logits = [0.5f32, 0.2, 0.3].map(f32::ln);
        let default = Sampling::default();
        assert!(close(&shares(default, &logits), &[0.5, 0.2, 0.3]));
        // At temperature 0.5 probabilities are squared.
        let colder = Sampling { temperature: 0.5, ..default };
        assert!(close(&shares(colder, &logits), &[0.25 / 0.38, 0.04 / 0.38, 0.09 / 0.38]));
        let greedy = Sampling { temperature: 0.0, ..default };
        assert_eq!(greedy.sample(&logits, &mut rng::stream(0, "")), Some(0));
    }

    #[test]
    fn only_the_likeliest_are_drawn_where_so_asked() {
        let logits = [0.1f32, 0.2, 0.4, 0.3].map(f32::ln);
        let default = Sampling::default();
        let two = Sampling { top_k: Some(2), ..default };
        assert!(close(&shares(two, &logits), &[0.0, 0.0, 4.0 / 7.0, 3.0 / 7.0]));
        // 0.4 and 0.3 do not reach 0.75, with 0.2 they do.
        let nucleus = Sampling { top_p: Some(0.75), ..default };
        assert!(close(&shares(nucleus, &logits), &[0.0, 2.0 / 9.0, 4.0 / 9.0, 3.0 / 9.0]));
        let none = Sampling { top_p: Some(0.0), top_k: Some(0), ..default };
        assert_eq!(shares(none, &logits)[2].round(), 1.0);
    }

    #[test]
    fn what_can_not_come_is_never_drawn() {
        let rng = &mut rng::stream(0, "");
        let out = f32::NEG_INFINITY;
        assert_eq!(Sampling::default().sample(&[out, 1.0, f32::NAN], rng), Some(1));
        assert_eq!(Sampling::default().sample(&[out, out], rng), None);
        assert_eq!(Sampling::default().sample(&[1.0, f32::INFINITY], rng), Some(1));
    }
}
