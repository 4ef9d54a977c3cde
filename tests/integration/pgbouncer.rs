//! `deploy/pgbouncer` as it stands there, with the real PgBouncer before a primary and its standby:
//! SCRAM on both sides, reads from the standby, and clients that wait through a switch and see no
//! error.

use std::ffi::OsString;
use std::io::{Seek as _, Write as _};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tempfile::TempDir;
use walship_core::pg::Major;

use crate::server::majors;
use crate::support::ports::Port;
use crate::support::postgres::Cluster;
use crate::support::process::{Output, Running, signal};
use crate::support::{command_as_user, give_to_user, make_dir, project, scratch, tools, wait_for};

const PATIENCE: Duration = Duration::from_mins(3);
const AUTH_PASSWORD: &str = "asks for secrets";
const APP_PASSWORD: &str = "writes rows";

/// A primary, a streaming standby, and PgBouncer before both. The standby is promoted by a switch.
struct Front {
    primary: Cluster,
    standby: Cluster,
    bouncer: Running,
    port: Port,
    /// PgBouncer's folder: its files, its socket.
    dir: PathBuf,
    _roots: [TempDir; 2],
}

impl Front {
    fn start(major: Major) -> Self {
        let mut primary = Cluster::builder(major)
            .option("log_connections", "on")
            .option("log_statement", "all")
            .option("password_encryption", "scram-sha-256")
            .initdb();
        primary.start();
        let (standby, standby_root) = standby_of(&primary);
        // Over TCP nobody gets in without SCRAM.
        let hba =
            "local all all trust\nlocal replication all trust\nhost all all 127.0.0.1/32 scram-sha-256\n";
        for cluster in [&primary, &standby] {
            std::fs::write(cluster.data_dir().join("pg_hba.conf"), hba).unwrap();
            cluster.reload();
        }
        let port = Port::take();
        let root = scratch();
        let dir = make_dir(root.path(), "b", 0o755);
        let bouncer = start_bouncer(&dir, port.number, &primary, &standby);
        let front = Self {
            primary,
            standby,
            bouncer,
            port,
            dir,
            _roots: [standby_root, root],
        };
        front.make_application();
        front
    }

    /// The application's database and role, and what PgBouncer asks for secrets.
    fn make_application(&self) {
        self.primary
            .sql(&format!("create role app login password '{APP_PASSWORD}'"));
        self.primary.sql("create database app owner app");
        let roles = project().join("deploy/pgbouncer/roles.sql");
        let args = [
            "-Xq",
            "-v",
            "ON_ERROR_STOP=1",
            "-d",
            "app",
            "-f",
            roles.to_str().unwrap(),
        ];
        self.primary.run_program("psql", &args).succeeded();
        self.give_password();
        let table = "create table ledger (pool_client int, written timestamptz default clock_timestamp())";
        self.psql("app", APP_PASSWORD, table).succeeded();
        self.standby.wait_until(
            "select count(*) from pg_database where datname = 'app'",
            "1",
            PATIENCE,
        );
        wait_for("the table on the standby", PATIENCE, || {
            (self.psql("app_ro", APP_PASSWORD, "select from ledger").code == Some(0)).then_some(())
        });
    }

    /// As the README has it. Without a terminal psql asks on its standard input.
    fn give_password(&self) {
        let mut answers = tempfile::tempfile().unwrap();
        write!(answers, "{AUTH_PASSWORD}\n{AUTH_PASSWORD}\n").unwrap();
        answers.rewind().unwrap();
        let psql = self.primary.program("psql");
        let variables = psql.get_envs().filter_map(|(name, value)| Some((name, value?)));
        let mut asked = command_as_user("setsid");
        asked
            .envs(variables)
            .args(["--wait", "psql", "-X", "-d", "app"])
            .args(["-c", "SET password_encryption = 'scram-sha-256'"])
            .args(["-c", "\\password pgbouncer_auth"])
            .stdin(answers);
        Running::start(&mut asked).wait(PATIENCE).succeeded();
    }

    /// A pool, as an application finds it.
    fn pool(&self, name: &str) -> String {
        format!("host=127.0.0.1 port={} user=app dbname={name}", self.port.number)
    }

    fn console(&self) -> String {
        format!(
            "host={} port={} user=pgbouncer dbname=pgbouncer",
            self.dir.display(),
            self.port.number
        )
    }

