//! Which folders the service does not see: systemd/bitnetd.service hides them. Deliberately opens nothing.

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
}
