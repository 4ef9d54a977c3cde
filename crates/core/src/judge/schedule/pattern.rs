//! A cron expression.

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, NaiveDate, TimeZone, Utc};
use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};

/// When a job is run: five fields (minute, hour, day of the month, month, day of the week), or six with seconds in front.
#[derive(Debug, Clone, PartialEq)]
pub struct Pattern {
    text: String,
    cron: Cron,
}

impl FromStr for Pattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let parser = CronParser::builder()
            .seconds(Seconds::Optional)
            .year(Year::Disallowed)
            .build();
        let wrong = |why: &str| {
            format!(
                "{why}; write minute, hour, day of the month, month and day of the week, such as \"30 2 * * *\" for 02:30 each day"
            )
        };
        let cron = parser
            .parse(text)
            .map_err(|error| wrong(error.to_string().trim_end_matches('.')))?;
        let pattern = Self {
            text: text.to_owned(),
            cron,
        };
        let any_day = NaiveDate::from_ymd_opt(2024, 1, 1).and_then(|day| day.and_hms_opt(0, 0, 0));
        match any_day.and_then(|day| pattern.after(day.and_utc(), &Utc)) {
            Some(_) => Ok(pattern),
            None => Err(wrong("there is no such moment")),
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}

impl Pattern {
    /// The first slot after a moment, by the clocks of this zone. Where clocks are put forward over a slot, it is when
    /// they were; where they are put back over one, it is the first time.
    #[must_use]
    pub fn after<Tz: TimeZone>(&self, moment: DateTime<Utc>, zone: &Tz) -> Option<DateTime<Utc>> {
        let found = self.cron.find_next_occurrence(&moment.with_timezone(zone), false);
        found.ok().map(|found| found.with_timezone(&Utc))
    }

    /// The last slot that is not after a moment.
    #[must_use]
    pub fn last_until<Tz: TimeZone>(&self, moment: DateTime<Utc>, zone: &Tz) -> Option<DateTime<Utc>> {
        let found = self
            .cron
            .find_previous_occurrence(&moment.with_timezone(zone), true);
        found.ok().map(|found| found.with_timezone(&Utc))
    }
}
