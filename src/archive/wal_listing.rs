//! Listing the archive's WAL, in the order of the keys, with a few requests at the same time where there is much of it.
//!
//! A server gives a thousand keys in one answer, and the next answer only to who has that one. So a long listing takes
//! as many round trips as it has pages. Here the first pages are asked for one after the other. If there are more, the
//! folders are asked for, and neighbouring folders together make a part. The parts are listed at the same time, each by
//! its prefix, and given in order. A part is never cut in two by a key: SeaweedFS lists in another order than that of the
//! keys' bytes (`crates/store/src/lib.rs`).
//!
//! What holds is what holds for one listing. Each page is checked as any other, and the end is only told when every part
//! was listed to its own end. The folders are listed before what is in them. So WAL that is stored in order, as archivers
//! do, has no gap here: where a folder is seen, what was stored before it is listed later. An object that comes meanwhile
//! may be listed or not.
//!
//! An archive with a folder that is not walship's below `wal/`, or with very many timelines, is listed in one piece.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque, btree_map};

use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::Archive;
use super::catalogue::gather;
use crate::error::{Context, Error, Result};
use crate::format::keys::{WAL_PREFIX, WalFolder, timeline_of_prefix};
use crate::store::{Listing, Location, ObjectInfo, Store};

/// Pages that are read before the folders are asked for, and kept in memory until then: what a part has as well.
const FIRST_PAGES: usize = 8;

/// Parts that are listed at the same time.
const PARALLEL: usize = 8;

/// Pages of a part that wait for those before them.
const WAITING_PAGES: usize = 8;

/// Each timeline costs a request or two, so that with more than these one listing may cost less.
const MOST_TIMELINES: usize = 64;

/// Objects outside the folders of WAL that are kept in memory: histories, and what is not walship's.
const MOST_LOOSE: usize = 8000;

/// A listing of all objects below `wal/`.
pub(crate) struct WalListing {
    archive: Archive,
    state: State,
}

enum State {
    Begun,
    /// The first pages, and what comes after them.
    Whole(VecDeque<Vec<ObjectInfo>>, Listing),
    InParts(Parts),
    /// After an error, nothing may look like the end of the listing.
    Failed,
}

impl WalListing {
    pub(crate) fn new(archive: &Archive) -> Self {
        Self {
            archive: archive.clone(),
            state: State::Begun,
        }
    }

    /// The next page, never an empty one, or `None` after the last.
    ///
    /// # Errors
    /// As [`Listing::next`]. A listing that failed does not go on.
    pub(crate) async fn next(&mut self) -> Result<Option<Vec<ObjectInfo>>> {
        let state = std::mem::replace(&mut self.state, State::Failed);
        let mut state = match state {
            State::Begun => self.begin().await.context(|| "list the archived WAL")?,
            begun => begun,
        };
        let page = match &mut state {
            State::Begun | State::Failed => Err(Error::internal("the listing of the WAL failed before")),
            State::Whole(pages, listing) => match pages.pop_front() {
                Some(page) => Ok(Some(page)),
                None => listing.next().await,
            },
            State::InParts(parts) => parts.next().await,
        };
        let page = page.context(|| "list the archived WAL")?;
        self.state = state;
        Ok(page)
    }

    async fn begin(&self) -> Result<State> {
        let store = self.archive.store();
        let mut listing = store.list(WAL_PREFIX, None);
        let mut pages = VecDeque::new();
        while pages.len() < FIRST_PAGES {
            let Some(page) = listing.next().await? else {
                break;
            };
            pages.push_back(page);
        }
        if listing.is_finished() {
            return Ok(State::Whole(pages, listing));
        }
        Ok(match plan(&self.archive, part_of).await? {
            None => State::Whole(pages, listing),
            // They begin at the start again: only the server knows what comes after a page.
            Some(plan) => State::InParts(Parts::new(store, plan)),
        })
    }
}

/// What the listing is made of, in order: an object, or the prefix of a part.
type Plan = BTreeMap<String, Option<ObjectInfo>>;

/// The start of the keys of the part that a folder belongs to.
fn part_of(archive: &Archive, folder: WalFolder) -> String {
    match archive.store().location() {
        // A walk reads the folder above for each part, unless the part is a folder itself.
        Location::Directory(_) => folder.prefix(),
        Location::S3 { .. } => folder.neighbourhood(archive.identity().segment_bytes),
    }
}

