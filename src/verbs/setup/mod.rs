//! `walship setup primary`: what a server lacks for archiving and replication, shown or done.
//!
//! Conflicts are found before anything is changed. The steps come in an order that leaves a working server at any
//! point: the password is saved before the role has it, `pg_hba.conf` is replaced by one rename, settings go through
//! ALTER SYSTEM. A second run does what the first has left, and finds nothing to do if that was everything.

mod args;
mod hba_file;
mod password;
mod plan;
mod report;
mod round_trip;
mod state;

pub use self::args::SetupArgs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use chrono::{DateTime, Utc};

pub use self::password::{Secret, default_passfile};
use self::plan::{Fix, Item, ServerState, Wanted, needs_password, plan};
pub use self::report::SetupReport;
use self::state::Primary;
use crate::archive::Archive;
use crate::cluster::{apart, remembered};
use crate::error::{Context, Error, Result};
use crate::pg::ClusterIdentity;
use crate::pg::sql::quote_literal;
use crate::server::ConnInfo;
use crate::server::data_directory::cluster_identity;
use crate::store::Store;

/// What to set up, and how.
#[derive(Debug, Clone)]
pub struct SetupOptions {
    /// Do it, instead of showing it.
    pub apply: bool,
    /// The role that replicas log in as.
    pub role: String,
    /// The networks that replicas log in from, such as `10.0.0.5/32`.
    pub addresses: Vec<String>,
    /// The role's password, where one was given.
    pub password: Option<Secret>,
    /// The password file that gets the role's password.
    pub passfile: Option<PathBuf>,
    pub archive_command: String,
    /// How long a segment may take from the switch to the archive.
    pub round_trip_timeout: Duration,
}

/// Finds what the server lacks, and with `apply` does it.
///
/// # Errors
/// As the server and the store say; `Conflict` where something else has walship's place; with `apply`, `Invalid` for a
/// server on another machine.
pub async fn run(
    options: &SetupOptions,
    info: &ConnInfo,
    store: &Store,
    now: DateTime<Utc>,
) -> Result<SetupReport> {
    for address in &options.addresses {
        check_network(address)?;
    }
    let mut primary = Primary::connect(info).await?;
    let state = primary.state(&options.role, &options.addresses).await?;
    let wanted = Wanted {
        role: options.role.clone(),
        password_given: options.password.is_some(),
        archive_command: options.archive_command.clone(),
    };
    let items = plan(&state, &wanted);
    let mut report = SetupReport::new(
        info.to_string(),
        state.major,
        state.hba_file.clone(),
        items.clone(),
    );
    let cluster = cluster_here(&primary);
    if !options.apply {
        report.pending_restart = primary.pending_restart().await?;
        report.remote = cluster.is_none();
        return Ok(report);
    }
    refuse_conflicts(&items)?;
    let Some(cluster) = cluster else {
        return Err(Error::invalid(format!(
            "the data directory {} of {info} is not on this machine, or this user cannot read it; run setup --apply \
             on the primary as the user who owns it, or run it without --apply and do what it shows",
            primary.data_directory
        )));
    };
    refuse_foreign(store, cluster, Path::new(&primary.data_directory)).await?;
    apply(options, &mut primary, &state, &wanted, items, now, &mut report).await?;
    report.pending_restart = primary.pending_restart().await?;
    if report.pending_restart.is_empty()
        && !report
            .by_hand
            .iter()
            .any(|item| item.name.starts_with("archive_"))
    {
        let limit = options.round_trip_timeout;
        report.round_trip = Some(round_trip::run(&mut primary, cluster, store, limit).await?);
    }
    Ok(report)
}

/// Checks a network, as `pg_hba.conf` and PostgreSQL's `cidr` have it. It needs its bits: without them `cidr` takes it
/// for one host.
fn check_network(text: &str) -> Result<()> {
    let wrong = || {
        Error::invalid(format!(
            "\"{}\" is not a network; write an address and how many of its bits count, such as 10.0.0.5/32 or \
             10.0.0.0/24",
            text.escape_debug()
        ))
    };
    let (address, bits) = text.split_once('/').ok_or_else(wrong)?;
    let address: std::net::IpAddr = address.parse().map_err(|_| wrong())?;
    let bits: u8 = bits.parse().map_err(|_| wrong())?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    if bits > most {
        return Err(wrong());
    }
    Ok(())
}

/// The server's cluster; `None` where its files are not on this machine or cannot be read.
fn cluster_here(primary: &Primary) -> Option<ClusterIdentity> {
    let found = cluster_identity(Path::new(&primary.data_directory)).ok()?;
    found.filter(|cluster| cluster.system_identifier == primary.system_identifier)
}

/// Refuses the archive of another cluster. An archive that is not there yet, or cannot be read now, is checked when a
/// segment has arrived in it.
async fn refuse_foreign(store: &Store, cluster: ClusterIdentity, data_directory: &Path) -> Result<()> {
    let url = store.location().to_string();
    let checked = match Archive::find_at(store).await {
        Ok(Some(archive)) => archive
            .check(cluster)
            .and_then(|()| remembered::check(data_directory, archive.identity(), &url)),
        Ok(None) => refuse_forgotten(data_directory, &url),
        Err(_) => Ok(()),
    };
    checked
        .and_then(|()| apart::check(store.location(), data_directory))
        .map_err(|error| Error::new(error.kind(), format!("{error}. Nothing was changed")))
}

