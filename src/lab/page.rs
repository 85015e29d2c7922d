//! An HTML page of several experiments.

use super::experiment::{Experiment, Settings};
use super::findings::Findings;
use crate::plots::{self, Section, escape};
use std::fmt::Write;

/// Creates an HTML page of experiments with their findings. It contains its pictures and loads nothing.
///
/// The commands on the page include the options of `settings`.
pub fn page(parts: &[(&Experiment, Findings)], settings: &Settings) -> String {
    let section = |(experiment, findings): &(&Experiment, Findings)| section(experiment, findings, settings);
    plots::page("Experiments of the books", "", &parts.iter().map(section).collect::<Vec<_>>())
}

fn section(experiment: &Experiment, findings: &Findings, settings: &Settings) -> Section {
    let mut body = String::new();
    let &Experiment { name, about, source, book, uses_images, .. } = experiment;
    let mut options = String::new();
    if settings.quick {
        options += " --quick";
    }
    if uses_images && settings.dataset != "digits" {
        options += &format!(" --dataset {}", settings.dataset);
    }
    let mut add = |html: String| {
        // Writing to a String can't fail.
        let _ = writeln!(body, "{html}");
    };
    add(format!("<p>{}</p>", escape(about)));
    add(format!(
        r#"<p class="muted">{}</p><p><code>lab {name}{}</code></p>"#,
        escape(source),
        escape(&options)
    ));
    findings.lines.iter().for_each(|line| add(format!("<p>{}</p>", escape(line))));
    let class = if findings.claim.holds { "claim" } else { "claim fails" };
    let (verdict, text) = (findings.claim.verdict(), escape(&findings.claim.text));
    add(format!(r#"<p class="{class}"><b>{verdict}:</b> {text}</p>"#));
    if !book.is_empty() {
        add(format!("<p><b>The book:</b> {}</p>", escape(book)));
    }
    findings.figures.iter().for_each(|figure| add(plots::figure(&figure.svg, &figure.caption)));
    findings.tables.iter().for_each(|table| add(plots::table(&table.columns, &table.rows)));
    Section { id: name.to_string(), title: name.to_string(), body }
}

#[cfg(test)]
mod tests {
    use super::super::{Claim, EXPERIMENTS, Figure, Table};
    use super::*;

    #[test]
    fn a_page_contains_its_pictures_and_loads_nothing() {
        let mut table = Table::new("t", &["a < b"]);
        table.push(["1 & 2"]);
        let findings = || Findings {
            lines: vec!["x < y".into()],
            tables: vec![table.clone()],
            figures: vec![Figure::picture("f", "A picture.", "<svg>drawn</svg>".into())],
            claim: Claim::new(false, "it falls"),
        };
        let settings = Settings { quick: true, dataset: "mnist".into(), ..Settings::default() };
        let [data, backprop] = [&EXPERIMENTS[0], &EXPERIMENTS[1]];
        let html = page(&[(data, findings()), (backprop, findings())], &settings);
        for part in ["<svg>drawn</svg>", "x &lt; y", "a &lt; b", "1 &amp; 2", "Not confirmed:</b> it falls"] {
            assert!(html.contains(part), "{part}");
        }
        // The second generates its own data.
        for command in ["lab data --quick --dataset mnist", "lab backprop --quick"] {
            assert!(html.contains(&format!("<code>{command}</code>")), "{command}");
        }
        assert!(!["src=", "<script", "<link", "url("].iter().any(|part| html.contains(part)));
    }
}
