//! The socket file: its mode, which daemon owns its path, and what is left of it.

use super::Folder;
use bitnetd::config::Socket;
use bitnetd::transport::unix::{self, BindError};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("it is there").permissions().mode() & 0o777
}

#[test]
fn the_socket_has_the_configured_mode_and_is_gone_at_the_end() {
    let folder = Folder::new();
    for bits in [0o660, 0o600, 0o666] {
        let settings = Socket { mode: bits, ..folder.socket() };
        let (listener, address) = unix::bind(&settings).expect("a free path");
        assert_eq!(mode(&settings.path), bits);
        drop((listener, address));
        assert_eq!(fs::read_dir(folder.0.path()).expect("it is there").count(), 0);
    }
}

#[test]
fn a_stale_socket_file_is_replaced() {
    let folder = Folder::new();
    let settings = folder.socket();
    drop(std::os::unix::net::UnixListener::bind(&settings.path).expect("a free path"));
    // Left behind by a daemon that was killed, as its lock file is.
    fs::write(folder.0.path().join("s.lock"), "").expect("a free path");
    let bound = unix::bind(&settings).expect("stale");
    std::os::unix::net::UnixStream::connect(&settings.path).expect("ours now");
    drop(bound);
}

#[test]
fn a_live_socket_is_refused_and_left_alone() {
    let folder = Folder::new();
    let settings = folder.socket();
    let foreign = std::os::unix::net::UnixListener::bind(&settings.path).expect("a free path");
    assert!(matches!(unix::bind(&settings), Err(BindError::Taken(_))));
    drop(foreign);
    let ours = unix::bind(&settings).expect("stale by now");
    let error = unix::bind(&settings).expect_err("taken").to_string();
    assert!(error.contains(settings.path.to_str().expect("UTF-8")), "{error}");
    assert!(error.contains("listening"), "{error}");
    std::os::unix::net::UnixStream::connect(&settings.path).expect("still there");
    drop(ours);
}

#[test]
fn of_daemons_that_start_at_once_one_wins() {
    let folder = Folder::new();
    let settings = folder.socket();
    for _ in 0..50 {
        drop(std::os::unix::net::UnixListener::bind(&settings.path).expect("a free path"));
        let start = std::sync::Barrier::new(4);
        let bind = || {
            start.wait();
            let bound = unix::bind(&settings);
            start.wait();
            bound.is_ok()
        };
        let winners: usize = std::thread::scope(|scope| {
            let all = [(); 4].map(|()| scope.spawn(bind));
            all.into_iter().map(|one| usize::from(one.join().expect("no panic"))).sum()
        });
        assert_eq!(winners, 1);
    }
}

#[test]
fn what_is_no_socket_is_never_removed() {
    let folder = Folder::new();
    let settings = folder.socket();
    fs::write(&settings.path, "precious").expect("a free path");
    assert!(matches!(unix::bind(&settings), Err(BindError::NotASocket(_))));
    assert_eq!(fs::read_to_string(&settings.path).expect("still there"), "precious");
    fs::remove_file(&settings.path).expect("ours");
    std::os::unix::fs::symlink("elsewhere", &settings.path).expect("a free path");
    assert!(matches!(unix::bind(&settings), Err(BindError::NotASocket(_))));
}

#[test]
fn a_successors_socket_is_not_removed() {
    let folder = Folder::new();
    let settings = folder.socket();
    let bound = unix::bind(&settings).expect("a free path");
    fs::remove_file(&settings.path).expect("removed by somebody");
    let successor = std::os::unix::net::UnixListener::bind(&settings.path).expect("a free path");
    drop(bound);
    assert!(settings.path.exists());
    drop(successor);
}

#[test]
fn a_missing_folder_is_named() {
    let settings = Socket { path: "/nonexistent/bitnetd/s".into(), mode: 0o660, connections: 1 };
    let error = unix::bind(&settings).expect_err("no folder").to_string();
    assert!(error.starts_with("/nonexistent/bitnetd: no such directory"), "{error}");
}

#[test]
fn a_file_that_is_removed_is_made_again_and_another_daemons_is_left_alone() {
    let folder = Folder::new();
    let settings = folder.socket();
    let (listener, mut address) = unix::bind(&settings).expect("a free path");
    assert!(address.restore(settings.mode).expect("nothing to do").is_none());
    // With its lock file, as by a program that tidies up.
    for entry in fs::read_dir(folder.0.path()).expect("ours") {
        fs::remove_file(entry.expect("ours").path()).expect("ours");
    }
    let again = address.restore(settings.mode).expect("a free path").expect("it was gone");
    assert_eq!(mode(&settings.path), settings.mode);
    std::os::unix::net::UnixStream::connect(&settings.path).expect("listened on again");
    assert!(matches!(unix::bind(&settings), Err(BindError::Taken(_))), "the lock is there again");
    // The new listener stays open: as long as it does, no other file gets its number.
    drop(listener);
    fs::remove_file(&settings.path).expect("ours");
    let foreign = std::os::unix::net::UnixListener::bind(&settings.path).expect("a free path");
    assert!(matches!(address.restore(settings.mode), Err(BindError::Taken(_))));
    drop(address);
    assert!(settings.path.exists(), "a successor's file is not removed");
    drop((foreign, again));
}
