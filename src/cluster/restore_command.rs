//! The `restore_command` of the recovered server.

use super::shell::shell_word;
use crate::cluster::tablespaces::NewTablespaces;
use crate::pg::SegmentName;

/// `walship` (the program, and the global flags it needs to find the archive) as `restore_command`. `gap` is the first
/// segment of a gap at which recovery may end. `new_tablespaces` says where tablespaces go that the WAL makes.
///
/// No secret may be among the words: the command is written to a file and seen in `ps`. PostgreSQL
/// replaces `%f`, `%p` and `%r`, and takes `%%` for `%` (`replace_percent_placeholders`,
/// `BuildRestoreCommand` before 16).
#[must_use]
pub fn restore_command(
    walship: &[String],
    gap: Option<SegmentName>,
    new_tablespaces: NewTablespaces,
) -> String {
    let gap = gap.map_or_else(String::new, |gap| format!("--accept-gap {gap} "));
    let place = match new_tablespaces {
        NewTablespaces::Inside => "inside",
        NewTablespaces::Checked => "checked",
    };
    server_command(walship, &format!("restore {gap}--new-tablespaces {place} %f %p"))
}

/// `walship` and what follows, as a command that PostgreSQL runs.
#[must_use]
pub fn server_command(walship: &[String], what: &str) -> String {
    let mut command = String::new();
    for word in walship {
        command.push_str(&shell_word(word).replace('%', "%%"));
        command.push(' ');
    }
    command + what
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shell_and_postgresql_give_each_word_back_as_it_was() {
        let walship = ["/usr/bin/walship", "--archive", "file:///a b/100%"].map(str::to_owned);
        assert_eq!(
            restore_command(&walship, None, NewTablespaces::Checked),
            "/usr/bin/walship --archive 'file:///a b/100%%' restore --new-tablespaces checked %f %p"
        );
        let gap = "000000010000000000000007".parse().unwrap();
        assert_eq!(
            restore_command(&["walship".to_owned()], Some(gap), NewTablespaces::Inside),
            "walship restore --accept-gap 000000010000000000000007 --new-tablespaces inside %f %p"
        );
    }
}
