//! Writes WAL as PostgreSQL does, record by record, and keeps what a reader must find in it.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::missing_panics_doc,
    clippy::must_use_candidate
)] // only tests use it

use crate::pg::wal_records::{WalEvent, WalEventKind, WalTransaction};
use crate::pg::{Lsn, Major, TransactionId, WalTime};

pub const SEGMENT: u64 = 1 << 20;
pub(crate) const PAGE: u64 = 8192;
pub const START: u64 = 5 * SEGMENT;

const COMMIT: u8 = 0x00;
const ABORT: u8 = 0x20;
const COMMIT_PREPARED: u8 = 0x30;
const ABORT_PREPARED: u8 = 0x40;
const HAS_INFO: u8 = 0x80;

/// A record to be written.
#[derive(Debug, Clone)]
pub enum Spec {
    /// A record that tells nothing: resource manager, info, length of the body.
    Other(u8, u8, usize),
    Commit(u32, i64),
    Abort(u32, i64),
    /// The lengths of the lists before the id: subtransactions, relations, statistics, messages.
    CommitPrepared(u32, i64, [u32; 4]),
    AbortPrepared(u32, i64, [u32; 4]),
    RestorePoint(String, i64),
    Switch,
}

/// WAL from [`START`] on.
pub struct Writer {
    major: Major,
    pub bytes: Vec<u8>,
    pub(crate) events: Vec<WalEvent>,
    previous: u64,
}

impl Writer {
    #[must_use]
    pub fn new(major: Major) -> Self {
        Self {
            major,
            bytes: Vec::new(),
            events: Vec::new(),
            previous: START - 0x100,
        }
    }

    #[must_use]
    pub fn major(&self) -> Major {
        self.major
    }

    #[must_use]
    pub fn of(major: Major, specs: &[Spec]) -> Self {
        let mut wal = Self::new(major);
        for spec in specs {
            wal.write(spec);
        }
        wal
    }

    /// Fills the WAL up to this many bytes before the segment's end: a multiple of 8, less than 6000.
    pub fn fill_to(&mut self, before_end: u64) {
        let end = (self.position() + 1).next_multiple_of(SEGMENT);
        while self.position() <= end - PAGE {
            self.write(&Spec::Other(10, 0, 976));
        }
        let room = (end - before_end).saturating_sub(self.position());
        if room >= 24 {
            self.write(&Spec::Other(10, 0, room as usize - 24));
        }
    }

    pub(crate) fn position(&self) -> u64 {
        START + self.bytes.len() as u64
    }

    pub fn write(&mut self, spec: &Spec) {
        let (manager, info, id, body) = self.encode(spec);
        let start = self.write_record(manager, info, id, &body);
        if matches!(spec, Spec::Switch) {
            self.bytes
                .resize(self.bytes.len().next_multiple_of(SEGMENT as usize), 0);
        }
        if let Some(kind) = told(spec) {
            self.events.push(WalEvent {
                start: Lsn(start),
                end: Lsn(self.position()),
                kind,
            });
        }
    }

    /// Writes a record and the padding after it; returns where it starts.
    pub fn write_record(&mut self, manager: u8, info: u8, id: u32, body: &[u8]) -> u64 {
        let record = self.record(manager, info, id, body);
        let start = self.lay_down(&record, record.len(), 0);
        self.bytes.resize(self.bytes.len().next_multiple_of(8), 0);
        self.previous = start;
        start
    }

    /// Writes the pages that a record of this size fills, but not its end, as a crash leaves it, and
    /// begins the next page over.
    pub fn write_unfinished(&mut self, body: usize) {
        let record = self.record(10, 0, 0, &vec![7; body]);
        let room = (PAGE - self.position() % PAGE) as usize;
        assert!(
            room < PAGE as usize && record.len() > room + 16,
            "it has to reach the next page"
        );
        self.lay_down(&record[..room], record.len(), 0);
        self.begin_page(0x0008, 0);
    }

    fn record(&self, manager: u8, info: u8, id: u32, body: &[u8]) -> Vec<u8> {
        let mut record = Vec::new();
        record.extend((24 + body.len() as u32).to_le_bytes());
        record.extend(id.to_le_bytes());
        record.extend(self.previous.to_le_bytes());
        record.extend([info, manager, 0, 0]);
        let crc = crc32c::crc32c_append(crc32c::crc32c(body), &record);
        record.extend(crc.to_le_bytes());
        record.extend(body);
        record
    }

    /// Writes a record's bytes, with the headers of the pages it begins; returns where it starts.
    fn lay_down(&mut self, record: &[u8], total: usize, flags: u16) -> u64 {
        let mut start = None;
        let mut done = 0;
        while done < record.len() {
            if self.position().is_multiple_of(PAGE) {
                let continues = u16::from(done > 0);
                let rest = if done > 0 { total - done } else { 0 };
                self.begin_page(flags | continues, rest as u32);
            }
            start.get_or_insert(self.position());
            let room = (PAGE - self.position() % PAGE) as usize;
            let length = room.min(record.len() - done);
            self.bytes.extend(&record[done..done + length]);
            done += length;
        }
        start.unwrap()
    }

