//! `--before-promote`: how far the standby is, and what the archive has beyond that.

use std::collections::BTreeMap;
use std::io::Write;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

use crate::archive::{Archive, stored_wal};
use crate::error::{Context, Result};
use crate::format::keys::{Key, before_segment, timeline_prefix};
use crate::format::wal_inventory::WalInventory;
use crate::judge::diagnosis::{Fact, PromotionFacts, StandbyPosition, Unreplayed, unreplayed};
use crate::pg::{Lsn, SegmentName, TimelineHistory, TimelineId, WalCheck, WalReader};
use crate::server::deadline::Deadline;
use crate::server::session::Session;
use crate::server::{ConnInfo, Connection, facts};
use crate::store::Store;

/// Between two looks while the standby replays.
const PAUSE: Duration = Duration::from_millis(500);

/// Gathers what the decision needs. As long as there is time, it waits for the replay to catch up.
pub(super) async fn gather(
    deadline: Deadline,
    connection: &ConnInfo,
    replication: Option<&ConnInfo>,
    store: impl Future<Output = Result<Store>>,
) -> PromotionFacts {
    let opening = deadline.within("open the store", store);
    let (store, session) = tokio::join!(opening, Session::open(connection, deadline));
    let mut session = match session {
        Ok(session) => session,
        Err(error) => {
            return PromotionFacts {
                standby: Err(error.to_string()),
                unreplayed: match &store {
                    Ok(store) => deadline
                        .within("read walship.json", Archive::open(store))
                        .await
                        .map(|_| Unreplayed::Nothing),
                    Err(why) => Err(why.clone()),
                },
            };
        }
    };
    loop {
        let facts = look(&mut session, replication, store.as_ref(), deadline).await;
        let may_pass = matches!(
            facts.unreplayed,
            Ok(Unreplayed::Until(_) | Unreplayed::AfterGap { .. })
        );
        if !may_pass || Instant::now() + PAUSE * 2 > deadline.at() {
            session.close().await;
            return facts;
        }
        sleep(PAUSE).await;
    }
}

async fn look(
    session: &mut Session,
    replication: Option<&ConnInfo>,
    store: Result<&Store, &String>,
    deadline: Deadline,
) -> PromotionFacts {
    let standby = position(session, replication, deadline).await;
    let unreplayed = match (&standby, store) {
        (_, Err(why)) => Err(why.clone()),
        (Ok(standby), Ok(store)) if standby.in_recovery => {
            let comparing = beyond(store, standby);
            deadline
                .within("compare the archive with the standby", comparing)
                .await
        }
        // A server that is not a standby is not promoted, so there is nothing to compare.
        _ => Ok(Unreplayed::Nothing),
    };
    PromotionFacts { standby, unreplayed }
}

async fn position(
    session: &mut Session,
    replication: Option<&ConnInfo>,
    deadline: Deadline,
) -> Fact<StandbyPosition> {
    let sql = "select pg_is_in_recovery(), pg_last_wal_replay_lsn(), pg_last_wal_receive_lsn()";
    let row = session.row("ask how far the standby is", sql).await?;
    let in_recovery = row.is_true(0);
    // Before a promotion ends recovery, it replays all that was received.
    let (replayed, received): (Option<Lsn>, Option<Lsn>) = (row.parse(1), row.parse(2));
    let timeline = match replayed_timeline(replication, deadline).await {
        Some(timeline) => timeline,
        None => facts::newest_timeline(session, in_recovery).await?,
    };
    Ok(StandbyPosition {
        in_recovery,
        cluster: facts::cluster(session).await?,
        timeline,
        lsn: replayed.max(received).unwrap_or_default(),
    })
}

/// The timeline that is being replayed, which only a replication connection tells. Where that is refused, the caller
/// takes the newest timeline that the control file and `pg_wal` know.
async fn replayed_timeline(replication: Option<&ConnInfo>, deadline: Deadline) -> Option<TimelineId> {
    let asking = async {
        let mut connection = Connection::connect(replication?).await.ok()?;
        let identity = connection.identify_system().await.ok()?;
        connection.close().await;
        Some(identity.timeline)
    };
    timeout_at(deadline.at(), asking).await.ok().flatten()
}

async fn beyond(store: &Store, standby: &StandbyPosition) -> Result<Unreplayed> {
    let archive = Archive::open(store).await?;
    archive.check(standby.cluster)?;
    let (wal, histories) =
        tokio::try_join!(wal_from(&archive, standby), children(&archive, standby.timeline))?;
    match unreplayed(standby, &wal, &histories)? {
        Unreplayed::LookInto(segment) if has_more(&archive, segment, standby.lsn).await? => {
            Ok(Unreplayed::Until(segment))
        }
        Unreplayed::LookInto(_) => Ok(Unreplayed::Nothing),
        other => Ok(other),
    }
}

/// What the archive has of the standby's timeline, from the standby's segment on.
async fn wal_from(archive: &Archive, standby: &StandbyPosition) -> Result<WalInventory> {
    let size = archive.identity().segment_bytes;
    let mut wal = WalInventory::new(size);
    let current = SegmentName::new(standby.timeline, size.segment_of(standby.lsn), size)?;
    let mut listing = archive
        .store()
        .list(&timeline_prefix(standby.timeline), Some(&before_segment(current)));
    while let Some(page) = listing.next().await.context(|| "list the archived WAL")? {
        for object in &page {
            wal.add(&object.key, object.size);
        }
    }
    Ok(wal)
}

/// The histories of later timelines. PostgreSQL gives a new timeline the number after the newest in the archive, so
/// the search ends at the first that is missing.
async fn children(archive: &Archive, timeline: TimelineId) -> Result<BTreeMap<TimelineId, TimelineHistory>> {
    let mut histories = BTreeMap::new();
    let mut next = timeline;
    loop {
        next = TimelineId::new(next.get().saturating_add(1))?;
        match stored_wal::read_history(archive, next).await? {
            Some(history) => histories.insert(next, history),
            None => return Ok(histories),
        };
    }
}

/// Whether a complete record of the segment ends after a position.
async fn has_more(archive: &Archive, segment: SegmentName, after: Lsn) -> Result<bool> {
    let identity = archive.identity();
    let start = segment.start(identity.segment_bytes)?;
    let feed = || Ok(Feed(WalReader::new(start, WalCheck::Structure)));
    let key = Key::Segment(segment);
    let limit = identity.segment_bytes.bytes();
    let read = stored_wal::read(archive.store(), &key, limit, feed).await;
    let (Feed(reader), trailer) = read.context(|| format!("read {}", archive.url_of(&key)))?;
    trailer.check(segment.into(), identity.system_identifier)?;
    Ok(reader.valid_until() > after)
}

struct Feed(WalReader);

impl Write for Feed {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.feed(bytes, |_| {});
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
