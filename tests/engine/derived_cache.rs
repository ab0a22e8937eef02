//! The cache of data derived from a model file, across starts.

use bitnetd::engine::derived_cache::DerivedCache;
use std::cell::Cell;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use tempfile::TempDir;

/// A temporary folder.
fn folder() -> TempDir {
    TempDir::with_prefix("bitnetd-").expect("a temporary folder")
}

fn model(folder: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder.join(name);
    fs::write(&path, bytes).expect("a writable folder");
    path
}

/// Requests an image of `bytes`; returns whether it had to be computed, and why it could not be stored.
fn ask(cache: &DerivedCache, bytes: &[u8]) -> (bool, Option<String>) {
    let made = Cell::new(false);
    let write = |out: &mut dyn Write| {
        made.set(true);
        out.write_all(bytes)
    };
    let image =
        cache.load_or_create("head", bytes.len(), |image| image == bytes, write).expect("memory for it");
    assert_eq!(&image.map[image.start..], bytes);
    (made.get(), image.not_cached_because)
}

fn only_file(root: &Path) -> PathBuf {
    let model = fs::read_dir(root).expect("there").next().expect("one model").expect("readable").path();
    model.join("head")
}

#[test]
fn an_image_is_made_once() {
    let folder = folder();
    let (root, model) = (folder.path().join("cache"), model(folder.path(), "m.gguf", b"a model"));
    let cache = DerivedCache::for_model(&root, &model);
    assert_eq!(ask(&cache, b"image"), (true, None));
    assert_eq!(ask(&cache, b"image"), (false, None));
    assert_eq!(ask(&DerivedCache::for_model(&root, &model), b"image"), (false, None));
}

#[test]
fn an_image_that_is_damaged_or_of_another_size_is_made_again() {
    let folder = folder();
    let (root, model) = (folder.path().join("cache"), model(folder.path(), "m.gguf", b"a model"));
    let cache = DerivedCache::for_model(&root, &model);
    ask(&cache, b"image");
    let path = only_file(&root);
    let whole = fs::read(&path).expect("kept");
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        fs::write(&path, bytes).expect("writable");
        assert_eq!(ask(&cache, b"image"), (true, None), "byte {at}");
        assert_eq!(fs::read(&path).expect("kept"), whole, "made anew");
    }
    fs::write(&path, &whole[..whole.len() - 1]).expect("writable");
    assert_eq!(ask(&cache, b"image"), (true, None));
    assert_eq!(ask(&cache, b"a longer image"), (true, None));
    fs::remove_file(&path).expect("there");
    fs::create_dir(&path).expect("writable");
    let (made, why) = ask(&cache, b"image");
    assert!(made && why.is_some_and(|why| why.contains("head")));
}

/// The image that is kept, `is_sound` being no help: whether it had to be made.
fn is_made(cache: &DerivedCache, name: &str, bytes: &[u8]) -> bool {
    let made = Cell::new(false);
    let write = |out: &mut dyn Write| {
        made.set(true);
        // In pieces, as a head is written.
        bytes.chunks(1000).try_for_each(|piece| out.write_all(piece))
    };
    let image = cache.load_or_create(name, bytes.len(), |_| true, write).expect("memory for it");
    assert!(image.map[image.start..] == *bytes);
    made.get()
}

