//! Whether the cluster that an archive belongs to is alive: WAL arrived there while walship looked.

use std::collections::BTreeMap;

use crate::archive::keys::{self, Key};
use crate::error::Result;
use crate::pg::{SegmentName, TimelineId};
use crate::store::Store;

/// The newest segment of each timeline at one moment.
pub type NewestSegments = BTreeMap<TimelineId, SegmentName>;

/// The first sign of life since `before`: a newer segment on a timeline that was there, or a timeline
/// that was not. None of it proves that the source is dead; an idle one archives nothing.
///
/// # Errors
/// As the store says.
pub async fn sign_of_life(store: &Store, before: &NewestSegments) -> Result<Option<String>> {
    for (timeline, newest) in before {
        let after = Key::Segment(*newest).to_string();
        let mut listing = store.list(&keys::timeline_prefix(*timeline), Some(&after));
        while let Some(page) = listing.next().await? {
            let newer = page.iter().filter_map(|object| match object.key.parse().ok()? {
                Key::Segment(segment) if segment > *newest => Some(segment),
                _ => None,
            });
            if let Some(segment) = newer.min() {
                return Ok(Some(segment.to_string()));
            }
        }
    }
    new_timeline(store, before).await
}

/// PostgreSQL numbers a new timeline one above the highest that the archive has.
async fn new_timeline(store: &Store, before: &NewestSegments) -> Result<Option<String>> {
    let highest = before.last_key_value().map_or(0, |(timeline, _)| timeline.get());
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
    use crate::store::{Body, PutMode};

    async fn put(store: &Store, key: &str) {
        let body = Body::from_bytes(vec![1]);
        store.put(key, &body, PutMode::Create).await.unwrap();
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
        let before = NewestSegments::from([(TimelineId::FIRST, newest)]);
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
        let before = NewestSegments::new();
        assert_eq!(sign_of_life(&store, &before).await.unwrap(), None);
        let first = NewestSegments::from([(TimelineId::FIRST, "000000010000000000000001".parse().unwrap())]);
        let second = TimelineId::new(2).unwrap();
        put(&store, &Key::History(second).to_string()).await;
        let sign = sign_of_life(&store, &first).await.unwrap();
        assert_eq!(sign.as_deref(), Some("timeline 2"));
    }
}
