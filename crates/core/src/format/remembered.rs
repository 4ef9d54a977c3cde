//! What a data directory remembers: the archive that its cluster writes to, and those that it must never write to.
//!
//! An archive is identified by its cluster and by when it was begun, whatever its URL. A mistyped prefix, or a file
//! system that is not mounted, leads to no archive or to another one. Only what the cluster itself remembers shows
//! that.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::identity::Identity;
use crate::error::{Error, Result};
use crate::pg::TimelineId;

/// The file with an [`ArchiveMark`].
pub const ARCHIVE_FILE: &str = "walship.archive";
/// The file with a [`CloneMark`].
pub const CLONE_FILE: &str = "walship.clone";

/// The archive that a cluster writes to: the content of `walship.archive`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArchiveMark {
    /// Its URL when this was written, for people.
    pub archive: String,
    /// `system_identifier` of its `walship.json`.
    #[serde(with = "super::identity::decimal")]
    system_identifier: u64,
    /// `created_at` of its `walship.json`.
    pub created_at: DateTime<Utc>,
}

impl ArchiveMark {
    /// The mark of a cluster that writes to the archive with this URL and identity.
    #[must_use]
    pub fn of(url: String, identity: &Identity) -> Self {
        Self {
            archive: url,
            system_identifier: identity.system_identifier,
            created_at: identity.created_at,
        }
    }

    /// Whether it is the mark of the archive with this identity.
    #[must_use]
    pub fn names(&self, archive: &Identity) -> bool {
        (self.system_identifier, self.created_at) == (archive.system_identifier, archive.created_at)
    }

    /// The file's content.
    ///
    /// # Errors
    /// `Internal`, which would be a defect.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        text(self)
    }
}

/// The archives that a copy must never write to: the content of `walship.clone`. A copy has its source's system
/// identifier, so nothing else tells the two apart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CloneMark {
    /// The URL of the source's archive, for people.
    pub source: String,
    /// `created_at` of its `walship.json`.
    created_at: DateTime<Utc>,
    /// The source's own marks, if it was a copy itself.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    earlier: Vec<CloneMark>,
}

impl CloneMark {
    /// The mark of a copy from the archive with this URL and identity.
    #[must_use]
    pub fn of(source: String, identity: &Identity) -> Self {
        Self {
            source,
            created_at: identity.created_at,
            earlier: Vec::new(),
        }
    }

    /// Adds the marks of the source: what the source must not write to, the copy must not either.
    #[must_use]
    pub fn after(mut self, before: Option<CloneMark>) -> Self {
        self.earlier
            .extend(before.and_then(|mark| mark.without(self.created_at)));
        self
    }

    /// The other marks, if there are any, for a copy that takes the place of this archive's cluster.
    #[must_use]
    pub fn without(self, created_at: DateTime<Utc>) -> Option<Self> {
        let earlier = self.earlier.into_iter();
        let mut earlier: Vec<_> = earlier.filter_map(|mark| mark.without(created_at)).collect();
        if self.created_at != created_at {
            return Some(Self { earlier, ..self });
        }
        let mut first = earlier.pop()?;
        first.earlier.extend(earlier);
        Some(first)
    }

    fn names(&self, archive: &Identity) -> bool {
        self.created_at == archive.created_at || self.earlier.iter().any(|mark| mark.names(archive))
    }

    /// The file's content.
    ///
    /// # Errors
    /// `Internal`, which would be a defect.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        text(self)
    }
}

fn text(mark: &impl Serialize) -> Result<Vec<u8>> {
    let mut text = serde_json::to_vec(mark).map_err(|error| Error::defect("write JSON", error))?;
    text.push(b'\n');
    Ok(text)
}

/// What to do so that a copy may write to the archive that it was made from; `place` is its data directory.
#[must_use]
pub fn how_to_take_the_place(place: &str) -> String {
    format!(
        "if it takes its source's place for good, remove {place}/{CLONE_FILE}, and the lines below \"# For a rehearsal\" \
         from its postgresql.auto.conf where there are any, and restart it"
    )
}