/// Looks at the folders; `None` where the WAL is better listed in one piece.
async fn plan(archive: &Archive, part_of: fn(&Archive, WalFolder) -> String) -> Result<Option<Plan>> {
    let mut loose = Vec::new();
    let mut timelines = Vec::new();
    let mut listing = archive.store().list_folder(WAL_PREFIX);
    while let Some(page) = listing.next().await? {
        loose.extend(page.objects);
        timelines.extend(page.folders);
        if loose.len() > MOST_LOOSE || timelines.len() > MOST_TIMELINES {
            return Ok(None);
        }
    }
    if timelines
        .iter()
        .any(|prefix| timeline_of_prefix(prefix).is_none())
    {
        return Ok(None);
    }
    let looks = timelines
        .into_iter()
        .map(|prefix| look_at_timeline(archive.clone(), prefix, part_of));
    let mut parts = BTreeSet::new();
    for found in gather(looks).await? {
        let Some((of_timeline, beside)) = found else {
            return Ok(None);
        };
        parts.extend(of_timeline);
        loose.extend(beside);
    }
    if loose.len() > MOST_LOOSE {
        return Ok(None);
    }
    // All parts of one plan are as long as each other. What begins like one is listed with it.
    let length = parts.first().map_or(0, String::len);
    loose.retain(|object| {
        !object
            .key
            .get(..length)
            .is_some_and(|start| parts.contains(start))
    });
    let mut plan: Plan = parts.into_iter().map(|prefix| (prefix, None)).collect();
    plan.extend(loose.into_iter().map(|object| (object.key.clone(), Some(object))));
    Ok(Some(plan))
}

/// The parts that a timeline's folders make, and the objects beside those folders. `None` where there are others.
async fn look_at_timeline(
    archive: Archive,
    prefix: String,
    part_of: fn(&Archive, WalFolder) -> String,
) -> Result<Option<(BTreeSet<String>, Vec<ObjectInfo>)>> {
    let (mut parts, mut loose) = (BTreeSet::new(), Vec::new());
    let mut listing = archive.store().list_folder(&prefix);
    while let Some(page) = listing.next().await? {
        for folder in page.folders {
            let Some(folder) = WalFolder::of_prefix(&folder) else {
                return Ok(None);
            };
            parts.insert(part_of(&archive, folder));
        }
        loose.extend(page.objects);
        if loose.len() > MOST_LOOSE {
            return Ok(None);
        }
    }
    Ok(Some((parts, loose)))
}

/// The parts, a few of which are being listed.
struct Parts {
    store: Store,
    left: btree_map::IntoIter<String, Option<ObjectInfo>>,
    running: VecDeque<Part>,
}

enum Part {
    Object(ObjectInfo),
    Listed {
        pages: mpsc::Receiver<Vec<ObjectInfo>>,
        /// The one task that lists it. Whoever drops this ends it.
        task: JoinSet<Result<()>>,
    },
}

impl Parts {
    fn new(store: &Store, plan: Plan) -> Self {
        Self {
            store: store.clone(),
            left: plan.into_iter(),
            running: VecDeque::new(),
        }
    }

    async fn next(&mut self) -> Result<Option<Vec<ObjectInfo>>> {
        loop {
            while self.running.len() < PARALLEL
                && let Some((key, object)) = self.left.next()
            {
                self.running
                    .push_back(object.map_or_else(|| Part::begin(&self.store, &key), Part::Object));
            }
            match self.running.front_mut() {
                None => return Ok(None),
                Some(Part::Object(_)) => {}
                Some(Part::Listed { pages, task }) => {
                    if let Some(page) = pages.recv().await {
                        return Ok(Some(page));
                    }
                    // No more pages came: because that was all, or because something went wrong.
                    let ended = task.join_next().await.transpose();
                    ended
                        .map_err(|error| Error::defect("list the WAL", error))?
                        .transpose()?;
                }
            }
            if let Some(Part::Object(object)) = self.running.pop_front() {
                return Ok(Some(vec![object]));
            }
        }
    }
}

impl Part {
    fn begin(store: &Store, prefix: &str) -> Self {
        let (sender, pages) = mpsc::channel(WAITING_PAGES);
        let mut listing = store.list(prefix, None);
        let mut task = JoinSet::new();
        task.spawn(async move {
            while let Some(page) = listing.next().await? {
                if sender.send(page).await.is_err() {
                    break;
                }
            }
            Ok(())
        });
        Self::Listed { pages, task }
    }
}
