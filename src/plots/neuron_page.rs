//! An HTML page that colours a text by the values of recurrent cells (Karpathy et al. 2015).

use crate::data::count;
use anyhow::{Result, ensure};
use serde_json::{Value, json};

/// A recurrent cell and its values over a text.
#[derive(Debug, Clone, PartialEq)]
pub struct Neuron {
    /// The name shown to the reader.
    pub name: String,
    /// The value after each token of the text, from -1 to 1.
    pub values: Vec<f32>,
}

impl Neuron {
    /// Returns how clearly the cell separates two kinds of tokens, from 0 to 1.
    ///
    /// This is the variance between the values below and above a threshold, at the threshold that maximises it (Otsu
    /// 1979).
    pub fn selectivity(&self) -> f64 {
        let mut values: Vec<f64> = self.values.iter().map(|&value| f64::from(value)).collect();
        values.sort_by(f64::total_cmp);
        let (count, total) = (values.len() as f64, values.iter().sum::<f64>());
        let mut below = 0.0;
        let variance = |(i, value): (usize, &f64)| {
            below += value;
            let (low, high) = ((i + 1) as f64, count - (i + 1) as f64);
            if high > 0.0 { low * high * (below / low - (total - below) / high).powi(2) } else { 0.0 }
        };
        values.iter().enumerate().map(variance).fold(0.0, f64::max) / (count * count).max(1.0)
    }
}

/// Creates a self-contained HTML page that colours each token by the value of a cell.
///
/// The reader chooses the cell; the most selective one (see [`Neuron::selectivity`]) comes first.
///
/// # Errors
/// Fails if a cell does not have one value per token.
pub fn neuron_page(tokens: &[String], neurons: &[Neuron]) -> Result<String> {
    for neuron in neurons {
        ensure!(
            neuron.values.len() == tokens.len(),
            "neuron page: found {} of {}, expected one for each of {}",
            count(neuron.values.len(), "value"),
            neuron.name,
            count(tokens.len(), "token")
        );
    }
    // Keep the text from ending the script.
    let script = |value: Value| value.to_string().replace('<', "\\u003c");
    let page = include_str!("neuron_page.html");
    let (head, rest) = page.split_once("@TOKENS@").unwrap_or((page, ""));
    let (middle, tail) = rest.split_once("@CELLS@").unwrap_or((rest, ""));
    Ok([head, &script(json!(tokens)), middle, &script(json!(ranked_cells(neurons))), tail].concat())
}

/// The cells as JSON, the most selective first, each an object with `name` and `values`.
///
/// A value is one character: `0` is -1, `o` is 1.
pub(crate) fn ranked_cells(neurons: &[Neuron]) -> Vec<Value> {
    let mut ranked: Vec<(f64, &Neuron)> =
        neurons.iter().map(|neuron| (neuron.selectivity(), neuron)).collect();
    ranked.sort_by(|a, b| b.0.total_cmp(&a.0));
    let digit = |&value: &f32| char::from(48 + (31.5 * (value.clamp(-1.0, 1.0) + 1.0)).round() as u8);
    let cell = |(selectivity, neuron): &(f64, &Neuron)| {
        let values: String = neuron.values.iter().map(digit).collect();
        json!({ "name": format!("{} ({selectivity:.2})", neuron.name), "values": values })
    };
    ranked.iter().map(cell).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn neuron(values: &[f32]) -> Neuron {
        Neuron { name: "layer 1, cell 1".to_string(), values: values.to_vec() }
    }

    #[test]
    fn a_cell_that_switches_is_more_selective_than_a_constant_one() {
        assert_eq!(neuron(&[-1.0, 1.0, 1.0, -1.0]).selectivity(), 1.0);
        assert_eq!(neuron(&[0.7; 5]).selectivity(), 0.0);
        assert_eq!(neuron(&[]).selectivity(), 0.0);
        let rare = neuron(&[-1.0, -1.0, -1.0, 1.0]).selectivity();
        assert!((rare - 0.75).abs() < 1e-12, "{rare}");
    }

    #[test]
    fn the_page_holds_any_text_and_starts_with_the_most_selective_cell() {
        let tokens = ["</script>", "\"", "\n"].map(String::from);
        let dull = Neuron { name: "dull".to_string(), ..neuron(&[0.0, f32::NAN, 0.0]) };
        let clear = Neuron { name: "clear".to_string(), ..neuron(&[-1.0, 1.0, -1.0]) };
        let page = neuron_page(&tokens, &[dull, clear]).unwrap();
        assert_eq!(page.matches("</script>").count(), 1);
        assert!(page.find("clear (").unwrap() < page.find("dull (").unwrap());
        assert!(page.contains("\"values\":\"0o0\"") && !page.contains("@TOKENS@"));
        assert!(neuron_page(&tokens[..1], &[neuron(&[0.0, 0.0])]).is_err());
    }
}
