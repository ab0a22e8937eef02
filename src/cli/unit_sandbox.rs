//! Which files the service does not see or cannot read: systemd/bitnetd.service hides folders and runs it as a user of its own.

use std::fs::File;
use std::io::ErrorKind;
use std::path::Path;

/// Folders of people, which `ProtectHome=yes` hides, and those that `PrivateTmp=yes` replaces by others.
const HIDDEN: [(&str, &str); 5] = [
    ("/home", "ProtectHome=yes"),
    ("/root", "ProtectHome=yes"),
    ("/run/user", "ProtectHome=yes"),
    ("/tmp", "PrivateTmp=yes"),
    ("/var/tmp", "PrivateTmp=yes"),
];

/// Why the service cannot read a file of this path, and what to do; `None` where nothing hides it.
pub(super) fn hidden(path: &Path) -> Option<String> {
    let (folder, setting) = HIDDEN.iter().find(|(folder, _)| path.starts_with(folder))?;
    Some(format!("{setting} of bitnetd.service hides {folder} from the service; move it to /var/lib/bitnetd"))
}

/// Why this process, which is the service, may not read a file, and what to do; `None` where it may, or where something else is
/// wrong.
pub(super) fn unreadable(path: &Path) -> Option<String> {
    // Before it is opened: to open a pipe waits for its other end.
    let error = match path.metadata() {
        Ok(metadata) if !metadata.is_file() => return None,
        Ok(_) => File::open(path).err()?,
        Err(error) => error,
    };
    (error.kind() == ErrorKind::PermissionDenied).then(|| {
        "the service runs with a user of its own, whose group is bitnetd, and may not read it: give the file that group and \
         `chmod g+r`, and its folders `chmod g+x`"
            .to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_of_people_are_hidden_and_those_of_the_system_are_not() {
        let of = |path: &str| hidden(Path::new(path));
        assert!(of("/home/pi/model.gguf").is_some_and(|text| text.starts_with("ProtectHome=yes")));
        assert!(of("/tmp/model.gguf").is_some_and(|text| text.starts_with("PrivateTmp=yes")));
        assert_eq!([of("/var/lib/bitnetd/model.gguf"), of("/homes/a"), of("model.gguf")], [None, None, None]);
    }

    /// Root may read everything.
    #[test]
    fn a_file_that_only_others_may_read_is_named_with_the_way_out() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::TempDir::with_prefix("bitnetd-").expect("a temporary folder");
        let path = folder.path().join("model.gguf");
        assert_eq!(unreadable(&path), None, "it is missing, which is another matter");
        std::fs::write(&path, "GGUF").expect("a temporary folder");
        assert_eq!(unreadable(&path), None);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o200)).expect("our own");
        let is_root = rustix::process::geteuid().is_root();
        assert_eq!(unreadable(&path).is_some_and(|text| text.contains("group is bitnetd")), !is_root);
    }
}
