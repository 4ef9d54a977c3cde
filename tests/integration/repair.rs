//! `walship repair`: what it replaces, what it refuses to, and what is left of the damaged bytes.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;
use walship::inside::repair::{self, RepairOptions};
use walship_core::ErrorKind;
use walship_core::format::Sha256Sum;
use walship_core::format::keys::Key;
use walship_core::pg::WalName;
use walship_store::{Body, FaultKind, Faults, Operation, PutMode, Store};

use crate::sample::{DataDirectory, SEGMENT, Sample};
use crate::store_contract::block_on;
use crate::support::stores::{Place, chosen};
use crate::verify::store_of;
use crate::verify_many::object;

struct Damaged {
    data: DataDirectory,
    place: Place,
    store: Store,
    name: String,
    key: String,
    whole: Vec<u8>,
}

impl Damaged {
    /// An archive with two segments; nothing is damaged yet.
    fn at(place: Place) -> Self {
        let data = Sample::shared().copy();
        let name = Sample::shared().segments[0].clone();
        for segment in &Sample::shared().segments[..2] {
            data.walship(&place)
                .run(&["push", &format!("pg_wal/{segment}")])
                .succeeded();
        }
        let WalName::Segment(segment) = name.parse().unwrap() else {
            unreachable!()
        };
        let key = Key::Segment(segment).to_string();
        let store = store_of(&place);
        let whole = block_on(store.read(&key, 1 << 30)).unwrap().to_vec();
        Self {
            data,
            place,
            store,
            name,
            key,
            whole,
        }
    }

    fn new() -> Self {
        Self::at(Place::directory())
    }

    fn store(&self, bytes: &[u8]) {
        let body = Body::from_bytes(bytes.to_vec());
        block_on(self.store.put(&self.key, &body, PutMode::Replace)).unwrap();
        if let Some(root) = self.place.path() {
            crate::support::give_to_user(&root.join(&self.key));
        }
    }

    fn stored(&self) -> Vec<u8> {
        block_on(self.store.read(&self.key, 1 << 30)).unwrap().to_vec()
    }

    fn flipped(&self) -> Vec<u8> {
        let mut bytes = self.whole.clone();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        bytes
    }

    fn local(&self) -> PathBuf {
        self.data.segment(&self.name)
    }

    #[track_caller]
    fn refused(&self, code: i32, words: &str) {
        let before = self.stored();
        let output = self
            .data
            .walship(&self.place)
            .run(&["repair", &self.name, "--pgdata", "."]);
        let output = output.exited(code);
        assert!(
            output.stderr.contains(words) && output.stderr.lines().count() == 1,
            "{output:#?}"
        );
        assert_eq!(self.stored(), before, "nothing was changed");
        assert!(self.kept().is_empty(), "{:?}", self.kept());
    }

    fn kept(&self) -> Vec<String> {
        block_on(async {
            let page = self.store.list("damaged/", None).next().await.unwrap();
            page.unwrap_or_default()
                .into_iter()
                .map(|info| info.key)
                .collect()
        })
    }
}

#[test]
fn a_damaged_segment_is_replaced_and_its_bytes_are_kept_on_every_store() {
    for store in chosen() {
        let case = Damaged::at(store.new_place());
        let walship = case.data.walship(&case.place);
        let truncated = case.whole[..case.whole.len() / 2].to_vec();
        for damage in [case.flipped(), truncated, b"not zstd".to_vec()] {
            case.store(&damage);
            // The archiver says what to do.
            let refused = walship.run(&["push", &format!("pg_wal/{}", case.name)]).exited(1);
            assert!(
                refused.stderr.contains(&format!("walship repair {}", case.name)),
                "{refused:#?}"
            );
            let output = walship
                .run(&["repair", &case.name, "--pgdata", ".", "--json"])
                .succeeded();
            let report: Value = serde_json::from_str(&output.stdout).unwrap();
            assert_eq!(report["replaced"], true, "{}: {report}", store.name());
            let sum = Sha256Sum::of(&damage).to_string();
            let kept = format!("damaged/{}.{}", case.key, &sum[..16]);
            assert_eq!(report["kept_as"], kept.as_str());
            assert_eq!(block_on(case.store.read(&kept, 1 << 30)).unwrap(), damage);
            assert_eq!(case.stored(), case.whole);
        }
        assert_eq!(case.kept().len(), 3);
        let again = walship.run(&["repair", &case.name, "--pgdata", "."]).succeeded();
        assert!(again.stdout.contains("nothing was changed"), "{again:#?}");
        walship
            .run(&["push", &format!("pg_wal/{}", case.name)])
            .succeeded();
        walship.run(&["verify"]).succeeded();
    }
}

