//! Whether a replica comes from the primary or from the archive, and whether it could follow the primary at all.

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};

use clap::ValueEnum;

use super::primary::Primary;
use super::{plan_standby, tablespaces};
use crate::archive::{Archive, catalogue};
use crate::error::{Error, ErrorKind, Result};
use crate::format::keys::{Key, WAL_PREFIX, after_timeline};
use crate::format::retired::Retired;
use crate::judge::recovery_plan::Plan;
use crate::judge::seed_source::{Candidate, WalLimits, weigh};
use crate::pg::TimelineId;
use crate::progress::Progress;
use crate::store::Store;

/// Where a replica's data comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SeedSource {
    /// From the archive where there is little WAL since its newest backup, else from the primary.
    Auto,
    /// From the server, with pg_basebackup.
    Primary,
    /// From the archive, without load on the server.
    Archive,
}

/// Where the data comes from; the reason is one sentence.
#[derive(Debug)]
pub(crate) enum Source {
    Primary {
        reason: String,
        note: Option<String>,
        /// The archive, where there is one.
        archive: Option<Archive>,
    },
    Archive {
        reason: String,
        archive: Archive,
        plan: Box<Plan>,
    },
}

/// Decides.
///
/// # Errors
/// `Invalid` for another cluster's archive; `Conflict` where the archive has a later timeline than the primary; and
/// where the archive was asked for, every reason why it cannot be used.
pub(crate) async fn choose(
    from: SeedSource,
    limits: WalLimits,
    primary: &Primary,
    store: &Store,
    now: DateTime<Utc>,
) -> Result<Source> {
    let usable = check_archive(primary, store).await;
    let usable = match (usable, from) {
        (Ok(usable), _) => usable,
        // A replica can be seeded while the store is away; it streams, and asks the archive only later.
        (Err(error), SeedSource::Auto | SeedSource::Primary) if may_pass(&error) => {
            return Ok(Source::Primary {
                reason: "the archive cannot be read now".to_owned(),
                note: Some(format!(
                    "the archive could not be read, so it is not known whether the replica can use it: {error}"
                )),
                archive: None,
            });
        }
        (Err(error), _) => return Err(error),
    };
    let from_primary = |reason: String| Source::Primary {
        reason,
        note: None,
        archive: usable.clone(),
    };
    match from {
        SeedSource::Primary => Ok(from_primary("as asked for with --from primary".to_owned())),
        SeedSource::Archive => {
            let archive = match usable {
                Some(archive) => archive,
                None => Archive::open(store).await?,
            };
            Ok(Source::Archive {
                reason: "as asked for with --from archive".to_owned(),
                plan: Box::new(plan_of(primary, &archive, now).await?),
                archive,
            })
        }
        SeedSource::Auto => {
            let Some(archive) = &usable else {
                return Ok(from_primary("nothing is archived yet".to_owned()));
            };
            match plan_of(primary, archive, now).await {
                Ok(plan) => {
                    let candidate = Candidate {
                        id: plan.backup.id.clone(),
                        start_lsn: plan.backup.start_lsn,
                        size_bytes: plan.backup.size_bytes,
                    };
                    let verdict = weigh(&candidate, primary.current, limits);
                    Ok(if verdict.archive {
                        Source::Archive {
                            reason: verdict.reason,
                            archive: archive.clone(),
                            plan: Box::new(plan),
                        }
                    } else {
                        from_primary(verdict.reason)
                    })
                }
                Err(error) => Ok(from_primary(format!("the archive cannot be used: {error}"))),
            }
        }
    }
}

fn may_pass(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Denied)
}

async fn plan_of(primary: &Primary, archive: &Archive, now: DateTime<Utc>) -> Result<Plan> {
    let catalogue = catalogue::load(archive).await?;
    let progress = Progress::default();
    let mut plan = plan_standby(archive, &catalogue, Some(primary.timeline), now, &progress).await?;
    tablespaces::look_ahead(&plan.new_tablespaces, catalogue.identity.postgres_major)?;
    // What is not archived yet is streamed.
    plan.demands = plan.demands.and(primary.demands);
    Ok(plan)
}

/// The archive, if there is one. Refuses one that would lead a replica away from its primary.
async fn check_archive(primary: &Primary, store: &Store) -> Result<Option<Archive>> {
    let Some(archive) = Archive::find_at(store).await? else {
        return Ok(None);
    };
    let url = archive.url();
    let identity = archive.identity();
    identity.check_system_identifier(primary.system_identifier, &url)?;
    match later_timeline(&archive, primary.timeline).await? {
        None => Ok(Some(archive)),
        Some(later) => Err(Error::conflict(format!(
            "{} is on timeline {}, and the archive {url} has timeline {later}: a replica follows the latest timeline, \
             and so would leave this server. Seed it from the server that is on timeline {later}; if that was only a \
             copy, walship timeline retire {later} --reason \"…\"",
            primary.shown, primary.timeline
        ))),
    }
}

/// The latest timeline after this one that the archive has anything of and that is not retired.
async fn later_timeline(archive: &Archive, timeline: TimelineId) -> Result<Option<TimelineId>> {
    let mut listing = archive.store().list(WAL_PREFIX, Some(&after_timeline(timeline)));
    let (mut later, mut marked) = (BTreeSet::new(), BTreeSet::new());
    while let Some(page) = listing.next().await? {
        for object in page {
            match object.key.parse() {
                Ok(Key::Segment(name)) => later.insert(name.timeline()),
                Ok(Key::History(found)) => later.insert(found),
                Ok(Key::Retired(found)) => marked.insert(found),
                _ => continue,
            };
        }
    }
    for found in later.into_iter().rev().filter(|found| *found > timeline) {
        if !marked.contains(&found) || archive.find::<Retired>(&found).await?.is_none() {
            return Ok(Some(found));
        }
    }
    Ok(None)
}
