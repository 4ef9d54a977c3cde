//! `synchronous_standby_names` (`syncrep_gram.y`, the same in PostgreSQL 14 to 18).

/// What the setting asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SyncNames {
    /// How many standbys a commit waits for.
    pub(super) needed: usize,
    /// Which ones count; `*` is any.
    pub(super) names: Vec<String>,
}

impl SyncNames {
    /// Reads `a, b`, `2 (a, b)`, `FIRST 1 (a)` or `ANY 2 (a, "B c")`. `None` if it is empty, or not
    /// understood.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let (needed, list) = match text.split_once('(') {
            Some((head, list)) if !head.contains('"') => {
                let needed = head.split_whitespace().last()?.parse().ok()?;
                (needed, list.trim_end().strip_suffix(')')?)
            }
            _ => (1, text),
        };
        let names = names(list);
        (!names.is_empty()).then_some(Self { needed, names })
    }

    /// Whether a standby of this `application_name` counts (`pg_strcasecmp`).
    pub(super) fn counts(&self, application_name: &str) -> bool {
        self.names
            .iter()
            .any(|name| name == "*" || name.eq_ignore_ascii_case(application_name))
    }
}

fn names(list: &str) -> Vec<String> {
    let mut names = vec![String::new()];
    let mut quoted = false;
    let mut chars = list.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '"' if quoted && chars.next_if_eq(&'"').is_some() => {
                names.last_mut().into_iter().for_each(|n| n.push('"'));
            }
            '"' => quoted = !quoted,
            ',' if !quoted => names.push(String::new()),
            c if c.is_whitespace() && !quoted => {}
            c => names.last_mut().into_iter().for_each(|n| n.push(c)),
        }
    }
    names.retain(|name| !name.is_empty());
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_the_setting_is_understood() {
        for (text, needed, names) in [
            ("a", 1, vec!["a"]),
            ("a, b", 1, vec!["a", "b"]),
            ("*", 1, vec!["*"]),
            ("2 (a,b , c)", 2, vec!["a", "b", "c"]),
            ("FIRST 1 (a)", 1, vec!["a"]),
            ("ANY 2 (a, \"B, \"\"c\")", 2, vec!["a", "B, \"c"]),
            ("\"a (b\"", 1, vec!["a (b"]),
        ] {
            let parsed = SyncNames::parse(text).unwrap();
            assert_eq!(
                (parsed.needed, parsed.names),
                (needed, names.iter().map(|n| (*n).to_owned()).collect()),
                "{text}"
            );
        }
        for text in ["", "  ", "FIRST x (a)", "2 (a", "()"] {
            assert_eq!(SyncNames::parse(text), None, "{text}");
        }
    }

    #[test]
    fn names_are_compared_as_postgresql_compares_them() {
        let names = SyncNames::parse("Replica1").unwrap();
        assert!(names.counts("replica1") && !names.counts("replica2"));
        assert!(SyncNames::parse("*").unwrap().counts("anything"));
    }
}