    fn psql(&self, pool: &str, password: &str, sql: &str) -> Output {
        let mut psql = self.standby.program("psql");
        psql.args([
            "-XAtq",
            "-v",
            "ON_ERROR_STOP=1",
            "-d",
            &self.pool(pool),
            "-c",
            sql,
        ])
        .env("PGPASSWORD", password);
        Running::start(&mut psql).wait(PATIENCE)
    }

    /// A line of `SHOW DATABASES`, by column.
    fn pool_state(&self, pool: &str, column: usize) -> String {
        let mut psql = self.standby.program("psql");
        psql.args(["-XAtq", "-d", &self.console(), "-c", "SHOW DATABASES"]);
        let shown = Running::start(&mut psql).wait(PATIENCE).succeeded().stdout;
        let line = shown.lines().find(|line| line.split('|').next() == Some(pool));
        line.and_then(|line| line.split('|').nth(column))
            .unwrap()
            .to_owned()
    }

    /// Runs `deploy/pgbouncer/switch` with PostgreSQL's programs on its `PATH`.
    fn switch(&self, args: &[&str]) -> Running {
        let with = |name: &str| -> OsString {
            let program = self.standby.program("psql");
            let value = program.get_envs().find(|(key, _)| *key == name);
            value.and_then(|(_, value)| value).unwrap().to_owned()
        };
        let mut switch = command_as_user(project().join("deploy/pgbouncer/switch"));
        switch
            .env("PATH", with("PATH"))
            .env("LD_LIBRARY_PATH", with("LD_LIBRARY_PATH"))
            .arg("--pools")
            .arg(self.dir.join("pools.ini"))
            .args(["--console", &self.console()])
            .args(args);
        Running::start(&mut switch)
    }

    fn to_standby(&self) -> String {
        format!("app=127.0.0.1:{}", self.standby.port())
    }

    /// Where the pool of the primary leads, by PgBouncer's word.
    fn leads_to(&self) -> u16 {
        self.pool_state("app", 2).parse().unwrap()
    }

    /// pgbench over a pool for some seconds, each transaction one statement.
    fn pgbench(&self, pool: &str, statement: &str, args: &[&str]) -> Running {
        let script = self.dir.join(format!("{pool}-{}.sql", args.join("")));
        std::fs::write(&script, format!("{statement};\n")).unwrap();
        let mut pgbench = self.standby.program("pgbench");
        pgbench
            .args(["-n", "-f", script.to_str().unwrap()])
            .args(args)
            .arg(self.pool(pool))
            .env("PGPASSWORD", APP_PASSWORD);
        Running::start(&mut pgbench)
    }
}

fn standby_of(primary: &Cluster) -> (Cluster, TempDir) {
    let root = scratch();
    let data = root.path().join("data");
    let args = ["-D", data.to_str().unwrap(), "-X", "stream", "-c", "fast", "-R"];
    primary.run_program("pg_basebackup", &args).succeeded();
    let mut standby = Cluster::adopt(primary.major(), &data);
    standby.start();
    (standby, root)
}

/// PgBouncer with the files of `deploy/pgbouncer`, moved to this folder and these ports.
fn start_bouncer(dir: &std::path::Path, port: u16, primary: &Cluster, standby: &Cluster) -> Running {
    let here = dir.to_str().unwrap();
    let moves = [
        ("/etc/pgbouncer", here.to_owned()),
        ("/var/run/postgresql", here.to_owned()),
        ("/var/log/postgresql", here.to_owned()),
        ("listen_port = 6432", format!("listen_port = {port}")),
        ("port=5432", format!("port={}", primary.port())),
        ("port=5433", format!("port={}", standby.port())),
        ("CHANGE-ME", AUTH_PASSWORD.to_owned()),
    ];
    for name in ["pgbouncer.ini", "pools.ini", "userlist.txt"] {
        let mut text = std::fs::read_to_string(project().join("deploy/pgbouncer").join(name)).unwrap();
        for (from, to) in &moves {
            text = text.replace(from, to);
        }
        std::fs::write(dir.join(name), text).unwrap();
        give_to_user(&dir.join(name));
    }
    let mut bouncer = command_as_user(tools(&["pgbouncer"]));
    let bouncer = Running::start(bouncer.arg(dir.join("pgbouncer.ini")));
    let socket = dir.join(format!(".s.PGSQL.{port}"));
    wait_for("PgBouncer's socket", PATIENCE, || socket.exists().then_some(()));
    bouncer
}