// Seen to fail: `verbs/repair.rs`: a good object is replaced
#[test]
fn a_good_object_is_never_replaced() {
    let case = Damaged::new();
    let mut other = fs::read(case.local()).unwrap();
    other[SEGMENT - 1] ^= 1;
    fs::write(case.local(), other).unwrap();
    case.refused(4, "is good");
}

// Seen to fail: `verbs/repair.rs`: the trailer does not count
#[test]
fn what_the_damaged_objects_trailer_says_is_another_history() {
    let case = Damaged::new();
    case.store(&case.flipped());
    let mut other = fs::read(case.local()).unwrap();
    other[SEGMENT - 1] ^= 1;
    fs::write(case.local(), other).unwrap();
    case.refused(4, "different history");
}

/// The first byte between two records, of which no checksum tells.
fn padding_in(segment: &[u8]) -> usize {
    const PAGE: usize = 8192;
    const HEADER: usize = 24;
    let number = |at: usize| u32::from_le_bytes(segment[at..at + 4].try_into().unwrap()) as usize;
    for page in (PAGE..SEGMENT).step_by(PAGE) {
        // After the rest of a record from the page before.
        let mut record = page + HEADER + number(page + 16).next_multiple_of(8);
        while record + HEADER < page + PAGE {
            let end = record + number(record);
            if end == record || end > page + PAGE {
                break;
            }
            if !end.is_multiple_of(8) {
                return end;
            }
            record = end;
        }
    }
    panic!("every record fills its place");
}

// Seen to fail: `verbs/repair.rs`: `refuse_other_beginning` accepts all
#[test]
fn what_is_left_of_a_damaged_object_tells_of_another_history() {
    let case = Damaged::new();
    let good = fs::read(case.local()).unwrap();
    let mut other = good.clone();
    let row = padding_in(&other);
    other[row] ^= 1;
    for left in [case.whole.len() - 20, case.whole.len() * 9 / 10] {
        case.store(&case.whole[..left]);
        fs::write(case.local(), &other).unwrap();
        case.refused(4, &format!("from byte {row} on"));
        fs::write(case.local(), &good).unwrap();
        let repair = ["repair", &case.name, "--pgdata", "."];
        case.data.walship(&case.place).run(&repair).succeeded();
        assert_eq!(case.stored(), case.whole);
        let kept = case.kept();
        block_on(case.store.delete(&kept)).unwrap();
    }
}

// Seen to fail: `verbs/repair.rs`: no `refuse_incomplete`
#[test]
fn a_local_copy_that_ends_early_is_refused_and_the_right_one_is_not_after_it() {
    let case = Damaged::new();
    let damaged = case.whole[..case.whole.len() / 2].to_vec();
    case.store(&damaged);
    let good = fs::read(case.local()).unwrap();
    let older = fs::read(case.data.segment(&Sample::shared().segments[1])).unwrap();
    let half_written = 8 * 8192;
    // As a standby that lags has it: in a new file, and in one that held another segment.
    for rest in [&vec![0; SEGMENT], &older] {
        let copy = [&good[..half_written], &rest[half_written..]].concat();
        fs::write(case.local(), copy).unwrap();
        case.refused(2, "not complete");
    }
    fs::write(case.local(), &good).unwrap();
    let repair = ["repair", &case.name, "--pgdata", "."];
    case.data.walship(&case.place).run(&repair).succeeded();
    assert_eq!(case.stored(), case.whole);
}

// Seen to fail: `verbs/repair.rs`: the content does not count
#[test]
fn a_trailer_that_is_itself_damaged_is_no_other_history() {
    let case = Damaged::new();
    let mut bytes = case.whole.clone();
    let digits = b"\"content_xxh3\":\"";
    let at = bytes
        .windows(digits.len())
        .rposition(|window| window == digits)
        .unwrap()
        + digits.len();
    bytes[at] = if bytes[at] == b'0' { b'1' } else { b'0' };
    case.store(&bytes);
    case.data
        .walship(&case.place)
        .run(&["repair", &case.name, "--pgdata", "."])
        .succeeded();
    assert_eq!(case.stored(), case.whole);
}

#[test]
fn another_segment_in_its_place_is_replaced() {
    let case = Damaged::new();
    let WalName::Segment(second) = Sample::shared().segments[1].parse().unwrap() else {
        unreachable!()
    };
    let other = block_on(case.store.read(&Key::Segment(second).to_string(), 1 << 30)).unwrap();
    case.store(&other);
    let local = case.local();
    let arguments = ["repair", &case.name, "--from", local.to_str().unwrap()];
    let output = case.data.walship(&case.place).run(&arguments).succeeded();
    assert!(output.stdout.contains("holds"), "{output:#?}");
    assert_eq!(case.stored(), case.whole);
    assert_eq!(case.kept().len(), 1);
}