/// The two ways to let a copy archive.
pub(crate) fn how_a_copy_may_archive(place: &str) -> String {
    format!(
        "give it an archive of its own; or, {}",
        how_to_take_the_place(place)
    )
}

/// What a data directory remembers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Remembered {
    /// The archive that its cluster writes to, if it has written to one.
    pub archive: Option<ArchiveMark>,
    /// Those that it must not write to.
    pub clone: Option<CloneMark>,
}

impl Remembered {
    /// Reads both files' contents; `place` names the data directory in messages.
    ///
    /// # Errors
    /// `Internal` where one cannot be understood: it might forbid what is about to be done.
    pub fn parse(archive: Option<&[u8]>, clone: Option<&[u8]>, place: &str) -> Result<Self> {
        let archive = archive.map(|bytes| {
            serde_json::from_slice(bytes).map_err(|error| {
                Error::internal(format!(
                    "{place}/{ARCHIVE_FILE} says which archive this cluster writes to, and cannot be understood ({error}); \
                     restore it, or remove it if the archive in the settings is the right one"
                ))
            })
        });
        let clone = clone.map(|bytes| {
            serde_json::from_slice(bytes).map_err(|error| {
                Error::internal(format!(
                    "{place}/{CLONE_FILE} says which archive this cluster was copied from, and cannot be understood \
                     ({error}); restore it, or, {}",
                    how_to_take_the_place(place)
                ))
            })
        });
        Ok(Self {
            archive: archive.transpose()?,
            clone: clone.transpose()?,
        })
    }

    /// Whether the cluster was copied from the archive with this identity, and must not write to it.
    pub(crate) fn is_copy_of(&self, identity: &Identity) -> bool {
        self.clone.as_ref().is_some_and(|mark| mark.names(identity))
    }

    /// Whether the cluster may write to the archive with this identity, at `url`. `place` names the data directory.
    ///
    /// # Errors
    /// `Conflict` where it was copied from that archive, or writes to another.
    pub fn check(&self, identity: &Identity, url: &str, place: &str) -> Result<()> {
        if self.is_copy_of(identity) {
            return Err(Error::conflict(format!(
                "this cluster is a copy of another, made from the archive {url}, and must not write to that archive: {}",
                how_a_copy_may_archive(place)
            )));
        }
        match &self.archive {
            Some(mark) if !mark.names(identity) => Err(Error::conflict(format!(
                "this cluster writes to the archive that was begun at {} ({}, as {place}/{ARCHIVE_FILE} says), and {url} is \
                 another one, begun at {}; nothing was written. Correct the URL, or mount the archive that belongs there. If \
                 this one takes its place for good, remove {place}/{ARCHIVE_FILE}",
                mark.created_at, mark.archive, identity.created_at
            ))),
            _ => Ok(()),
        }
    }
}

/// What is known of a server whose URL leads to no archive.
#[derive(Debug, Clone)]
pub struct ServerPast {
    /// What its data directory remembers, or why that is not known.
    pub remembered: Result<Remembered, String>,
    /// What it has archived, in words, if there is a sign of that.
    pub archived: Option<String>,
    /// The timeline it is on.
    pub timeline: TimelineId,
}