/// What pgbench did, if no client met an error.
#[track_caller]
fn transactions(pgbench: Running) -> u64 {
    let output = pgbench.wait(PATIENCE).succeeded();
    let told = "number of transactions actually processed: ";
    let line = output.stdout.lines().find_map(|line| line.strip_prefix(told));
    let number = line.and_then(|rest| rest.split('/').next()).unwrap();
    assert!(!output.stderr.contains("error"), "{}", output.stderr);
    number.trim().parse().unwrap()
}

// Seen to fail: `deploy/pgbouncer/pgbouncer.ini`: `auth_type = trust`; `roles.sql`: PgBouncer's own password is given
// there; every role's secret is given away; `pools.ini`: the replica's pool leads to the primary
#[test]
fn clients_log_in_with_scram_and_each_pool_leads_to_its_server() {
    let front = Front::start(Major::V18);
    let mut psql = front.standby.program("psql");
    psql.args(["-XAtq", "-c", "select pg_is_in_recovery()", "-d"])
        .arg(format!("{} require_auth=scram-sha-256", front.pool("app")))
        .env("PGPASSWORD", APP_PASSWORD);
    // Towards the client: libpq refuses every other method.
    assert_eq!(Running::start(&mut psql).wait(PATIENCE).succeeded().stdout, "f\n");
    // Towards the server.
    let logged = front.primary.log();
    assert!(
        logged.contains("identity=\"app\" method=scram-sha-256"),
        "{logged}"
    );

    assert!(logged.contains("PASSWORD 'SCRAM-SHA-256$"), "{logged}");
    assert!(!logged.contains(AUTH_PASSWORD), "{logged}");

    let read_only = front.psql("app_ro", APP_PASSWORD, "select pg_is_in_recovery()");
    assert_eq!(read_only.succeeded().stdout, "t\n");
    let refused = front.psql("app_ro", APP_PASSWORD, "insert into ledger values (0)");
    assert!(refused.exited(1).stderr.contains("read-only transaction"));

    let wrong = front.psql("app", "wrong", "select 1").exited(2);
    assert!(
        wrong.stderr.contains("SASL authentication failed"),
        "{}",
        wrong.stderr
    );
    // A superuser's secret is not for PgBouncer to ask for.
    front
        .primary
        .sql("create role boss superuser login password 'boss'");
    let boss = format!("host=127.0.0.1 port={} user=boss dbname=app", front.port.number);
    let mut psql = front.standby.program("psql");
    psql.args(["-XAtq", "-c", "select 1", "-d", &boss])
        .env("PGPASSWORD", "boss");
    Running::start(&mut psql).wait(PATIENCE).exited(2);
}

// Seen to fail: `deploy/pgbouncer/switch`: no `PAUSE`; `--writable` waits for nothing
#[test]
fn clients_wait_through_a_switchover_and_see_no_error() {
    for &major in majors() {
        let front = Front::start(major);
        let write = "insert into ledger values (:client_id)";
        let writers = [
            front.pgbench("app", write, &["-c", "6", "-T", "8"]),
            // These connect for each transaction, and so log in while the pool is held.
            front.pgbench("app", write, &["-c", "2", "-T", "8", "-C"]),
        ];
        let readers = front.pgbench("app_ro", "select count(*) from ledger", &["-c", "2", "-T", "8"]);
        wait_for("traffic", PATIENCE, || {
            let busy = front.psql("app", APP_PASSWORD, "select count(*) > 100 from ledger");
            (busy.stdout == "t\n").then_some(())
        });
        // The old primary ends, and for that it sends the standby all it has; then that is promoted, here
        // as by a control plane whose command ends before it is done.
        let switchover = format!(
            "sleep 1; pg_ctl stop -s -m fast -D {} && (sleep 1; pg_ctl promote -s -D {}) >/dev/null 2>&1 &",
            front.primary.data_dir().display(),
            front.standby.data_dir().display(),
        );
        front
            .switch(&[
                "--writable",
                &front.standby.conninfo(),
                &front.to_standby(),
                "--",
                "sh",
                "-c",
                &switchover,
            ])
            .wait(PATIENCE)
            .succeeded();
        assert_eq!(front.leads_to(), front.standby.port());
        let written: u64 = writers.into_iter().map(transactions).sum();
        assert!(transactions(readers) > 0);
        let kept = "select count(*) from ledger";
        let kept: u64 = front
            .psql("app", APP_PASSWORD, kept)
            .succeeded()
            .stdout
            .trim()
            .parse()
            .unwrap();
        assert_eq!(kept, written, "{major}: every commit that a client saw is there");
        // They wrote before and after, and waited in between.
        let gap = "select max(gap) > '1 s' from
                   (select written - lag(written) over (order by written) as gap from ledger) g";
        assert_eq!(
            front.psql("app", APP_PASSWORD, gap).succeeded().stdout,
            "t\n",
            "{major}"
        );
    }
}