/// Where there is no archive, the server must not remember one.
fn refuse_forgotten(data_directory: &Path, url: &str) -> Result<()> {
    match remembered::read(data_directory)?.archive {
        None => Ok(()),
        Some(mark) => Err(Error::conflict(format!(
            "there is no archive at {url}, but this cluster writes to the one that was begun at {}, {}; mount it, or correct \
             the URL. To begin a new one, run walship basebackup --new-archive first",
            mark.created_at, mark.archive
        ))),
    }
}

fn refuse_conflicts(items: &[Item]) -> Result<()> {
    let conflicts: Vec<_> = items
        .iter()
        .filter_map(|item| match &item.fix {
            Fix::Conflict(how) => Some(format!("{}. Nothing was changed; {how}", item.why)),
            _ => None,
        })
        .collect();
    if conflicts.is_empty() {
        return Ok(());
    }
    Err(Error::conflict(conflicts.join(". ")))
}

async fn apply(
    options: &SetupOptions,
    primary: &mut Primary,
    state: &ServerState,
    wanted: &Wanted,
    items: Vec<Item>,
    now: DateTime<Utc>,
    report: &mut SetupReport,
) -> Result<()> {
    let before = primary.text("ask for the time", LOADED).await?;
    let password = needs_password(state, wanted);
    for item in items {
        match &item.fix {
            Fix::Sql(sql) if item.name == "role" => {
                let mut sql = sql.clone();
                if password {
                    let secret = save_password(options, primary, report)?;
                    sql.push_str(" PASSWORD ");
                    sql.push_str(&quote_literal(&secret.verifier()));
                }
                primary.connection.sql("make the role", &sql).await?;
            }
            Fix::Sql(sql) => {
                primary.connection.sql(sql, sql).await?;
            }
            Fix::HbaLines(lines) => {
                if let Err(by_hand) = edit_hba(options, primary, &state.hba_file, lines, now, report).await {
                    report.by_hand.push(Item {
                        why: format!("{} ({by_hand})", item.why),
                        ..item
                    });
                    continue;
                }
            }
            Fix::ByHand(_) | Fix::Conflict(_) => {
                report.by_hand.push(item);
                continue;
            }
        }
        report.applied.push(item);
    }
    if !report.applied.is_empty() {
        reload(primary, &before).await?;
    }
    Ok(())
}

/// When the server last read its files.
const LOADED: &str = "SELECT pg_conf_load_time()";

/// Tells the server to read its files, and waits until it has.
async fn reload(primary: &mut Primary, before: &str) -> Result<()> {
    primary.text("reload", "SELECT pg_reload_conf()").await?;
    for _ in 0..100 {
        if primary.text("ask for the time", LOADED).await? != before {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Err(Error::unavailable(
        "the server did not read its files again within 10 s; run SELECT pg_reload_conf(), read its log, and run this \
         again",
    ))
}

fn save_password(options: &SetupOptions, primary: &Primary, report: &mut SetupReport) -> Result<Secret> {
    let secret = match &options.password {
        Some(given) => given.clone(),
        None => Secret::make_up()?,
    };
    let path = options.passfile.as_deref().ok_or_else(|| {
        Error::invalid(
            "there is no file for the role's password, because HOME is not set; give --passfile FILE",
        )
    })?;
    secret
        .save(path, &primary.port, &options.role)
        .context(|| "save the role's password")?;
    report.passfile = Some(path.to_owned());
    Ok(secret)
}

/// Edits the file. After an error a person must do it; the file is then as it was.
async fn edit_hba(
    options: &SetupOptions,
    primary: &mut Primary,
    file: &str,
    lines: &[String],
    now: DateTime<Utc>,
    report: &mut SetupReport,
) -> Result<()> {
    let edited = hba_file::edit(Path::new(file), lines, now)?;
    match check_hba(options, primary).await {
        Ok(()) => {
            report.hba_kept = Some(edited.kept);
            Ok(())
        }
        Err(error) => {
            edited.undo()?;
            Err(Error::new(
                error.kind(),
                format!("{error}; the file is as it was"),
            ))
        }
    }
}

/// Checks that the file, which the server has not loaded yet, says what it should.
async fn check_hba(options: &SetupOptions, primary: &mut Primary) -> Result<()> {
    if let Some(error) = primary.hba_error().await? {
        return Err(Error::internal(format!(
            "the server does not understand the lines: {error}"
        )));
    }
    for address in &options.addresses {
        if primary.access(&options.role, address).await?.is_lacking() {
            return Err(Error::internal(format!(
                "other lines than these decide for {} at {address}; perhaps a comment above them ends with a backslash",
                options.role
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_needs_its_bits() {
        for good in ["10.0.0.5/32", "10.0.0.0/24", "fe80::/64", "::1/128", "0.0.0.0/0"] {
            check_network(good).unwrap();
        }
        for bad in ["10.0.0.5", "10.0.0.5/33", "x/8", "all", "10.0.0.0/24 trust", ""] {
            assert!(check_network(bad).is_err(), "{bad}");
        }
    }
}
