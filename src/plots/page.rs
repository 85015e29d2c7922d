//! The skeleton of HTML pages: a title, links to the sections, and the sections.

use super::svg::escape;

const STYLE: &str = "\
:root{color-scheme:light dark;--ink:#222;--paper:#fff;--muted:#5f6368;--line:#dfe1e5;--soft:#f3f4f6;--accent:#0072b2;\
--warning:#d55e00}\
@media(prefers-color-scheme:dark){:root{--ink:#e4e6ea;--paper:#15171b;--muted:#a2a8b1;--line:#343941;--soft:#20242a;\
--accent:#56b4e9;--warning:#e69f00}}\
body{font:16px/1.55 system-ui,sans-serif;color:var(--ink);background:var(--paper);max-width:1140px;margin:0 auto;\
padding:0 16px 64px}\
h1{font-size:1.8em;margin:32px 0 8px;overflow-wrap:anywhere}\
h2{font-size:1.3em;margin:44px 0 12px;border-top:1px solid var(--line);padding-top:20px}\
a{color:var(--accent)}nav a{display:inline-block;margin-right:14px}\
code,pre{font:14px/1.5 ui-monospace,monospace;background:var(--soft);border-radius:5px}\
code{padding:2px 5px;overflow-wrap:anywhere}pre{padding:12px;overflow-x:auto}\
pre.command{white-space:pre-wrap;overflow-wrap:anywhere}\
figure{margin:20px 0}figcaption,.muted{color:var(--muted)}.scroll{overflow-x:auto}\
svg{max-width:max(100%,680px);height:auto;background:#fff;border-radius:6px}\
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,420px),1fr));gap:20px}\
.charts figure{margin:0}.charts svg{max-width:100%}\
table{border-collapse:collapse;margin:12px 0;font-size:14px;font-variant-numeric:tabular-nums}\
th,td{padding:4px 14px 4px 0;text-align:right;border-bottom:1px solid var(--line)}\
th{font-weight:600}th:first-child,td:first-child{text-align:left}\
.bars th,.bars td{text-align:left;min-width:11em;white-space:nowrap}.bars i{display:inline-block;height:.8em;background:var(--accent)}\
summary{cursor:pointer;color:var(--accent)}\
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px;margin:20px 0}\
.cards div{background:var(--soft);border-radius:8px;padding:12px 14px}\
.cards dt{color:var(--muted);font-size:14px}.cards dd{margin:0;font-size:1.35em;font-weight:600}\
.cards dd small{display:block;font-size:.6em;font-weight:400;color:var(--muted)}\
.claim{border-left:4px solid var(--accent);padding:4px 12px;background:var(--soft)}.claim.fails{border-color:var(--warning)}";

/// A part of a page.
pub(crate) struct Section {
    /// Name of the link to it.
    pub(crate) id: String,
    pub(crate) title: String,
    /// HTML.
    pub(crate) body: String,
}

/// Creates an HTML page, which loads nothing. `introduction` is the HTML below the title.
pub(crate) fn page(title: &str, introduction: &str, sections: &[Section]) -> String {
    let title = escape(title);
    let link = |Section { id, title, .. }: &Section| format!("<a href=\"#{id}\">{}</a> ", escape(title));
    let links: String = sections.iter().map(link).collect();
    let section = |Section { id, title, body }: &Section| {
        format!("<section id=\"{id}\">\n<h2>{}</h2>\n{body}\n</section>\n", escape(title))
    };
    let sections: String = sections.iter().map(section).collect();
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\"><title>{title}</title>\
         <style>{STYLE}</style></head><body>\n<h1>{title}</h1>\n{introduction}\n<nav>{links}</nav>\n{sections}</body></html>\n"
    )
}

/// An SVG document as a figure of a page, with its text below.
pub(crate) fn figure(svg: &str, caption: &str) -> String {
    let caption = match caption {
        "" => String::new(),
        text => format!("<figcaption>{}</figcaption>", escape(text)),
    };
    format!("<figure><div class=\"scroll\">{}</div>{caption}</figure>", svg.trim())
}

/// A table of texts, with a row of heads if there are any.
pub(crate) fn table<S: AsRef<str>>(heads: &[S], rows: &[Vec<String>]) -> String {
    let row = |tag: &str, cells: &mut dyn Iterator<Item = &str>| {
        let cells: String = cells.map(|cell| format!("<{tag}>{}</{tag}>", escape(cell))).collect();
        format!("<tr>{cells}</tr>")
    };
    let heads = match heads.is_empty() {
        true => String::new(),
        false => row("th", &mut heads.iter().map(AsRef::as_ref)),
    };
    let rows: String = rows.iter().map(|cells| row("td", &mut cells.iter().map(|cell| &**cell))).collect();
    format!("<div class=\"scroll\"><table>{heads}{rows}</table></div>")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_links_to_its_sections_escapes_text_and_loads_nothing() {
        let body = table(&["a < b"], &[vec!["1 & 2".into()]]) + &figure("<svg>drawn</svg>\n", "x < y");
        let html = page("<t>", "", &[Section { id: "s".into(), title: "S & T".into(), body }]);
        for part in [
            "<title>&lt;t&gt;</title>",
            "<a href=\"#s\">S &amp; T</a>",
            "<section id=\"s\">",
            "<th>a &lt; b</th>",
            "<td>1 &amp; 2</td>",
            "<svg>drawn</svg></div><figcaption>x &lt; y</figcaption>",
        ] {
            assert!(html.contains(part), "{part}");
        }
        assert!(!["src=", "<script", "<link", "url("].iter().any(|part| html.contains(part)));
    }
}