#[test]
fn the_checksum_finds_damage_anywhere_without_another_look_at_the_model() {
    let folder = folder();
    let (root, model) = (folder.path().join("cache"), model(folder.path(), "m.gguf", b"a model"));
    let cache = DerivedCache::for_model(&root, &model);
    let bytes: Vec<u8> = (0..300_000u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    assert!(is_made(&cache, "head", &bytes) && !is_made(&cache, "head", &bytes));
    let path = only_file(&root);
    let whole = fs::read(&path).expect("kept");
    for at in (64..whole.len()).step_by(9973) {
        let mut damaged = whole.clone();
        let end = whole.len().min(at + 4096);
        damaged[at..end].fill(0);
        fs::write(&path, damaged).expect("writable");
        assert!(is_made(&cache, "head", &bytes), "byte {at}");
        assert!(!is_made(&cache, "head", &bytes), "byte {at}: made anew");
    }
}

#[test]
fn an_image_of_another_form_or_model_is_not_taken_for_this_one() {
    let folder = folder();
    let root = folder.path().join("cache");
    let cache = DerivedCache::for_model(&root, &model(folder.path(), "m.gguf", b"a model"));
    assert!(is_made(&cache, "head", b"image") && is_made(&cache, "other", b"IMAGE"));
    let path = only_file(&root);
    fs::copy(path.with_file_name("other"), &path).expect("writable");
    assert!(is_made(&cache, "head", b"image"), "another form");
    let second = DerivedCache::for_model(&root, &model(folder.path(), "n.gguf", b"another"));
    assert!(is_made(&second, "head", b"image"));
    for model in fs::read_dir(&root).expect("there").flatten() {
        let here = model.path().join("head");
        if here != path {
            fs::write(&path, [&fs::read(&here).expect("kept")[..64], b"IMAGE"].concat()).expect("writable");
            assert!(is_made(&cache, "head", b"image"), "another model with its header");
        }
    }
}

#[test]
fn links_are_not_followed() {
    let folder = folder();
    let (root, model) = (folder.path().join("cache"), model(folder.path(), "m.gguf", b"a model"));
    let cache = DerivedCache::for_model(&root, &model);
    assert!(is_made(&cache, "head", b"image"));
    cache.store_text("layout", "64");
    let path = only_file(&root);
    for name in ["head", "layout"] {
        let elsewhere = folder.path().join(name);
        fs::rename(path.with_file_name(name), &elsewhere).expect("writable");
        std::os::unix::fs::symlink(&elsewhere, path.with_file_name(name)).expect("writable");
    }
    assert_eq!(cache.text("layout"), None);
    assert!(is_made(&cache, "head", b"image"), "a link to a sound image");
    assert!(fs::symlink_metadata(&path).expect("there").is_file(), "made anew in its place");
    let own = path.parent().expect("a folder").to_owned();
    fs::rename(&own, folder.path().join("moved")).expect("writable");
    std::os::unix::fs::symlink(folder.path().join("moved"), &own).expect("writable");
    fs::remove_file(folder.path().join("moved/head")).expect("there");
    let image =
        cache.load_or_create("head", 5, |_| true, |out| out.write_all(b"image")).expect("memory for it");
    assert!(image.not_cached_because.is_some_and(|why| why.contains("link")));
    assert!(!folder.path().join("moved/head").exists());
}

#[test]
fn another_model_file_has_a_folder_of_its_own() {
    let folder = folder();
    let root = folder.path().join("cache");
    let first = DerivedCache::for_model(&root, &model(folder.path(), "m.gguf", b"a model"));
    first.store_text("layout", "64");
    assert_eq!(first.text("layout").as_deref(), Some("64"));
    let changed = DerivedCache::for_model(&root, &model(folder.path(), "m.gguf", b"another"));
    assert_eq!(changed.text("layout"), None);
    assert_ne!(changed, first);
}

#[test]
fn models_used_longest_ago_make_room() {
    let folder = folder();
    let root = folder.path().join("cache");
    fs::create_dir_all(root.join("of somebody else")).expect("writable");
    let cache: Vec<DerivedCache> = (0..7u8)
        .map(|at| DerivedCache::for_model(&root, &model(folder.path(), &format!("{at}.gguf"), &[at; 9])))
        .collect();
    cache.iter().for_each(|cache| cache.store_text("layout", "128"));
    let there = cache.iter().filter(|cache| cache.text("layout").is_some()).count();
    assert_eq!(there, 4);
    assert!(cache[6].text("layout").is_some());
    assert!(root.join("of somebody else").is_dir(), "what is not ours stays");
}

#[test]
fn leftovers_of_an_interrupted_start_are_removed() {
    let folder = folder();
    let (root, model) = (folder.path().join("cache"), model(folder.path(), "m.gguf", b"a model"));
    let cache = DerivedCache::for_model(&root, &model);
    ask(&cache, b"image");
    let (left, fresh) =
        (only_file(&root).with_file_name("head.1-1.part"), only_file(&root).with_file_name("head.2-2.part"));
    fs::write(&left, b"half").expect("writable");
    fs::write(&fresh, b"half").expect("writable");
    let yesterday = SystemTime::now() - Duration::from_secs(86_400);
    File::open(&left).and_then(|file| file.set_modified(yesterday)).expect("ours");
    cache.store_text("layout", "128");
    assert!(!left.exists() && fresh.exists(), "another start may be writing it");
}

#[test]
fn where_nothing_can_be_stored_everything_is_made_each_time() {
    let folder = folder();
    assert_eq!(ask(&DerivedCache::disabled(), b"image"), (true, None));
    // A file where the folder should be.
    let cache = DerivedCache::for_model(
        &model(folder.path(), "file", b""),
        &model(folder.path(), "m.gguf", b"a model"),
    );
    let (made, why) = ask(&cache, b"image");
    assert!(made && why.is_some());
    cache.store_text("layout", "128");
    assert_eq!(cache.text("layout"), None);
    assert_eq!(
        DerivedCache::for_model(folder.path(), &folder.path().join("no such file")),
        DerivedCache::disabled()
    );
}
