//! Writing to an archive: what counts as there already, in one place for every kind of object.
//!
//! Nothing different is ever written over what is there, and an answer that got lost is settled by looking. Where the store
//! ignores conditions, looking first is the best there is.

use sha2::{Digest, Sha256};

use super::{Archive, stored_wal};
use crate::archive::stored_wal::LARGEST_SEGMENT;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::format::Sha256Sum;
use crate::format::codec::Trailer;
use crate::format::keys::Key;
use crate::pg::WalName;
use crate::store::{Body, PutMode, Turn, Version};

/// What counts as the same object, where one is created under a name that is taken already.
#[derive(Debug, Clone, Copy)]
pub enum Same<'a> {
    /// None does: whoever was first keeps the name.
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
    /// Creates an object, once `turn` has come where there is one.
    ///
    /// # Errors
    /// `Conflict` where another one has the name; `Corrupt` where the one that has it cannot be read; otherwise as the
    /// store.
    pub async fn create(
        &self,
        key: &Key,
        body: &Body,
        same: Same<'_>,
        turn: Option<Turn<'_>>,
    ) -> Result<Created> {
        let name = key.to_string();
        if !self.identity.conditional_writes && self.store.head(&name).await?.is_some() {
            return self.compare(&name, body, same).await;
        }
        let stored = match turn {
            Some(turn) => self.store.create_in_turn(&name, body, turn).await,
            None => self.store.put(&name, body, PutMode::Create).await,
        };
        match stored {
            Ok(()) => Ok(Created::Now),
            Err(error) if error.kind() == ErrorKind::Conflict => self.compare(&name, body, same).await,
            Err(error) => Err(error),
        }
    }

    /// Whether the object that has the name is the same one.
    async fn compare(&self, name: &str, body: &Body, same: Same<'_>) -> Result<Created> {
        match same {
            Same::Nothing => Err(Error::conflict(format!(
                "{} is there already",
                self.store.url_of(name)
            ))),
            Same::Bytes => self.compare_bytes(name, body).await,
            Same::Content(file, trailer) => self.compare_content(name, file, trailer).await,
        }
    }

    async fn compare_bytes(&self, name: &str, body: &Body) -> Result<Created> {
        // What was changed on its way is right at the second look.
        for _ in 0..2 {
            if self.hash(name).await? == (body.length(), body.sha256) {
                return Ok(Created::Before);
            }
        }
        Err(Error::conflict(format!(
            "{} is there already with other bytes: another walship writes there, or something else does",
            self.store.url_of(name)
        )))
    }

    /// Size and hash of an object's bytes.
    async fn hash(&self, name: &str) -> Result<(u64, [u8; 32])> {
        let mut object = self.store.get(name).await?;
        let (mut sha256, mut length) = (Sha256::new(), 0);
        while let Some(piece) = object.chunk().await? {
            sha256.update(&piece);
            length += piece.len() as u64;
        }
        Ok((length, sha256.finalize().into()))
    }

    async fn compare_content(&self, name: &str, file: WalName, ours: &Trailer) -> Result<Created> {
        let url = self.store.url_of(name);
        let theirs = match stored_wal::verify(&self.store, name, LARGEST_SEGMENT).await {
            Ok(trailer) => trailer,
            Err(error) if error.kind() == ErrorKind::Corrupt => return Err(damaged(error, &url, file)),
            Err(error) => return Err(error.context(format!("compare with {url}, which is there already"))),
        };
        theirs
            .check(file, ours.system_identifier)
            .map_err(|error| damaged(error, &url, file))?;
        if theirs.sha256 == ours.sha256 {
            return Ok(Created::Before);
        }
        Err(other_content(&url, file, theirs.sha256, ours.sha256))
    }

    /// Writes an object that `docs/format.md` names as one that changes, whatever is there.
    ///
    /// # Errors
    /// As the store.
    pub async fn replace(&self, key: &Key, body: &Body) -> Result<()> {
        let name = key.to_string();
        let written = self.store.put(&name, body, PutMode::Replace).await;
        written.context(|| format!("write {}", self.store.url_of(&name)))
    }

    /// Replaces one version of such an object, or creates it where there was none.
    ///
    /// # Errors
    /// `Conflict` where it is another version by now; or is this very body, for an answer that got lost. Otherwise as
    /// the store.
    pub async fn replace_if(&self, key: &Key, body: &Body, version: Option<Version>) -> Result<()> {
        let name = key.to_string();
        let mode = version.map_or(PutMode::Create, PutMode::ReplaceIf);
        self.store.put(&name, body, mode).await
    }
}

fn damaged(error: Error, url: &str, file: WalName) -> Error {
    error.context(format!(
        "{url} is there already but damaged; see what it is, and replace it with walship repair {file}"
    ))
}

fn other_content(url: &str, file: WalName, theirs: Sha256Sum, ours: Sha256Sum) -> Error {
    Error::conflict(format!(
        "{url} is there already with other content: stored SHA-256 {theirs}, this file's {ours}; \
         another primary of this cluster has archived here, or somebody pushed this segment before it was whole. Nothing \
         was changed. Try walship repair {file}, which replaces an earlier state of the same segment and nothing else; if \
         it refuses, find out which server's history is the right one (pg_controldata, timelines) and give the other an \
         archive of its own"
    ))
}
