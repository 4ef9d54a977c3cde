//! Whether the cluster that an archive belongs to is alive: WAL arrived there while walship looked, or a server of it
//! runs on this machine. None of it proves that the source is dead: an idle one archives nothing.

use std::collections::BTreeMap;

use chrono::{DateTime, TimeDelta, Utc};

use crate::archive::Archive;
use crate::cluster::{neighbours, remembered};
use crate::error::Result;
use crate::format::keys::{self, Key};
use crate::format::wal_inventory::WalInventory;
use crate::judge::catalogue::Catalogue;
use crate::pg::{SegmentName, TimelineId};
use crate::server::data_directory::{RecoverySignal, recovery_signal};
use crate::store::Store;

/// A source may be alive if its newest WAL is at most this old.
const FRESH: TimeDelta = TimeDelta::minutes(10);

/// What shows whether the source is alive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signs {
    /// A sign that it is alive, if there is one; or why nobody could look.
    pub alive: Result<Option<String>, String>,
    /// The age of its newest WAL when recovery began, where that is below [`FRESH`].
    pub age_seconds: Option<i64>,
}

impl Signs {
    /// Looks at the archive, whose WAL was `newest` when recovery began, and at this machine.
    pub async fn look(
        archive: &Archive,
        catalogue: &Catalogue,
        newest: &NewestWal,
        begun: DateTime<Utc>,
    ) -> Self {
        let arrived = sign_of_life(archive.store(), newest).await;
        let arrived = arrived.map(|sign| sign.map(|name| format!("{name} arrived in the archive meanwhile")));
        let here = || server_here(archive);
        let stored = catalogue.wal.timelines();
        let stored = stored
            .filter_map(|timeline| catalogue.wal.newest_stored(timeline))
            .max();
        let age = stored.map(|stored| begun - stored).filter(|age| *age < FRESH);
        Self {
            alive: match arrived {
                Ok(None) => Ok(here()),
                other => other.map_err(|error| error.to_string()),
            },
            age_seconds: age.map(|age| age.num_seconds().max(0)),
        }
    }

    /// Why the source may be alive; it is never sure that it is gone.
    pub fn doubt(&self) -> String {
        match (self.alive(), self.age_seconds) {
            (Some(alive), _) => alive,
            (None, Some(age)) => format!(
                "the source may be alive: its newest WAL was archived {age} s before this recovery began"
            ),
            (None, None) => {
                "whether the source is gone cannot be seen from here, because an idle server archives nothing"
                    .to_owned()
            }
        }
    }

    /// Why the source must be considered alive.
    pub fn alive(&self) -> Option<String> {
        match &self.alive {
            Ok(sign) => Some(format!("the source is alive: {}", sign.as_ref()?)),
            Err(why) => Some(format!("whether the source is alive could not be seen ({why})")),
        }
    }

    /// For a copy that archives: what to do before it is started.
    pub fn warning(&self) -> Option<String> {
        let sign = match (&self.alive, self.age_seconds) {
            (Ok(Some(sign)), _) => sign.clone(),
            (_, Some(age)) => format!("the newest WAL was archived {age} s before this recovery began"),
            _ => return None,
        };
        Some(format!(
            "{sign}: if the source still runs, stop it for good before you start this copy, because both archive to the same \
             place"
        ))
    }
}

/// A server of this cluster that runs on this machine, out of recovery, and may write to this archive.
fn server_here(archive: &Archive) -> Option<String> {
    let (identity, url) = (archive.identity(), archive.url());
    let servers = neighbours::of_cluster(identity.system_identifier);
    let data = servers.into_iter().find(|data| {
        matches!(recovery_signal(data), Ok(RecoverySignal::None))
            && remembered::check(data, identity, &url).is_ok()
    })?;
    Some(format!(
        "a server of this cluster runs on this machine in {}",
        data.display()
    ))
}

/// The newest segment of each timeline at one moment; none where the archive has only its history.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NewestWal(BTreeMap<TimelineId, Option<SegmentName>>);

impl NewestWal {
    /// As the inventory lists them.
    ///
    /// # Errors
    /// `Invalid` where a segment's number lies beyond the last LSN, which no inventory has.
    pub fn of(wal: &WalInventory) -> Result<Self> {
        let timelines = wal.timelines();
        let newest = |timeline| {
            let number = wal.newest(timeline);
            let name = number.map(|number| SegmentName::new(timeline, number, wal.segment_size()));
            Ok((timeline, name.transpose()?))
        };
        Ok(Self(timelines.map(newest).collect::<Result<_>>()?))
    }
}

