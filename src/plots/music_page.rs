//! HTML pages about music: statistics side by side, and a player.

use super::page::{Section, page};
use super::svg::{PALETTE, escape};
use crate::data::count;
use crate::data::music::{MusicStatistics, Piece};
use serde_json::{Value, json};
use std::fmt::Write;

/// Creates a self-contained HTML page that plays a piece while its piano roll moves.
pub fn listen_page(piece: &Piece) -> String {
    let seconds = 60.0 / piece.tempo / piece.steps_per_quarter as f64;
    let notes: Vec<Value> = piece
        .spans()
        .iter()
        .map(|span| json!([span.pitch, span.start as f64 * seconds, span.steps as f64 * seconds, span.voice]))
        .collect();
    let bars = (0..piece.len()).filter(|&step| piece.place(step).is_some_and(|(.., place)| place == 0));
    let bars: Vec<f64> = bars.map(|step| step as f64 * seconds).collect();
    let colors = PALETTE.map(|[r, g, b]| format!("#{r:02x}{g:02x}{b:02x}"));
    include_str!("listen_page.html")
        .replace("@TITLE@", &escape(&piece.name))
        .replace("@NOTES@", &json!(notes).to_string())
        .replace("@BARS@", &json!(bars).to_string())
        .replace("@COLORS@", &json!(colors).to_string())
        .replace("@END@", &json!(piece.len() as f64 * seconds).to_string())
}

/// Creates an HTML page that compares groups of pieces, such as a data set and composed pieces.
///
/// It compares broken rules, if they were checked, pitches, melodic intervals and chords. All groups must have been
/// checked for the same number of voices. `samples` are links to show, each a name and a file.
pub fn music_page(groups: &[(&str, MusicStatistics)], samples: &[(String, String)]) -> String {
    let mut sections = vec![];
    let link =
        |(name, file): &(String, String)| format!(r#"<a href="{}">{}</a> "#, escape(file), escape(name));
    let links: String = samples.iter().map(link).collect();
    let share = |value: f64| format!("{:.1}%", 100.0 * value);
    if let Some(voices) = groups[0].1.voices {
        let rules = groups[0].1.violations.iter().enumerate().map(|(i, (rule, _))| {
            let values = groups.iter().map(|(_, statistics)| statistics.violations[i].1);
            (rule.violation().to_string(), values.collect())
        });
        let any = ("any of these".to_string(), groups.iter().map(|group| group.1.any_violation).collect());
        let title = format!("Steps that break a rule of part writing for {}", count(voices, "voice"));
        table(&mut sections, &title, groups, rules.chain([any]), share);
    }
    let mut chords: Vec<&String> = vec![];
    for name in groups.iter().flat_map(|group| group.1.chords.iter().take(10)).map(|(name, _)| name) {
        if !chords.contains(&name) {
            chords.push(name);
        }
    }
    let chords = chords.into_iter().map(|name| {
        let of = |statistics: &MusicStatistics| {
            statistics.chords.iter().find(|(other, _)| other == name).map_or(0.0, |(_, share)| *share)
        };
        (name.clone(), groups.iter().map(|group| of(&group.1)).collect())
    });
    table(&mut sections, "Chords", groups, chords, share);
    const CLASSES: [&str; 12] = ["1", "b2", "2", "b3", "3", "4", "b5", "5", "b6", "6", "b7", "7"];
    let classes = CLASSES
        .iter()
        .enumerate()
        .map(|(i, name)| (name.to_string(), groups.iter().map(|group| group.1.classes[i]).collect()));
    table(
        &mut sections,
        "Pitches, as degrees above the tonic (above C if keys are unknown)",
        groups,
        classes,
        share,
    );
    let widest = groups[0].1.intervals.len() as i64 / 2;
    let intervals = (-widest..=widest).filter(|&interval| interval != 0).map(|interval| {
        let at = (interval + widest) as usize;
        (format!("{interval:+}"), groups.iter().map(|group| group.1.intervals[at]).collect())
    });
    table(&mut sections, "Intervals of the highest voice, in semitones", groups, intervals, share);
    let variety = [
        (
            "different chords per piece".to_string(),
            groups.iter().map(|group| group.1.different_chords).collect(),
        ),
        (
            "longest chord, in quarter notes".to_string(),
            groups.iter().map(|group| group.1.longest_chord).collect(),
        ),
    ];
    table(&mut sections, "Variety", groups, variety, |value| format!("{value:.1}"));
    page("Music: data and samples", &format!("<p>{links}</p>"), &sections)
}

/// Adds a section: a table with a row per name and a column per group, each value with a bar.
fn table(
    sections: &mut Vec<Section>,
    title: &str,
    groups: &[(&str, MusicStatistics)],
    rows: impl IntoIterator<Item = (String, Vec<f64>)>,
    format: impl Fn(f64) -> String,
) {
    let rows: Vec<_> = rows.into_iter().collect();
    let largest = rows.iter().flat_map(|(_, values)| values).fold(f64::MIN_POSITIVE, |a, &b| a.max(b));
    let heads: String = groups.iter().map(|(name, _)| format!("<th>{}</th>", escape(name))).collect();
    let mut body = format!("<div class=\"scroll bars\"><table>\n<tr><th></th>{heads}</tr>\n");
    for (name, values) in rows {
        let cell = |value: &f64| {
            let width = (120.0 * value / largest).round();
            format!(r#"<td><i style="width: {width}px"></i> {}</td>"#, format(*value))
        };
        let cells: String = values.iter().map(cell).collect();
        // Writing to a String can't fail.
        let _ = writeln!(body, "<tr><td>{}</td>{cells}</tr>", escape(&name));
    }
    body += "</table></div>";
    sections.push(Section { id: format!("s{}", sections.len() + 1), title: title.to_string(), body });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::music::chorales;

    #[test]
    fn pages_hold_the_notes_and_the_statistics() {
        let piece = Piece { name: "a <b>".into(), ..chorales(1, 0, 0, 0).train.remove(0) };
        let page = listen_page(&piece);
        assert!(page.contains("<title>a &lt;b&gt;</title>") && !page.contains('@'));
        let notes: Vec<Value> =
            serde_json::from_str(page.split("const notes = ").nth(1).unwrap().split(";\n").next().unwrap())
                .unwrap();
        assert_eq!(notes.len(), piece.spans().len());
        let pieces = [piece];
        let page = |voices: Option<usize>| {
            let statistics = MusicStatistics::new(&pieces, voices);
            let groups = [("data", statistics.clone()), ("samples", statistics)];
            music_page(&groups, &[("one".into(), "1.html".into())])
        };
        assert!(!page(None).contains("part writing") && page(Some(2)).contains("part writing for 2 voices"));
        let page = page(Some(4));
        assert!(page.contains("parallel fifths") && page.contains(r#"<a href="1.html">one</a>"#));
        assert!(page.contains("dominant seventh") && !page.contains("NaN"));
        assert_eq!((page.matches("<table>").count(), page.matches("</table>").count()), (5, 5));
    }
}
