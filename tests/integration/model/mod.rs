//! Random lives of a cluster against a plain model of which history is production's.
//!
//! Several servers share one archive: production, standbys that are promoted, former primaries that go on, rehearsals,
//! a forgotten one that archives, a server that is set back to a snapshot, an archive that is not mounted. After each
//! step the model says what must be so: what was acknowledged is stored, what is listed can be restored, no copy's WAL
//! is chosen unasked, and no file outside a copy changes.
//!
//! `WALSHIP_MODEL_SEEDS=1,2,3` runs these lives, `WALSHIP_MODEL_SEEDS=100-200` a range of them;
//! `WALSHIP_MODEL_STEPS=write,back-up,follow` beside it makes them of these steps only.

mod steps;
mod world;

use walship_core::pg::Major;

use world::World;

/// Lives that, between them, come to every kind of step, and the steps they are made of (all where there are none). For
/// each of the guards one of them was seen to fail without it.
const LIVES: [(u64, &str); 5] = [
    (1, ""),
    (2, ""),
    (464, ""),
    (1, "write,back-up,back-up-rehearsal"),
    (3, "write,back-up,follow,forget-rehearsal"),
];
/// Steps of a life.
const STEPS: usize = 14;

fn lives() -> Vec<(u64, String)> {
    let Ok(chosen) = std::env::var("WALSHIP_MODEL_SEEDS") else {
        return LIVES.map(|(seed, steps)| (seed, steps.to_owned())).to_vec();
    };
    let steps = std::env::var("WALSHIP_MODEL_STEPS").unwrap_or_default();
    let number = |text: &str| text.trim().parse::<u64>().expect("a seed is a number");
    let ranges = chosen.split(',').map(|part| match part.split_once('-') {
        Some((first, last)) => number(first)..=number(last),
        None => number(part)..=number(part),
    });
    ranges.flatten().map(|seed| (seed, steps.clone())).collect()
}

// Seen to fail: the remembered archive is not compared; `basebackup/mod.rs`: another history is refused neither before
// nor after; `cluster/recovery.rs`: no `--new-tablespaces`, no `refuse_shared`; `cluster/archiving.rs`: `Auto` is never
// off; `basebackup/allegiance.rs`: no `known_timeline`, and the clone's mark is ignored; `judge/forks.rs`: no fork
// counts as passed; `branches/judgement.rs`: of two living timelines the newest is taken
#[test]
fn nothing_acknowledged_or_listed_is_untrue_and_no_copy_reaches_its_source() {
    for (seed, chosen) in lives() {
        let major = if seed % 4 == 0 { Major::V14 } else { Major::V18 };
        let mut world = World::new(seed, major);
        for _ in 0..STEPS {
            steps::one(&mut world, &chosen);
            world.check_acknowledged();
        }
        steps::end(&mut world);
        crate::support::announce(&format!("life {seed}: {}", world.told()));
    }
}
