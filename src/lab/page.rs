//! The HTML page of several experiments.

use super::{Experiment, Findings, Settings, Table};
use crate::plots::escape;
use std::fmt::Write;

const STYLE: &str = "\
body{font:16px/1.5 sans-serif;color:#222;max-width:1140px;margin:0 auto;padding:0 16px 64px}\
h1{margin-top:40px}h2{margin-top:56px;border-top:1px solid #ccc;padding-top:24px}\
nav a{margin-right:14px;white-space:nowrap}figure{margin:20px 0}figcaption{color:#555}\
svg{max-width:100%;height:auto}code{background:#f2f2f2;padding:2px 5px}\
table{border-collapse:collapse;margin:16px 0;font-size:14px}\
th,td{padding:3px 12px;text-align:right;border-bottom:1px solid #e4e4e4}\
th:first-child,td:first-child{text-align:left}.scroll{overflow-x:auto}\
.claim{border-left:4px solid #0072b2;padding:4px 12px;background:#f0f6fa}\
.claim.fails{border-color:#d55e00;background:#fdf3ec}.source{color:#555}";

/// Creates an HTML page of experiments with their findings. It contains its pictures and loads nothing.
///
/// The commands in it have the options of `settings`.
pub fn page(parts: &[(&Experiment, Findings)], settings: &Settings) -> String {
    let mut body = String::new();
    let links = parts.iter().map(|(experiment, _)| {
        let name = experiment.name;
        format!(r##"<a href="#{name}">{name}</a> "##)
    });
    let links: String = links.collect();
    for (experiment, findings) in parts {
        section(&mut body, experiment, findings, settings);
    }
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\"><title>Experiments of the books</title>\
         <style>{STYLE}</style></head><body>\n<h1>Experiments of the books</h1>\n<nav>{links}</nav>\n{body}</body></html>\n"
    )
}

fn section(body: &mut String, experiment: &Experiment, findings: &Findings, settings: &Settings) {
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
    add(format!(r#"<h2 id="{name}">{name}</h2><p>{}</p>"#, escape(about)));
    add(format!(
        r#"<p class="source">{}</p><p><code>lab {name}{}</code></p>"#,
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
    for figure in &findings.figures {
        add(format!("<figure>{}<figcaption>{}</figcaption></figure>", figure.svg, escape(&figure.caption)));
    }
    findings.tables.iter().for_each(|table| add(html_table(table)));
}

fn html_table(table: &Table) -> String {
    let row = |tag: &str, cells: &[String]| {
        let cells: String = cells.iter().map(|cell| format!("<{tag}>{}</{tag}>", escape(cell))).collect();
        format!("<tr>{cells}</tr>")
    };
    let rows: String = table.rows.iter().map(|cells| row("td", cells)).collect();
    format!(r#"<div class="scroll"><table>{}{rows}</table></div>"#, row("th", &table.columns))
}

#[cfg(test)]
mod tests {
    use super::super::{Claim, EXPERIMENTS, Figure};
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
        // The second makes up its own data.
        for command in ["lab data --quick --dataset mnist", "lab backprop --quick"] {
            assert!(html.contains(&format!("<code>{command}</code>")), "{command}");
        }
        assert!(!["src=", "<script", "<link", "url("].iter().any(|part| html.contains(part)));
    }
}
