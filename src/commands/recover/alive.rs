//! Whether the cluster that an archive belongs to is alive: WAL arrived there while walship looked.

use std::collections::BTreeMap;

use crate::archive::keys::{self, Key};
use crate::archive::wal_inventory::WalInventory;
use crate::error::Result;
use crate::pg::{SegmentName, TimelineId};
use crate::store::Store;

/// The newest segment of each timeline at one moment; none where only its history is there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NewestWal(BTreeMap<TimelineId, Option<SegmentName>>);

impl NewestWal {
    /// What an inventory has.
    ///
    /// # Errors
    /// `Invalid` where a number lies beyond the last LSN, which an inventory does not hold.
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
/// that was not. None of it proves that the source is dead; an idle one archives nothing.
///
/// # Errors
/// As the store says.
pub async fn sign_of_life(store: &Store, before: &NewestWal) -> Result<Option<String>> {
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
    use super::super::fixture;
    use super::*;
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
        // A timeline of which only the history was there goes on.
        let both = seen(&[Key::History(second)]);
        assert_eq!(sign_of_life(&store, &both).await.unwrap(), None);
        let next = "000000020000000000000001";
        put(&store, &Key::Segment(next.parse().unwrap()).to_string()).await;
        let sign = sign_of_life(&store, &both).await.unwrap();
        assert_eq!(sign.as_deref(), Some(next));
    }
}