// Seen to fail: `deploy/pgbouncer/switch`: no `RESUME`; no `timeout`; `pools.ini` is not put back; logins are not
// waited for (failed in two of seven runs)
#[test]
fn a_switch_that_fails_lets_the_clients_go_on_where_they_were() {
    let front = Front::start(Major::V18);
    let to_standby = front.to_standby();
    let before = std::fs::read_to_string(front.dir.join("pools.ini")).unwrap();
    let goes_on = |why: &str| {
        let answer = front.psql(
            "app",
            APP_PASSWORD,
            "insert into ledger values (1); select pg_is_in_recovery()",
        );
        assert_eq!(answer.succeeded().stdout, "f\n", "{why}");
        assert_eq!(front.leads_to(), front.primary.port(), "{why}");
        assert_eq!(
            std::fs::read_to_string(front.dir.join("pools.ini")).unwrap(),
            before,
            "{why}"
        );
        assert!(!front.dir.join("pools.ini.before").exists(), "{why}");
    };

    let writers = front.pgbench(
        "app",
        "insert into ledger values (:client_id)",
        &["-c", "4", "-T", "9"],
    );
    let failed = front
        .switch(&[&to_standby, "--", "false"])
        .wait(PATIENCE)
        .exited(1);
    assert!(failed.stderr.contains("the command failed"), "{}", failed.stderr);
    goes_on("the command failed");

    let started = Instant::now();
    let late = front.switch(&["--deadline", "2", &to_standby, "--", "sleep", "60"]);
    late.wait(PATIENCE).exited(1);
    assert!(
        started.elapsed() < Duration::from_secs(30),
        "the deadline was not kept"
    );
    goes_on("the command was late");

    // A transaction that stays open keeps its pool from being held.
    let mut open = front.standby.program("psql");
    open.args([
        "-XAtq",
        "-d",
        &front.pool("app"),
        "-c",
        "begin; select pg_sleep(6); commit",
    ])
    .env("PGPASSWORD", APP_PASSWORD);
    let open = Running::start(&mut open);
    wait_for("an open transaction", PATIENCE, || {
        let sleeping =
            "select count(*) from pg_stat_activity where query like '%pg_sleep(6)%' and usename = 'app'";
        (front.primary.sql(sleeping) == "1").then_some(())
    });
    let busy = front
        .switch(&["--deadline", "2", &to_standby])
        .wait(PATIENCE)
        .exited(1);
    assert!(busy.stderr.contains("did not end within 2 s"), "{}", busy.stderr);
    goes_on("a transaction was open");
    open.wait(PATIENCE).succeeded();

    let standby = front.standby.conninfo();
    let args = ["--deadline", "2", "--writable", &standby, &to_standby];
    let not_promoted = front.switch(&args).wait(PATIENCE).exited(1);
    assert!(
        not_promoted.stderr.contains("not open for writing"),
        "{}",
        not_promoted.stderr
    );
    goes_on("the new server was no primary");

    let interrupted = front.switch(&["--deadline", "3", &to_standby, "--", "sleep", "2"]);
    wait_for("the pool to be held", PATIENCE, || {
        (front.pool_state("app", 11) == "1").then_some(())
    });
    signal(interrupted.pid(), Signal::TERM);
    interrupted.wait(PATIENCE).exited(1);
    goes_on("it was interrupted");
    assert!(transactions(writers) > 0, "a client of the pool met an error");

    for (args, word) in [
        (vec!["nosuch=127.0.0.1:1"], "no line \"nosuch"),
        (vec!["app=127.0.0.1"], "not POOL=HOST:PORT"),
        (vec![], "no pool is named"),
    ] {
        let refused = front.switch(&args).wait(PATIENCE).exited(2);
        assert!(refused.stderr.contains(word), "{}", refused.stderr);
    }
    goes_on("it was misused");

    // Whoever starts PgBouncer again finds the pools where they were.
    let kill = format!("kill -9 {}", front.bouncer.pid());
    let dead = front
        .switch(&[&to_standby, "--", "sh", "-c", &kill])
        .wait(PATIENCE)
        .exited(3);
    assert!(dead.stderr.contains("did not take RESUME app"), "{}", dead.stderr);
    let after = std::fs::read_to_string(front.dir.join("pools.ini")).unwrap();
    assert_eq!(after, before);
}
