//! One broken connection ends no command: whatever is read, and however small it is, is read on.

use std::path::Path;

use crate::recovery::take_backup;
use crate::server::{archiving_primary, wait_archived};
use crate::support::proxy::{Fault, Proxy};
use crate::support::stores::{TestStore, chosen};
use crate::support::walship::Walship;
use crate::support::{make_dir, scratch};

#[test]
fn a_connection_that_breaks_once_at_each_object_and_listing_ends_no_command() {
    let server = chosen()
        .iter()
        .find(|store| matches!(store, TestStore::Server(_)));
    let Some(server) = server else {
        return;
    };
    let place = server.new_place();
    let proxy = Proxy::start(place.endpoint().unwrap());
    let walship = Walship::at(&place);
    let primary = archiving_primary(17, &walship);
    take_backup(&walship, &primary);
    primary.sql("create table t as select generate_series(1, 1000)");
    let segment = primary.switch_wal();
    wait_archived(&primary, &segment);

    let broken = walship.env("AWS_ENDPOINT_URL", proxy.endpoint());
    let expiring = broken.clone().env("WALSHIP_RETENTION_KEEP_BACKUPS", "1");
    let top = scratch();
    let data = top.path().join("data");
    let recovered = data.to_str().unwrap();
    let delivered = "pg_wal/RECOVERYXLOG";
    let scratch_directory = make_dir(top.path(), "drills", 0o700);
    let drills = scratch_directory.to_str().unwrap();
    let conninfo = primary.conninfo();
    let in_place = broken.clone().in_dir(primary.data_dir());
    for (walship, args) in [
        (&broken, vec!["list"]),
        (&broken, vec!["list", "wal"]),
        (&broken, vec!["verify"]),
        (&broken, vec!["verify", "--full"]),
        (&expiring, vec!["expire"]),
        (&broken, vec!["basebackup", "-d", &conninfo]),
        (&broken, vec!["recover", "--pgdata", recovered]),
        (&broken, vec!["drill", "--directory", drills]),
        (&in_place, vec!["restore", &segment, delivered]),
    ] {
        for fault in [Fault::CutBody, Fault::Refuse] {
            proxy.forget();
            proxy.first_of_each("GET", fault);
            walship.run(&args).succeeded();
            assert!(proxy.count("GET") > 1, "{args:?}");
            for made in [data.as_path(), &primary.data_dir().join(delivered)] {
                remove(made);
            }
        }
    }
}

fn remove(path: &Path) {
    let _ = std::fs::remove_dir_all(path);
    let _ = std::fs::remove_file(path);
}
