//! Writes to an archive. For every kind of object this is the one place that decides which object counts as the same.
//!
//! Nothing different is ever written over an object. If the store's answer got lost, a look at the object decides.
//! Where the store ignores conditions, looking first is the best that can be done.

use sha2::{Digest, Sha256};

use super::{Archive, stored_wal};
use crate::archive::stored_wal::LARGEST_SEGMENT;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::format::codec::Trailer;
use crate::format::keys::Key;
use crate::format::{Stored, Xxh3Sum};
use crate::pg::WalName;
use crate::store::{Body, PutMode, Turn, Version};

/// What counts as the same object, where one is created under a name that is taken already.
#[derive(Debug, Clone, Copy)]
pub enum Same<'a> {
    /// None does: the first object keeps the name.
    Nothing,
    /// One with the same bytes: an earlier attempt's answer got lost.
    Bytes,
    /// A WAL file of this name with the same content: an earlier push of it, or a standby that archives too.
    Content(WalName, &'a Trailer),
}

/// What a create found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Created {
    /// Nothing: the object is new.
    Now,
    /// The same object.
    Before,
}

impl Archive {
    /// Creates an object; where there is a `turn`, only after that has come. Only the agent gives one, for a file that
    /// it sends before the archiver asks for it.
    ///
    /// # Errors
    /// `Conflict` where a different object has the name; `Corrupt` where that object cannot be read; otherwise as the
    /// store.
    pub async fn create(
        &self,
        key: &Key,
        body: &Body,
        same: Same<'_>,
        turn: Option<Turn<'_>>,
    ) -> Result<Created> {
        if !self.identity.conditional_writes && self.head(key).await?.is_some() {
            return self.compare(key, body, same).await;
        }
        let stored = match turn {
            Some(turn) => self.store.create_in_turn(&key.to_string(), body, turn).await,
            None => self.put(key, body, PutMode::Create).await,
        };
        match stored {
            Ok(()) => Ok(Created::Now),
            Err(error) if error.kind() == ErrorKind::Conflict => self.compare(key, body, same).await,
            Err(error) => Err(error),
        }
    }

    /// Whether the object that has the name is the same one.
    async fn compare(&self, key: &Key, body: &Body, same: Same<'_>) -> Result<Created> {
        match same {
            Same::Nothing => Err(Error::conflict(format!("{} is there already", self.url_of(key)))),
            Same::Bytes => self.compare_bytes(key, body).await,
            Same::Content(file, trailer) => self.compare_content(key, file, trailer).await,
        }
    }

    async fn compare_bytes(&self, key: &Key, body: &Body) -> Result<Created> {
        // What was changed on its way is right at the second look.
        for _ in 0..2 {
            if self.hash(key).await? == (body.length(), body.sha256) {
                return Ok(Created::Before);
            }
        }
        Err(Error::conflict(format!(
            "{} is there already with other bytes: another walship writes there, or something else does",
            self.url_of(key)
        )))
    }

    /// Size and hash of an object's bytes.
    async fn hash(&self, key: &Key) -> Result<(u64, [u8; 32])> {
        let mut object = self.get(key).await?;
        let (mut sha256, mut length) = (Sha256::new(), 0);
        while let Some(piece) = object.chunk().await? {
            sha256.update(&piece);
            length += piece.len() as u64;
        }
        Ok((length, sha256.finalize().into()))
    }

    async fn compare_content(&self, key: &Key, file: WalName, ours: &Trailer) -> Result<Created> {
        let url = self.url_of(key);
        let theirs = match stored_wal::verify(&self.store, key, LARGEST_SEGMENT).await {
            Ok(trailer) => trailer,
            Err(error) if error.kind() == ErrorKind::Corrupt => return Err(damaged(error, &url, file)),
            Err(error) => return Err(error.context(format!("compare with {url}, which is there already"))),
        };
        theirs
            .check(file, ours.system_identifier)
            .map_err(|error| damaged(error, &url, file))?;
        if theirs.has_same_content(ours) {
            return Ok(Created::Before);
        }
        Err(other_content(&url, file, theirs.content_xxh3, ours.content_xxh3))
    }

    /// Writes a small object that may change by `docs/format.md`, over the one that is there.
    ///
    /// # Errors
    /// As the store and [`Stored::to_bytes`].
    pub async fn replace<T: Stored>(&self, of: &T::Of, stored: &T) -> Result<()> {
        let key = T::key(of);
        let written = self.put(&key, &body(stored)?, PutMode::Replace).await;
        written.context(|| format!("write {}", self.url_of(&key)))
    }

    /// Replaces one version of such an object; without a version it is created.
    ///
    /// # Errors
    /// `Conflict` where the version is another by now, or where this very body was written and the answer got lost.
    /// Otherwise as the store.
    pub async fn replace_if(&self, key: &Key, body: &Body, version: Option<Version>) -> Result<()> {
        let mode = version.map_or(PutMode::Create, PutMode::ReplaceIf);
        self.put(key, body, mode).await
    }

    async fn put(&self, key: &Key, body: &Body, mode: PutMode) -> Result<()> {
        self.store.put(&key.to_string(), body, mode).await
    }
}

/// The body of a small object.
pub(crate) fn body(stored: &impl Stored) -> Result<Body> {
    stored.to_bytes().map(Body::from_bytes)
}

fn damaged(error: Error, url: &str, file: WalName) -> Error {
    error.context(format!(
        "{url} is there already but damaged; see what it is, and replace it with walship repair {file}"
    ))
}

fn other_content(url: &str, file: WalName, theirs: Xxh3Sum, ours: Xxh3Sum) -> Error {
    Error::conflict(format!(
        "{url} is there already with other content: stored XXH3 {theirs}, this file's {ours}; \
         another primary of this cluster has archived here, or somebody pushed this segment before it was whole. Nothing \
         was changed. Try walship repair {file}, which replaces an earlier state of the same segment and nothing else; if \
         it refuses, find out which server's history is the right one (pg_controldata, timelines) and give the other an \
         archive of its own"
    ))
}
