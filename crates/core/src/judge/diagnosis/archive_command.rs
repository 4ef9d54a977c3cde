//! Whether an `archive_command` runs walship, and how.

use super::facts::{Facts, ProgramState};
use super::{Check, Findings};

/// An `archive_command` that runs walship.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArchiveCommand {
    /// The program as it is written.
    pub program: String,
    /// Variables that the command sets before it.
    pub variables: Vec<(String, String)>,
    /// `--config`.
    pub config: Option<String>,
    /// `--archive`.
    pub archive: Option<String>,
    /// Whether it pushes the file that PostgreSQL names.
    pushes: bool,
    /// The operator after walship that hides its exit code.
    operator: Option<String>,
}

impl ArchiveCommand {
    /// Reads a command line; `None` if it does not run walship.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let words = words(text);
        let is_walship = |word: &&Word| !word.operator && word.text.rsplit('/').next() == Some("walship");
        let at = words.iter().position(|word| is_walship(&word))?;
        let (before, after) = words.split_at(at);
        let end = after.iter().position(|word| word.operator);
        let (own, rest) = after.split_at(end.unwrap_or(after.len()));
        let arguments: Vec<&str> = own.iter().skip(1).map(|word| word.text.as_str()).collect();
        let variables = before.iter().filter(|word| !word.operator);
        let variables = variables.filter_map(|word| word.text.split_once('='));
        Some(Self {
            program: own.first()?.text.clone(),
            variables: variables
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
            config: flag(&arguments, "--config"),
            archive: flag(&arguments, "--archive"),
            pushes: arguments.contains(&"push") && arguments.contains(&"%p"),
            // `a && walship push %p` fails if walship fails; what follows it may hide that.
            operator: rest
                .iter()
                .find(|word| word.operator && word.text != "&&")
                .map(|word| word.text.clone()),
        })
    }
}

impl ArchiveCommand {
    /// Why PostgreSQL could take WAL that walship did not store for archived, if it could.
    #[must_use]
    pub fn flaw(&self) -> Option<String> {
        match &self.operator {
            _ if !self.pushes => Some("runs walship but does not push the file".to_owned()),
            Some(operator) => Some(format!(
                "goes on after walship with {operator:?}: PostgreSQL may take WAL that was not stored for archived"
            )),
            None => None,
        }
    }
}

fn flag(arguments: &[&str], name: &str) -> Option<String> {
    let glued = arguments
        .iter()
        .find_map(|argument| argument.strip_prefix(name)?.strip_prefix('='));
    let next = arguments.iter().position(|argument| *argument == name);
    let value = glued.or_else(|| arguments.get(next? + 1).copied());
    value.map(str::to_owned)
}

#[derive(Debug, Default)]
struct Word {
    text: String,
    operator: bool,
}

/// The words and control operators of a shell command, as far as an `archive_command` needs them.
/// Redirections stay words.
fn words(text: &str) -> Vec<Word> {
    let mut words: Vec<Word> = Vec::new();
    let mut current: Option<String> = None;
    let mut quote = None;
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (Some(open), _) if c == open => quote = None,
            (None, '\'' | '"') => {
                quote = Some(c);
                current.get_or_insert_default();
            }
            (None, '\\') => current.get_or_insert_default().extend(chars.next()),
            // 2>&1 and >& are not control operators.
            (None, '&') if current.as_deref().is_some_and(|word| word.ends_with('>')) => {
                current.get_or_insert_default().push(c);
            }
            (None, ';' | '|' | '&' | '\n') => {
                words.extend(current.take().map(|text| Word {
                    text,
                    operator: false,
                }));
                let mut operator = String::from(c);
                operator.extend(chars.next_if_eq(&c));
                words.push(Word {
                    text: operator,
                    operator: true,
                });
            }
            (None, _) if c.is_whitespace() => {
                words.extend(current.take().map(|text| Word {
                    text,
                    operator: false,
                }));
            }
            _ => current.get_or_insert_default().push(c),
        }
    }
    words.extend(current.map(|text| Word {
        text,
        operator: false,
    }));
    words
}

/// Judges a command that runs walship.
pub(super) fn judge(command: &ArchiveCommand, text: &str, facts: &Facts, findings: &mut Findings) {
    let check = Check::ArchiveCommand;
    let host = &facts.host;
    let fix = format!(
        "ALTER SYSTEM SET archive_command = '{} push %p' and SELECT pg_reload_conf()",
        command.program
    );
    if let Some(flaw) = command.flaw() {
        return findings.problem(check, format!("{text:?} {flaw}"), fix);
    }
    let program = &command.program;
    match host.program {
        Ok(ProgramState::Missing) => {
            let message = format!("{program} is not there");
            return findings.problem(check, message, format!("install walship as {program}"));
        }
        Ok(ProgramState::NotExecutable) => {
            let message = format!("{program} cannot be executed");
            return findings.problem(check, message, format!("chmod 0755 {program}"));
        }
        Ok(ProgramState::Runs) | Err(_) => {}
    }
    let here = facts.archive.as_ref().ok().map(|archive| archive.url.as_str());
    match (&host.command_archive, here) {
        (Ok(theirs), Some(here)) if theirs != here => findings.problem(
            check,
            format!("archive_command archives to {theirs}, but doctor looks at {here}"),
            format!(
                "correct WALSHIP_ARCHIVE, or the file, for one of them (walship doctor --archive {theirs})"
            ),
        ),
        (Ok(_), _) => findings.ok(check, text),
        (Err(why), _) => findings.ok(check, format!("{text} (its archive is not known: {why})")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn walship_is_found_with_what_it_is_given() {
        let command = ArchiveCommand::parse(
            "WALSHIP_LOG_LEVEL=info '/opt/my bin/walship' --config /etc/w.toml --archive=s3://b/p push \"%p\" 2>&1",
        )
        .unwrap();
        assert_eq!(command.program, "/opt/my bin/walship");
        assert_eq!(command.variables, [("WALSHIP_LOG_LEVEL".into(), "info".into())]);
        assert_eq!(command.config.as_deref(), Some("/etc/w.toml"));
        assert_eq!(command.archive.as_deref(), Some("s3://b/p"));
        assert!(command.pushes && command.operator.is_none());
        for other in [
            "",
            "cp %p /archive/%f",
            "/bin/true",
            "mywalship push %p",
            "cat walship.sh",
        ] {
            assert_eq!(ArchiveCommand::parse(other), None, "{other}");
        }
    }

    #[test]
    fn what_hides_the_exit_code_is_seen() {
        for (text, operator) in [
            ("walship push %p || true", Some("||")),
            ("walship push %p; exit 0", Some(";")),
            ("walship push %p | logger", Some("|")),
            ("walship push %p &", Some("&")),
            ("walship push %p > /tmp/log 2>&1", None),
            ("test -d /srv && walship push %p", None),
            ("walship push %p && touch /tmp/alive", None),
            ("walship push %p '|'", None),
        ] {
            let command = ArchiveCommand::parse(text).unwrap();
            assert_eq!(command.operator.as_deref(), operator, "{text}");
            assert!(command.pushes, "{text}");
        }
        assert!(!ArchiveCommand::parse("walship list %p").unwrap().pushes);
        assert!(!ArchiveCommand::parse("walship push %f").unwrap().pushes);
    }
}
