//! `docs/replicas.md`, literally: the commands of its steps are taken out of the page and run in their order, and what
//! the page says that they print is looked for in what they printed. Only places and ports are other ones.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use walship_core::pg::Major;

use crate::server::majors;
use crate::support::ports::Port;
use crate::support::process::Running;
use crate::support::walship::binary;
use crate::support::{command_as_user, make_dir, project, scratch, tools, user};

const PATIENCE: Duration = Duration::from_mins(2);

/// A block of the page between its fences.
#[derive(Debug, PartialEq, Eq)]
enum Block {
    Commands(String),
    Output(String),
}

fn blocks(page: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    // What stands between two fences is every other part.
    for part in page.split("```").skip(1).step_by(2) {
        let (language, text) = part.split_once('\n').unwrap();
        blocks.push(match language {
            "sh" => Block::Commands(text.to_owned()),
            "" => Block::Output(text.to_owned()),
            other => panic!("a block of {other}"),
        });
    }
    blocks
}

/// A machine's place for the page: its own `/srv`, `/etc/walship`, ports and home.
struct Machine {
    top: tempfile::TempDir,
    install: PathBuf,
    ports: [Port; 3],
}

impl Machine {
    fn new(major: Major) -> Self {
        let top = scratch();
        for name in ["srv", "home", "bin"] {
            make_dir(top.path(), name, 0o700);
        }
        std::os::unix::fs::symlink(binary(), top.path().join("bin/walship")).unwrap();
        Self {
            top,
            install: PathBuf::from(tools(&["postgres", &major.to_string()])),
            ports: [Port::take(), Port::take(), Port::take()],
        }
    }

    fn config(&self) -> PathBuf {
        self.top.path().join("etc/walship.toml")
    }

    /// The page as it is for this machine, on which nobody is an administrator.
    fn page(&self) -> String {
        let top = self.top.path().display().to_string();
        let walship = format!("{} --config {}", binary().display(), self.config().display());
        let page = fs::read_to_string(project().join("docs/replicas.md")).unwrap();
        let (walk, _) = page.split_once("## Clusters as Debian makes them").unwrap();
        let mut page = walk.to_owned();
        for (theirs, ours) in [
            ("sudo ", ""),
            ("-o postgres -g postgres ", ""),
            ("postgres@/", &format!("{}@/", user().name)),
            ("/srv", &format!("{top}/srv")),
            ("/etc/walship", &format!("{top}/etc")),
            // Last, for it brings a path of /etc/walship with it.
            ("/usr/local/bin/walship ", &format!("{walship} ")),
        ] {
            page = page.replace(theirs, ours);
        }
        // In two steps, for a port may look like another one.
        for step in ["5432", "5433", "5434"] {
            page = page.replace(step, &format!("<{step}>"));
        }
        for (step, port) in ["<5432>", "<5433>", "<5434>"].iter().zip(&self.ports) {
            page = page.replace(step, &port.number.to_string());
        }
        page
    }

    /// Runs one block; gives what it printed.
    fn run(&self, commands: &str) -> String {
        let top = self.top.path();
        let path = std::env::join_paths([
            self.install.join("bin"),
            top.join("bin"),
            "/usr/bin".into(),
            "/bin".into(),
        ]);
        let mut shell = command_as_user("/bin/bash");
        shell
            .args(["-e", "-o", "pipefail", "-c", commands])
            .current_dir(top.join("home"))
            .env("HOME", top.join("home"))
            .env("LC_ALL", "C")
            .env("PATH", path.unwrap())
            .env("LD_LIBRARY_PATH", self.install.join("lib"))
            .env("PGDATABASE", "postgres")
            // For the first server, and for psql where it is given no port.
            .env("PGPORT", self.ports[0].number.to_string())
            .env("WALSHIP_CONFIG", self.config());
        let output = Running::start(&mut shell).wait(PATIENCE);
        assert!(output.code == Some(0), "{commands}\n{output:#?}\n{}", self.logs());
        output.stdout + &output.stderr
    }

    fn data_directories(&self) -> impl Iterator<Item = PathBuf> {
        ["one", "two", "three"]
            .map(|name| self.top.path().join("srv/pg").join(name))
            .into_iter()
    }

    fn logs(&self) -> String {
        let files = self
            .data_directories()
            .flat_map(|data| [data.with_extension("log"), data.join("startup.log")]);
        files.filter_map(|file| fs::read_to_string(file).ok()).collect()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        for data in self
            .data_directories()
            .filter(|data| data.join("postmaster.pid").exists())
        {
            let data = data.display().to_string();
            let mut stop = command_as_user(self.install.join("bin/pg_ctl"));
            stop.args(["-D", &data, "-m", "immediate", "-w", "stop"]);
            let _ = stop.output();
        }
    }
}

/// A line without what differs from run to run: words with digits in them, and blanks.
fn shape(line: &str) -> String {
    let words = line.split_whitespace();
    let same = words.map(|word| {
        if word.contains(|c: char| c.is_ascii_digit()) {
            "#"
        } else {
            word
        }
    });
    let same = same.collect::<Vec<_>>().join(" ");
    // A replica says how far it is, if it knows already.
    same.replace("streams, at # after", "streams, after")
}

#[test]
fn the_commands_of_the_page_do_in_their_order_what_the_page_says() {
    for &major in majors() {
        let machine = Machine::new(major);
        let blocks = blocks(&machine.page());
        assert!(blocks.len() >= 12, "{blocks:#?}");
        let mut printed = String::new();
        for block in &blocks {
            match block {
                Block::Commands(commands) => printed = machine.run(commands),
                Block::Output(expected) => check(expected, &printed, major),
            }
        }
        let left: Vec<_> = machine
            .data_directories()
            .filter(|data| is_running(data))
            .collect();
        assert!(left.is_empty(), "{major}: {left:?} run still");
    }
}

#[track_caller]
fn check(expected: &str, printed: &str, major: Major) {
    let lines: Vec<_> = printed.lines().map(shape).collect();
    for line in expected.lines() {
        // There are no summaries of WAL before 17.
        if major < Major::V17 && line.contains("summar") {
            continue;
        }
        assert!(
            lines.contains(&shape(line)),
            "{major}: the page says\n{line}\nand printed was\n{printed}"
        );
    }
}

fn is_running(data: &Path) -> bool {
    data.join("postmaster.pid").exists()
}