impl ServerPast {
    /// Why this cluster probably has an archive elsewhere. `None` where there is no sign of one: then one may be begun.
    #[must_use]
    pub fn sign_of_an_archive(&self) -> Option<String> {
        match &self.remembered {
            Ok(remembered) => {
                if let Some(mark) = &remembered.archive {
                    return Some(format!(
                        "this cluster writes to the archive that was begun at {}, {}",
                        mark.created_at, mark.archive
                    ));
                }
            }
            Err(why) => return Some(format!("whether this cluster has an archive is not known: {why}")),
        }
        if let Some(archived) = &self.archived {
            return Some(format!("this cluster has archived before: {archived}"));
        }
        let promoted = self.timeline > TimelineId::FIRST;
        promoted.then(|| {
            "this server was promoted or recovered, so its cluster has probably archived before".to_owned()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;
    use crate::pg::{ClusterIdentity, Major, SegmentSize};

    fn identity(seconds: i64) -> Identity {
        let cluster = ClusterIdentity {
            system_identifier: 1,
            postgres_major: Major::V18,
            segment_size: SegmentSize::DEFAULT,
        };
        Identity::new(cluster, true, DateTime::from_timestamp(seconds, 5).unwrap())
    }

    fn remembered(archive: Option<i64>, clone: Option<CloneMark>) -> Remembered {
        let archive = archive.map(|seconds| ArchiveMark::of("s3://a/b".to_owned(), &identity(seconds)));
        let [archive, clone] = [
            archive.map(|mark| mark.to_bytes().unwrap()),
            clone.map(|mark| mark.to_bytes().unwrap()),
        ];
        Remembered::parse(archive.as_deref(), clone.as_deref(), "/data").unwrap()
    }

    fn clone_of(seconds: i64) -> CloneMark {
        CloneMark::of("s3://a/b".to_owned(), &identity(seconds))
    }

    #[test]
    fn only_the_archive_that_is_remembered_is_accepted_whatever_its_url() {
        let cluster = remembered(Some(1), None);
        assert!(cluster.check(&identity(1), "file:///moved", "/data").is_ok());
        let error = cluster.check(&identity(2), "s3://a/b", "/data").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict);
        assert!(error.to_string().contains("/data/walship.archive"), "{error}");
        let other_cluster = Identity {
            system_identifier: 2,
            ..identity(1)
        };
        assert!(cluster.check(&other_cluster, "s3://a/b", "/data").is_err());
        assert!(remembered(None, None).check(&identity(2), "u", "/data").is_ok());
    }

    // Seen to fail: `format/remembered.rs`: only the clone's own source is noted
    #[test]
    fn a_copy_may_not_write_to_its_sources_archive_nor_where_its_source_may_not() {
        let mark = clone_of(3).after(Some(clone_of(2).after(Some(clone_of(1)))));
        let copy = remembered(None, Some(mark.clone()));
        for forbidden in [1, 2, 3] {
            let error = copy.check(&identity(forbidden), "u", "/data").unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Conflict);
        }
        assert!(copy.check(&identity(4), "u", "/data").is_ok());
        // One that takes the place of one of them may write there, and to no other.
        for replaced in [1, 2, 3] {
            let rest = mark.clone().without(identity(replaced).created_at);
            let successor = remembered(Some(replaced), rest);
            for archive in [1, 2, 3] {
                let checked = successor.check(&identity(archive), "u", "/data");
                assert_eq!(checked.is_ok(), archive == replaced, "{replaced} {archive}");
            }
        }
        assert_eq!(clone_of(1).without(identity(1).created_at), None);
    }

    #[test]
    fn what_cannot_be_understood_might_forbid_it() {
        for (archive, clone) in [(Some(&b"{"[..]), None), (None, Some(&b""[..]))] {
            let error = Remembered::parse(archive, clone, "/data").unwrap_err();
            assert!(error.to_string().contains("/data/walship."), "{error}");
        }
    }

    #[test]
    fn an_archive_is_begun_only_where_there_is_no_sign_of_an_earlier_one() {
        let fresh = ServerPast {
            remembered: Ok(Remembered::default()),
            archived: None,
            timeline: TimelineId::FIRST,
        };
        assert_eq!(fresh.sign_of_an_archive(), None);
        let past = [
            ServerPast {
                remembered: Ok(remembered(Some(1), None)),
                ..fresh.clone()
            },
            ServerPast {
                remembered: Err("permission denied".to_owned()),
                ..fresh.clone()
            },
            ServerPast {
                archived: Some("a .done file".to_owned()),
                ..fresh.clone()
            },
            ServerPast {
                timeline: TimelineId::new(2).unwrap(),
                ..fresh.clone()
            },
        ];
        for past in past {
            assert!(past.sign_of_an_archive().is_some(), "{past:?}");
        }
        // A clone begins one of its own.
        let clone = ServerPast {
            remembered: Ok(remembered(None, Some(clone_of(1)))),
            ..fresh
        };
        assert_eq!(clone.sign_of_an_archive(), None);
    }
}
