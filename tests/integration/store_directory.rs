//! What a directory has that S3 has not: permissions, links, crashes that leave files behind, and
//! things that are no objects.

use std::os::unix::fs::{MetadataExt, symlink};
use std::time::Duration;

use walship_core::ErrorKind;
use walship_store::{Body, PutMode};

use crate::store_contract::block_on;
use crate::store_faults::open;
use crate::support::stores::Place;

#[test]
fn a_directory_holds_private_files_and_nothing_else() {
    block_on(async {
        let place = Place::directory();
        let store = open(&place).await;
        let root = place.path().unwrap();
        store
            .put("a/b/c", &Body::from_bytes("x"), PutMode::Create)
            .await
            .unwrap();
        store
            .put("a/b/c", &Body::from_bytes("y"), PutMode::Create)
            .await
            .unwrap_err();
        let mode = |path: &str| root.join(path).metadata().unwrap().mode() & 0o7777;
        // The umask of the tests takes nothing from these, or less than it could.
        assert_eq!(mode("a/b/c") & !0o640, 0);
        assert_eq!(mode("a/b") & !0o750, 0);
        assert_eq!(
            std::fs::read_dir(root.join("a/b")).unwrap().count(),
            1,
            "no temporary file stays"
        );
        store.delete(&["a/b/c".into()]).await.unwrap();
        assert_eq!(
            std::fs::read_dir(root).unwrap().count(),
            0,
            "empty directories go"
        );
    });
}

#[test]
fn a_directory_takes_no_crash_for_an_object_and_cleans_up_later() {
    block_on(async {
        let place = Place::directory();
        let (store, root) = (open(&place).await, place.path().unwrap());
        store
            .put("a/b", &Body::from_bytes("x"), PutMode::Create)
            .await
            .unwrap();
        let (old, young) = (root.join("a/.walship-old"), root.join("a/.walship-young"));
        for left_behind in [&old, &young] {
            std::fs::write(left_behind, "half an obj").unwrap();
        }
        let two_days_ago = std::time::SystemTime::now() - Duration::from_hours(48);
        std::fs::File::open(&old)
            .unwrap()
            .set_modified(two_days_ago)
            .unwrap();
        let page = store.list("", None).next().await.unwrap().unwrap();
        assert_eq!(
            page.iter().map(|info| info.key.as_str()).collect::<Vec<_>>(),
            ["a/b"]
        );
        store.delete(&["a/b".into()]).await.unwrap();
        assert!(!old.exists() && young.exists());
    });
}

#[test]
fn a_directory_is_made_only_by_whoever_creates_an_archive() {
    block_on(async {
        let place = Place::directory();
        let root = place.path().unwrap();
        let at = |path: &str| place.with_url(&format!("file://{}/{path}", root.display()));
        let body = Body::from_bytes("x");

        let too_deep = open(&at("not/there")).await;
        assert_eq!(
            too_deep.create_root().await.unwrap_err().kind(),
            ErrorKind::Invalid
        );
        let store = open(&at("new")).await;
        let refused = store.put("a", &body, PutMode::Create).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Invalid, "{refused}");
        store.create_root().await.unwrap();
        store.create_root().await.unwrap();
        store.put("a", &body, PutMode::Create).await.unwrap();

        let a_file = open(&at("new/a")).await;
        for error in [
            a_file.create_root().await.unwrap_err(),
            a_file.get("x").await.unwrap_err(),
            a_file.put("x", &body, PutMode::Create).await.unwrap_err(),
            a_file.list("", None).next().await.unwrap_err(),
        ] {
            assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
        }
    });
}

#[test]
fn what_is_no_object_is_never_taken_for_absence() {
    block_on(async {
        let place = Place::directory();
        let (store, root) = (open(&place).await, place.path().unwrap());
        let body = Body::from_bytes("x");
        std::fs::create_dir_all(root.join("directory/below")).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            root.join("fifo"),
            rustix::fs::FileType::Fifo,
            0o600.into(),
            0,
        )
        .unwrap();
        symlink("/nowhere/at/all", root.join("dangling")).unwrap();
        for key in ["directory", "fifo", "dangling", "dangling/below"] {
            for error in [
                store.get(key).await.unwrap_err(),
                store.head(key).await.unwrap_err(),
            ] {
                assert_eq!(error.kind(), ErrorKind::Invalid, "{key}: {error}");
            }
        }
        let in_the_way = store.put("directory", &body, PutMode::Create).await.unwrap_err();
        assert_eq!(in_the_way.kind(), ErrorKind::Invalid, "{in_the_way}");
        let in_the_way = store.put("directory", &body, PutMode::Replace).await.unwrap_err();
        assert_eq!(in_the_way.kind(), ErrorKind::Invalid, "{in_the_way}");
        let dangling = store.list("", None).next().await.unwrap_err();
        assert_eq!(dangling.kind(), ErrorKind::Invalid, "{dangling}");

        store.put("file", &body, PutMode::Create).await.unwrap();
        assert_eq!(
            store.get("file/below").await.unwrap_err().kind(),
            ErrorKind::NotFound
        );
        let below = store.put("file/below", &body, PutMode::Create).await.unwrap_err();
        assert_eq!(below.kind(), ErrorKind::Invalid, "{below}");
    });
}

#[test]
fn links_within_a_directory_are_followed_but_not_in_circles() {
    block_on(async {
        let (place, elsewhere) = (Place::directory(), Place::directory());
        let (store, root) = (open(&place).await, place.path().unwrap());
        symlink(elsewhere.path().unwrap(), root.join("wal")).unwrap();
        store
            .put("wal/a", &Body::from_bytes("x"), PutMode::Create)
            .await
            .unwrap();
        assert_eq!(store.read("wal/a", 1).await.unwrap(), "x");
        assert_eq!(
            store.list("", None).next().await.unwrap().unwrap()[0].key,
            "wal/a"
        );
        symlink(".", root.join("circle")).unwrap();
        let circle = store.list("", None).next().await.unwrap_err();
        assert_eq!(circle.kind(), ErrorKind::Invalid, "{circle}");
    });
}

#[test]
fn puts_and_deletions_in_one_directory_do_not_disturb_each_other() {
    block_on(async {
        let place = Place::directory();
        let store = open(&place).await;
        let mut tasks = tokio::task::JoinSet::new();
        for task in 0..8 {
            let store = store.clone();
            tasks.spawn(async move {
                for round in 0..40 {
                    let key = format!("a/b/{task}-{round}");
                    store
                        .put(&key, &Body::from_bytes("x"), PutMode::Create)
                        .await
                        .unwrap();
                    store.delete(&[key]).await.unwrap();
                }
            });
        }
        while let Some(finished) = tasks.join_next().await {
            finished.unwrap();
        }
        assert!(store.list("", None).next().await.unwrap().is_none());
    });
}
