//! Reading a small object whole, and believing it only where it is what was written.
//!
//! What is not is read again ([`look_again`]): a bit that was flipped on the way is right at the second look, and what
//! stays wrong is damaged where it lies.

use crate::error::{Error, ErrorKind, Result};
use crate::store::{ObjectInfo, Store, look_again};

/// Reads an object of at most `limit` bytes and takes it apart; `parse` also gets the URL, for messages. `None`
/// where it is proven that there is none.
///
/// # Errors
/// As the store and `parse`; what is `Corrupt` stayed so.
pub(crate) async fn read<T>(
    store: &Store,
    key: &str,
    limit: u64,
    parse: impl Fn(&[u8], &str) -> Result<T>,
) -> Result<Option<T>> {
    let found = read_version(store, key, limit, parse).await?;
    Ok(found.map(|(parsed, _)| parsed))
}

/// As [`read`]; tells also what the store says of the object that was read.
pub(crate) async fn read_version<T>(
    store: &Store,
    key: &str,
    limit: u64,
    parse: impl Fn(&[u8], &str) -> Result<T>,
) -> Result<Option<(T, ObjectInfo)>> {
    let url = store.url_of(key);
    let look = async || {
        let object = store.get(key).await?;
        let info = object.info.clone();
        let bytes = object.read_to_end(limit).await?;
        Ok::<_, Error>((parse(&bytes, &url)?, info))
    };
    match look_again(look).await {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
