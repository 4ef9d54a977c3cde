//! The table as `docs/settings-of-a-copy.md` has it.

use std::fmt::Write as _;

use super::{Act, LIBRARIES, Row, TABLE};
use crate::pg::Major;

/// The table and the list of libraries, in Markdown.
#[must_use]
pub fn page() -> String {
    let mut page = String::from(
        "| setting | what it reaches | rehearsal | replacement | standby | drill | why |\n|---|---|---|---|---|---|---|\n",
    );
    for row in TABLE {
        let cells = [
            names(row),
            row.reaches.to_owned(),
            act(row.rehearsal),
            act(row.replacement),
            act(row.standby),
            drill(row),
            row.why.to_owned(),
        ];
        // Writing to a String cannot fail.
        let _ = writeln!(page, "| {} |", cells.join(" | "));
    }
    page.push_str("\nLibraries that a rehearsal loads: ");
    let libraries: Vec<_> = LIBRARIES
        .iter()
        .map(|library| library_text(library.name, library.settings))
        .collect();
    page.push_str(&libraries.join(", "));
    page.push_str(".\n");
    page
}

fn names(row: &Row) -> String {
    let names: Vec<_> = row.names.iter().map(|name| format!("`{name}`")).collect();
    let versions = match (row.since, row.until) {
        (Major::V14, Major::V18) => String::new(),
        (since, until) if since == until => format!(" ({since})"),
        (Major::V14, until) => format!(" (until {until})"),
        (since, _) => format!(" (from {since})"),
    };
    names.join(", ") + &versions
}

fn act(act: Act) -> String {
    match act {
        Act::Kept => "kept".to_owned(),
        Act::Said => "kept, and reported".to_owned(),
        Act::Set(value) => format!("`{}`", shown(value)),
        Act::SetBeside(value) => format!("kept; beside another server of the cluster `{}`", shown(value)),
        Act::Filtered => "harmless libraries only".to_owned(),
        Act::Own(what) => what.to_owned(),
    }
}

fn drill(row: &Row) -> String {
    match row.drill {
        Some(value) => format!("`{}`", shown(value)),
        None => "its own".to_owned(),
    }
}

fn shown(value: &str) -> &str {
    if value.is_empty() { "''" } else { value }
}

fn library_text(name: &str, settings: &[(&str, &str)]) -> String {
    let settings: Vec<_> = settings
        .iter()
        .map(|(name, value)| format!("{name} = {value}"))
        .collect();
    if settings.is_empty() {
        return format!("`{name}`");
    }
    format!("`{name}` (with `{}`)", settings.join("`, `"))
}

#[cfg(test)]
mod tests {
    use super::*;

    // Seen to fail: `copy_settings/table.rs`: another value
    #[test]
    fn the_page_is_what_the_code_does() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/settings-of-a-copy.md");
        let text = std::fs::read_to_string(path).unwrap();
        let (begin, end) = ("<!-- table -->\n", "<!-- end of table -->");
        let (before, rest) = text.split_once(begin).unwrap();
        let (_, after) = rest.split_once(end).unwrap();
        let expected = format!("{before}{begin}{}{end}{after}", page());
        if std::env::var_os("WALSHIP_WRITE_DOCS").is_some() {
            std::fs::write(path, &expected).unwrap();
        }
        assert!(
            text == expected,
            "docs/settings-of-a-copy.md does not say what the code does; write it anew: \
             WALSHIP_WRITE_DOCS=1 cargo test --lib the_page_is_what_the_code_does"
        );
    }
}