#[test]
fn a_local_copy_that_does_not_belong_is_refused() {
    let case = Damaged::new();
    case.store(&case.flipped());
    let foreign = Sample::other().copy();
    let from = foreign.segment(&Sample::other().segments[0]);
    let mut local = fs::read(case.local()).unwrap();
    let walship = case.data.walship(&case.place);
    let run = |from: &std::path::Path| {
        walship
            .run(&["repair", &case.name, "--from", from.to_str().unwrap()])
            .exited(2)
    };
    run(&from);
    let outside = case.data.path().join("copy");
    fs::write(&outside, fs::read(&from).unwrap()).unwrap();
    crate::support::give_to_user(&outside);
    run(&outside);
    local.truncate(SEGMENT / 2);
    fs::write(&outside, &local).unwrap();
    run(&outside);
    assert_eq!(case.stored(), case.flipped());
    assert!(case.kept().is_empty());
}

#[test]
fn what_is_missing_is_pushed_and_not_repaired() {
    let case = Damaged::new();
    block_on(case.store.delete(std::slice::from_ref(&case.key))).unwrap();
    let output = case
        .data
        .walship(&case.place)
        .run(&["repair", &case.name, "--pgdata", "."])
        .exited(3);
    assert!(output.stderr.contains("walship push"), "{output:#?}");
    let output = case
        .data
        .walship(&case.place)
        .run(&["repair", &case.name])
        .exited(2);
    assert!(output.stderr.contains("--from"), "{output:#?}");
    case.data
        .walship(&case.place)
        .run(&["repair", "../etc/passwd", "--pgdata", "."])
        .exited(2);
}

/// A fault at the put that replaces the object, and not at the one that keeps its bytes.
fn at_the_replacement(kind: FaultKind) -> Faults {
    let faults = Faults::default();
    faults.add(Operation::Put, "damaged/", FaultKind::Delay(Duration::ZERO));
    faults.add(Operation::Put, "wal/", kind);
    faults
}

fn repair_with(case: &Damaged, faults: Faults) -> walship_core::Result<repair::RepairReport> {
    let options = RepairOptions {
        name: case.name.parse().unwrap(),
        from: case.local(),
        compression_level: 1,
        memory_bytes: 8 << 20,
    };
    block_on(repair::run(&options, &case.store.with_faults(faults)))
}

// Seen to fail: `verbs/repair.rs`: the first look counts
#[test]
fn bytes_that_change_on_their_way_are_neither_judged_nor_kept() {
    let case = Damaged::new();
    let on_the_way = || {
        let faults = Faults::default();
        faults.add(Operation::Get, &case.name, FaultKind::Corrupt);
        faults
    };
    case.store(&case.flipped());
    let repaired = repair_with(&case, on_the_way()).unwrap();
    assert!(repaired.replaced);
    let kept = block_on(case.store.read(&repaired.kept_as.unwrap(), 1 << 30)).unwrap();
    assert!(kept == case.flipped(), "what is kept is not what was stored");
    let again = repair_with(&case, on_the_way()).unwrap();
    assert!(!again.replaced, "{again:?}");
}

// Seen to fail: `verbs/repair.rs`: any version is replaced
#[test]
fn an_object_that_changes_meanwhile_is_not_replaced() {
    let case = Damaged::new();
    case.store(&case.flipped());
    let faults = at_the_replacement(FaultKind::Delay(Duration::from_millis(800)));
    let WalName::Segment(segment) = case.name.parse().unwrap() else {
        unreachable!()
    };
    let theirs = object(segment, 1, 1);
    let error = std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(400));
            case.store(&theirs);
        });
        repair_with(&case, faults).unwrap_err()
    });
    assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
    assert_eq!(case.stored(), theirs);
}

// Seen to fail: `verbs/repair.rs`: no `keep`
#[test]
fn an_ambiguous_replacement_is_resolved_by_looking_or_by_repairing_again() {
    let case = Damaged::new();
    case.store(&case.flipped());
    // The damaged bytes come first: without them nothing is replaced.
    let faults = Faults::default();
    faults.add(
        Operation::Put,
        "damaged/",
        FaultKind::Before(ErrorKind::Unavailable),
    );
    assert_eq!(
        repair_with(&case, faults).unwrap_err().kind(),
        ErrorKind::Unavailable
    );
    assert_eq!(case.stored(), case.flipped());
    let faults = at_the_replacement(FaultKind::After);
    assert_eq!(
        repair_with(&case, faults).unwrap_err().kind(),
        ErrorKind::Unavailable
    );
    let report = repair_with(&case, Faults::default()).unwrap();
    assert!(!report.replaced, "{report}");
    assert_eq!(case.stored(), case.whole);
    assert_eq!(case.kept().len(), 1);
}
