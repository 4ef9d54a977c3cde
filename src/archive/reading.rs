//! Reads a small object whole, and accepts it only if it is what was written.
//!
//! An object that is not is read again ([`read_again_if_damaged`]): a bit that was flipped on the way is right the
//! second time, and an object that stays wrong is damaged where it lies.

use bytes::Bytes;

use super::Archive;
use crate::error::{Error, ErrorKind, Result};
use crate::format::Stored;
use crate::store::{ObjectInfo, Store, read_again_if_damaged};

/// A small object that was read.
pub(crate) struct Read<T> {
    pub(crate) stored: T,
    /// The object's bytes.
    pub(crate) bytes: Bytes,
    /// What the store says of it.
    pub(crate) info: ObjectInfo,
}

/// Reads a small object; `None` where it is proven that there is none.
///
/// # Errors
/// As the store and [`Stored::parse`]; `Corrupt` where it is damaged in every look.
pub(super) async fn read<T: Stored>(store: &Store, of: &T::Of) -> Result<Option<Read<T>>> {
    let key = T::key(of).to_string();
    let url = store.url_of(&key);
    let look = async || {
        let object = store.get(&key).await?;
        let info = object.info.clone();
        let bytes = object.read_to_end(T::LIMIT_BYTES).await?;
        let stored = T::parse(&bytes, &url, of)?;
        Ok::<_, Error>(Read { stored, bytes, info })
    };
    match read_again_if_damaged(look).await {
        Ok(read) => Ok(Some(read)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

impl Archive {
    /// Reads a small object; `None` where it is proven that there is none.
    ///
    /// # Errors
    /// As the store and [`Stored::parse`]; `Corrupt` where it is damaged in every look.
    pub async fn find<T: Stored>(&self, of: &T::Of) -> Result<Option<T>> {
        Ok(self.find_whole(of).await?.map(|read: Read<T>| read.stored))
    }

    /// As [`Archive::find`], with its bytes and with what the store says of it.
    pub(crate) async fn find_whole<T: Stored>(&self, of: &T::Of) -> Result<Option<Read<T>>> {
        read(&self.store, of).await
    }

    /// Reads a small object that must be there.
    ///
    /// # Errors
    /// `NotFound` where there is none; otherwise as [`Archive::find`].
    pub async fn read<T: Stored>(&self, of: &T::Of) -> Result<T> {
        self.find(of).await?.ok_or_else(|| {
            let url = self.url_of(&T::key(of));
            Error::not_found(format!("read {url}: there is no such object"))
        })
    }
}