    fn begin_page(&mut self, flags: u16, remaining: u32) {
        let address = self.position();
        let long = address.is_multiple_of(SEGMENT);
        self.bytes.extend(self.major.wal_magic().unwrap().to_le_bytes());
        self.bytes
            .extend((flags | if long { 0x0002 } else { 0 }).to_le_bytes());
        self.bytes.extend(1_u32.to_le_bytes());
        self.bytes.extend(address.to_le_bytes());
        self.bytes.extend(u64::from(remaining).to_le_bytes());
        if long {
            self.bytes.extend(7_711_352_554_232_050_139_u64.to_le_bytes());
            self.bytes.extend((SEGMENT as u32).to_le_bytes());
            self.bytes.extend((PAGE as u32).to_le_bytes());
        }
    }

    fn encode(&self, spec: &Spec) -> (u8, u8, u32, Vec<u8>) {
        let plain = |time: &i64| main_data(&time.to_le_bytes());
        match spec {
            Spec::Other(manager, info, length) => (*manager, *info, 9, vec![0xAB; *length]),
            Spec::Commit(id, time) => (1, COMMIT, *id, plain(time)),
            Spec::Abort(id, time) => (1, ABORT, *id, plain(time)),
            Spec::CommitPrepared(id, time, lists) => (
                1,
                COMMIT_PREPARED | HAS_INFO,
                0,
                self.prepared(*id, *time, *lists, true),
            ),
            Spec::AbortPrepared(id, time, lists) => (
                1,
                ABORT_PREPARED | HAS_INFO,
                0,
                self.prepared(*id, *time, *lists, false),
            ),
            Spec::RestorePoint(name, time) => {
                let mut data = time.to_le_bytes().to_vec();
                data.extend(name.as_bytes());
                data.resize(72, 0);
                (0, 0x70, 0, main_data(&data))
            }
            Spec::Switch => (0, 0x40, 0, Vec::new()),
        }
    }

    /// The end of a prepared transaction, with a replication origin in front of the main data.
    fn prepared(&self, id: u32, time: i64, lists: [u32; 4], commit: bool) -> Vec<u8> {
        let [subtransactions, relations, stats, messages] = lists;
        let stats_bytes = if self.major == Major::V18 { 16 } else { 12 };
        let stats = if self.major == Major::V14 { 0 } else { stats };
        let messages = if commit { messages } else { 0 };
        let lists = [
            (1_u32 << 1, subtransactions, 4),
            (1 << 2, relations, 12),
            (1 << 8, stats, stats_bytes),
            (1 << 3, messages, 16),
        ];
        // Database, two-phase and, after everything that is read, a global id.
        let mut flags = 1_u32 | 1 << 4 | 1 << 7;
        let mut rest = vec![0xEE; 8];
        for (flag, count, size) in lists {
            if count > 0 {
                flags |= flag;
                rest.extend(count.to_le_bytes());
                rest.resize(rest.len() + (count * size) as usize, 0xEE);
            }
        }
        rest.extend(id.to_le_bytes());
        rest.extend(b"gid\0");
        let mut data = time.to_le_bytes().to_vec();
        data.extend(flags.to_le_bytes());
        data.extend(rest);
        let mut body = vec![253, 1, 0];
        body.extend(main_data(&data));
        body
    }
}

fn told(spec: &Spec) -> Option<WalEventKind> {
    let ended = |id: &u32, time: &i64| WalTransaction {
        id: TransactionId(*id),
        time: WalTime(*time),
    };
    Some(match spec {
        Spec::Commit(id, time) => WalEventKind::Commit(ended(id, time)),
        Spec::Abort(id, time) => WalEventKind::Abort(ended(id, time)),
        Spec::CommitPrepared(id, time, _) => WalEventKind::CommitPrepared(ended(id, time)),
        Spec::AbortPrepared(id, time, _) => WalEventKind::AbortPrepared(ended(id, time)),
        Spec::RestorePoint(name, time) => WalEventKind::RestorePoint {
            name: name.clone(),
            time: WalTime(*time),
        },
        Spec::Other(..) | Spec::Switch => return None,
    })
}

/// Main data with the header in front of it.
#[must_use]
pub fn main_data(data: &[u8]) -> Vec<u8> {
    let mut body = match u8::try_from(data.len()) {
        Ok(short) => vec![255, short],
        Err(_) => [&[254], (data.len() as u32).to_le_bytes().as_slice()].concat(),
    };
    body.extend(data);
    body
}
