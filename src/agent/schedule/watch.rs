//! What leads to a base backup that no slot asks for: a gap in the archived WAL, and a promotion.
//!
//! What can race: the archive is listed while WAL arrives, so that a listing may lack a segment before one that it has.
//! A gap counts when it is seen twice.

use std::convert::Infallible;
use std::time::Duration;

use super::{GRACE, LIST_TIMEOUT, Schedule};
use crate::archive::{Archive, catalogue, wal_changes};
use crate::config::OnEvent;
use crate::error::{Error, Result};
use crate::judge::catalogue::Catalogue;
use crate::judge::diagnosis::gap_after_newest_backup;
use crate::judge::schedule::{Job, Why};
use crate::pg::TimelineId;
use crate::server::data_directory::read_control_file;

/// How often it looks.
const WATCH: Duration = Duration::from_mins(5);
/// A gap is looked at again after this time.
const SECOND_LOOK: Duration = Duration::from_secs(5);

impl Schedule {
    pub(super) async fn watch(&self) -> Infallible {
        if !self.takes_extra() {
            return std::future::pending().await;
        }
        loop {
            if let Err(error) = self.look().await {
                tracing::warn!("whether a base backup is needed is not known: {error}");
            }
            tokio::time::sleep(WATCH).await;
        }
    }

    async fn look(&self) -> Result<()> {
        if self.is_on_standby() || self.lock().running.contains(&Job::Basebackup) {
            return Ok(());
        }
        let Some(catalogue) = self.list().await? else {
            return Ok(());
        };
        let schedule = &self.options.settings.schedule;
        if schedule.on_new_timeline == OnEvent::Basebackup
            && let Some(timeline) = self.new_timeline(&catalogue)?
        {
            let because = format!("there is no backup of the server's new timeline {timeline}");
            self.want_extra(Why::NewTimeline, &because);
            return Ok(());
        }
        if schedule.on_gap != OnEvent::Basebackup || gap_after_newest_backup(&catalogue).is_none() {
            return Ok(());
        }
        tokio::time::sleep(SECOND_LOOK).await;
        if let Some(catalogue) = self.list().await?
            && let Some(gap) = gap_after_newest_backup(&catalogue)
        {
            self.want_extra(Why::Gap, &gap);
        }
        Ok(())
    }

    /// What the archive holds; `None` where there is none yet.
    async fn list(&self) -> Result<Option<Catalogue>> {
        let listing = async {
            let Some(archive) = Archive::find_at(&self.store.reopened()).await? else {
                return Ok(None);
            };
            let mut catalogue = catalogue::load(&archive).await?;
            wal_changes::note_barriers(&archive, &mut catalogue, wal_changes::LOOKED_AT).await?;
            Ok(Some(catalogue))
        };
        let limit = LIST_TIMEOUT + GRACE;
        tokio::time::timeout(limit, listing).await.unwrap_or_else(|_| {
            let seconds = limit.as_secs();
            Err(Error::unavailable(format!(
                "the archive was not listed within {seconds} s"
            )))
        })
    }

    /// The server's timeline, if it began with a promotion and no backup is of it.
    fn new_timeline(&self, catalogue: &Catalogue) -> Result<Option<TimelineId>> {
        let Some(control_file) = read_control_file(&self.options.data_directory)? else {
            return Ok(None);
        };
        let timeline = control_file.timeline;
        let is_first = timeline == TimelineId::FIRST;
        let is_known = catalogue
            .backups
            .iter()
            .any(|backup| backup.stop_timeline == timeline);
        Ok((!is_first && !is_known).then_some(timeline))
    }
}
