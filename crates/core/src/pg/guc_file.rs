//! The grammar of PostgreSQL's configuration files, as far as recovery needs it: which setting a
//! line makes, and how a value is quoted (`src/backend/utils/misc/guc-file.l`, and `GUC_scanstr` and
//! `guc_name_compare` beside it; the same in PostgreSQL 14 to 18).
//!
//! A setting never spans lines. Files are bytes: their encoding is the server's.

/// The name of the setting that a line makes, if it makes one. Names are compared without regard to
/// case.
#[must_use]
pub fn setting_name(line: &[u8]) -> Option<&[u8]> {
    let line = trim_blanks(line);
    let end = line
        .iter()
        .position(|byte| !is_name_byte(*byte))
        .unwrap_or(line.len());
    let (name, _) = line.split_at(end);
    name.first()
        .is_some_and(|first| !first.is_ascii_digit() && *first != b'.')
        .then_some(name)
}

/// The value that a file gives to a setting: the last one counts. Included files are not read.
#[must_use]
pub fn value_of(file: &[u8], name: &str) -> Option<Vec<u8>> {
    let lines = file.split(|byte| *byte == b'\n');
    let is_it =
        |line: &&[u8]| setting_name(line).is_some_and(|found| found.eq_ignore_ascii_case(name.as_bytes()));
    lines.filter(is_it).filter_map(value).next_back()
}

/// The setting that a line makes, its name in lower case.
#[must_use]
pub fn setting(line: &[u8]) -> Option<(String, Vec<u8>)> {
    let name = std::str::from_utf8(setting_name(line)?).ok()?;
    Some((name.to_ascii_lowercase(), value(line)?))
}

/// The value on a line that makes a setting.
fn value(line: &[u8]) -> Option<Vec<u8>> {
    let line = trim_blanks(line);
    let rest = trim_blanks(line.get(setting_name(line)?.len()..)?);
    let rest = trim_blanks(rest.strip_prefix(b"=").unwrap_or(rest));
    if let Some(quoted) = rest.strip_prefix(b"'") {
        return unquote(quoted);
    }
    let end = rest
        .iter()
        .position(|byte| matches!(byte, b' ' | b'\t' | b'\r' | b'#'));
    let (value, _) = rest.split_at(end.unwrap_or(rest.len()));
    (!value.is_empty()).then(|| value.to_vec())
}

/// What stands between the quotes; `text` begins after the first one.
fn unquote(text: &[u8]) -> Option<Vec<u8>> {
    let mut value = Vec::new();
    let mut bytes = text.iter().copied().peekable();
    loop {
        match bytes.next()? {
            b'\'' if bytes.peek() == Some(&b'\'') => value.extend(bytes.next()),
            b'\'' => return Some(value),
            b'\\' => value.push(match bytes.next()? {
                b'b' => 0x08,
                b'f' => 0x0C,
                b'n' => b'\n',
                b'r' => b'\r',
                b't' => b'\t',
                digit @ b'0'..=b'7' => {
                    let mut code = u32::from(digit - b'0');
                    for _ in 0..2 {
                        let Some(digit) = bytes.next_if(|byte| matches!(byte, b'0'..=b'7')) else {
                            break;
                        };
                        code = code * 8 + u32::from(digit - b'0');
                    }
                    // PostgreSQL stores the code in a char as well.
                    code as u8
                }
                other => other,
            }),
            other => value.push(other),
        }
    }
}

/// A value as it stands in a configuration file, in quotes, with what cannot stand in a line escaped.
#[must_use]
pub fn quote(value: &str) -> String {
    let mut quoted = String::with_capacity(value.len() + 2);
    quoted.push('\'');
    for character in value.chars() {
        match character {
            '\'' => quoted.push_str("''"),
            '\\' => quoted.push_str(r"\\"),
            '\n' => quoted.push_str(r"\n"),
            '\r' => quoted.push_str(r"\r"),
            other => quoted.push(other),
        }
    }
    quoted.push('\'');
    quoted
}

fn trim_blanks(bytes: &[u8]) -> &[u8] {
    let start = bytes
        .iter()
        .position(|byte| !matches!(byte, b' ' | b'\t' | b'\r'));
    bytes.get(start.unwrap_or(bytes.len())..).unwrap_or_default()
}

/// Letters, digits and other characters of a name; a dot for the settings of extensions.
fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'.' || byte >= 0x80
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_value_reads_back_as_it_was_quoted(value in "[^\0]{0,80}") {
            let line = format!("restore_command = {} # why\n", quote(&value));
            prop_assert_eq!(value_of(line.as_bytes(), "restore_command"), Some(value.into_bytes()));
        }

        #[test]
        fn a_quoted_value_stays_on_one_line(value: String) {
            prop_assert!(!quote(&value).contains(['\n', '\r']));
        }

        #[test]
        fn no_bytes_make_the_parser_panic(file: Vec<u8>) {
            let _ = value_of(&file, "a");
        }
    }

    #[test]
    fn a_line_is_read_as_postgresql_reads_it() {
        for (line, value) in [
            ("data_directory = '/a b'", Some("/a b")),
            ("\t Data_Directory\t'/a''b' # x", Some("/a'b")),
            ("data_directory='/a\\'b\\\\c\\101'", Some("/a'b\\cA")),
            ("data_directory /a#x", Some("/a")),
            ("#data_directory = '/a'", None),
            ("data_directory = '/a", None),
            ("data_directory_mode = 0700", None),
            ("x.data_directory = 1", None),
            ("data_directory =", None),
        ] {
            let found = value_of(line.as_bytes(), "data_directory");
            assert_eq!(found.as_deref(), value.map(str::as_bytes), "{line}");
        }
    }

    #[test]
    fn the_last_value_counts() {
        assert_eq!(value_of(b"port = 1\nPORT = 2\n", "port"), Some(b"2".to_vec()));
    }
}
