//! Which promotions are refused.

use super::*;

fn position(segment: u64, offset: u64) -> StandbyPosition {
    StandbyPosition {
        in_recovery: true,
        cluster: cluster(),
        timeline: tli(1),
        lsn: at(segment, offset),
    }
}

fn beyond(position: &StandbyPosition, held: &[u64], children: &[(u32, Lsn)]) -> Unreplayed {
    let mut wal = WalInventory::new(SIZE);
    for number in held {
        wal.add(&Key::Segment(segment(1, *number)).to_string(), 1);
    }
    let history = |(timeline, fork): &(u32, Lsn)| {
        let text = format!("1\t{fork}\treason\n");
        let history = TimelineHistory::parse(tli(*timeline), text.as_bytes()).unwrap();
        (tli(*timeline), history)
    };
    unreplayed(position, &wal, &children.iter().map(history).collect()).unwrap()
}

#[test]
fn only_wal_that_a_standby_has_not_replayed_prevents_its_promotion() {
    let mid = position(5, 4096);
    assert_eq!(beyond(&mid, &[], &[]), Unreplayed::Nothing);
    assert_eq!(beyond(&mid, &[3, 4], &[]), Unreplayed::Nothing);
    assert_eq!(beyond(&mid, &[4, 5], &[]), Unreplayed::LookInto(segment(1, 5)));
    assert_eq!(beyond(&mid, &[5, 6, 7], &[]), Unreplayed::Until(segment(1, 7)));
    let (missing, later) = (segment(1, 5), segment(1, 7));
    assert_eq!(
        beyond(&mid, &[4, 7], &[]),
        Unreplayed::AfterGap { missing, later }
    );
    // At a segment's start all of it is still to be replayed.
    assert_eq!(
        beyond(&position(5, 0), &[5], &[]),
        Unreplayed::Until(segment(1, 5))
    );
}

#[test]
fn a_timeline_that_went_on_from_here_prevents_it_and_one_that_left_before_does_not() {
    let fork = at(5, 8192);
    let timeline = tli(2);
    assert_eq!(
        beyond(&position(5, 4096), &[], &[(2, fork)]),
        Unreplayed::Child { timeline, fork }
    );
    assert_eq!(
        beyond(&position(5, 8192), &[], &[(2, fork)]),
        Unreplayed::Child { timeline, fork }
    );
    assert_eq!(beyond(&position(5, 8200), &[], &[(2, fork)]), Unreplayed::Nothing);
}

#[test]
fn a_promotion_is_refused_unless_everything_is_known_and_replayed() {
    let judged = |standby, unreplayed| judge_promotion(&PromotionFacts { standby, unreplayed });
    let refused = |findings: &[Finding]| findings.iter().any(|finding| finding.level == Level::Problem);
    assert!(!refused(&judged(Ok(position(5, 1)), Ok(Unreplayed::Nothing))));
    let primary = StandbyPosition {
        in_recovery: false,
        ..position(5, 1)
    };
    let (missing, later) = (segment(1, 5), segment(1, 7));
    let cases = [
        (Err("no server".to_owned()), Ok(Unreplayed::Nothing)),
        (Ok(primary), Ok(Unreplayed::Nothing)),
        (Ok(position(5, 1)), Err("outage".to_owned())),
        (Ok(position(5, 1)), Ok(Unreplayed::LookInto(missing))),
        (Ok(position(5, 1)), Ok(Unreplayed::Until(later))),
        (Ok(position(5, 1)), Ok(Unreplayed::AfterGap { missing, later })),
        (
            Ok(position(5, 1)),
            Ok(Unreplayed::Child {
                timeline: tli(2),
                fork: at(6, 0),
            }),
        ),
    ];
    for (standby, unreplayed) in cases {
        let findings = judged(standby.clone(), unreplayed.clone());
        assert!(refused(&findings), "{standby:?} {unreplayed:?}");
        for finding in findings.iter().filter(|finding| finding.level == Level::Problem) {
            assert!(finding.fix.is_some(), "{finding:?}");
        }
    }
}
