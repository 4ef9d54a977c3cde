//! Whether an answer to a listing is whole.
//!
//! The SDK's reader passes over what it does not know, so a listing that was cut or altered on its way looks like a
//! shorter one. So the text of the answer is checked: it must be one closed element, every element in it must be closed
//! by its own name, and its count of keys must be right.

use std::sync::{Arc, Mutex, PoisonError};

use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::interceptors::context::AfterDeserializationInterceptorContextRef;
use aws_smithy_runtime_api::client::interceptors::{Intercept, dyn_dispatch_hint};
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::config_bag::ConfigBag;

/// What was found of the last answer.
#[derive(Debug, Clone, Default)]
pub(super) struct ListingCheck(Arc<Mutex<Option<Result<Entries, String>>>>);

/// What an answer has, as its text counts it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Entries {
    pub(super) keys: usize,
    pub(super) folders: usize,
}

impl ListingCheck {
    /// How many entries the answer has, or why it is not whole; `None` where it was not a listing.
    pub(super) fn entries(&self) -> Option<Result<Entries, String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[dyn_dispatch_hint]
impl Intercept for ListingCheck {
    fn name(&self) -> &'static str {
        "walship listing check"
    }

    fn read_after_deserialization(
        &self,
        context: &AfterDeserializationInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let response = context.response();
        let found = response
            .status()
            .is_success()
            .then(|| match response.body().bytes() {
                Some(text) => entries_in(text).map_err(str::to_owned),
                None => Err("it cannot be read".to_owned()),
            });
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = found;
        Ok(())
    }
}

/// How many entries a listing has, if it is whole.
fn entries_in(text: &[u8]) -> Result<Entries, &'static str> {
    let text = std::str::from_utf8(text).map_err(|_| "it is not UTF-8")?;
    let mut open: Vec<&str> = Vec::new();
    let mut begun = false;
    let (mut found, mut entries, mut said) = (Entries::default(), 0, None::<usize>);
    let mut rest = text.trim_start_matches('\u{feff}').trim();
    while let Some(start) = rest.find('<') {
        let content = rest.get(..start).unwrap_or_default();
        let after = rest.get(start + 1..).unwrap_or_default();
        let (tag, behind) = after.split_once('>').ok_or("it was cut within a tag")?;
        rest = behind;
        if tag.starts_with('?') {
            continue;
        }
        if let Some(name) = tag.strip_prefix('/') {
            if open.pop() != Some(name.trim_end()) {
                return Err("an element in it is closed by another name");
            }
            match (open.len(), name) {
                (1, "KeyCount") => {
                    said = Some(content.trim().parse().map_err(|_| "its count is not a number")?);
                }
                (1, "IsTruncated") if !matches!(content.trim(), "true" | "false") => {
                    return Err("it does not say whether it goes on");
                }
                (2, "Key") => found.keys += 1,
                (2, "Prefix") => found.folders += 1,
                _ => {}
            }
            continue;
        }
        let is_empty = tag.ends_with('/');
        let name = tag
            .trim_end_matches('/')
            .split_whitespace()
            .next()
            .unwrap_or_default();
        if open.is_empty() && name != "ListBucketResult" {
            return Err("it is something else");
        }
        entries += usize::from(open.len() == 1 && matches!(name, "Contents" | "CommonPrefixes"));
        begun = true;
        if !is_empty {
            open.push(name);
        }
    }
    if !begun || !open.is_empty() || !rest.is_empty() {
        return Err("it was cut");
    }
    match said {
        // Some servers do not count folders.
        Some(said) if said != entries && said != found.keys => Err("its count of keys is wrong"),
        _ => Ok(found),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTING: &str = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<ListBucketResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">\
        <Name>b</Name><Prefix>p/</Prefix><KeyCount>2</KeyCount><MaxKeys>1000</MaxKeys><Delimiter/><IsTruncated>false</IsTruncated>\
        <Contents><Key>p/a</Key><Size>1</Size><Owner><ID>x</ID></Owner></Contents>\
        <Contents><Key>p/b&lt;</Key><Size>2</Size></Contents></ListBucketResult>";

    const TWO_KEYS: Result<Entries, &str> = Ok(Entries { keys: 2, folders: 0 });

    #[test]
    fn a_whole_listing_is_counted() {
        assert_eq!(entries_in(LISTING.as_bytes()), TWO_KEYS);
        assert_eq!(entries_in(format!("{LISTING}\n").as_bytes()), TWO_KEYS);
        // Some servers give no count.
        let without = LISTING.replace("<KeyCount>2</KeyCount>", "");
        assert_eq!(entries_in(without.as_bytes()), TWO_KEYS);
        let none = "<ListBucketResult><KeyCount>0</KeyCount></ListBucketResult>";
        assert_eq!(entries_in(none.as_bytes()), Ok(Entries::default()));
    }

    #[test]
    fn folders_are_counted_apart_from_the_prefix_that_was_asked_for() {
        let folder = LISTING
            .replace("<KeyCount>2</KeyCount>", "<KeyCount>4</KeyCount>")
            .replace(
                "</ListBucketResult>",
                "<CommonPrefixes><Prefix>p/c/</Prefix></CommonPrefixes>\
                 <CommonPrefixes><Prefix>p/d/</Prefix></CommonPrefixes></ListBucketResult>",
            );
        let found = Ok(Entries { keys: 2, folders: 2 });
        assert_eq!(entries_in(folder.as_bytes()), found);
        // As servers have it that count keys alone.
        let keys_alone = folder.replace("<KeyCount>4</KeyCount>", "<KeyCount>2</KeyCount>");
        assert_eq!(entries_in(keys_alone.as_bytes()), found);
        let wrong = folder.replace("<KeyCount>4</KeyCount>", "<KeyCount>3</KeyCount>");
        assert!(entries_in(wrong.as_bytes()).is_err());
    }

    #[test]
    fn a_listing_that_was_cut_anywhere_is_not_whole() {
        for end in 0..LISTING.len() {
            assert!(entries_in(&LISTING.as_bytes()[..end]).is_err(), "cut at {end}");
        }
    }

    #[test]
    fn a_flipped_bit_in_an_elements_name_or_in_the_count_is_noticed() {
        let names = [
            "Contents",
            "Key>",
            "KeyCount",
            "IsTruncated",
            "ListBucketResult",
            "2</KeyC",
            "false<",
        ];
        for name in names {
            for (start, _) in LISTING.match_indices(name) {
                let end = start + name.trim_end_matches(['<', '>']).split('<').next().unwrap().len();
                for at in start..end {
                    for bit in 0..8 {
                        let mut bytes = LISTING.as_bytes().to_vec();
                        bytes[at] ^= 1 << bit;
                        let found = entries_in(&bytes);
                        assert!(found != TWO_KEYS, "{name} at {at}, bit {bit}");
                    }
                }
            }
        }
    }
}
