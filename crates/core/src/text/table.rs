//! Tables for people.

use std::fmt;

/// Columns as wide as they must be; the last one is not padded.
pub fn write_table(headings: &[&str], rows: Vec<Vec<String>>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let headings: Vec<String> = headings.iter().map(|heading| (*heading).to_owned()).collect();
    let lines: Vec<Vec<String>> = std::iter::once(headings).chain(rows).collect();
    let width = |column: usize| {
        let cells = lines.iter().filter_map(|line| line.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    for line in &lines {
        let cells = line.iter().enumerate();
        let padded: Vec<_> = cells
            .map(|(column, cell)| format!("{cell:<0$}", width(column)))
            .collect();
        writeln!(f, "{}", padded.join("  ").trim_end())?;
    }
    Ok(())
}
