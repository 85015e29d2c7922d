//! The findings of an experiment.

use crate::plots::{self, Chart};
use crate::train::{Run, say};
use anyhow::Result;

/// The findings of an experiment.
pub struct Findings {
    /// The observations, one sentence each.
    pub lines: Vec<String>,
    /// The numbers.
    pub tables: Vec<Table>,
    /// The pictures.
    pub figures: Vec<Figure>,
    /// The book's claim that the experiment tests.
    pub claim: Claim,
}

/// A claim with the values measured for it.
#[derive(Debug, Clone, PartialEq)]
pub struct Claim {
    /// The statement.
    pub text: String,
    /// Whether the measured values support it.
    pub holds: bool,
}

/// Rows of texts under named columns.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Table {
    /// The name of its CSV file.
    pub name: String,
    /// The names of the columns.
    pub columns: Vec<String>,
    /// The cells of each row.
    pub rows: Vec<Vec<String>>,
}

/// A picture with a caption.
pub struct Figure {
    /// The name of its files.
    pub name: String,
    /// The content of the picture.
    pub caption: String,
    /// The picture, as SVG.
    pub svg: String,
    /// The values in the picture.
    pub numbers: Option<Table>,
}

impl Table {
    /// Creates an empty table.
    pub(super) fn new(name: &str, columns: &[&str]) -> Self {
        Self {
            name: name.into(),
            columns: columns.iter().map(|&column| column.into()).collect(),
            rows: vec![],
        }
    }

    /// Adds a row of texts.
    pub(super) fn push(&mut self, cells: impl IntoIterator<Item = impl ToString>) {
        self.rows.push(cells.into_iter().map(|cell| cell.to_string()).collect());
    }

    /// The table in columns of equal width: texts to the left, numbers to the right.
    pub(super) fn aligned(&self) -> Vec<String> {
        let lines = || std::iter::once(&self.columns).chain(&self.rows);
        let cell = |row: &[String], column: usize| row.get(column).cloned().unwrap_or_default();
        let is_right = |column| self.rows.iter().all(|row| is_number(&cell(row, column)));
        let columns: Vec<(usize, bool)> = (0..self.columns.len())
            .map(|column| {
                let width = lines().map(|row| cell(row, column).chars().count()).max().unwrap_or(0);
                (width, is_right(column))
            })
            .collect();
        let align = |row: &Vec<String>| {
            let cells = columns.iter().enumerate().map(|(column, &(width, right))| match right {
                true => format!("{:>width$}", cell(row, column)),
                false => format!("{:<width$}", cell(row, column)),
            });
            cells.collect::<Vec<_>>().join("  ").trim_end().to_string()
        };
        lines().map(align).collect()
    }

    fn csv(&self) -> Result<String> {
        let mut writer = csv::Writer::from_writer(vec![]);
        writer.write_record(&self.columns)?;
        for row in &self.rows {
            writer.write_record(row)?;
        }
        Ok(String::from_utf8(writer.into_inner()?)?)
    }
}

fn is_number(cell: &str) -> bool {
    cell.is_empty() || cell.trim_end_matches('%').parse::<f64>().is_ok()
}

impl Figure {
    /// Creates a figure of charts, with the points of their lines as its values.
    pub(super) fn charts(name: &str, caption: &str, charts: &[Chart]) -> Result<Self> {
        let mut numbers = Table::new(name, &["chart", "line", "x", "y"]);
        for chart in charts {
            for line in &chart.lines {
                for (x, y) in &line.points {
                    numbers.push([chart.title, line.name, &x.to_string(), &y.to_string()]);
                }
            }
        }
        Ok(Self { numbers: Some(numbers), ..Self::picture(name, caption, plots::line_charts(charts)?) })
    }

    /// Creates a figure from a picture whose values are in a table.
    pub(super) fn picture(name: &str, caption: &str, svg: String) -> Self {
        Self { name: name.into(), caption: caption.into(), svg, numbers: None }
    }
}

impl Findings {
    /// Prints lines, tables and the claim.
    pub fn print(&self) {
        self.lines.iter().for_each(|line| say(line));
        for table in &self.tables {
            say("");
            table.aligned().iter().for_each(|line| say(line));
        }
        say(&format!("\n{}: {}", self.claim.verdict(), self.claim.text));
    }

    /// Writes the figures as SVG, and all numbers as CSV, into the run folder.
    pub(super) fn write(&self, run: &Run) -> Result<()> {
        for figure in &self.figures {
            run.write(&format!("{}.svg", figure.name), &figure.svg)?;
        }
        let numbers = self.figures.iter().filter_map(|figure| figure.numbers.as_ref());
        for table in self.tables.iter().chain(numbers) {
            run.write(&format!("{}.csv", table.name), &table.csv()?)?;
        }
        Ok(())
    }
}

impl Claim {
    /// Creates a claim.
    pub(super) fn new(holds: bool, text: impl Into<String>) -> Self {
        Self { text: text.into(), holds }
    }

    /// Whether the claim holds, in words.
    pub(super) fn verdict(&self) -> &'static str {
        if self.holds { "As claimed" } else { "Not confirmed" }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_aligns_its_columns_and_quotes_its_csv() -> Result<()> {
        let mut table = Table::new("t", &["name", "cost"]);
        table.push(["a, b", "1.5"]);
        table.push(["c", "10.25"]);
        assert_eq!(table.aligned(), ["name   cost", "a, b    1.5", "c     10.25"]);
        assert_eq!(table.csv()?, "name,cost\n\"a, b\",1.5\nc,10.25\n");
        Ok(())
    }
}