/// The first sign of life since `before`: a newer segment on a timeline that was there, or a timeline
/// that was not.
///
/// # Errors
/// As the store says.
async fn sign_of_life(store: &Store, before: &NewestWal) -> Result<Option<String>> {
    for (timeline, newest) in &before.0 {
        if let Some(segment) = newer_segment(store, *timeline, *newest).await? {
            return Ok(Some(segment.to_string()));
        }
    }
    new_timeline(store, before).await
}

async fn newer_segment(
    store: &Store,
    timeline: TimelineId,
    newest: Option<SegmentName>,
) -> Result<Option<SegmentName>> {
    let after = newest.map(|newest| Key::Segment(newest).to_string());
    let mut listing = store.list(&keys::timeline_prefix(timeline), after.as_deref());
    while let Some(page) = listing.next().await? {
        let newer = page.iter().filter_map(|object| match object.key.parse().ok()? {
            Key::Segment(segment) if Some(segment) > newest => Some(segment),
            _ => None,
        });
        if let Some(segment) = newer.min() {
            return Ok(Some(segment));
        }
    }
    Ok(None)
}

/// PostgreSQL numbers a new timeline one above the highest that the archive has.
async fn new_timeline(store: &Store, before: &NewestWal) -> Result<Option<String>> {
    let highest = before
        .0
        .last_key_value()
        .map_or(0, |(timeline, _)| timeline.get());
    let Ok(next) = TimelineId::new(highest.saturating_add(1)) else {
        return Ok(None);
    };
    let history = store.head(&Key::History(next).to_string()).await?;
    let segments = store.list(&keys::timeline_prefix(next), None).next().await?;
    Ok((history.is_some() || segments.is_some()).then(|| format!("timeline {next}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::fixture;
    use crate::pg::SegmentSize;
    use crate::store::{Body, PutMode};

    async fn put(store: &Store, key: &str) {
        let body = Body::from_bytes(vec![1]);
        store.put(key, &body, PutMode::Create).await.unwrap();
    }

    fn seen(keys: &[Key]) -> NewestWal {
        let mut wal = WalInventory::new(SegmentSize::DEFAULT);
        for key in keys {
            wal.add(&key.to_string(), 1);
        }
        NewestWal::of(&wal).unwrap()
    }

    #[tokio::test]
    async fn only_what_arrived_since_is_a_sign_of_life() {
        let top = tempfile::tempdir().unwrap();
        let store = fixture::store(top.path()).await;
        let newest: SegmentName = "00000001000000000000000F".parse().unwrap();
        let older: SegmentName = "000000010000000000000001".parse().unwrap();
        for segment in [newest, older] {
            put(&store, &Key::Segment(segment).to_string()).await;
        }
        let before = seen(&[Key::Segment(older), Key::Segment(newest)]);
        assert_eq!(sign_of_life(&store, &before).await.unwrap(), None);
        let later = "000000010000000100000000";
        put(&store, &Key::Segment(later.parse().unwrap()).to_string()).await;
        let sign = sign_of_life(&store, &before).await.unwrap();
        assert_eq!(sign.as_deref(), Some(later));
    }

    #[tokio::test]
    async fn a_new_timeline_is_a_sign_of_life() {
        let top = tempfile::tempdir().unwrap();
        let store = fixture::store(top.path()).await;
        let before = NewestWal::default();
        assert_eq!(sign_of_life(&store, &before).await.unwrap(), None);
        let first = seen(&[Key::Segment("000000010000000000000001".parse().unwrap())]);
        let second = TimelineId::new(2).unwrap();
        put(&store, &Key::History(second).to_string()).await;
        let sign = sign_of_life(&store, &first).await.unwrap();
        assert_eq!(sign.as_deref(), Some("timeline 2"));
        // A timeline that had only its history goes on.
        let both = seen(&[Key::History(second)]);
        assert_eq!(sign_of_life(&store, &both).await.unwrap(), None);
        let next = "000000020000000000000001";
        put(&store, &Key::Segment(next.parse().unwrap()).to_string()).await;
        let sign = sign_of_life(&store, &both).await.unwrap();
        assert_eq!(sign.as_deref(), Some(next));
    }
}
